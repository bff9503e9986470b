"""Pools against a loop over rows, on masks with holes, and through gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens_steer.activations.pooling import Pool, TokenPool


def naive(values: torch.Tensor, mask: torch.Tensor, pool: Pool) -> torch.Tensor:
    rows = [row[inside] for row, inside in zip(values, mask, strict=True)]
    reduce = {"max": lambda r: r.amax(0), "mean": lambda r: r.mean(0), "last": lambda r: r[-1], "first": lambda r: r[0]}
    return torch.stack([reduce[pool](row) for row in rows])


@st.composite
def masks(draw: st.DrawFn) -> torch.Tensor:
    rows, length = draw(st.integers(1, 5)), draw(st.integers(1, 7))
    cells = draw(st.lists(st.lists(st.booleans(), min_size=length, max_size=length), min_size=rows, max_size=rows))
    mask = torch.tensor(cells)
    mask[~mask.any(1), draw(st.integers(0, length - 1))] = True
    return mask


@pytest.mark.parametrize("pool", ["max", "mean", "last", "first"])
@given(mask=masks(), seed=st.integers(0, 99))
def test_pool_reads_the_masked_tokens_alone(pool: Pool, mask: torch.Tensor, seed: int) -> None:
    values = torch.randn(*mask.shape, 3, generator=torch.Generator().manual_seed(seed)) - 5  # all maxima below zero
    pooled = TokenPool(mask)(values, pool)
    torch.testing.assert_close(pooled, naive(values, mask, pool), rtol=1e-5, atol=1e-5)
    spoiled = torch.where(mask[..., None], values, torch.full_like(values, 1e6))
    torch.testing.assert_close(TokenPool(mask)(spoiled, pool), pooled, rtol=0, atol=1e-3 if pool == "mean" else 0)


@pytest.mark.parametrize("pool", ["max", "mean", "last", "first"])
def test_gradient_reaches_pooled_tokens_only(pool: Pool) -> None:
    mask = torch.tensor([[False, True, True, False], [True, True, True, True]])
    values = torch.randn(2, 4, 3, requires_grad=True)
    TokenPool(mask)(values, pool).sum().backward()
    assert values.grad is not None
    assert float(values.grad[0, [0, 3]].abs().max()) == 0.0
    torch.testing.assert_close(values.grad.sum((1,)), torch.ones(2, 3))


def test_half_precision_comes_out_as_float32() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert TokenPool(mask)(torch.randn(2, 3, 4).bfloat16(), "mean").dtype == torch.float32


@pytest.mark.parametrize("pool", ["mean", "max", "last", "first"])
def test_autocast_changes_no_pool(pool: Pool) -> None:
    """Under autocast a product of matrices is of half precision, where 1e-5 is promised."""
    activation = torch.randn(4, 9, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(4, 9, dtype=torch.bool)
    mask[1, :4] = mask[2, 5:] = False
    plain = TokenPool(mask)(activation, pool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(TokenPool(mask)(activation, pool), plain, rtol=1e-6, atol=1e-6)
