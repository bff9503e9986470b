"""Distances between samples without a floor: unbiased, so that two samples of one law lie at distance 0 on average.

A Wasserstein distance between finite samples of one law is not 0, so a share of it that an edit "removes" depends on
the number of texts. All statistics here are means of a kernel over pairs of rows of different blocks (U-statistics):
rows of one block, such as copies of a text, the two texts of a pair, or a text and its edited self, are not independent
and are never paired. Each is computed for many cases at once, such as the whole sample and the sample with a group of
texts left out (`leave_groups_out`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.distance import cdist

from lens_steer.errors import ActivationError
from lens_steer.statistics.intervals import Interval
from lens_steer.statistics.jackknife import case_means, jackknife_interval, leave_groups_out

_HARDLY = 0.1  # of the median spread


def varying(spread: Float[np.ndarray, " unit"]) -> Bool[np.ndarray, " unit"]:
    """Return which units of a site vary enough to be counted in their own standard deviation, given by `spread`.

    Those with at least a tenth of the site's median spread, taken over the units that vary at all (`spread` is not nan,
    and not 0). An edit that moves every unit by the usual spread moves a unit that hardly varies by thousands of its
    own, and a sum over units would be about that unit alone; here such a move is of ten at most.
    """
    known = np.nan_to_num(spread)
    usual = float(np.median(known[known > 0])) if known.any() else 0.0
    return np.asarray((known > 0) & (known >= _HARDLY * usual))


@dataclass(frozen=True, eq=False)
class Sample:
    """Rows of one sample, the block that each belongs to, and which rows each case keeps (1; 0: left out).

    Rows with one block number are dependent, also where they are rows of different samples.
    """

    values: Float[np.ndarray, "row unit"]
    blocks: Int[np.ndarray, " row"]
    kept: Float[np.ndarray, "case row"]

    def mean(self, column: Float[np.ndarray, " row"]) -> Float[np.ndarray, " case"]:
        """Return the mean of a column over the rows that each case keeps; nan where it keeps none."""
        return case_means(self.kept, column)


def energy_distance(source: Sample, target: Sample) -> Float[np.ndarray, " case"]:
    """Return the unbiased energy distance, 2 E|x - y| - E|x - x'| - E|y - y'|, added up over units.

    Szekely and Rizzo, J. Stat. Plan. Inference 2013, unit by unit: in one dimension it is twice the integral of the
    squared difference of the distribution functions. It grows like the square of a small shift of the mean (so half a
    small shift leaves a quarter of it) and like a large one; an estimate may lie a little below 0. nan where a case
    keeps fewer than two blocks of a side.
    """
    across, within_source, within_target = (
        _pair_means(cdist(one.values, other.values, metric="cityblock"), one, other)
        for one, other in ((source, target), (source, source), (target, target))
    )
    return np.asarray(2 * across - within_source - within_target)


def squared_gap(source: Sample, target: Sample) -> Float[np.ndarray, " case"]:
    """Return the squared distance of the two means, unbiased: 0 on average for two samples of one law."""
    one, other = _centred(source, target)
    return np.asarray(_product_means(one, one) + _product_means(other, other) - 2 * _product_means(one, other))


def along_gap(effects: Sample, source: Sample, target: Sample) -> Float[np.ndarray, " case"]:
    """Return the mean effect, projected on the way from the source's mean to the target's: an unnormalised product.

    Divided by `squared_gap` it is the share of the way that the effect goes: 1 arrives. The way that an effect is
    projected on leaves out the text's own block, whose noise stands in the effect too: so neither product nor square is
    pulled by the noise of an estimated way (a cross-fit over all pairs).
    """
    one, other = _centred(source, target)
    return np.asarray(_product_means(effects, other) - _product_means(effects, one))


def squared_size(effects: Sample) -> Float[np.ndarray, " case"]:
    """Return the squared length of the mean effect, unbiased: 0 on average for effects that cancel out."""
    return _product_means(effects, effects)


def removed_share(
    before: Float[np.ndarray, "_ _"],
    after: Float[np.ndarray, "_ _"],
    target: Float[np.ndarray, "_ _"],
    *,
    blocks: tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]] | None = None,
    confidence: float = 0.95,
) -> Interval:
    """Return which share of the energy distance from source to target an edit removes: 1 is all, 0 nothing.

    Parameters
    ----------
    before, after:
        The source's values [text, unit], unedited and edited, text by text; units on one scale, such as the standard
        deviation. Units add up, so one that hardly varies and is moved far decides alone: `downstream_shift` leaves
        those out whose standard deviation is below a tenth of their site's median.
    target:
        The unedited target's values. Where they differ from what the edit was fitted on, 1 is reached on average by an
        edit that brings the source onto the target's law, whatever the number of texts.
    blocks:
        Of source and target texts; dependent texts have one number. None: all texts are independent.
    confidence:
        Of the interval, a delete-a-group jackknife.

    Estimate and ends are nan where the distance before is not shown to be above 0.

    Raises
    ------
    ActivationError
        Source texts before and after, or units, differ in number.

    """
    if before.shape != after.shape or before.shape[1] != target.shape[1]:
        raise ActivationError(
            f"before {before.shape}, after {after.shape} and target {target.shape} are of the same units, the first two"
            " of the same texts"
        )
    of_source, of_target = blocks or (np.arange(len(before)), len(before) + np.arange(len(target)))
    kept_source, kept_target = leave_groups_out(of_source, of_target)
    whole = Sample(target.astype(float), of_target, kept_target)
    distances = [energy_distance(Sample(v.astype(float), of_source, kept_source), whole) for v in (before, after)]
    share = 1 - ratio_of_shown(distances[1], distances[0], confidence=confidence)
    return jackknife_interval(float(share[0]), share[1:], confidence=confidence)


def ratio_of_shown(
    part: Float[np.ndarray, " case"], whole: Float[np.ndarray, " case"], *, confidence: float
) -> Float[np.ndarray, " case"]:
    """Return part / whole of each case, the first case that of all texts; nan where the whole is not shown to be > 0.

    A ratio to something that may be 0 has no meaning and no finite variance; the whole is shown where its own jackknife
    interval lies above 0.
    """
    shown = jackknife_interval(float(whole[0]), whole[1:], confidence=confidence).low > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(part / whole) if shown else np.full_like(whole, np.nan)


def _pair_means(kernel: Float[np.ndarray, "n m"], one: Sample, other: Sample) -> Float[np.ndarray, " case"]:
    """Return the mean of the kernel over the kept pairs of rows of different blocks; nan where there is none."""
    apart = (one.blocks[:, None] != other.blocks[None]).astype(np.float64)
    total, pairs = (((one.kept @ matrix) * other.kept).sum(1) for matrix in (kernel * apart, apart))
    return np.asarray(np.divide(total, pairs, out=np.full(len(total), np.nan), where=pairs > 0))


def _product_means(one: Sample, other: Sample) -> Float[np.ndarray, " case"]:
    return _pair_means(one.values @ other.values.T, one, other)


def _centred(source: Sample, target: Sample) -> tuple[Sample, Sample]:
    """Both samples about their common mean: the same gap, without the loss of digits that large means bring."""
    middle = np.concatenate([source.values, target.values]).mean(0)
    one, other = (Sample(side.values - middle, side.blocks, side.kept) for side in (source, target))
    return one, other
