"""The microworld: a small English-like language whose every probability is known, and a small model trained on it.

`sample` draws documents with their hidden attributes, `Oracle` answers about any text exactly (grammar, likelihood,
attributes, next words), `named_contrast` and the prompts serve experiments, `steering_error` compares a hosted model
with the grammar. Importing this loads no torch; `steering_error` does. The embedded model is trained in
`tools/microworld`.
"""

from importlib import import_module
from typing import Any

from lens_steer.microworld.contrasts import contrast_names, named_contrast
from lens_steer.microworld.counting import counts
from lens_steer.microworld.english import english
from lens_steer.microworld.oracle import Oracle
from lens_steer.microworld.prompts import open_prompts, shown_prompts
from lens_steer.microworld.sampler import Document, sample
from lens_steer.microworld.steering import SteeringError, SteeringTask, steering_error_from_log_probs

__all__ = [
    "Document",
    "Oracle",
    "SteeringError",
    "SteeringTask",
    "contrast_names",
    "counts",
    "english",
    "named_contrast",
    "open_prompts",
    "sample",
    "shown_prompts",
    "steering_error_from_log_probs",
]


def __getattr__(name: str) -> Any:
    """Find `steering_error` at lens_steer's own face: it runs a model, so its home is above this room."""
    if name == "steering_error":
        return getattr(import_module("lens_steer"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
