"""Projecting out: what is left along the direction, the algebra, dtypes, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens_steer.errors import ArtifactError, MapError
from lens_steer.host.sites import find_sites
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.map_kinds import build_map
from lens_steer.interventions.maps import Chain, DiagonalAffine
from lens_steer.interventions.project_out import ProjectOut


@st.composite
def directions(draw: st.DrawFn) -> torch.Tensor:
    width = draw(st.integers(1, 12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    return draw(st.floats(1e-3, 1e3)) * torch.randn(width, generator=generator)


def activations(width: int, seed: int = 0) -> torch.Tensor:
    return 2 * torch.randn(3, 4, width, generator=torch.Generator().manual_seed(seed))


@given(directions(), st.integers(0, 99))
def test_nothing_is_left_along_the_direction(direction: torch.Tensor, seed: int) -> None:
    out = ProjectOut(direction)
    assert float(out.direction.norm()) == pytest.approx(1, abs=1e-6)
    h = activations(len(direction), seed)
    assert float((out(h) @ out.direction).abs().max()) < 1e-5
    torch.testing.assert_close(out(out(h)), out(h), rtol=1e-5, atol=1e-5)
    across = h - out(h)
    torch.testing.assert_close(across, (h @ out.direction)[..., None] * out.direction, rtol=1e-5, atol=1e-5)


@given(directions(), st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 99))
def test_strength_blends_input_and_map(direction: torch.Tensor, own: float, strength: float, seed: int) -> None:
    out, h = ProjectOut(direction, own), activations(len(direction), seed)
    expected = (1 - strength) * h + strength * out(h)
    torch.testing.assert_close(out.scaled(strength)(h), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(out.scaled(0.0)(h), h)
    assert out.scaled(1.0).same_as(out)


@given(directions(), st.floats(-2, 3).filter(lambda s: abs(s - 1) > 0.05), st.integers(0, 99))
def test_inverse_undoes_the_map_where_something_is_left(direction: torch.Tensor, strength: float, seed: int) -> None:
    out, h = ProjectOut(direction, strength), activations(len(direction), seed)
    torch.testing.assert_close(out.inverse()(out(h)), h, rtol=1e-3, atol=1e-3)
    assert out.then(out) is None
    torch.testing.assert_close(Chain((out, out.inverse()))(h), h, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_follows_the_activations_dtype(dtype: torch.dtype) -> None:
    out = ProjectOut(torch.randn(64, generator=torch.Generator().manual_seed(1)))
    h = activations(64)
    assert out.direction.dtype == torch.float32
    got = out(h.to(dtype))
    assert got.dtype == dtype
    assert float((got.float() - out(h)).abs().max()) < 8 * torch.finfo(dtype).eps * float(h.abs().max()) + 1e-5
    assert out(h).dtype == torch.float32


def test_gradient_equals_central_differences() -> None:
    out, h = ProjectOut(torch.tensor([1.0, -2.0, 0.5]), 0.7), activations(3)[0, :2].requires_grad_()
    weights = torch.tensor([[1.0, 2.0, -1.0], [3.0, 4.0, 0.5]])
    (gradient,) = torch.autograd.grad((out(h) * weights).sum(), h)
    step = 1e-2
    for place in range(6):
        bump = torch.zeros(6)
        bump[place] = step
        up, down = ((out(h.detach() + sign * bump.reshape(2, 3)) * weights).sum() for sign in (1, -1))
        assert float(gradient.flatten()[place]) == pytest.approx(float(up - down) / (2 * step), rel=5e-3)


def test_which_units_move() -> None:
    out = ProjectOut(torch.tensor([3.0, 0.0, -4.0, 0.0]))
    assert out.moved(1e-5).tolist() == [True, False, True, False]
    assert out.moved(0.7).tolist() == [False, False, True, False]
    assert not out.scaled(0.0).moved(0.0).any()
    assert out.restrict(torch.tensor([True, False, True, True])).same_as(out)
    with pytest.raises(MapError, match="cannot leave 1 of them out; restrict to whole sites"):
        out.restrict(torch.tensor([False, True, True, True]))


@given(directions(), st.floats(-2, 2))
def test_a_saved_map_comes_back_to_the_bit(direction: torch.Tensor, strength: float) -> None:
    out = ProjectOut(direction, strength)
    shift = DiagonalAffine(torch.ones(len(direction)), torch.ones(len(direction)))
    for one in (out, out.scaled(0.3), Chain((out, shift), 0.5)):
        back = build_map(one.spec(), one.tensors())
        assert back.same_as(one)
        assert not back.same_as(shift)
    assert not out.same_as(ProjectOut(direction, strength + 1))


@pytest.mark.compat
def test_on_a_model_and_on_disk(tiny: Any, tmp_path: Path) -> None:
    site = find_sites(tiny, "hook_resid_post", layers=[0])[0]
    out = ProjectOut(torch.randn(site.width, generator=torch.Generator().manual_seed(2)))
    edit = Intervention((Edit(site, out),))
    shift = Intervention((Edit(site, DiagonalAffine(torch.ones(site.width), out.direction)),))
    ids = tiny.to_tokens("the dog was sad")
    with edit.on(tiny):
        _, cache = tiny.run_with_cache(ids)
    assert float((cache[site.name] @ out.direction).abs().max()) < 1e-5
    both = edit.then(shift)
    assert isinstance(both.edits[0].map, Chain)
    with both.on(tiny):
        _, cache = tiny.run_with_cache(ids)
    torch.testing.assert_close(cache[site.name] @ out.direction, torch.ones(ids.shape), rtol=1e-4, atol=1e-4)
    assert Intervention.load(both.save(tmp_path / "both")) == both
    row = edit.support().iloc[0]
    assert (row.kept, row.units) == (site.width, site.width)
    with pytest.raises(MapError, match="not diagonal"):
        edit.to_frame()
    with pytest.raises(MapError, match=r"blocks\.0\.hook_resid_post: no inverse: a projection loses"):
        edit.inverse()


def test_impossible_maps_are_refused() -> None:
    for bad in (torch.zeros(3), torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf, 1.0])):
        with pytest.raises(MapError, match="finite length above 0"):
            ProjectOut(bad)
    with pytest.raises(MapError, match="finite number"):
        ProjectOut(torch.ones(2), float("nan"))
    with pytest.raises(MapError, match="no inverse"):
        ProjectOut(torch.ones(2), 1.0005).inverse()


def test_a_damaged_artifact_says_so(tiny: Any, tmp_path: Path) -> None:
    import json

    site = find_sites(tiny, "hook_resid_post")[0]
    place = Intervention((Edit(site, ProjectOut(torch.ones(site.width))),)).save(tmp_path / "edit")
    about = json.loads((place / "intervention.json").read_text())
    del about["edits"][0]["map"]["strength"]
    (place / "intervention.json").write_text(json.dumps(about))
    with pytest.raises(ArtifactError, match="damaged"):
        Intervention.load(place)
