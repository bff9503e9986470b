"""Distances between samples without a floor: unbiased, so that two samples of one law lie at distance 0 on average.

A Wasserstein distance between finite samples of one law is not 0; shares of it that an edit "removes" depend on the
number of texts. The energy distance (Szekely and Rizzo, J. Stat. Plan. Inference 2013), E = 2 E|x - y| - E|x - x'| -
E|y - y'|, has an unbiased estimate, the U-statistic that leaves out each text's distance to itself. In one dimension it
is twice the integral of the squared difference of the distribution functions: it grows like the square of a small shift
of the mean and like a large one, and an estimate may lie a little below 0.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import cdist

from lens_steer.errors import ActivationError, SettingError

_FEWEST = 2  # texts of a side: one has no distance to another of its side


def unit_energy_distances(
    source: Float[np.ndarray, "n unit"], target: Float[np.ndarray, "m unit"]
) -> Float[np.ndarray, " unit"]:
    """Return the unbiased energy distance of every unit alone, in the unit's own scale.

    Raises
    ------
    ActivationError
        A side has fewer than two texts.

    """
    _check(source, target)
    n, m = len(source), len(target)
    both = np.concatenate([source, target])
    within_source, within_target, within_both = (_pair_sums(values) for values in (source, target, both))
    between = (within_both - within_source - within_target) / 2
    return np.asarray(2 * between / (n * m) - within_source / (n * (n - 1)) - within_target / (m * (m - 1)))


def _pair_sums(values: Float[np.ndarray, "row unit"]) -> Float[np.ndarray, " unit"]:
    """Sum |x_i - x_j| over all ordered pairs of rows."""
    rows = len(values)
    ranks = 2 * np.arange(rows, dtype=np.float64) - rows + 1
    return np.asarray(2 * ranks @ np.sort(values.astype(np.float64), axis=0))


class EnergyDistances:
    """The pairwise distances of rows, added up over units, from which energy distances of any two samples follow.

    `values` [row unit] in the unit's standard deviation; rows of several samples (source, edited source, target) stand
    one below the other. Added up over units, distances of layers of different width are comparable per unit.
    """

    def __init__(self, values: Float[np.ndarray, "row unit"]) -> None:
        self._distance = cdist(values, values, metric="cityblock")

    def between(
        self, source: Float[np.ndarray, "case row"], target: Float[np.ndarray, "case row"]
    ) -> Float[np.ndarray, " case"]:
        """Return the unbiased energy distance between the rows marked 1 in `source` and in `target`, for each case.

        A case is one choice of rows, such as the whole sample, or the sample with a group of texts left out. nan where
        a side has fewer than two rows. A row may stand on one side only.
        """
        if np.any(source * target):
            raise SettingError("a row stands on one side only")
        sizes = [marked.sum(1) for marked in (source, target)]
        enough = np.minimum(*sizes) >= _FEWEST
        across = np.einsum("ci,ij,cj->c", source, self._distance, target, optimize=True)
        inside = [
            np.einsum("ci,ij,cj->c", marked, self._distance, marked, optimize=True) for marked in (source, target)
        ]
        with np.errstate(invalid="ignore", divide="ignore"):
            energy = 2 * across / (sizes[0] * sizes[1])
            energy = energy - sum(total / (size * (size - 1)) for total, size in zip(inside, sizes, strict=True))
        return np.where(enough, energy, np.nan)


def squared_gap(source: Float[np.ndarray, "n unit"], target: Float[np.ndarray, "m unit"]) -> float:
    """Return the squared distance of the two means, unbiased: 0 on average for two samples of one law.

    The squared distance of the samples' means, less what their noise adds to it. Values in the unit's standard
    deviation, summed over units.
    """
    _check(source, target)
    gap = target.mean(0) - source.mean(0)
    noise = source.var(0, ddof=1).sum() / len(source) + target.var(0, ddof=1).sum() / len(target)
    return float(gap @ gap - noise)


def along_gap(
    effects: Float[np.ndarray, "row unit"],
    source: Float[np.ndarray, "n unit"],
    target: Float[np.ndarray, "m unit"],
    *,
    of: Literal["source", "target", "others"],
) -> Float[np.ndarray, " row"]:
    """Return each text's effect, projected on the way from the source's mean to the target's: a product, unnormalised.

    Divided by `squared_gap` it is the share of the way that the effect goes: 1 arrives. `of` says whose texts the
    effects belong to; the way that a text is projected on leaves the text itself out, since its noise stands in its
    effect too. So mean and ratio are free of the pull towards 0 that an estimated way has (a cross-fit over all pairs).
    """
    _check(source, target)
    way = target.mean(0) - source.mean(0)
    products = effects @ way
    if of == "others":
        return np.asarray(products)
    own, sign = (source, 1.0) if of == "source" else (target, -1.0)
    if len(own) != len(effects):
        raise ActivationError(f"{len(effects)} effects for {len(own)} texts of the {of}: give one per text, in order")
    # Without text i the mean of its side is (n mean - x_i) / (n - 1): the way changes by sign * (x_i - mean) / (n - 1).
    return np.asarray(products + sign * ((own - own.mean(0)) * effects).sum(1) / (len(own) - 1))


def _check(source: Float[np.ndarray, "n unit"], target: Float[np.ndarray, "m unit"]) -> None:
    if min(len(source), len(target)) < _FEWEST:
        raise ActivationError(
            f"a distance between samples needs two texts a side or more, not {len(source)} and {len(target)}"
        )
