"""The low-rank affine map: its formula, what it leaves alone, the algebra, dtypes, and what is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens_steer.errors import MapError
from lens_steer.interventions.low_rank import LowRankAffine
from lens_steer.interventions.map_kinds import build_map
from lens_steer.interventions.maps import Chain, DiagonalAffine
from lens_steer.interventions.project_out import ProjectOut


def make(width: int, rank: int, seed: int = 0, strength: float = 1.0) -> LowRankAffine:
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(width, rank, generator=generator)).Q.T
    weight, bias = torch.randn(rank, width, generator=generator), torch.randn(rank, generator=generator)
    return LowRankAffine(rotation, weight, bias, strength)


SHAPES = st.integers(1, 12).flatmap(lambda width: st.tuples(st.just(width), st.integers(1, width)))


def activations(width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 4, width, generator=torch.Generator().manual_seed(seed + 50))


@given(SHAPES, st.integers(0, 99), st.floats(-2, 2))
def test_it_is_the_formula(shape: tuple[int, int], seed: int, strength: float) -> None:
    one, h = make(*shape, seed), activations(shape[0], seed)
    r, w, b = one.rotation, one.weight, one.bias
    expected = h + strength * (h @ w.T + b - h @ r.T) @ r
    torch.testing.assert_close(one.scaled(strength)(h), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(one.scaled(0.0)(h), h)


@given(SHAPES, st.integers(0, 99))
def test_at_strength_one_the_directions_are_set_and_nothing_else_moves(shape: tuple[int, int], seed: int) -> None:
    one, h = make(*shape, seed), activations(shape[0], seed)
    mapped = one(h)
    torch.testing.assert_close(mapped @ one.rotation.T, h @ one.weight.T + one.bias, rtol=1e-4, atol=1e-4)
    across = torch.eye(shape[0]) - one.rotation.T @ one.rotation
    torch.testing.assert_close(mapped @ across, h @ across, rtol=1e-4, atol=1e-4)


@given(SHAPES, st.integers(0, 99), st.floats(-1, 1))
def test_inverse_undoes_the_map_or_says_that_a_direction_is_lost(
    shape: tuple[int, int], seed: int, strength: float
) -> None:
    one, h = make(*shape, seed, strength), activations(shape[0], seed)
    lost = torch.eye(one.rank) + strength * (one.weight - one.rotation) @ one.rotation.T
    smallest = float(torch.linalg.svdvals(lost).min())
    if smallest < 1e-3:
        return
    tolerance = 1e-4 / min(smallest, 1) * 10
    torch.testing.assert_close(one.inverse()(one(h)), h, rtol=tolerance, atol=tolerance)


def test_what_is_lost_does_not_come_back() -> None:
    # W = 0, b = 0 takes the directions out, which is what ProjectOut does to one.
    rotation = torch.tensor([[0.6, 0.8, 0.0]])
    out, h = LowRankAffine(rotation, torch.zeros(1, 3), torch.zeros(1)), activations(3)
    torch.testing.assert_close(out(h), ProjectOut(rotation[0])(h))
    with pytest.raises(MapError, match="some is lost"):
        out.inverse()
    torch.testing.assert_close(out.scaled(0.5).inverse()(out.scaled(0.5)(h)), h)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_follows_the_activations_dtype_and_computes_in_float32(dtype: torch.dtype) -> None:
    one, h = make(64, 4), activations(64).to(dtype)
    got = one(h)
    assert got.dtype == dtype
    assert one.rotation.dtype == torch.float32
    torch.testing.assert_close(got, one(h.float()).to(dtype), rtol=1e-5, atol=1e-5)


def test_which_units_move() -> None:
    rotation = torch.tensor([[0.6, 0.0, 0.8, 0.0]])
    one = LowRankAffine(rotation, rotation, torch.tensor([0.5]))
    assert one.moved(1e-5).tolist() == [True, False, True, False]
    assert one.moved(0.35).tolist() == [False, False, True, False]
    assert not one.scaled(0.0).moved(0.0).any()
    assert not LowRankAffine(rotation, rotation, torch.zeros(1)).moved(0.0).any()
    assert one.restrict(torch.tensor([True, False, True, False])).same_as(one)
    with pytest.raises(MapError, match="cannot leave 1 of them out; restrict to whole sites"):
        one.restrict(torch.tensor([False, True, True, True]))


def test_a_saved_map_comes_back_to_the_bit() -> None:
    one, shift = make(5, 2, strength=0.7), DiagonalAffine(torch.ones(5), torch.ones(5))
    for saved in (one, one.inverse(), Chain((one, shift), 0.5)):
        assert build_map(saved.spec(), saved.tensors()).same_as(saved)
    assert not one.same_as(one.scaled(0.5))
    assert one.then(shift) is None
    torch.testing.assert_close(Chain((one, shift))(activations(5)), one(activations(5)) + 1)


def test_impossible_maps_are_refused() -> None:
    with pytest.raises(MapError, match="orthonormal, and these are off by 3"):
        LowRankAffine(2 * torch.eye(3)[:1], torch.ones(1, 3), torch.ones(1))
    with pytest.raises(MapError, match="not finite"):
        LowRankAffine(torch.eye(3)[:1], torch.full((1, 3), torch.inf), torch.ones(1))
