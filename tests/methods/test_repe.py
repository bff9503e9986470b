"""RepE: the component against scikit-learn's, its sign, both modes, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.errors import ActivationError, ContrastError, SettingError
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.interventions.project_out import ProjectOut
from lens_steer.methods.caa import CAA
from lens_steer.methods.repe import RepE, first_component
from lens_steer.texts.contrast import ContrastSet
from tests.families import sentences


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return ContrastSet(sentences(9, seed=1, must="sad"), sentences(9, seed=2, must="happy"), paired=True)


@pytest.fixture(scope="module")
def acts(tiny: Any, contrast: ContrastSet) -> Activations:
    return collect(tiny, contrast, "hook_resid_post", pool="last")


@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 1e3]))
def test_the_component_is_that_of_scikit_learn(pairs: int, width: int, seed: int, size: float) -> None:
    """Both orders of every difference, so that the centre is zero."""
    generator = torch.Generator().manual_seed(seed)
    differences = size * torch.randn(pairs, width, generator=generator).double()
    along = first_component(differences)
    assert float(along.norm()) == pytest.approx(1)
    assert float((differences @ along).mean()) >= 0
    pca = PCA(n_components=min(2, 2 * pairs, width)).fit(torch.cat([differences, -differences]).numpy())
    captured = float((differences @ along).square().sum() / differences.square().sum())
    assert captured == pytest.approx(float(pca.explained_variance_ratio_[0]), rel=1e-6)
    gap = 1 - (pca.explained_variance_[1] / pca.explained_variance_[0] if width > 1 else 0)
    if gap > 1e-3:
        assert abs(float(along @ torch.from_numpy(pca.components_[0]))) == pytest.approx(1, abs=1e-6)


def test_no_matrix_of_unit_by_unit_is_made() -> None:
    along = first_component(torch.randn(5, 200_000, generator=torch.Generator().manual_seed(0)).double())
    assert along.shape == (200_000,)  # its square would take 320 GB


@pytest.mark.compat
def test_add_carries_the_means_onto_each_other(tiny: Any, contrast: ContrastSet, acts: Activations) -> None:
    method = RepE(layers=(0,))
    edit = method.fit(tiny, contrast, activations=acts)
    assert edit == method.fit(tiny, contrast)
    (one,) = edit.edits
    along = first_component((acts.target[one.site] - acts.source[one.site]).double())
    assert isinstance(one.map, DiagonalAffine)
    assert bool((one.map.scale == 1).all())
    assert float(one.map.shift.double() @ along) == pytest.approx(float(one.map.shift.norm()), rel=1e-5)
    with edit.on(tiny):
        after = collect(tiny, contrast, [one.site.name], pool="last").source[one.site].double()
    mean = acts.target[one.site].double().mean(0) @ along
    assert float(after.mean(0) @ along) == pytest.approx(float(mean), rel=1e-4, abs=1e-5)
    twice = RepE(layers=(0,), multiplier=2.0).fit(tiny, contrast, activations=acts)
    torch.testing.assert_close(twice.edits[0].map.shift, 2 * one.map.shift)


@pytest.mark.compat
def test_projected_out_nothing_is_left(tiny: Any, contrast: ContrastSet, acts: Activations) -> None:
    edit = RepE(mode="project_out", layers=(-1,)).fit(tiny, contrast)
    (one,) = edit.edits
    assert isinstance(one.map, ProjectOut)
    assert one.map.strength == 1
    along = first_component((acts.target[one.site] - acts.source[one.site]).double())
    torch.testing.assert_close(one.map.direction.double(), along, rtol=1e-4, atol=1e-5)
    with edit.on(tiny):
        after = collect(tiny, contrast, [one.site.name], pool="mean")
    assert float((after.values[one.site] @ one.map.direction).abs().max()) < 1e-4
    half = RepE(mode="project_out", layers=(-1,), multiplier=0.5).fit(tiny, contrast)
    assert half.edits[0].map.same_as(one.map.scaled(0.5))


def test_one_pair_is_caa(tiny: Any) -> None:
    pair = ContrastSet(["the dog was sad"], ["the dog was happy"], paired=True)
    for one, other in zip(RepE.paper().fit(tiny, pair).edits, CAA(layers="all").fit(tiny, pair).edits, strict=True):
        torch.testing.assert_close(one.map.shift, other.map.shift, rtol=1e-4, atol=1e-5)


def test_the_swap_is_the_negative(tiny: Any, contrast: ContrastSet) -> None:
    back = RepE.paper(multiplier=-1.0).fit(tiny, contrast.swap())
    for one, other in zip(RepE.paper().fit(tiny, contrast).edits, back.edits, strict=True):
        torch.testing.assert_close(one.map.shift, other.map.shift)


def test_the_provenance_says_what_the_component_holds(tiny: Any, contrast: ContrastSet, acts: Activations) -> None:
    edit = RepE.paper().fit(tiny, contrast, activations=acts)
    for row, site in zip(edit.provenance["directions"], edit.sites, strict=True):
        differences = (acts.target[site] - acts.source[site]).double()
        along = first_component(differences)
        assert row["site"] == site.name
        assert row["share_of_differences"] == pytest.approx(
            float((differences @ along).square().sum() / differences.square().sum())
        )
        assert row["pairs_in_order"] == pytest.approx(float(((differences @ along) > 0).double().mean()))


def test_pairs_drawn_at_random(tiny: Any) -> None:
    loose = ContrastSet(sentences(7, seed=1, must="sad"), sentences(12, seed=2, must="happy"))
    drawn = RepE(pairing="random").fit(tiny, loose)
    assert drawn == RepE(pairing="random").fit(tiny, loose)
    assert drawn != RepE(pairing="random", seed=1).fit(tiny, loose)


def test_refusals(tiny: Any, contrast: ContrastSet) -> None:
    with pytest.raises(ContrastError, match=r'has none: make it with paired=True, or set pairing="random"'):
        RepE().fit(tiny, ContrastSet(contrast.source, contrast.target))
    with pytest.raises(ActivationError, match=r"no pair differs at blocks\.0\.hook_resid_pre"):
        RepE.paper(sites="hook_resid_pre").fit(tiny, ContrastSet(["a sad dog"], ["a happy dog"], paired=True))
    arrays = [{"blocks.0.hook_resid_post": torch.randn(count, 32).numpy()} for count in (3, 4)]
    uneven = Activations.from_arrays(source=arrays[0], target=arrays[1], pool="last")
    with pytest.raises(ActivationError, match="3 source and 4 target texts make no pairs"):
        RepE(layers=(0,)).fit(tiny, contrast, activations=uneven)
    with pytest.raises(ActivationError, match="pooled by max"):
        RepE().fit(tiny, contrast, activations=collect(tiny, contrast, "hook_resid_post"))
    with pytest.raises((SettingError, TypeError)):
        RepE(mode="remove")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="finite"):
        RepE(multiplier=float("nan"))
