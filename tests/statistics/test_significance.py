"""Intervals and p-values against definitions, scipy and simulation."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, norm, rankdata, wilcoxon
from torch import Tensor

from lens_steer.errors import ActivationError, SettingError
from lens_steer.statistics.scores import auroc
from lens_steer.statistics.significance import (
    AurocInterval,
    auroc_interval,
    benjamini_hochberg,
    family_wise_p,
    mann_whitney_p,
    permutation_null,
    signed_rank_p,
)


def draw(n: int, m: int, units: int, *, seed: int = 0, decimals: int | None = None) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((n + m, units)) + np.linspace(0, 1, units) * (np.arange(n + m) < n)[:, None]
    values = values if decimals is None else np.round(values, decimals)
    return torch.tensor(values[:n]), torch.tensor(values[n:])


def interval(source: Tensor, target: Tensor, confidence: float = 0.95) -> AurocInterval:
    return auroc_interval(source, target, auroc(source, target), confidence=confidence)


@pytest.mark.parametrize("decimals", [None, 0])
def test_interval_follows_delong_definition(decimals: int | None) -> None:
    source, target = draw(23, 31, 5, decimals=decimals)
    got = interval(source, target, 0.9)
    for unit in range(5):
        a, b = source[:, unit].numpy(), target[:, unit].numpy()
        wins = (a[:, None] > b).astype(float) + 0.5 * (a[:, None] == b)
        area = wins.mean()
        spread = np.sqrt(wins.mean(1).var(ddof=1) / len(a) + wins.mean(0).var(ddof=1) / len(b))
        ends = np.log(area / (1 - area)) + norm.ppf([0.05, 0.95]) * spread / (area * (1 - area))
        np.testing.assert_allclose([got.low[unit], got.high[unit]], 1 / (1 + np.exp(-ends)), rtol=1e-10)
    assert not got.degenerate.any()


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10_000), st.sampled_from([0, 1, None]))
def test_interval_holds_the_estimate_and_mirrors(n: int, m: int, seed: int, decimals: int | None) -> None:
    source, target = draw(n, m, 6, seed=seed, decimals=decimals)
    source[:, 0], target[:, 0], target[:, 1] = 1.0, 1.0, source[:, 1].max() + 1
    area, got, mirrored = auroc(source, target), interval(source, target), interval(target, source)
    assert bool(((got.low <= area) & (area <= got.high) & (got.low >= 0) & (got.high <= 1)).all())
    assert bool((got.low < got.high).all())
    torch.testing.assert_close(got.low, 1 - mirrored.high, rtol=0, atol=1e-9)
    assert torch.equal(got.degenerate, mirrored.degenerate)
    assert got.degenerate[:2].all()
    assert not (got.degenerate & (area != 0) & (area != 0.5) & (area != 1)).any() or min(n, m) == 1


def test_a_perfect_unit_gets_a_one_sided_hanley_mcneil_bound() -> None:
    for n, m in [(10, 10), (100, 100), (8, 40)]:
        source, target = torch.rand(n, 1) + 2, torch.rand(m, 1)
        got = interval(source, target)
        low = got.low.item()
        others = (n + m) / 2 - 1
        variance = low * (1 - low) * (1 + others * ((1 - low) / (2 - low) + low / (1 + low))) / (n * m)
        assert got.high.item() == 1
        assert bool(got.degenerate.all())
        assert (1 - low) / variance**0.5 == pytest.approx(norm.ppf(0.975), rel=1e-9)
        assert interval(target, source).low.item() == 0
    assert interval(torch.rand(100, 1) + 2, torch.rand(100, 1)).low.item() == pytest.approx(0.981, abs=1e-3)


def test_a_nearly_degenerate_unit_keeps_delong() -> None:
    source, target = torch.arange(400.0)[:, None] + 1000, torch.arange(400.0)[:, None]
    target[399] = 1000.0
    assert not interval(source, target).degenerate.any()


def test_interval_covers_at_about_its_confidence() -> None:
    rng = np.random.default_rng(1)
    source, target = torch.tensor(rng.standard_normal((40, 4000)) + 1), torch.tensor(rng.standard_normal((40, 4000)))
    got, truth = interval(source, target), norm.cdf(1 / 2**0.5)
    covered = ((got.low <= truth) & (truth <= got.high)).double().mean().item()
    assert 0.93 < covered < 0.975


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize(("n", "m"), [(20, 20), (19, 20), (20, 19), (3, 60), (150, 90)])
def test_large_sides_equal_scipy_asymptotic(n: int, m: int, decimals: int | None) -> None:
    source, target = draw(n, m, 12, decimals=decimals)
    expected = mannwhitneyu(source.numpy(), target.numpy(), method="asymptotic").pvalue
    np.testing.assert_allclose(mann_whitney_p(source, target), expected, rtol=1e-9)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 19), (4, 7), (19, 19), (12, 6)])
def test_small_sides_equal_scipy_exact(n: int, m: int) -> None:
    source, target = draw(n, m, 12)
    expected = mannwhitneyu(source.numpy(), target.numpy(), method="exact").pvalue
    np.testing.assert_allclose(mann_whitney_p(source, target), expected, rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10_000))
def test_small_sides_with_ties_equal_full_enumeration(n: int, m: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 4, (n + m, 5)).astype(float)
    got = mann_whitney_p(torch.tensor(values[:n]), torch.tensor(values[n:]))
    for unit, column in enumerate(values.T):
        ranks = rankdata(column)
        sums = np.array([ranks[list(chosen)].sum() for chosen in combinations(range(n + m), n)])
        tail = min((sums <= ranks[:n].sum()).mean(), (sums >= ranks[:n].sum()).mean())
        assert got[unit].item() == pytest.approx(min(1, 2 * tail), abs=1e-12)


def test_constant_units_are_never_significant() -> None:
    for n in (3, 25, 2000):
        assert mann_whitney_p(torch.ones(n, 2), torch.ones(n + 1, 2)).tolist() == [1, 1]


@pytest.mark.parametrize(("pairs", "law"), [(1, "exact"), (6, "exact"), (50, "exact"), (51, "asymptotic")])
def test_signed_ranks_equal_scipy_on_either_side_of_fifty_pairs(pairs: int, law: str) -> None:
    differences = np.random.default_rng(pairs).normal(0.2, 1, (pairs, 5))
    expected = wilcoxon(differences, axis=0, method=law, correction=True).pvalue
    np.testing.assert_allclose(signed_rank_p(torch.from_numpy(differences)), expected.clip(max=1), rtol=1e-12)


def test_signed_ranks_with_ties_or_zeros_are_normal_and_without_any_difference_one() -> None:
    differences = np.random.default_rng(0).normal(0.2, 1, (20, 4))
    differences[3, 0], differences[4, 1], differences[:, 2] = 0.0, -differences[5, 1], 0.0
    got = signed_rank_p(torch.from_numpy(differences))
    normal = wilcoxon(differences[:, :2], axis=0, method="asymptotic", correction=True).pvalue
    np.testing.assert_allclose(got[:2], normal, rtol=1e-12)
    assert got[2] == 1
    assert got[3].item() == pytest.approx(wilcoxon(differences[:, 3], method="exact").pvalue, rel=1e-12)


def test_benjamini_hochberg_by_hand() -> None:
    """q of the i-th smallest of m is the least of m p_j / j from j = i on; the 15 p-values of the paper of 1995."""
    p = [
        0.0001,
        0.0004,
        0.0019,
        0.0095,
        0.0201,
        0.0278,
        0.0298,
        0.0344,
        0.0459,
        0.3240,
        0.4262,
        0.5719,
        0.6528,
        0.7590,
        1,
    ]
    q = benjamini_hochberg(torch.tensor(p, dtype=torch.float64)).tolist()
    # 15 * .0298 / 7 = .06386 is below 15 * .0278 / 6 = .0695, so both are found at that rate; and so on from the end.
    expected = [0.0015, 0.003, 0.0095, 0.035625, 0.0603, 15 * 0.0298 / 7, 15 * 0.0298 / 7, 0.0645, 0.0765, 0.486]
    expected += [15 * 0.4262 / 11, 15 * 0.5719 / 12, 15 * 0.6528 / 13, 15 * 0.759 / 14, 1]
    assert q == pytest.approx(expected, rel=1e-12)
    assert sum(value <= 0.05 for value in q) == 4  # the paper rejects four of fifteen at .05
    assert benjamini_hochberg(torch.tensor([0.02])).tolist() == pytest.approx([0.02])
    assert benjamini_hochberg(torch.tensor([0.03, 0.01, 0.02], dtype=torch.float64)).tolist() == pytest.approx(
        [0.03] * 3
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_benjamini_hochberg_is_the_least_rate_at_which_a_unit_is_found(p: list[float]) -> None:
    """Step up, as the procedure is defined: the k smallest are found where the k-th is at most rate * k / m."""
    q = benjamini_hochberg(torch.tensor(p, dtype=torch.float64)).numpy()
    values, ordered = np.array(p), np.sort(p)
    for rate in (0.01, 0.05, 0.2, 0.7):
        passing = np.flatnonzero(ordered <= rate * np.arange(1, len(p) + 1) / len(p))
        found = values <= ordered[passing[-1]] if len(passing) else np.zeros(len(p), dtype=bool)
        clear = np.abs(q - rate) > 1e-12
        np.testing.assert_array_equal((q <= rate)[clear], found[clear])


def test_permutation_null_is_the_largest_auroc_of_each_relabelling() -> None:
    source, target = draw(9, 14, 40, decimals=1)
    values, is_source = torch.cat([source, target]), torch.arange(23) < 9
    null = permutation_null(values, is_source, permutations=25, seed=3)
    labels = np.random.default_rng(3).permuted(np.tile(np.arange(23) < 9, (25, 1)), axis=1)
    areas = torch.stack([auroc(values[row], values[~row]) for row in torch.tensor(labels)])
    torch.testing.assert_close(null, torch.maximum(areas, 1 - areas).amax(1), rtol=0, atol=1e-15)


def test_permutation_null_is_seeded_and_reads_labels_by_count() -> None:
    values, is_source = torch.randn(30, 5), torch.arange(30) % 3 == 0
    null = permutation_null(values, is_source, permutations=50, seed=0)
    assert torch.equal(null, permutation_null(values, is_source, permutations=50, seed=0))
    assert torch.equal(null, permutation_null(values, ~is_source, permutations=50, seed=0))
    assert not torch.equal(null, permutation_null(values, is_source, permutations=50, seed=1))


def test_family_wise_p_counts_ties_and_mirrors() -> None:
    null = torch.tensor([0.6, 0.7, 0.7, 0.9], dtype=torch.float64)
    observed = torch.tensor([0.95, 0.7, 0.3, 0.5, 0.9], dtype=torch.float64)
    assert family_wise_p(observed, null).tolist() == [1 / 5, 4 / 5, 4 / 5, 1, 2 / 5]


def test_family_wise_p_controls_the_error_of_pure_noise() -> None:
    hits = 0
    for seed in range(200):
        values, is_source = torch.tensor(np.random.default_rng(seed).standard_normal((16, 30))), torch.arange(16) < 8
        null = permutation_null(values, is_source, permutations=99, seed=seed)
        hits += int(family_wise_p(auroc(values[is_source], values[~is_source]), null).min() <= 0.1)
    assert hits <= 33  # 20 expected, standard deviation 4.2


def test_no_units_give_no_values() -> None:
    source, target = torch.zeros(3, 0), torch.zeros(2, 0)
    assert mann_whitney_p(source, target).shape == (0,)
    assert mann_whitney_p(torch.zeros(30, 0), target).shape == (0,)
    assert interval(source, target).low.shape == (0,)
    assert benjamini_hochberg(torch.zeros(0)).shape == (0,)


def test_what_makes_no_sense_is_refused() -> None:
    values, is_source = torch.randn(6, 2), torch.arange(6) < 3
    for confidence in (0.0, 1.0, -0.1):
        with pytest.raises(SettingError, match="confidence"):
            auroc_interval(values, values, torch.zeros(2), confidence=confidence)
    for p in (-1e-9, 1 + 1e-9):
        with pytest.raises(SettingError, match="between 0 and 1"):
            benjamini_hochberg(torch.tensor([0.1, p], dtype=torch.float64))
    assert benjamini_hochberg(torch.tensor([0.0, 1.0])).tolist() == [0, 1]
    assert len(permutation_null(values, torch.arange(6) < 1, permutations=1, seed=0)) == 1
    with pytest.raises((ActivationError, TypeError)):
        auroc_interval(values, values, torch.zeros(3), confidence=0.9)
    with pytest.raises(ActivationError, match="target side"):
        mann_whitney_p(values, values[:0])
    with pytest.raises(SettingError, match="p-values"):
        benjamini_hochberg(torch.tensor([0.1, float("nan")]))
    with pytest.raises(SettingError, match="permutations"):
        permutation_null(values, is_source, permutations=0, seed=0)
    with pytest.raises(ActivationError, match="both labels"):
        permutation_null(values, torch.ones(6, dtype=torch.bool), permutations=5, seed=0)
    with pytest.raises(SettingError, match="empty"):
        family_wise_p(torch.zeros(2), torch.zeros(0))
