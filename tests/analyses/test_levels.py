"""Intervals over fits and texts: they cover what varies, and hold against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from analyses.levels import change_over_fits, over_fits, over_levels, ratio_over_fits, removed_in_all


def cases(fits: np.ndarray) -> np.ndarray:
    """The mean of [fit, text] in every fit, then without each text."""
    texts = fits.shape[1]
    without = [np.delete(fits, text, axis=1).mean(1) for text in range(texts)]
    return np.stack([fits.mean(1), *without], axis=1)


def test_one_fit_gives_the_t_interval_over_texts() -> None:
    values = np.random.default_rng(0).normal(size=12)
    interval = over_fits(cases(values[None]))
    expected = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx(expected)


def test_fits_without_noise_of_texts_give_the_t_interval_over_fits() -> None:
    fits = np.repeat(np.array([[1.0], [2.0], [4.0]]), 8, axis=1)
    interval = over_fits(cases(fits))
    expected = stats.t.interval(0.95, 2, 7 / 3, stats.sem(fits[:, 0]))
    assert (interval.low, interval.high) == pytest.approx(expected)


def test_one_level_is_its_jackknife_and_variances_of_two_add() -> None:
    texts, units = np.random.default_rng(0).normal(size=(2, 12))
    left_out = [np.array([np.delete(values, place).mean() for place in range(12)]) for values in (texts, units)]
    alone = over_levels(texts[:1], left_out[0], np.empty(0))  # a level without groups is held fixed
    half = stats.t.ppf(0.975, 11) * stats.sem(texts)
    assert (alone.low, alone.high) == pytest.approx((texts[0] - half, texts[0] + half))
    both = over_levels(texts[:1], *left_out)
    wide = stats.t.ppf(0.975, 11) * np.hypot(stats.sem(texts), stats.sem(units))
    assert both.high - both.low == pytest.approx(2 * wide)
    assert np.isnan(over_levels(texts[:1], left_out[0][:1]).low)
    assert np.isnan(over_levels(np.array([np.nan]), left_out[0]).low)


def test_a_value_that_is_missing_leaves_no_interval() -> None:
    values = cases(np.ones((2, 5)))
    values[1, 3] = np.nan
    assert np.isnan(over_fits(values).low)


@pytest.mark.parametrize("of_fits", [0.0, 1.0])
def test_random_against_random_leaves_out_zero_at_the_nominal_rate(of_fits: float) -> None:
    """Two edits of one law, each with fits of its own, measured on common texts."""
    random = np.random.default_rng(1)
    outside = 0
    runs = 400
    for _ in range(runs):
        texts = random.normal(size=15)
        edits = [texts + of_fits * random.normal(size=(5, 1)) + random.normal(size=(5, 15)) for _ in range(2)]
        row = change_over_fits(*map(cases, edits), confidence=0.9)
        outside += not row["low"] <= 0 <= row["high"]
    assert stats.binomtest(outside, runs, 0.1).pvalue > 0.001 or outside / runs < 0.1


def test_the_ends_of_a_ratio_are_where_the_difference_touches_zero() -> None:
    random = np.random.default_rng(2)
    part, whole = (cases(mean + random.normal(size=(4, 1)) / 9 + random.normal(size=(4, 12))) for mean in (2.0, 3.0))
    ratio = ratio_over_fits(part, whole)
    assert ratio.estimate == pytest.approx(part[:, 0].mean() / whole[:, 0].mean())
    assert ratio.low < ratio.estimate < ratio.high
    assert over_fits(part - ratio.low * whole).low == pytest.approx(0, abs=1e-9)
    assert over_fits(part - ratio.high * whole).high == pytest.approx(0, abs=1e-9)
    same = ratio_over_fits(whole, whole)
    assert (same.low, same.estimate, same.high) == pytest.approx((1, 1, 1))


def test_a_share_of_nothing_is_not_known() -> None:
    noise = np.random.default_rng(3).normal(size=(3, 12))
    assert np.isnan(ratio_over_fits(cases(noise), cases(noise - noise.mean())).low)


@pytest.mark.parametrize("share", [0.0, 0.8])
def test_the_interval_of_a_ratio_holds_it_at_the_nominal_rate(share: float) -> None:
    random, runs, held = np.random.default_rng(4), 400, 0
    for _ in range(runs):
        texts = random.normal(size=20)
        whole, part = (
            mean + texts + random.normal(size=(4, 1)) / 2 + random.normal(size=(4, 20)) for mean in (5, 5 * share)
        )
        interval = ratio_over_fits(cases(part), cases(whole), confidence=0.9)
        held += interval.low <= share <= interval.high
    assert stats.binomtest(held, runs, 0.9).pvalue > 0.001 or held / runs > 0.9


def test_a_layer_before_the_edit_loses_nothing_and_one_that_is_not_judged_counts_for_none() -> None:
    def key(layer: int, measure: str) -> tuple[str, str, int, str]:
        return "heldout", "all", layer, measure

    one, two, nothing = np.full(3, 1.0), np.full(3, 2.0), np.full(3, np.nan)
    whole = {key(0, "apart"): one, key(1, "apart"): two, key(2, "apart"): one}
    whole |= {key(0, "removed"): one, key(1, "removed"): one / 2, key(2, "removed"): nothing}
    late = {key(1, "apart"): two, key(1, "removed"): one, key(2, "apart"): one, key(2, "removed"): nothing}
    removed = removed_in_all({"whole": whole, "late": late})
    np.testing.assert_allclose(removed["whole"], 2 / 3)
    np.testing.assert_allclose(removed["late"], 2 / 3)
