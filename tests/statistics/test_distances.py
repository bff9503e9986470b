from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lens_steer.errors import ActivationError, SettingError
from lens_steer.statistics.distances import (
    Sample,
    along_gap,
    energy_distance,
    ratio_of_shown,
    removed_share,
    squared_gap,
    squared_size,
    varying,
)
from lens_steer.statistics.jackknife import leave_groups_out


def samples(*values: np.ndarray, blocks: Any = None) -> list[Sample]:
    """Samples with every case of the jackknife; all rows are independent unless `blocks` are given."""
    ends = np.cumsum([0, *map(len, values)])
    numbers = blocks or [np.arange(first, last) for first, last in pairwise(ends)]
    kept = leave_groups_out(*numbers)
    return [Sample(part, number, keep) for part, number, keep in zip(values, numbers, kept, strict=True)]


def pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a[:, None] - b[None]).sum(-1)


def by_hand(x: np.ndarray, y: np.ndarray) -> float:
    n, m = len(x), len(y)
    return float(2 * pairs(x, y).mean() - pairs(x, x).sum() / (n * (n - 1)) - pairs(y, y).sum() / (m * (m - 1)))


def test_the_energy_distance_is_the_u_statistic_of_every_case() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(7, 3)), rng.integers(0, 3, size=(5, 3)).astype(float)
    cases = energy_distance(*samples(x, y))
    assert len(cases) == 8
    assert cases[0] == pytest.approx(by_hand(x, y))
    assert cases[1] == pytest.approx(by_hand(x[1:], y[1:]))
    assert cases[7] == pytest.approx(by_hand(x[:6], y))


def test_beside_scipys_biased_one_it_lacks_each_texts_distance_to_itself() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(60, 1)), rng.normal(0.7, 2, size=(50, 1))
    biased = stats.energy_distance(x[:, 0], y[:, 0]) ** 2
    correction = pairs(x, x).mean() / 59 + pairs(y, y).mean() / 49
    assert energy_distance(*samples(x, y))[0] == pytest.approx(biased - correction)


def test_rows_of_one_block_are_never_paired() -> None:
    """Each text three times: with blocks, what the texts once give; without, each lies near its own copies."""
    rng = np.random.default_rng(2)
    x, y, effects = rng.normal(size=(6, 4)), rng.normal(1, 1, size=(5, 4)), rng.normal(size=(6, 4))
    thrice = [np.repeat(values, 3, axis=0) for values in (x, y)]
    blocks = [np.repeat(np.arange(6), 3), np.repeat(np.arange(6, 11), 3)]
    once, copies = samples(x, y), samples(*thrice, blocks=blocks)
    for statistic in (energy_distance, squared_gap):
        np.testing.assert_allclose(statistic(*copies), statistic(*once))
        assert statistic(*samples(*thrice))[0] > statistic(*once)[0] + 0.1
    single, many = (
        Sample(values, side.blocks, side.kept)
        for values, side in ((effects, once[0]), (np.repeat(effects, 3, axis=0), copies[0]))
    )
    np.testing.assert_allclose(along_gap(many, *copies), along_gap(single, *once))
    np.testing.assert_allclose(squared_size(many), squared_size(single))


def test_the_products_are_those_with_the_way_that_leaves_the_text_out() -> None:
    rng = np.random.default_rng(6)
    source, target, effects = rng.normal(size=(6, 3)), rng.normal(size=(5, 3)), rng.normal(size=(6, 3))
    one, other = samples(source, target)
    ways = [target.mean(0) - np.delete(source, text, 0).mean(0) for text in range(6)]
    expected = np.mean([effect @ way for effect, way in zip(effects, ways, strict=True)])
    assert along_gap(Sample(effects, one.blocks, one.kept), one, other)[0] == pytest.approx(expected)
    gap = target.mean(0) - source.mean(0)
    noise = source.var(0, ddof=1).sum() / 6 + target.var(0, ddof=1).sum() / 5
    assert squared_gap(one, other)[0] == pytest.approx(gap @ gap - noise)
    mean = effects.mean(0)
    assert squared_size(Sample(effects, one.blocks, one.kept))[0] == pytest.approx(
        mean @ mean - effects.var(0, ddof=1).sum() / 6
    )


