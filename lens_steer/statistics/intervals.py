"""Intervals of before/after changes, by bootstrap over prompts or texts; both readings of one stay together."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

_RESAMPLES = 2000
_BATCH = 200

Change = Callable[..., Any]
"""Takes the columns, with an axis along which they are reduced, and returns after - before."""


def change_interval(
    change: Change, *columns: Float[np.ndarray, " row"], confidence: float, seed: int
) -> tuple[float, float]:
    """Return the percentile interval of `change` when rows are drawn again with replacement.

    One row says nothing of how rows differ: its bounds are NaN. Where all rows change alike, both bounds are that.
    """
    if len(columns[0]) < 2:
        return math.nan, math.nan
    from scipy.stats import bootstrap

    # Percentile and not BCa: the latter has no answer where all rows agree, as those of a word list often do.
    result = bootstrap(
        columns,
        change,
        paired=True,
        vectorized=True,
        n_resamples=_RESAMPLES,
        batch=_BATCH,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def mean_change(before: Any, after: Any, axis: int) -> Any:
    """Return the change of a mean."""
    return after.mean(axis) - before.mean(axis)


def share(counted: Any, of: Any, axis: int) -> Any:
    """Return sums as a share of sums; NaN where there is nothing to share."""
    with np.errstate(invalid="ignore"):
        return counted.sum(axis) / of.sum(axis)


def share_change(before: Any, before_of: Any, after: Any, after_of: Any, axis: int) -> Any:
    """Return the change of a share, from what counted and of how many before, and the same after."""
    return share(after, after_of, axis) - share(before, before_of, axis)


def perplexity_change(before: Any, after: Any, counts: Any, axis: int) -> Any:
    """Return the change of a token-pooled perplexity, from summed losses (nats) and token counts of texts."""
    tokens = counts.sum(axis)
    return np.exp(after.sum(axis) / tokens) - np.exp(before.sum(axis) / tokens)
