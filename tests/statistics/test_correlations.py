"""Correlations against scipy, and nan where there is nothing to correlate."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from lens_steer.statistics.correlations import pearson, spearman


@pytest.mark.parametrize("rows", [3, 4, 30])
def test_correlations_are_scipys(rows: int) -> None:
    one, other = np.random.default_rng(rows).normal(size=(2, rows))
    other = (other + one).round(1)
    assert pearson(one, other) == pytest.approx(stats.pearsonr(one, other).statistic)
    assert spearman(one, other) == pytest.approx(stats.spearmanr(one, other).statistic)


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_two_rows_and_a_constant_have_none(correlation: Callable[..., float]) -> None:
    rows = np.array([1.0, 3.0, 2.0])
    assert math.isnan(correlation(rows[:2], rows[1:]))
    assert math.isnan(correlation(rows, np.ones(3)))
    assert math.isnan(correlation(np.ones(3), rows))
