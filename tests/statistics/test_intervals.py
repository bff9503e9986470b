import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from lens_steer.errors import SettingError
from lens_steer.statistics.intervals import (
    Interval,
    against_draws,
    change_interval,
    confidence_of_each,
    mean_change,
    perplexity_change,
    share,
    share_change,
    share_change_interval,
)
from lens_steer.statistics.verdict import Verdict


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


@pytest.mark.parametrize("rows", [5, 10, 40])
def test_few_rows_are_covered_as_often_as_many(rows: int) -> None:
    """The null at few and at many rows: percentiles alone leave out the truth twice as often at 5 rows."""
    rng = np.random.default_rng(rows)
    outside = 0
    for seed in range(300):
        low, high = change_interval(mean_change, np.zeros(rows), rng.normal(size=rows), confidence=0.9, seed=seed)
        outside += not low <= 0 <= high
    assert 0.06 <= outside / 300 <= 0.15


def test_every_level_is_in_the_interval_of_crossed_levels() -> None:
    """Draws that differ by more than prompts do: an interval over prompts alone holds the truth far too rarely."""
    rng = np.random.default_rng(0)
    outside = {"prompts alone": 0, "both": 0}
    for seed in range(200):
        values = rng.normal(size=(8, 1)) + 0.2 * rng.normal(size=(1, 50)) + rng.normal(size=(8, 50))
        for levels, column in (("prompts alone", values.mean(0)), ("both", values)):
            low, high = change_interval(mean_change, np.zeros_like(column), column, confidence=0.9, seed=seed)
            outside[levels] += not low <= 0 <= high
    assert outside["prompts alone"] > 60
    assert 6 <= outside["both"] <= 30


def test_a_level_of_one_draw_has_no_interval() -> None:
    column = np.random.default_rng(0).normal(size=(1, 30))
    assert all(map(math.isnan, change_interval(mean_change, 0 * column, column, confidence=0.95, seed=0)))


@pytest.mark.parametrize("confidence", [0.0, 1.0, math.nan, -0.5])
def test_a_confidence_outside_0_to_1_is_refused(confidence: float) -> None:
    with pytest.raises(SettingError, match="confidence"):
        change_interval(mean_change, np.zeros(9), np.ones(9), confidence=confidence, seed=0)


class TestShareChanges:
    @staticmethod
    def interval(before: Any, after: Any, confidence: float = 0.95) -> tuple[float, float]:
        ones = np.ones(len(before))
        return share_change_interval(
            np.array(before, float), ones, np.array(after, float), ones, confidence=confidence, seed=0
        )

    def test_four_hits_of_sixty_that_vanish_are_not_shown(self) -> None:
        low, high = self.interval([1] * 4 + [0] * 56, [0] * 60)
        often = stats.binomtest(4, 60).proportion_ci(0.95, method="exact")
        assert low == pytest.approx(-often.high)
        assert high == pytest.approx((2 * (1 - 0.025 ** (1 / 4)) - 1) * often.high)

    @pytest.mark.parametrize(("falls", "rises"), [(0.1, 0.0), (0.15, 0.05), (0.0, 0.2)])
    def test_the_interval_of_few_changes_covers_the_change(self, falls: float, rises: float) -> None:
        """Its ends know that other rows might have changed: of the seen changes alone, 0 of 4 rises ends at -4 / n."""
        rng = np.random.default_rng(3)
        covered = 0
        for _ in range(400):
            draw = rng.random(40)
            before, after = draw < falls, (draw >= falls) & (draw < falls + rises)
            low, high = self.interval(before, after)
            covered += low <= rises - falls <= high
        assert covered / 400 >= 0.94

    @pytest.mark.parametrize("rows", [1, 20, 300])
    def test_no_change_at_all_bounds_what_could_have_stayed_unseen(self, rows: int) -> None:
        low, high = self.interval([0] * rows, [0] * rows)
        assert -low == high
        assert (1 - high) ** rows == pytest.approx(0.025)

    def test_many_changes_are_drawn_again(self) -> None:
        rng = np.random.default_rng(0)
        before, after = rng.random(60), rng.random(60)
        ones = np.ones(60)
        columns = (before, ones, after, ones)
        assert self.interval(before, after) == change_interval(share_change, *columns, confidence=0.95, seed=0)

    def test_the_interval_of_shares_however_small_scales_with_them(self) -> None:
        before, after = np.random.default_rng(0).random((2, 60))
        small = self.interval(1e-9 * before, 1e-9 * after)
        assert small == pytest.approx([1e-9 * end for end in self.interval(before, after)])

    @pytest.mark.parametrize(("rows", "share_of_hits"), [(20, 0.1), (40, 0.06), (40, 0.25), (60, 0.15)])
    def test_false_alarms_stay_below_the_level_on_both_sides_of_rare(self, rows: int, share_of_hits: float) -> None:
        rng = np.random.default_rng(rows)
        alarms = 0
        for _ in range(300):
            low, high = self.interval(rng.random(rows) < share_of_hits, rng.random(rows) < share_of_hits)
            alarms += not low <= 0 <= high
        assert alarms / 300 <= 0.07

    @pytest.mark.parametrize(("changes", "exact"), [(11, True), (12, False)])
    def test_fewer_than_twelve_changes_are_rare(self, changes: int, exact: bool) -> None:
        before, after = np.zeros(40), np.zeros(40)
        after[:changes] = 1
        low, _ = self.interval(before, after)
        rises = stats.binomtest(changes, changes).proportion_ci(0.95, method="exact")
        often = stats.binomtest(changes, 40).proportion_ci(0.95, method="exact")
        assert (low == pytest.approx((2 * rises.low - 1) * often.low)) == exact

    @pytest.mark.parametrize("steady", [0, 4, 8, 11])
    def test_hits_that_stay_are_no_rises_where_another_text_is_no_longer_counted(self, steady: int) -> None:
        before = np.array([1.0] * steady + [0.0] * (60 - steady))
        ones, fewer = np.ones(60), np.array([1.0] * 59 + [0.0])
        low, high = share_change_interval(before, ones, before, fewer, confidence=0.95, seed=0)
        assert low < 0 < high
        assert low <= steady / 59 - steady / 60 <= high

    def test_nothing_counted_has_no_interval(self) -> None:
        zeros, ones = np.zeros(5), np.ones(5)
        assert all(map(math.isnan, share_change_interval(zeros, ones, zeros, zeros, confidence=0.95, seed=0)))


