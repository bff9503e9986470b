from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from lens_steer.errors import SettingError
from lens_steer.statistics.jackknife import jackknife_interval, jackknife_intervals, leave_groups_out
from lens_steer.statistics.verdict import Verdict


def test_the_jackknife_of_a_mean_is_its_student_interval() -> None:
    values = np.random.default_rng(0).normal(size=12)
    left_out = np.array([np.delete(values, place).mean() for place in range(12)])
    interval = jackknife_interval(values.mean(), left_out, confidence=0.95)
    expected = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert (interval.low, interval.high) == pytest.approx(expected)
    assert interval.estimate == values.mean()


@pytest.mark.parametrize("place", [0, 2])
def test_what_is_not_finite_and_a_single_group_have_no_interval(place: int) -> None:
    column = np.array([0.5, 0.4, 0.6])
    column[place] = math.nan
    assert jackknife_interval(column[0], column[1:], confidence=0.95).verdict is Verdict.CANNOT_JUDGE
    column[place] = math.inf
    assert jackknife_interval(column[0], column[1:], confidence=0.95).verdict is Verdict.CANNOT_JUDGE
    assert jackknife_interval(0.5, np.array([0.4]), confidence=0.95).verdict is Verdict.CANNOT_JUDGE
    assert jackknife_interval(0.5, np.array([0.4, 0.4]), confidence=0.95).verdict is Verdict.HIGHER


def test_many_columns_at_once_are_each_alone() -> None:
    values = np.random.default_rng(1).normal(size=(9, 3))
    values[4, 1] = math.nan
    low, high = jackknife_intervals(values, confidence=0.8)
    for column in (0, 2):
        interval = jackknife_interval(values[0, column], values[1:, column], confidence=0.8)
        assert (low[column], high[column]) == (interval.low, interval.high)
    assert np.isnan([low[1], high[1]]).all()
    with pytest.raises(SettingError, match="confidence"):
        jackknife_intervals(values, confidence=0.0)


def test_groups_leave_every_block_out_once_on_all_sides() -> None:
    source, target = np.array([0, 0, 1, 2, 3, 4, 4]), np.array([2, 5, 6, 6, 0])
    kept = leave_groups_out(source, target)
    assert [side.shape for side in kept] == [(6, 7), (6, 5)]
    for side in kept:
        assert side[0].all()
        np.testing.assert_array_equal((1 - side[1:]).sum(0), 1)
    out = [
        {int(block) for block in np.unique(side[row == 0])}
        for side, rows in zip((source, target), kept, strict=True)
        for row in rows[1:]
    ]
    of_source, of_target = out[:5], out[5:]
    for block in (0, 2):
        assert [block in group for group in of_source] == [block in group for group in of_target]
    assert all(len(group) <= 1 for group in out)


@pytest.mark.parametrize(("blocks", "most", "groups"), [(3, 40, 3), (100, 40, 40), (100, 7, 7)])
def test_there_are_as_many_groups_as_blocks_up_to_the_most(blocks: int, most: int, groups: int) -> None:
    (kept,) = leave_groups_out(np.arange(blocks), most=most)
    sizes = (1 - kept[1:]).sum(1)
    assert len(sizes) == groups
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(("n", "m"), [(20, 20), (30, 13), (90, 90), (60, 21)])
def test_a_difference_of_two_means_is_covered_at_unequal_numbers_and_sizes_of_groups(n: int, m: int) -> None:
    rng, covered = np.random.default_rng(n), 0
    kept = leave_groups_out(np.arange(n), n + np.arange(m))
    for _ in range(400):
        source, target = rng.normal(size=n), rng.normal(size=m)
        cases = kept[0] @ source / kept[0].sum(1) - kept[1] @ target / kept[1].sum(1)
        interval = jackknife_interval(cases[0], cases[1:], confidence=0.9)
        covered += interval.low <= 0 <= interval.high
    assert 0.86 <= covered / 400 <= 0.95
