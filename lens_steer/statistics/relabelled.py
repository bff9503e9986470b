"""Every unit under many labellings at once: its AUROC, and how far its sides lie apart.

A unit is ranked once, and each labelling is a sum of its ranks; distances are sums of its values and their squares.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from lens_steer.statistics.ties import doubled_midranks
from lens_steer.statistics.unit_chunks import map_units


def relabelled_auroc(
    values: Float[Tensor, "text unit"], labels: Bool[np.ndarray, "labelling text"]
) -> Float[np.ndarray, "labelling unit"]:
    """Return the AUROC of every unit under every labelling (True: source); each labelling has texts of both sides."""
    exact, counts = exact_floats(labels), labels.sum(1, keepdims=True)
    sums = map_units(lambda chunk: centred_rank_sums(chunk, exact), values).astype(np.float64)
    area: Float[np.ndarray, "labelling unit"] = 0.5 + sums / (2 * counts * (labels.shape[1] - counts))
    return area


def relabelled_distance(
    values: Float[Tensor, "text unit"], labels: Bool[np.ndarray, "labelling text"]
) -> Float[np.ndarray, "labelling unit"]:
    """Return, under every labelling, what orders units of one AUROC: `distance` of a `Comparison`."""
    centred = values.double().cpu().numpy()
    centred = centred - centred.mean(0)
    source, texts = labels.astype(np.float64), labels.shape[1]
    counts = source.sum(1, keepdims=True)
    sums, squares = source @ centred, source @ np.square(centred)
    one, other = sums / counts, -sums / (texts - counts)
    variances = squares / counts - one**2 + (np.square(centred).sum(0) - squares) / (texts - counts) - other**2
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.nan_to_num((one - other) / np.sqrt(np.maximum(variances, 0) / 2), nan=0.0))


def exact_floats(labels: Bool[np.ndarray, "labelling text"]) -> Float[np.ndarray, "labelling text"]:
    """Return labels as 1 and 0 in the smallest type in which `centred_rank_sums` are exact."""
    # Doubled and centred ranks are integers: as long as partial sums stay below 2^24 a float32 product is exact.
    small = int(labels.sum(1).max()) * labels.shape[1] < 1 << 24
    return labels.astype(np.float32 if small else np.float64)


def centred_rank_sums(
    chunk: Float[np.ndarray, "unit text"], labels: Float[np.ndarray, "labelling text"]
) -> Float[np.ndarray, "labelling unit"]:
    """Return the sums of the source's doubled midranks, less their mean under random labels."""
    centred = (doubled_midranks(chunk) - (chunk.shape[1] + 1)).astype(labels.dtype)
    return np.asarray(np.matmul(labels, centred.T))