class TestAgainstDraws:
    @pytest.mark.parametrize("spread", [0.0, 0.3, 3.0], ids=["draws alike", "draws vary", "draws vary most"])
    def test_random_against_random_leaves_out_0_at_the_nominal_rate(self, spread: float) -> None:
        rng, alarms, ranks = np.random.default_rng(7), 0, []
        for seed in range(120):
            prompts = rng.normal(size=40)
            values = prompts + spread * rng.normal(size=(21, 1)) + rng.normal(size=(21, 40))
            ones = np.ones_like(values)
            against = against_draws(share, (values[0], ones[0]), (values[1:], ones[1:]), confidence=0.95, seed=seed)
            alarms += against.interval.verdict is not Verdict.NOT_SHOWN
            ranks.append(against.rank_p)
        assert alarms / 120 <= 0.1
        assert np.mean(np.array(ranks) <= 0.2) <= 0.25

    def test_a_choice_beyond_all_draws_is_told_apart(self) -> None:
        rng = np.random.default_rng(0)
        controls = rng.normal(size=(20, 60)) * 0.1 + rng.normal(size=(20, 1)) * 0.1
        choice = rng.normal(size=60) * 0.1 - 1.0
        against = against_draws(share, (choice, np.ones(60)), (controls, np.ones((20, 60))), confidence=0.95, seed=0)
        assert against.interval.verdict is Verdict.LOWER
        assert against.interval.estimate == pytest.approx(choice.mean() - controls.mean())
        assert against.rank_p == pytest.approx(2 / 21)

    @pytest.mark.parametrize("spread", [0.0, 0.25, 30.0], ids=["draws alike", "draws vary", "draws vary most"])
    def test_of_means_the_interval_has_a_closed_form(self, spread: float) -> None:
        """Student's quantile times the deviation: of rows, and of draws less what rows alone give them."""
        rng = np.random.default_rng(11)
        controls = spread * rng.normal(size=(20, 40)).mean(1, keepdims=True) * 40**0.5 + rng.normal(size=(20, 40))
        choice = rng.normal(size=40)
        against = against_draws(share, (choice, np.ones(40)), (controls, np.ones((20, 40))), confidence=0.9, seed=0)
        over_rows = (choice - controls.mean(0)).var(ddof=1) / 40
        of_rows_alone = (controls - controls.mean(0)).var(axis=1, ddof=1).mean() / 40 * 20 / 19
        over_draws = max(0, controls.mean(1).var(ddof=1) - of_rows_alone)
        half = stats.t.ppf(0.95, 19) * math.sqrt(over_rows + over_draws * (1 + 1 / 20))
        interval, near = against.interval, 0.04 if spread < 1 else 1e-3
        assert interval.high - interval.estimate == pytest.approx(half, rel=near)
        assert interval.estimate - interval.low == pytest.approx(half, rel=near)

    def test_the_rank_counts_draws_that_reach_the_choice(self) -> None:
        """Two-sided: twice the smaller side, a tie on either, at most 1."""
        controls = np.arange(20.0)[:, None] * np.ones((20, 3))
        columns = (controls, np.ones((20, 3)))
        for value, p in ((0.0, 4 / 21), (-1.0, 2 / 21), (17.5, 6 / 21), (17.0, 8 / 21), (9.5, 1.0), (9.0, 1.0)):
            choice = (np.full(3, value), np.ones(3))
            against = against_draws(share, choice, columns, confidence=0.95, seed=0)
            assert (against.rank_p, against.draws) == (pytest.approx(p), 20)

    def test_few_draws_carry_no_level(self) -> None:
        controls = np.random.default_rng(0).normal(size=(19, 60))
        against = against_draws(
            share, (controls[0] - 9, np.ones(60)), (controls, np.ones((19, 60))), confidence=0.95, seed=0
        )
        assert against.interval.verdict is Verdict.CANNOT_JUDGE
        assert against.rank_p == pytest.approx(0.1)


