"""Intervals of changes and differences, one engine for every level that varies: prompts, texts, draws, fits.

Columns are arrays whose axes are the levels. Each level is drawn again independently of the others, and for all columns
at once, so that what was measured on the same prompt stays together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from lens_steer.errors import SettingError
from lens_steer.statistics.verdict import Verdict, verdict_of

_FEWEST_RESAMPLES = 2000
_TAIL_RESAMPLES = 50  # so many resamples lie beyond either end: an end rests on more than a handful
_BATCH_VALUES = 4_000_000  # values of a column that one batch of resamples may hold
_RARE = 12  # with fewer changed rows than this, resampling cannot show the changes that were not seen
FEWEST_DRAWS = 20
"""So many draws of a control carry a level: with fewer, a quantile of how draws vary is a guess."""

Change = Callable[..., Any]
"""Takes the columns, and the axis or axes along which they are reduced, and returns after - before."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its ends at `confidence`; nan ends where nothing is known of how rows differ."""

    estimate: float
    low: float
    high: float
    confidence: float

    @classmethod
    def of(cls, row: Any, *, estimate: str = "value", confidence: float = 0.95) -> Interval:
        """Return the interval that a row of a table holds in its columns `estimate`, low and high."""
        value, low, high = (float(row[column]) for column in (estimate, "low", "high"))
        return cls(value, low, high, confidence)

    @property
    def verdict(self) -> Verdict:
        """What the interval says beside 0; without a finite estimate there is nothing to judge."""
        return verdict_of(self.low, self.high) if math.isfinite(self.estimate) else Verdict.CANNOT_JUDGE


def change_interval(
    change: Change, *columns: Float[np.ndarray, "*axis"], confidence: float, seed: int
) -> tuple[float, float]:
    """Return the ends of the interval of `change` when every level is drawn again with replacement.

    Columns are broadcast against each other; each axis is a level, such as [prompt] or [draw, prompt]. A resample of n
    rows draws n - 1 of them, so that the variance of a mean is unbiased (Rao and Wu, JASA 1988); crossed levels are
    drawn independently of each other, which never gives less than the variance of either (Owen, Ann. Appl. Stat. 2007).
    The percentiles are stretched about the estimate by the ratio of Student's quantile, with the degrees of freedom of
    the smallest level, to the normal one (Hesterberg, The American Statistician 2015). A level of one row gives nan.
    Where all rows change alike both ends are that change: `share_change_interval` knows better for shares.
    """
    require_confidence(confidence)
    full = np.broadcast_arrays(*columns)
    if min(full[0].shape) < 2:
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    resamples = max(_FEWEST_RESAMPLES, math.ceil(_TAIL_RESAMPLES / tail))
    levels = tuple(range(1, full[0].ndim + 1))
    rng = random_stream(seed)
    values = np.concatenate([np.asarray(change(*batch, axis=levels)) for batch in _resampled(full, resamples, rng)])
    estimate = float(change(*full, axis=tuple(range(full[0].ndim))))
    stretch = float(stats.t.ppf(tail, min(full[0].shape) - 1) / stats.norm.ppf(tail))
    low, high = (estimate + stretch * (float(end) - estimate) for end in np.quantile(values, [tail, 1 - tail]))
    return low, high


