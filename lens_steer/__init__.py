"""Find the expert units of a language model, steer it by editing few of them, and see what the edit does downstream.

The public names stand in `__init__.pyi` and are loaded when they are first used: importing lens_steer costs nothing.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
