"""The microworld: a small English-like language whose every probability is known, and a small model trained on it.

`sample` draws documents with their hidden attributes, `Oracle` answers about any text exactly (grammar, likelihood,
attributes, next words), `named_contrast` and the prompts serve experiments. Importing this needs numpy only; `train`
and `quality` need torch.
"""

from lens_steer.microworld.contrasts import contrast_names, named_contrast
from lens_steer.microworld.counting import counts
from lens_steer.microworld.english import english
from lens_steer.microworld.oracle import Oracle
from lens_steer.microworld.prompts import open_prompts, shown_prompts
from lens_steer.microworld.sampler import Document, sample
from lens_steer.microworld.steering import SteeringError, steering_error_from_log_probs

__all__ = [
    "Document",
    "Oracle",
    "SteeringError",
    "contrast_names",
    "counts",
    "english",
    "named_contrast",
    "open_prompts",
    "sample",
    "shown_prompts",
    "steering_error_from_log_probs",
]