def _resampled(
    columns: tuple[Float[np.ndarray, "*axis"], ...], resamples: int, rng: np.random.Generator
) -> Iterator[list[Float[np.ndarray, "resample ..."]]]:
    shape = columns[0].shape
    batch = max(1, _BATCH_VALUES // columns[0].size)
    for begin in range(0, resamples, batch):
        count = min(batch, resamples - begin)
        rows = []
        for level, size in enumerate(shape):
            place = [count] + [size - 1 if axis == level else 1 for axis in range(len(shape))]
            rows.append(rng.integers(size, size=(count, size - 1)).reshape(place))
        yield [column[tuple(rows)] for column in columns]


def share_change_interval(
    before: Float[np.ndarray, " row"],
    before_of: Float[np.ndarray, " row"],
    after: Float[np.ndarray, " row"],
    after_of: Float[np.ndarray, " row"],
    *,
    confidence: float,
    seed: int,
) -> tuple[float, float]:
    """Return the ends of the interval of a paired change of a share: what counted, and of how many, per row.

    Where fewer than 12 rows change, resampling draws only on the changes that happened to be seen; there the interval
    is Clopper and Pearson's of the probability that a change is a rise (for hits and misses its sign is what the exact
    test of McNemar says, Psychometrika 1947), times the size of the changes, times what their interval of the share of
    rows that change allows: an end away from 0 the largest, an end towards 0 the smallest.
    Where no row of n changes at all, it holds every change that would stay unseen in n rows with a probability above
    (1 - confidence) / 2 on either side. Otherwise it is `change_interval`'s. nan where nothing was counted.
    """
    require_confidence(confidence)
    if not (before_of.sum() > 0 and after_of.sum() > 0):
        return math.nan, math.nan
    difference = float(share_change(before, before_of, after, after_of, 0))
    # A row that reads as before has not changed, although its weight does where others are no longer counted.
    same = np.isclose(after, before, atol=1e-12) & np.isclose(after_of, before_of, atol=1e-12)
    moved = (after / after_of.sum() - before / before_of.sum())[~same]
    changed = moved[~np.isclose(moved, 0, atol=1e-12)]
    tail = (1 - confidence) / 2
    if len(changed) == 0:
        unseen = 1 - tail ** (1 / max(1, int((before_of > 0).sum())))
        return difference - unseen, difference + unseen
    if len(changed) >= _RARE:
        return change_interval(share_change, before, before_of, after, after_of, confidence=confidence, seed=seed)
    rises = stats.binomtest(int((changed > 0).sum()), len(changed)).proportion_ci(confidence, method="exact")
    rows = int(((before_of > 0) | (after_of > 0)).sum())
    often = stats.binomtest(len(changed), rows).proportion_ci(confidence, method="exact")
    size = float(np.abs(changed).sum()) * rows / len(changed)
    low, high = 2 * rises.low - 1, 2 * rises.high - 1
    low *= size * (often.high if low < 0 else often.low)
    high *= size * (often.high if high > 0 else often.low)
    return min(low, difference), max(high, difference)


@dataclass(frozen=True)
class AgainstDraws:
    """A choice beside draws of a control: the choice's value less the draws' mean, and its rank among them.

    `interval` holds the differences that one more draw of the control would show: it knows how prompts vary, how draws
    vary, and that the draws' mean is one of `draws` of them. `rank_p` is the exact two-sided p-value of "the choice is
    one of the draws"; it cannot fall below 2 / (draws + 1).
    """

    interval: Interval
    rank_p: float
    draws: int


def against_draws(
    value: Callable[..., Any],
    choice: tuple[Float[np.ndarray, " row"], ...],
    controls: tuple[Float[np.ndarray, "draw row"], ...],
    *,
    confidence: float,
    seed: int,
) -> AgainstDraws:
    """Compare one choice with draws of a control, all measured on the same rows (prompts, or texts).

    Parameters
    ----------
    value:
        Takes columns and `axis` and reduces them to the value that is compared, such as `share` or `perplexity_of`.
    choice, controls:
        The columns of the choice, [row], and of the control's draws, [draw, row].
    confidence, seed:
        Of the interval, and of its draws of rows.

    The difference varies with the rows and with the draw. The variance over rows is that of drawing rows again for both
    at once; the variance over draws is what is left of the draws' spread when that of the rows is taken out, once for
    the choice and once more for the mean of the draws (a prediction interval). Student's quantile has draws - 1
    degrees of freedom. Under the hypothesis that the choice is one of the draws, it leaves out 0 with a probability of
    1 - confidence. nan ends with fewer than `FEWEST_DRAWS` draws, or fewer than two rows.

    """
    require_confidence(confidence)
    draws, rows = controls[0].shape
    of_draws = np.asarray(value(*controls, axis=1), dtype=float)
    of_choice = float(value(*choice, axis=0))
    difference = of_choice - float(of_draws.mean())
    above, below = int((of_draws >= of_choice).sum()), int((of_draws <= of_choice).sum())
    rank_p = min(1.0, 2 * (1 + min(above, below)) / (1 + draws))
    if draws < FEWEST_DRAWS or rows < 2 or not math.isfinite(difference):
        return AgainstDraws(Interval(difference, math.nan, math.nan, confidence), rank_p, draws)
    rng = random_stream(seed)
    together = tuple(np.concatenate([one[None], many]) for one, many in zip(choice, controls, strict=True))
    batch = max(1, _BATCH_VALUES // together[0].size)
    picked = np.split(rng.integers(rows, size=(_FEWEST_RESAMPLES, rows - 1)), range(batch, _FEWEST_RESAMPLES, batch))
    values = np.concatenate([value(*(column[:, again] for column in together), axis=2) for again in picked], axis=1).T
    over_rows = float(np.var(values[:, 0] - values[:, 1:].mean(1), ddof=1))
    single = values[:, 1:] - values[:, 1:].mean(1, keepdims=True)
    of_rows_alone = float(np.var(single, axis=0, ddof=1).mean()) * draws / (draws - 1)
    over_draws = max(0.0, float(np.var(of_draws, ddof=1)) - of_rows_alone)
    half = float(stats.t.ppf((1 + confidence) / 2, draws - 1)) * math.sqrt(over_rows + over_draws * (1 + 1 / draws))
    return AgainstDraws(Interval(difference, difference - half, difference + half, confidence), rank_p, draws)


def confidence_of_each(confidence: float, looks: int) -> float:
    """Return the confidence that each of several intervals needs, so that all hold at once with `confidence`.

    Bonferroni's, valid however the looks depend on each other. SettingError for fewer than one look.
    """
    require_confidence(confidence)
    if looks < 1:
        raise SettingError(f"there is one look or more, not {looks}")
    return 1 - (1 - confidence) / looks


def require_confidence(confidence: Any) -> None:
    """Refuse a confidence that is none."""
    if not isinstance(confidence, int | float | np.number) or not 0 < confidence < 1:
        raise SettingError(f"confidence must lie between 0 and 1, not {confidence!r}; 0.95 is usual")


def random_stream(seed: int) -> np.random.Generator:
    """Return the random numbers of a seed; SettingError for one below 0."""
    if seed < 0:
        raise SettingError(f"seed must be 0 or more, not {seed}")
    return np.random.default_rng(seed)


def mean_change(before: Any, after: Any, axis: Any) -> Any:
    """Return the change of a mean."""
    return after.mean(axis) - before.mean(axis)


def share(counted: Any, of: Any, axis: Any) -> Any:
    """Return sums as a share of sums; NaN where there is nothing to share."""
    with np.errstate(invalid="ignore"):
        return counted.sum(axis) / of.sum(axis)


def share_change(before: Any, before_of: Any, after: Any, after_of: Any, axis: Any) -> Any:
    """Return the change of a share, from what counted and of how many before, and the same after."""
    return share(after, after_of, axis) - share(before, before_of, axis)


def perplexity_of(losses: Any, counts: Any, axis: Any) -> Any:
    """Return a token-pooled perplexity, from summed losses (nats) and token counts of texts."""
    return np.exp(losses.sum(axis) / counts.sum(axis))


def perplexity_change(before: Any, after: Any, counts: Any, axis: Any) -> Any:
    """Return the change of a token-pooled perplexity, from summed losses (nats) and token counts of texts."""
    return perplexity_of(after, counts, axis) - perplexity_of(before, counts, axis)