def test_several_looks_hold_at_once_with_the_confidence_asked_for() -> None:
    assert confidence_of_each(0.95, 1) == pytest.approx(0.95)
    assert confidence_of_each(0.95, 4) == pytest.approx(0.9875)
    with pytest.raises(SettingError, match="not 0"):
        confidence_of_each(0.95, 0)
    with pytest.raises(SettingError, match="confidence"):
        confidence_of_each(1.0, 2)


def test_an_interval_is_read_from_a_row() -> None:
    row = {"value": -0.3, "change": 0.5, "low": -0.4, "high": -0.1}
    assert Interval.of(row) == Interval(-0.3, -0.4, -0.1, 0.95)
    assert Interval.of(row, estimate="change", confidence=0.9) == Interval(0.5, -0.4, -0.1, 0.9)
    assert Interval.of(row).verdict is Verdict.LOWER


@pytest.mark.parametrize(("confidence", "resamples"), [(0.9, 2000), (0.95, 2000), (0.98, 5000), (0.999, 100_000)])
def test_either_end_rests_on_fifty_resamples_or_more(
    confidence: float, resamples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lens_steer.statistics.intervals._BATCH_VALUES", 12_000)  # 4 rows: the last batch is smaller
    counted = []

    def change(before: Any, after: Any, axis: Any) -> Any:
        counted.append(len(after) if axis == (1,) else 0)
        return mean_change(before, after, axis)

    change_interval(change, np.zeros(4), np.arange(4.0), confidence=confidence, seed=0)
    assert sum(counted) == pytest.approx(resamples, abs=1)
    assert counted[0] == min(3000, sum(counted))


def test_what_is_not_finite_and_what_is_not_there_cannot_be_judged() -> None:
    column = np.array([1.0, 2.0, math.nan, 3.0])
    assert all(map(math.isnan, change_interval(mean_change, np.zeros(4), column, confidence=0.95, seed=0)))
    assert all(map(math.isnan, change_interval(mean_change, column[:0], column[:0], confidence=0.95, seed=0)))
    assert Interval(math.nan, 0.1, 0.2, 0.95).verdict is Verdict.CANNOT_JUDGE
    assert Interval(math.inf, 0.1, 0.2, 0.95).verdict is Verdict.CANNOT_JUDGE


def test_batches_of_resamples_are_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one batch or in many, the interval is that of as many resamples."""
    change = np.random.default_rng(4).normal(size=30)
    whole = change_interval(mean_change, np.zeros(30), change, confidence=0.95, seed=0)
    monkeypatch.setattr("lens_steer.statistics.intervals._BATCH_VALUES", 1000)
    assert change_interval(mean_change, np.zeros(30), change, confidence=0.95, seed=0) == pytest.approx(whole, abs=0.05)
    controls = np.random.default_rng(5).normal(size=(20, 30))
    columns = (change, np.ones(30)), (controls, np.ones((20, 30)))
    parts = against_draws(share, *columns, confidence=0.95, seed=0)
    monkeypatch.undo()
    assert parts == against_draws(share, *columns, confidence=0.95, seed=0)


# No method: a mutation run calls it a second time, on another object of the class, which hypothesis refuses.
@given(st.integers(0, 11), st.integers(0, 11), st.integers(0, 40), st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_rare_hits_say_what_mcnemars_exact_test_says(falls, rises, same, confidence) -> None:
    assume(0 < falls + rises < 12)
    before, after = [1] * falls + [0] * rises + [0] * same, [0] * falls + [1] * rises + [0] * same
    low, high = TestShareChanges.interval(before, after, confidence)
    p = stats.binomtest(falls, falls + rises).pvalue
    assert (not low <= 0 <= high) == (p < 1 - confidence)