def test_the_gap_of_pairs_is_that_of_their_differences() -> None:
    """Paired texts: what a pair has in common is no noise of the gap."""
    rng = np.random.default_rng(7)
    common, gap = 5 * rng.normal(size=(9, 3)), rng.normal(size=(9, 3))
    blocks = [np.arange(9)] * 2
    difference = gap.mean(0)
    expected = difference @ difference - gap.var(0, ddof=1).sum() / 9
    assert squared_gap(*samples(common, common + gap, blocks=blocks))[0] == pytest.approx(expected)


@pytest.mark.parametrize("texts", [5, 15, 60, 120])
@pytest.mark.parametrize("statistic", [energy_distance, squared_gap])
def test_two_samples_of_one_law_lie_at_0_on_average(statistic: Callable[..., Any], texts: int) -> None:
    rng = np.random.default_rng(texts)
    distances = [statistic(*samples(*rng.normal(3, 1, size=(2, texts, 20))))[0] for _ in range(200)]
    assert abs(np.mean(distances)) < 3 * np.std(distances) / np.sqrt(200)


@pytest.mark.parametrize("of", [0, 1])
def test_effects_that_follow_a_texts_own_noise_are_not_pulled(of: int) -> None:
    """Effects in proportion to the text itself, as a scale makes them: their product with the way is unbiased."""
    rng = np.random.default_rng(5)
    way, products = np.full(20, 0.4), []
    for _ in range(600):
        sides = samples(rng.normal(size=(12, 20)), way + rng.normal(size=(12, 20)))
        own = sides[of]
        products.append(along_gap(Sample(-0.5 * own.values, own.blocks, own.kept), *sides)[0])
    expected = -0.5 * of * float(way @ way)
    assert np.mean(products) == pytest.approx(expected, abs=4 * np.std(products) / np.sqrt(600))


