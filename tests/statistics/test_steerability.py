"""Steerability: known values where there is one direction, and none where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest

from lens_steer.statistics.steerability import cosine_interval, cosine_null, mean_cosine, separation


def test_the_mean_cosine_is_that_of_all_pairs() -> None:
    rows = np.random.default_rng(0).normal(size=(7, 5))
    ways = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = (ways @ ways.T)[~np.eye(7, dtype=bool)]
    assert mean_cosine(rows) == pytest.approx(cosines.mean())
    assert mean_cosine(np.outer(np.arange(1.0, 5), [3.0, -1.0])) == pytest.approx(1)
    assert np.isnan(mean_cosine(np.zeros((4, 3))))


@pytest.mark.parametrize("gap", [0.0, 1.0])
def test_intervals_cover_and_the_null_holds_its_level(gap: float) -> None:
    rng = np.random.default_rng(1)
    above, covered, apart = 0, 0, 0
    # Of differences N(way, 2 I), |way|^2 = gap^2 units: their mean cosine at many units is gap^2 / (gap^2 + 2).
    for _ in range(60):
        source, target = rng.normal(size=(24, 60)) + gap, rng.normal(size=(24, 60))
        found = cosine_interval(source - target, confidence=0.95)
        null = cosine_null(source, target, paired=False, confidence=0.95, draws=60, seed=3)
        above += found.low > null
        covered += found.low <= gap**2 / (gap**2 + 2) + 0.01 and found.high >= gap**2 / (gap**2 + 2) - 0.01
        blocks = np.arange(24), 24 + np.arange(24)
        apart += separation(source, target, blocks=blocks, confidence=0.95).low > 0
    assert covered >= 50
    assert (above, apart) == (60, 60) if gap else above <= 3 and apart <= 6


def test_two_texts_tell_nothing() -> None:
    side = np.random.default_rng(0).normal(size=(2, 4))
    found = separation(side[:1], side[1:], blocks=(np.array([0]), np.array([1])), confidence=0.95)
    assert np.isnan(found.low)
