"""Logistic probes against scikit-learn at a tight tolerance, and against what an optimum must satisfy."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from lens_steer.errors import ActivationError
from lens_steer.statistics.logistic import logistic_probes


def data(
    texts: int, probes: int, dims: int, seed: int, *, gap: float = 1.0, scale: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    is_first = torch.arange(texts) < max(1, texts // 3)
    values = torch.randn(texts, probes, dims, generator=generator, dtype=torch.float64)
    values[is_first, :, 0] += gap
    return scale * values, is_first


@settings(max_examples=25, deadline=None)
@given(
    texts=st.integers(3, 60),
    dims=st.integers(1, 12),
    seed=st.integers(0, 1000),
    gap=st.sampled_from([0.0, 1.0, 20.0]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_they_equal_scikit_learn(texts: int, dims: int, seed: int, gap: float, scale: float) -> None:
    values, is_first = data(texts, 2, dims, seed, gap=gap, scale=scale)
    found = logistic_probes(values, is_first)
    for probe in range(2):
        theirs = LogisticRegression(class_weight="balanced", max_iter=10_000, tol=1e-12, solver="newton-cholesky")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs.fit(values[:, probe].numpy(), is_first.numpy())
        np.testing.assert_allclose(found.weight[probe].numpy(), theirs.coef_[0], rtol=1e-5, atol=1e-8)
        assert float(found.bias[probe]) == pytest.approx(theirs.intercept_[0], rel=1e-5, abs=1e-7)
        sure = np.abs(theirs.decision_function(values[:, probe].numpy())) > 1e-6
        said = found.decide(values)[:, probe].numpy()
        np.testing.assert_array_equal(said[sure], theirs.predict(values[:, probe].numpy())[sure])


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("gap", [0.0, 50.0])
def test_the_gradient_is_zero(gap: float, scale: float) -> None:
    values, is_first = data(50, 7, 8, seed=2, gap=gap, scale=scale)
    values[:, 3] = 2.0 * scale  # constant: says nothing
    found = logistic_probes(values, is_first)
    weight, bias = found.weight.clone().requires_grad_(), found.bias.clone().requires_grad_()
    margins = torch.einsum("tpd,pd->tp", values, weight) + bias
    counts = torch.where(is_first, 50 / (2 * is_first.sum()), 50 / (2 * (~is_first).sum())).double()
    losses = torch.nn.functional.softplus(torch.where(is_first[:, None], -margins, margins))
    (counts @ losses + (weight**2).sum(1) / 2).sum().backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert float(weight.grad.abs().max()) < 1e-6 * max(1.0, scale)
    assert float(bias.grad.abs().max()) < 1e-6
    assert float(found.weight[3].abs().max()) < 1e-6
    assert bool((found.weight.abs().amax(1)[torch.arange(7) != 3] > 0).all())


def test_every_probe_is_fitted_alone_and_the_swap_is_the_negative() -> None:
    values, is_first = data(40, 5, 4, seed=3)
    together, swapped = logistic_probes(values, is_first), logistic_probes(values, ~is_first)
    torch.testing.assert_close(swapped.weight, -together.weight)
    torch.testing.assert_close(swapped.bias, -together.bias, rtol=1e-6, atol=1e-9)
    for probe in range(5):
        alone = logistic_probes(values[:, [probe]], is_first)
        torch.testing.assert_close(alone.weight[0], together.weight[probe], rtol=1e-7, atol=1e-9)


def test_a_text_given_twice_counts_as_two() -> None:
    """A copy of every text doubles the loss beside the same penalty: another optimum, nearer to the data's."""
    values, is_first = data(30, 1, 3, seed=4)
    once, twice = (logistic_probes(values.repeat(n, 1, 1), is_first.repeat(n)) for n in (1, 2))
    assert float(twice.weight.norm()) > float(once.weight.norm())


def test_what_cannot_be_fitted_is_refused() -> None:
    values, is_first = data(6, 2, 3, seed=5)
    with pytest.raises(ActivationError, match=r"two classes, there are \[6, 0\]"):
        logistic_probes(values, torch.ones_like(is_first))
    values[2, 1, 0] = torch.nan
    with pytest.raises(ActivationError, match="finite"):
        logistic_probes(values, is_first)
