"""The delete-a-group jackknife: intervals of statistics that drawing texts again with replacement would bias.

A text that is drawn twice lies at distance 0 from itself, so resampling lengthens or shortens distances between
samples. Leaving out whole groups of texts does not (Shao and Tu, The Jackknife and Bootstrap, 1995, chapter 2.3).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from lens_steer.statistics.intervals import Interval, require_confidence

_MOST_GROUPS = 40  # degrees of freedom beyond these hardly narrow an interval, and each costs a pass over the pairs


def leave_groups_out(
    *sides: Int[np.ndarray, " _"], most: int = _MOST_GROUPS
) -> tuple[Float[np.ndarray, "case _"], ...]:
    """Return per side which rows each case keeps (1) or leaves out (0): first all rows, then one group less each time.

    `sides` hold the block of every row; a block is left out whole, on all sides at once. There are as many groups as
    the side of most blocks has blocks, `most` at most, of about equal size on every side.
    """
    numbers = [list(dict.fromkeys(side.tolist())) for side in sides]
    groups = min(most, max(map(len, numbers)))
    group_of: dict[int, int] = {}
    for blocks in numbers:
        taken = np.array([group_of[block] for block in blocks if block in group_of], dtype=np.int64)
        sizes = np.bincount(taken, minlength=groups)
        for block in (block for block in blocks if block not in group_of):
            group_of[block] = int(np.argmin(sizes))
            sizes[group_of[block]] += 1
    kept = []
    for rows in sides:
        of_rows = np.array([group_of[block] for block in rows.tolist()], dtype=np.int64)
        less = (of_rows != np.arange(groups)[:, None]).astype(np.float64)
        kept.append(np.concatenate([np.ones((1, len(rows))), less]))
    return tuple(kept)


def case_means(
    kept: Float[np.ndarray, "case row"], values: Float[np.ndarray, "row ..."]
) -> Float[np.ndarray, "case ..."]:
    """Return the mean of values over the rows that each case keeps; nan where it keeps none."""
    with np.errstate(invalid="ignore"):
        return np.asarray(kept @ values / kept.sum(1, keepdims=values.ndim > 1))


def jackknife_interval(estimate: float, left_out: Float[np.ndarray, " group"], *, confidence: float) -> Interval:
    """Return the interval of a statistic from its values with one group of rows left out each time.

    Groups hold whole blocks of rows. Student's quantile has one degree of freedom less than there are groups. nan ends
    with fewer than two groups, or where a value is not finite.
    """
    low, high = jackknife_intervals(np.array([[estimate], *([value] for value in left_out)]), confidence=confidence)
    return Interval(estimate, float(low[0]), float(high[0]), confidence)


def jackknife_intervals(
    values: Float[np.ndarray, "case column"], *, confidence: float
) -> Float[np.ndarray, "2 column"]:
    """Return low and high of many statistics at once; the first case is that of all rows, the others lack a group."""
    require_confidence(confidence)
    groups = len(values) - 1
    if groups < 2:
        return np.full((2, values.shape[1]), math.nan)
    estimate, left_out = values[0], values[1:]
    with np.errstate(invalid="ignore"):
        half = float(stats.t.ppf((1 + confidence) / 2, groups - 1)) * jackknife_errors(left_out)
        ends = np.stack([estimate - half, estimate + half])
    ends[:, ~np.isfinite(ends).all(0)] = math.nan
    return ends


def jackknife_errors(left_out: Float[np.ndarray, "group column"]) -> Float[np.ndarray, " column"]:
    """Return the standard errors of statistics from their values with one group of rows left out each time.

    nan with fewer than two groups.
    """
    groups = len(left_out)
    if groups < 2:
        return np.full(left_out.shape[1], math.nan)
    return np.asarray(np.sqrt((groups - 1) / groups * np.square(left_out - left_out.mean(0)).sum(0)))
