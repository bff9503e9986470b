"""Gated maps: the blend that the gate asks for, token by token, the algebra, dtypes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens_steer.errors import MapError
from lens_steer.host.sites import find_sites
from lens_steer.interventions.bake import bake
from lens_steer.interventions.gated_map import Gated, LogisticGate
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.low_rank import LowRankAffine
from lens_steer.interventions.map_kinds import build_map
from lens_steer.interventions.maps import Chain, DiagonalAffine
from lens_steer.interventions.project_out import ProjectOut

WIDTH = 6


def make_gate(seed: int = 0, *, bias: float = 0.3, width: int = WIDTH) -> LogisticGate:
    return LogisticGate(torch.randn(width, generator=torch.Generator().manual_seed(seed)), bias)


def make_map(seed: int = 0, *, width: int = WIDTH) -> DiagonalAffine:
    generator = torch.Generator().manual_seed(seed + 100)
    return DiagonalAffine(torch.randn(width, generator=generator), torch.randn(width, generator=generator))


def activations(seed: int = 0, *, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(3, 4, width, generator=torch.Generator().manual_seed(seed + 200))


@given(st.integers(0, 99), st.floats(-2, 2), st.integers(1, 9))
def test_each_token_is_blended_by_its_own_gate(seed: int, strength: float, width: int) -> None:
    gate, inner, h = make_gate(seed, width=width), make_map(seed, width=width), activations(seed, width=width)
    gated = Gated(inner, gate).scaled(strength)
    for row in range(3):
        for pos in range(4):
            token = h[row, pos]
            openness = 1 / (1 + torch.exp(-(token @ gate.weights) - gate.bias))
            expected = token + strength * openness * (inner(token) - token)
            torch.testing.assert_close(gated(h)[row, pos], expected, rtol=1e-5, atol=1e-5)


def test_open_is_the_map_and_closed_is_the_identity() -> None:
    inner, h = make_map(), activations()
    wide_open, closed = (Gated(inner, LogisticGate(torch.zeros(WIDTH), bias)) for bias in (100.0, -200.0))
    torch.testing.assert_close(wide_open(h), inner(h))
    assert torch.equal(closed(h), h)


def test_strength_zero_is_the_identity_to_the_bit() -> None:
    overflowing = DiagonalAffine(torch.full((WIDTH,), 3e38), torch.full((WIDTH,), 3e38))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        h = activations().to(dtype) * 10
        for inner in (make_map(), overflowing, ProjectOut(torch.ones(WIDTH))):
            none = Gated(inner, make_gate()).scaled(0.0)
            assert torch.equal(none(h), h)
            assert not none.moved(0.0).any()
    assert Gated(make_map(), make_gate()).scaled(0.5).scaled(0.5).strength == 0.25


def test_a_projection_is_folded_into_the_weights() -> None:
    generator = torch.Generator().manual_seed(1)
    weights, projection = torch.randn(3, generator=generator), torch.randn(3, WIDTH, generator=generator)
    gate, h = LogisticGate(weights, -0.5, projection=projection), activations()
    torch.testing.assert_close(gate(h), torch.sigmoid(h @ projection.T @ weights - 0.5))
    assert gate.weights.shape == (WIDTH,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_follows_the_activations_dtype_and_computes_in_float32(dtype: torch.dtype) -> None:
    gated, h = Gated(make_map(width=64), make_gate(width=64), 0.7), activations(width=64).to(dtype)
    got = gated(h)
    assert got.dtype == dtype
    assert gated.gate(h).dtype == torch.float32
    # One rounding, of the result.
    inner = gated.map(h.float())
    expected = h.float() + 0.7 * gated.gate(h.float())[..., None] * (inner - h.float())
    torch.testing.assert_close(got, expected.to(dtype), rtol=1e-6, atol=1e-6)


def test_restrict_keeps_the_gate_whole() -> None:
    gated, h = Gated(make_map(), make_gate()), activations()
    keep = torch.tensor([True, False] * 3)
    part = gated.restrict(keep)
    assert torch.equal(part(h)[..., ~keep], h[..., ~keep])
    torch.testing.assert_close(part(h)[..., keep], gated(h)[..., keep])
    assert torch.equal(part.moved(1e-5), keep)
    with pytest.raises(MapError, match="restrict to whole sites"):
        Gated(ProjectOut(torch.ones(WIDTH)), make_gate()).restrict(keep)


def test_it_chains_but_has_no_closed_form_and_no_inverse() -> None:
    gated, later, h = Gated(make_map(), make_gate()), make_map(7), activations()
    assert gated.then(later) is None
    assert later.then(gated) is None
    torch.testing.assert_close(Chain((gated, later))(h), later(gated(h)))
    with pytest.raises(MapError, match="gated map has no inverse: how far its gate was open"):
        gated.inverse()


@pytest.mark.parametrize(
    "inner",
    [
        make_map(),
        ProjectOut(torch.ones(WIDTH), 0.5),
        Chain((make_map(), ProjectOut(torch.ones(WIDTH))), 0.3),
        LowRankAffine(torch.eye(WIDTH)[:2], torch.randn(2, WIDTH), torch.ones(2), 0.4),
        Gated(make_map(), make_gate(5), 0.2),
    ],
    ids=lambda inner: type(inner).__name__,
)
def test_a_saved_map_comes_back_to_the_bit(inner: Any) -> None:
    gated = Gated(inner, make_gate(), 0.6)
    for one in (gated, Chain((gated, make_map()), 0.5)):
        back = build_map(one.spec(), one.tensors())
        assert back.same_as(one)
    assert not gated.same_as(Gated(inner, make_gate(), 0.7))
    assert not gated.same_as(Gated(inner, make_gate(1), 0.6))
    assert not gated.same_as(Gated(inner, make_gate(bias=0.0), 0.6))


def test_impossible_gates_are_refused() -> None:
    with pytest.raises(MapError, match="a gate of 5 units does not fit a map of 6"):
        Gated(make_map(), make_gate(width=5))
    with pytest.raises(MapError, match="not finite"):
        LogisticGate(torch.tensor([torch.nan]), 0.0)
    with pytest.raises(MapError, match="a gate of 2 weights does not fit a projection to 3"):
        LogisticGate(torch.ones(2), 0.0, projection=torch.ones(3, 4))


class TestAsAnIntervention:
    @pytest.fixture
    def edit(self, tiny: Any) -> Intervention:
        (site,) = find_sites(tiny, "hook_mlp_out", layers=[0])
        return Intervention((Edit(site, Gated(make_map(width=32), make_gate(width=32))),))

    def test_on_a_model_and_on_disk(self, tiny: Any, edit: Intervention, tmp_path: Path) -> None:
        ids = tiny.to_tokens("the dog was sad")
        with torch.no_grad():
            plain = tiny(ids)
            with edit.on(tiny):
                gated = tiny(ids)
            with Intervention.load(edit.save(tmp_path / "gated")).on(tiny):
                assert torch.equal(tiny(ids), gated)
            assert torch.equal(tiny(ids), plain)
        assert float((gated - plain).abs().max()) > 1e-3
        assert edit.support().kept.tolist() == [32]

    def test_what_cannot_be_done_names_the_site(self, tiny: Any, edit: Intervention) -> None:
        with pytest.raises(MapError, match="blocks.0.hook_mlp_out: a gated map has no inverse"):
            edit.inverse()
        with pytest.raises(MapError, match="blocks.0.hook_mlp_out cannot be baked: its map is a Gated"):
            bake(tiny, edit)
        with pytest.raises(MapError, match="not diagonal"):
            edit.to_frame()
