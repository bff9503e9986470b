"""AUROC, average precision and midranks of every unit.

Tensors only: no sites, no models. NaN is not looked for: the caller has checked that activations are finite. Results
are float64 on the CPU, wherever the input is. What the scores are sums over is in `ties`, how units are shared out
among threads in `unit_chunks`.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lens_steer.errors import ActivationError
from lens_steer.statistics.ties import TieGroups, doubled_midranks, tie_groups
from lens_steer.statistics.unit_chunks import check_sides, map_units


def auroc(source: Float[Tensor, "n unit"], target: Float[Tensor, "m unit"]) -> Float[Tensor, "unit"]:
    """Return each unit's probability that a source text activates it more than a target text does, ties counting half.

    1 tells source from target perfectly, 0.5 not at all, and below 0.5 the unit fires for the target. Equals
    scikit-learn's `roc_auc_score` with the source as positive class. Refuses an empty side and sides with different
    units.
    """
    return _scores((group_auroc,), source, target)[0]


def average_precision(source: Float[Tensor, "n unit"], target: Float[Tensor, "m unit"]) -> Float[Tensor, "unit"]:
    """Return each unit's average precision at finding the source texts.

    Chance level is the source's share of the texts. Tied texts are retrieved together, as in scikit-learn's
    `average_precision_score`; no interpolation. Refuses what `auroc` refuses.
    """
    return _scores((group_average_precision,), source, target)[0]


def auroc_and_average_precision(
    source: Float[Tensor, "n unit"], target: Float[Tensor, "m unit"]
) -> tuple[Float[Tensor, "unit"], Float[Tensor, "unit"]]:
    """Return `auroc` and `average_precision` of every unit for the price of one sort."""
    area, precision = _scores((group_auroc, group_average_precision), source, target)
    return area, precision


def midranks(values: Float[Tensor, "text unit"]) -> Float[Tensor, "text unit"]:
    """Return each text's rank within its unit, 1 for the smallest value; tied texts share the mean of their ranks."""
    if values.shape[0] == 0:
        raise ActivationError("Ranks need at least one text; these activations have none.")
    ranks = map_units(lambda chunk: doubled_midranks(chunk).T / 2, values)
    return torch.from_numpy(ranks)


def group_auroc(groups: TieGroups) -> Float[np.ndarray, "unit"]:
    """Return AUROC: the share of pairs of texts in which the source lies above the target, ties counting half."""
    n, m = groups.texts
    return groups.wins / (2.0 * n * m)


def group_average_precision(groups: TieGroups) -> Float[np.ndarray, "unit"]:
    """Return average precision: the precision down to each tie group, weighted by the group's source texts."""
    reached = groups.hits + groups.false_hits
    precision = np.divide(groups.hits, reached, out=reached)
    precision *= groups.source
    return groups.total(precision) / groups.texts[0]


def _scores(
    scores: tuple[Callable[[TieGroups], np.ndarray], ...],
    source: Float[Tensor, "n unit"],
    target: Float[Tensor, "m unit"],
) -> Float[Tensor, "score unit"]:
    check_sides(source, target)

    def of_chunk(above: Float[np.ndarray, "unit n"], below: Float[np.ndarray, "unit m"]) -> np.ndarray:
        groups = tie_groups(above, below)
        return np.stack([score(groups) for score in scores])

    return torch.from_numpy(map_units(of_chunk, source, target))
