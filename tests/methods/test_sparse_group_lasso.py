"""The proximal step against a numerical minimiser, and gamma_max against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from lens_steer.methods.sparse_group_lasso import SparseGroupLasso

GROUP = torch.tensor([0, 0, 0, 1, 1, 2])


def objective(y: np.ndarray, x: torch.Tensor, sizes: torch.Tensor, penalty: SparseGroupLasso, gamma: float) -> float:
    moved = torch.tensor(y)
    quadratic = ((moved - x.double()).square() / (2 * sizes.double())).sum()
    return float(quadratic) + gamma * penalty.value(moved)


@settings(max_examples=25)  # a numerical minimiser runs twice for each
@given(
    seed=st.integers(0, 10**6),
    gamma=st.floats(0.01, 1.0),
    l1=st.sampled_from([0.0, 0.5, 1.0]),
    group=st.sampled_from([0.0, 0.7, 1.0]),
    own_sizes=st.booleans(),
)
def test_step_minimises_its_objective(seed: int, gamma: float, l1: float, group: float, own_sizes: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, generator=generator)
    sizes = torch.rand(6, generator=generator) + 0.1 if own_sizes else torch.full((6,), 0.4)
    penalty = SparseGroupLasso(GROUP, l1, group)
    step = penalty.step(x, gamma, sizes if own_sizes else 0.4)
    reached = objective(step.double().numpy(), x, sizes, penalty, gamma)
    # From the answer itself and from x, no direction leads lower.
    for start in (step, x):
        found = minimize(
            objective, start.double().numpy(), (x, sizes, penalty, gamma), method="Powell", options={"xtol": 1e-9}
        )
        assert reached <= found.fun + 1e-6


def test_one_size_for_all_equals_equal_sizes() -> None:
    x = torch.randn(6, generator=torch.Generator().manual_seed(1))
    penalty = SparseGroupLasso(GROUP, 1.0, 1.0)
    torch.testing.assert_close(
        penalty.step(x, 0.3, 0.5), penalty.step(x, 0.3, torch.full((6,), 0.5)), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(("l1", "group"), [(1.0, 1.0), (1.0, 0.0), (0.0, 1.0), (0.3, 2.0)])
@pytest.mark.parametrize("own_sizes", [False, True])
def test_gamma_max_is_where_zero_becomes_a_fixed_point(l1: float, group: float, own_sizes: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    gradient = torch.randn(6, generator=generator)
    penalty = SparseGroupLasso(GROUP, l1, group)
    ceiling = penalty.gamma_max(gradient)
    sizes = torch.rand(6, generator=generator) + 0.1 if own_sizes else torch.tensor(0.2)
    for share, empty in ((1.001, True), (0.999, False)):
        step = penalty.step(-sizes * gradient, share * ceiling, sizes if own_sizes else 0.2)
        assert bool((step == 0).all()) == empty


def test_value_is_the_formula() -> None:
    x = torch.tensor([3.0, 0.0, 4.0, -1.0, 0.0, 2.0])
    value = SparseGroupLasso(GROUP, 0.5, 2.0).value(x)
    assert value == pytest.approx(0.5 * 10 + 2 * (3**0.5 * 5 + 2**0.5 * 1 + 2))
