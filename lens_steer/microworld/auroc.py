"""AUROC of many units at telling many attribute values apart, for the quality report alone.

Ties count half. The room that ranks experts for users is `lens_steer.ranking`; this one stays free of everything but
numpy.
"""

from __future__ import annotations

import numpy as np

from lens_steer.microworld.shapes import Array, Bool, Float


def auroc(activations: Float[Array, "text unit"], labels: Bool[Array, "text label"]) -> Float[Array, "label unit"]:
    """P(a text with the label scores above one without it) per label and unit; nan where a side is empty."""
    ranks = np.empty(activations.shape)
    for unit in range(activations.shape[1]):
        _, inverse, times = np.unique(activations[:, unit], return_inverse=True, return_counts=True)
        ranks[:, unit] = (np.cumsum(times) - (times - 1) / 2)[inverse]
    positive = labels.sum(0)[:, None].astype(float)
    negative = len(labels) - positive
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((labels.T.astype(float) @ ranks - positive * (positive + 1) / 2) / (positive * negative))


def best_heldout(
    activations: Float[Array, "text unit"], labels: Bool[Array, "text label"]
) -> tuple[Float[Array, " label"], Float[Array, " label"]]:
    """Per label the unit that is best on the even texts, and its AUROC on the odd ones."""
    chosen = np.nan_to_num(auroc(activations[::2], labels[::2]), nan=0.5).argmax(-1)
    held = auroc(activations[1::2][:, chosen], labels[1::2])
    return chosen.astype(float), held[np.arange(len(chosen)), np.arange(len(chosen))]
