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


def test_the_null_of_two_pairs_is_their_cosine() -> None:
    """Exchanged within pairs, two differences point one way as often as against each other."""
    source, target = np.array([[1.0, 2.0], [3.0, 1.0]]), np.array([[0.0, 0.0], [0.0, 2.0]])
    cosine = abs(mean_cosine(source - target))
    for confidence in (0.95, 0.6):
        null = cosine_null(source, target, paired=True, confidence=confidence, draws=100)
        assert null == pytest.approx(cosine)
    one, again, other = (
        cosine_null(np.eye(9), -np.eye(9)[::-1], paired=False, confidence=0.9, draws=9, seed=seed) for seed in (0, 0, 1)
    )
    assert one == again != other


def test_the_separation_of_a_gap_is_the_gap() -> None:
    rng = np.random.default_rng(2)
    source, target = rng.normal(size=(400, 2)) + np.array([3.0, 4.0]) / 2, rng.normal(size=(300, 2))
    found = separation(source, target, blocks=(np.arange(400), 400 + np.arange(300)), confidence=0.95)
    assert found.low < 2.5 < found.high
    assert found.estimate == pytest.approx(2.5, abs=0.2)
    # The variance of a gap in deviations of its own: that of both means, and of the mean of both variances.
    half = 1.96 * ((1 / 400 + 1 / 300) * (1 + 2.5**2 / 8)) ** 0.5
    assert found.high - found.low == pytest.approx(2 * half, rel=0.2)


def test_of_one_unit_the_separation_is_written_out() -> None:
    """Each half of the blocks is measured from the middle of the other half's means."""
    source, target = np.array([[5.0], [7.0], [6.5], [8.0]]), np.array([[1.0], [2.0], [0.5]])
    found = separation(source, target, blocks=(np.arange(4), 4 + np.arange(3)), confidence=0.9)
    sides = [side[:, 0] for side in (source, target)]
    middles = [(sides[0][half::2].mean() + sides[1][half::2].mean()) / 2 for half in (0, 1)]
    scores = [side - np.array([middles[1 - place % 2] for place in range(len(side))]) for side in sides]
    spread = np.sqrt((scores[0].var(ddof=1) + scores[1].var(ddof=1)) / 2)
    assert found.estimate == pytest.approx((scores[0].mean() - scores[1].mean()) / spread)
    assert found.confidence == 0.9
    assert found.low < found.estimate < found.high


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_side_of_two_texts_has_no_interval() -> None:
    """Without one of them there is no spread."""
    values = np.random.default_rng(0).normal(size=(8, 4))
    for texts in (2, 6):
        found = separation(
            values[:texts], values[texts:], blocks=(np.arange(texts), np.arange(texts, 8)), confidence=0.95
        )
        assert np.isfinite(found.estimate)
        assert np.isnan(found.low)
    same = separation(0 * values[:4], 0 * values[4:], blocks=(np.arange(4), np.arange(4, 8)), confidence=0.95)
    assert np.isnan(same.estimate)


def test_two_texts_tell_nothing() -> None:
    side = np.random.default_rng(0).normal(size=(2, 4))
    found = separation(side[:1], side[1:], blocks=(np.array([0]), np.array([1])), confidence=0.95)
    assert np.isnan(found.low)
