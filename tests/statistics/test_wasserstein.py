"""The Wasserstein distance against scipy, a linear programme and closed forms."""

from math import gcd

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import wasserstein_distance

from lens_steer.errors import ActivationError, SettingError
from lens_steer.statistics.wasserstein import quantile_coupling, wasserstein

COUNTS = st.integers(1, 30)


@settings(max_examples=60, deadline=None)
@given(COUNTS, COUNTS)
def test_coupling_moves_all_mass_in_order(n: int, m: int) -> None:
    i, j, weights = quantile_coupling(n, m)
    assert len(i) == n + m - gcd(n, m)
    torch.testing.assert_close(torch.bincount(i, weights, n), torch.full((n,), 1 / n, dtype=torch.float64))
    torch.testing.assert_close(torch.bincount(j, weights, m), torch.full((m,), 1 / m, dtype=torch.float64))
    assert bool((i.diff() >= 0).all() and (j.diff() >= 0).all() and (weights > 0).all())


def test_equal_counts_pair_one_to_one() -> None:
    i, j, weights = quantile_coupling(5, 5)
    assert i.tolist() == j.tolist() == [0, 1, 2, 3, 4]
    assert weights.tolist() == [0.2] * 5


def test_coupling_of_two_and_three() -> None:
    i, j, weights = quantile_coupling(2, 3)
    assert (i.tolist(), j.tolist()) == ([0, 0, 1, 1], [0, 1, 1, 2])
    torch.testing.assert_close(weights, torch.tensor([2, 1, 1, 2], dtype=torch.float64) / 6)


@settings(max_examples=40, deadline=None)
@given(COUNTS, COUNTS, st.integers(0, 1000), st.booleans())
def test_order_1_equals_scipy(n: int, m: int, seed: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    source, target = torch.randn(n, 3, generator=generator), 2 * torch.randn(m, 3, generator=generator) + 1
    if ties:
        source, target = source.round(), target.round()
    expected = [wasserstein_distance(a, b) for a, b in zip(source.double().T, target.double().T, strict=True)]
    np.testing.assert_allclose(wasserstein(source, target), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("n", "m"), [(3, 5), (4, 6), (1, 7), (5, 5)])
def test_order_2_is_the_cheapest_transport(n: int, m: int) -> None:
    source, target = torch.randn(n, 1, dtype=torch.float64), torch.randn(m, 1, dtype=torch.float64)
    cost = ((source - target.T) ** 2).numpy()
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    best = linprog(cost.ravel(), A_eq=np.vstack([rows, columns]), b_eq=np.r_[np.full(n, 1 / n), np.full(m, 1 / m)])
    assert wasserstein(source, target, order=2).item() == pytest.approx(best.fun**0.5, abs=1e-9)


def test_a_shift_is_its_own_distance_and_sides_are_alike() -> None:
    source, target = torch.randn(40, 6), torch.randn(25, 6)
    for order in (1, 2):
        torch.testing.assert_close(
            wasserstein(source.double(), source.double() + 3, order=order), torch.full((6,), 3.0).double()
        )
        torch.testing.assert_close(wasserstein(source, target, order=order), wasserstein(target, source, order=order))
    assert wasserstein(source, source).tolist() == [0] * 6
    assert bool((wasserstein(source, target, order=2) >= wasserstein(source, target)).all())


def test_input_is_left_as_it_was() -> None:
    for shape in [(9, 1), (1, 9), (9, 3)]:
        source, target = torch.randn(shape), torch.randn(shape)
        copies = source.clone(), target.clone()
        wasserstein(source, target)
        assert torch.equal(source, copies[0])
        assert torch.equal(target, copies[1])


def test_coupling_carries_gradients() -> None:
    source, target = torch.randn(4, dtype=torch.float64, requires_grad=True), torch.randn(6, dtype=torch.float64)
    i, j, weights = quantile_coupling(4, 6)
    loss = weights @ (source.sort().values[i] - target.sort().values[j]) ** 2
    (gradient,) = torch.autograd.grad(loss, source)
    # Moving every source text alike changes the loss as moving the mean would.
    torch.testing.assert_close(gradient.sum(), 2 * (source.mean() - target.mean()).detach())
    assert loss.item() == pytest.approx(wasserstein(source.detach()[:, None], target[:, None], order=2).item() ** 2)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(ActivationError, match="source side"):
        wasserstein(torch.zeros(0, 2), torch.zeros(3, 2))
    with pytest.raises(ActivationError, match="at least one text on each side"):
        quantile_coupling(3, 0)
    with pytest.raises((SettingError, TypeError)):
        wasserstein(torch.zeros(1, 2), torch.zeros(3, 2), order=3)  # type: ignore[arg-type]
    assert wasserstein(torch.zeros(3, 0), torch.zeros(2, 0)).shape == (0,)
