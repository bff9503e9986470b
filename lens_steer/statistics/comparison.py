"""All that a ranking asks of every unit, from one sort of its texts: areas, variances, distances, means, halves."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_steer.errors import ActivationError
from lens_steer.statistics.scores import group_auroc, group_average_precision
from lens_steer.statistics.significance import delong_variance, mann_whitney_deviation
from lens_steer.statistics.ties import SortedTexts
from lens_steer.statistics.unit_chunks import map_units
from lens_steer.statistics.wasserstein import group_wasserstein


@dataclass(frozen=True, eq=False)
class Comparison:
    """Per unit, float64: how source texts differ from target texts.

    Attributes
    ----------
    auroc, variance, average_precision:
        Of all texts; the variance is DeLong's (`delong_variance`).
    deviation:
        Mann and Whitney's, for `normal_p`.
    wasserstein:
        Of order 1.
    source_mean, target_mean:
        Of all texts.
    selection_auroc, heldout_auroc, heldout_variance:
        Of the texts that are not held out and of those that are; nan where none is.
    distance:
        Source mean minus target mean over the texts that are not held out, in standard deviations within the sides; 0
        where nothing varies.

    """

    auroc: Float[Tensor, " unit"]
    variance: Float[Tensor, " unit"]
    average_precision: Float[Tensor, " unit"]
    deviation: Float[Tensor, " unit"]
    wasserstein: Float[Tensor, " unit"]
    source_mean: Float[Tensor, " unit"]
    target_mean: Float[Tensor, " unit"]
    selection_auroc: Float[Tensor, " unit"]
    heldout_auroc: Float[Tensor, " unit"]
    heldout_variance: Float[Tensor, " unit"]
    distance: Float[Tensor, " unit"]


def compare_sides(
    values: Float[Tensor, "text unit"],
    label: Int[np.ndarray, " text"],
    heldout: Bool[np.ndarray, " text"] | None = None,
) -> Comparison:
    """Compare the texts labelled 1, the source, with those labelled 0; others take no part.

    ActivationError where a side, or one of its halves, has no texts.
    """
    held = np.zeros(len(label), dtype=np.bool_) if heldout is None else heldout
    # Sides and halves lie one behind the other: whatever is of one is a slice.
    parts = [np.flatnonzero((label == side) & (held == half)) for side in (1, 0) for half in (False, True)]
    for rows in parts[:: 1 if held.any() else 2]:
        if len(rows) == 0:
            raise ActivationError("A side, or one of its halves, has no texts; a comparison needs one of each.")
    texts = np.concatenate(parts)
    is_source, is_held = label[texts] == 1, held[texts]
    n = int(is_source.sum())
    source, target = slice(n), slice(n, len(texts))
    selection = slice(len(parts[0])), slice(n, n + len(parts[2]))

    def of_chunk(chunk: Float[np.ndarray, "unit chosen"]) -> Float[np.ndarray, "statistic unit"]:
        ordered = SortedTexts.of(chunk)
        sides, halves = (is_source, ~is_source), np.full((3, len(chunk)), np.nan)
        if is_held.any():
            whole, held = ordered.groups(sides, (is_source & is_held, ~is_source & is_held))
            pairs = 2.0 * (whole.texts[0] - held.texts[0]) * (whole.texts[1] - held.texts[1])
            halves[:] = whole.wins_without(held) / pairs, group_auroc(held), delong_variance(held)
        else:
            (whole,) = ordered.groups(sides)
        exact = chunk.astype(np.float64)
        return np.stack(
            [
                group_auroc(whole),
                delong_variance(whole),
                group_average_precision(whole),
                mann_whitney_deviation(whole),
                group_wasserstein(whole, ordered.values),
                exact[:, source].mean(1),
                exact[:, target].mean(1),
                *halves,
                _standardised_gap(*(exact[:, part] for part in selection)),
            ]
        )

    statistics = torch.from_numpy(map_units(of_chunk, values, texts=texts))
    return Comparison(**dict(zip((field.name for field in fields(Comparison)), statistics, strict=True)))


def _standardised_gap(
    source: Float[np.ndarray, "unit n"], target: Float[np.ndarray, "unit m"]
) -> Float[np.ndarray, " unit"]:
    means = [side.mean(1) for side in (source, target)]
    away = [side - mean[:, None] for side, mean in zip((source, target), means, strict=True)]
    variances = [np.einsum("ij,ij->i", side, side) / side.shape[1] for side in away]
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = (means[0] - means[1]) / np.sqrt((variances[0] + variances[1]) / 2)
    return np.asarray(np.nan_to_num(gap, nan=0.0))
