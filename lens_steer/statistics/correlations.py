"""Correlations of two columns; nan where there is nothing to correlate."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float
from scipy import stats


def pearson(one: Float[np.ndarray, " row"], other: Float[np.ndarray, " row"]) -> float:
    """Return the linear correlation; nan with fewer than three rows, or where a column is constant."""
    if len(one) < 3 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return math.nan
    return float(np.corrcoef(one, other)[0, 1])


def spearman(one: Float[np.ndarray, " row"], other: Float[np.ndarray, " row"]) -> float:
    """Return the rank correlation, ties at their mean ranks; nan as `pearson`."""
    return pearson(stats.rankdata(one), stats.rankdata(other))