@pytest.mark.parametrize("texts", [15, 30, 60, 120])
class TestSharesAtAnyNumberOfTexts:
    """The gap is half a standard deviation per unit, units are correlated; 15 to 120 texts read the same."""

    @staticmethod
    def draw(rng: Any, texts: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        mix = np.eye(20) + 0.1 * np.random.default_rng(0).normal(size=(20, 20))
        source, other, target = (rng.normal(size=(texts, 20)) @ mix for _ in range(3))
        way = np.full(20, 0.6)
        return source, other + way, target + way, way

    def test_a_perfect_edit_removes_all_and_an_idle_one_nothing(self, texts: int) -> None:
        rng, removed, covered = np.random.default_rng(texts), [], 0
        for _ in range(60):
            source, arrived, target, _ = self.draw(rng, texts)
            interval = removed_share(source, arrived, target)
            removed.append(interval.estimate)
            covered += interval.low <= 1 <= interval.high
        judged = np.isfinite(removed)
        assert judged.mean() > (0.6 if texts == 15 else 0.99)
        error = np.nanstd(removed) / np.sqrt(judged.sum())
        assert np.nanmean(removed) == pytest.approx(1, abs=4 * error + (0.05 if texts == 15 else 0.02))
        assert covered >= 0.9 * judged.sum()
        idle = removed_share(source, source, target + 1)
        assert (idle.estimate, idle.low, idle.high) == (0, 0, 0)

    def test_half_the_way_arrives_at_one_half(self, texts: int) -> None:
        rng, shares, covered, naive = np.random.default_rng(texts), [], 0, []
        for _ in range(60):
            source, _, target, way = self.draw(rng, texts)
            one, other = samples(source, target)
            effects = Sample(np.tile(way / 2, (texts, 1)), one.blocks, one.kept)
            cases = ratio_of_shown(along_gap(effects, one, other), squared_gap(one, other), confidence=0.95)
            error = (len(cases) - 2) * np.std(cases[1:]) / np.sqrt(len(cases) - 2)
            shares.append(cases[0])
            covered += abs(cases[0] - 0.5) <= stats.t.ppf(0.975, len(cases) - 2) * error
            plain = target.mean(0) - source.mean(0)
            naive.append(way @ plain / (plain @ plain) / 2)
        judged = np.isfinite(shares)
        error = np.nanstd(shares) / np.sqrt(judged.sum())
        assert np.nanmean(shares) == pytest.approx(0.5, abs=4 * error + 0.02)
        assert covered >= 0.88 * judged.sum()
        assert texts > 15 or np.mean(naive) < 0.4


def test_nothing_is_removed_from_a_distance_that_is_not_shown() -> None:
    rng, judged = np.random.default_rng(3), 0
    for _ in range(100):
        source, target = rng.normal(size=(2, 20, 10))
        judged += np.isfinite(removed_share(source, source + 1, target).estimate)
    assert judged <= 7  # 2.5 % false alarms


def test_dependent_texts_give_the_wider_interval_of_fewer_texts() -> None:
    rng = np.random.default_rng(8)
    source, target = rng.normal(size=(12, 5)), rng.normal(2, 1, size=(12, 5))
    after = source + 1
    once = removed_share(source, after, target)
    fourfold = [np.repeat(values, 4, axis=0) for values in (source, after, target)]
    blocks = np.repeat(np.arange(12), 4), np.repeat(np.arange(12, 24), 4)
    assert removed_share(*fourfold, blocks=blocks).low == pytest.approx(once.low)
    assert removed_share(*fourfold).low > once.low
    assert removed_share(source, after, target, confidence=0.8).low > once.low


def test_a_unit_counts_that_varies_a_tenth_as_much_as_the_usual_one() -> None:
    spread = np.array([4.0, 1, 2, 3, 0.16, 0.14, 0.0, np.nan])
    assert varying(spread).tolist() == [True] * 5 + [False] * 3
    assert varying(1e-9 * spread).tolist() == varying(spread).tolist()
    # One massive unit does not leave the others out, and units that are dead do not pull the usual spread down.
    assert varying(np.array([1e6, 1, 1, 1])).all()
    assert varying(np.array([0.0] * 9 + [1, 0.05, 1])).tolist() == [False] * 9 + [True, False, True]
    assert not varying(np.array([np.nan, 0.0])).any()
    assert varying(np.array([10.0, 10, 10, 1])).all()  # a tenth itself is enough


def test_a_ratio_is_judged_by_all_texts_and_not_by_a_case_that_leaves_some_out() -> None:
    whole, part = np.array([-0.1, 1, 1, 1, 1]), np.ones(5)
    assert np.isnan(ratio_of_shown(part, whole, confidence=0.95)).all()
    np.testing.assert_allclose(ratio_of_shown(part, np.abs(whole) + 1, confidence=0.95), [1 / 1.1, *[0.5] * 4])


def test_what_does_not_fit_together_is_refused_and_one_text_has_no_distance() -> None:
    with pytest.raises(ActivationError, match="same texts"):
        removed_share(np.ones((4, 2)), np.ones((3, 2)), np.ones((4, 2)))
    with pytest.raises(ActivationError, match="same units"):
        removed_share(np.ones((4, 2)), np.ones((4, 2)), np.ones((4, 3)))
    with pytest.raises(SettingError, match="confidence"):
        removed_share(np.ones((4, 2)), np.ones((4, 2)), np.ones((4, 2)), confidence=1.0)
    assert np.isnan(energy_distance(*samples(np.ones((1, 2)), np.ones((3, 2))))).all()
    assert np.isnan(removed_share(np.ones((1, 2)), np.ones((1, 2)), np.zeros((5, 2))).estimate)
