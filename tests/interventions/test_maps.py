"""The algebra of maps on random tensors: closed forms equal applying in turn."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens_steer.errors import MapError
from lens_steer.interventions.map_kinds import build_map
from lens_steer.interventions.maps import ActivationMap, Chain, DiagonalAffine

WIDTH = 5


@st.composite
def affine(draw: st.DrawFn, *, bounded: bool = False) -> DiagonalAffine:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    scale, shift, low = (torch.randn(WIDTH, generator=generator) for _ in range(3))
    scale = scale + torch.sign(scale) * 0.2
    bounds = {"low": low, "high": low + torch.rand(WIDTH, generator=generator) * 2} if bounded else {}
    return DiagonalAffine(scale, shift, **bounds)


activations = st.integers(0, 10**6).map(
    lambda seed: torch.randn(3, 7, WIDTH, generator=torch.Generator().manual_seed(seed)) * 2
)


@given(affine(), affine(), activations)
def test_composition_equals_applying_in_turn(a: DiagonalAffine, b: DiagonalAffine, h: torch.Tensor) -> None:
    fused = a.then(b)
    assert isinstance(fused, DiagonalAffine)
    torch.testing.assert_close(fused(h), b(a(h)), rtol=1e-5, atol=1e-4)


@given(affine(), activations)
def test_inverse_undoes_the_map(a: DiagonalAffine, h: torch.Tensor) -> None:
    torch.testing.assert_close(a.inverse()(a(h)), h, rtol=1e-4, atol=1e-4)


@given(st.booleans().flatmap(lambda bounded: affine(bounded=bounded)), activations, st.floats(-1, 2))
def test_strength_blends_input_and_map(a: DiagonalAffine, h: torch.Tensor, strength: float) -> None:
    expected = (1 - strength) * h + strength * a(h)
    torch.testing.assert_close(a.scaled(strength)(h), expected, rtol=1e-4, atol=1e-4)


@given(affine(bounded=True), activations)
def test_an_interval_is_open(a: DiagonalAffine, h: torch.Tensor) -> None:
    assert a.low is not None
    assert a.high is not None
    h = h.clone()
    h[0, 0], h[0, 1] = a.low, a.high
    mapped = a(h)
    inside = (h > a.low) & (h < a.high)
    assert torch.equal(mapped[~inside], h[~inside])
    torch.testing.assert_close(mapped[inside], (h * a.scale + a.shift)[inside])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_follows_the_activations_dtype(dtype: torch.dtype) -> None:
    a = DiagonalAffine(torch.rand(WIDTH), torch.rand(WIDTH))
    h = torch.randn(2, 3, WIDTH, dtype=dtype)
    assert a(h).dtype == dtype
    assert a.scale.dtype == torch.float32
    assert a(h.float()).dtype == torch.float32  # the cast copy of one dtype must not serve another


def test_gradient_equals_central_differences() -> None:
    a = DiagonalAffine(
        torch.tensor([0.5, -2.0]), torch.tensor([1.0, 0.0]), low=torch.tensor([-1.0, -1.0]), high=torch.ones(2)
    )
    h = torch.tensor([[0.3, 0.2], [5.0, -0.5]], requires_grad=True)
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    (gradient,) = torch.autograd.grad((a(h) * weights).sum(), h)
    step = 1e-2
    for place in range(4):
        bump = torch.zeros(4)
        bump[place] = step
        up, down = ((a(h.detach() + sign * bump.view(2, 2)) * weights).sum() for sign in (1, -1))
        assert float(gradient.flatten()[place]) == pytest.approx(float(up - down) / (2 * step), rel=5e-3)


@given(affine(bounded=True), affine(), activations)
def test_a_chain_is_the_maps_in_turn(a: DiagonalAffine, b: DiagonalAffine, h: torch.Tensor) -> None:
    assert a.then(b) is None
    chain = Chain((a, b))
    torch.testing.assert_close(chain(h), b(a(h)))
    torch.testing.assert_close(chain.scaled(0.25)(h), 0.75 * h + 0.25 * b(a(h)), rtol=1e-4, atol=1e-4)
    longer = chain.then(a)
    assert longer is not None
    torch.testing.assert_close(longer(h), a(b(a(h))))


def test_restrict_keeps_the_chosen_units_alone() -> None:
    a = DiagonalAffine(torch.full((WIDTH,), 3.0), torch.ones(WIDTH))
    keep = torch.tensor([True, False, True, False, False])
    h = torch.randn(4, WIDTH)
    mapped = a.restrict(keep)(h)
    assert torch.equal(mapped[:, ~keep], h[:, ~keep])
    assert torch.equal(mapped[:, keep], a(h)[:, keep])
    assert torch.equal(a.restrict(keep).moved(1e-5), keep)


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_a_saved_map_comes_back(strength: float) -> None:
    a = DiagonalAffine(torch.rand(WIDTH), torch.rand(WIDTH), low=-torch.ones(WIDTH), high=torch.ones(WIDTH))
    b = DiagonalAffine(torch.rand(WIDTH), torch.rand(WIDTH))
    made: list[ActivationMap] = [a, b, Chain((a, b), strength), Chain((Chain((a, b), strength), a))]
    for one in made:
        back = build_map(one.spec(), one.tensors())
        assert back.same_as(one)
        assert not back.same_as(DiagonalAffine.identity(WIDTH))


def test_impossible_maps_are_refused() -> None:
    zero = DiagonalAffine(torch.tensor([1.0, 0.0, 1e-5]), torch.zeros(3))
    with pytest.raises(MapError, match="near zero at 2 units \\(1, 2"):
        zero.inverse()
    with pytest.raises(MapError, match="interval"):
        DiagonalAffine(torch.ones(2), torch.ones(2), low=-torch.ones(2), high=torch.ones(2)).inverse()
    with pytest.raises(MapError, match="one width"):
        DiagonalAffine(torch.ones(2), torch.ones(3))
    with pytest.raises(MapError, match="both bounds"):
        DiagonalAffine(torch.ones(2), torch.ones(2), low=torch.ones(2))
    with pytest.raises(MapError, match="not finite"):
        DiagonalAffine(torch.tensor([torch.inf]), torch.ones(1))
