import math

import numpy as np
import pytest

from lens_steer.statistics.intervals import change_interval, mean_change, perplexity_change


def test_interval_of_a_mean_is_the_normal_one() -> None:
    rng = np.random.default_rng(0)
    before = rng.normal(size=400)
    after = before + rng.normal(0.5, 0.2, size=400)
    low, high = change_interval(mean_change, before, after, confidence=0.9, seed=0)
    half = 1.645 * (after - before).std() / 20
    assert low == pytest.approx((after - before).mean() - half, abs=0.1 * half)
    assert high == pytest.approx((after - before).mean() + half, abs=0.1 * half)


def test_coverage_of_a_mean_is_about_what_is_asked() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for seed in range(100):
        change = rng.normal(1.0, 1.0, size=30)
        low, high = change_interval(mean_change, np.zeros(30), change, confidence=0.8, seed=seed)
        hits += low <= 1.0 <= high
    assert 68 <= hits <= 90


def test_interval_of_a_perplexity_is_that_of_the_delta_method() -> None:
    rng = np.random.default_rng(2)
    counts = rng.integers(10, 40, size=500).astype(float)
    before = counts * rng.normal(3.0, 0.3, size=500)
    after = before + counts * rng.normal(0.2, 0.05, size=500)
    low, high = change_interval(perplexity_change, before, after, counts, confidence=0.95, seed=0)
    means = before.sum() / counts.sum(), after.sum() / counts.sum()
    slope = math.exp(means[1]) * (after - counts * means[1]) - math.exp(means[0]) * (before - counts * means[0])
    half = 1.96 * math.sqrt((slope**2).sum()) / counts.sum()
    middle = math.exp(means[1]) - math.exp(means[0])
    assert (low, high) == (pytest.approx(middle - half, abs=0.1 * half), pytest.approx(middle + half, abs=0.1 * half))


def test_seed_decides_the_resamples() -> None:
    change = np.random.default_rng(3).normal(size=20)
    one, again, other = (
        change_interval(mean_change, np.zeros(20), change, confidence=0.95, seed=seed) for seed in (0, 0, 1)
    )
    assert one == again != other


def test_rows_that_agree_and_a_single_row() -> None:
    ones = np.ones(5)
    assert change_interval(mean_change, ones, ones, confidence=0.95, seed=0) == (0.0, 0.0)
    assert all(map(math.isnan, change_interval(mean_change, ones[:1], ones[:1], confidence=0.95, seed=0)))
