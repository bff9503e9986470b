"""The AcT methods on a model: simultaneous fits, settings and refusals; the causal fit has its own file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.errors import ActivationError, ContrastError, ModelError, SettingError, SiteError
from lens_steer.methods.activation_transport import ActivationTransport, GaussianAcT, LinearAcT, MeanAcT
from lens_steer.methods.caa import CAA
from lens_steer.methods.transport_maps import linear_transport
from lens_steer.texts.contrast import ContrastSet
from tests.families import sentences

METHODS = [MeanAcT(), GaussianAcT(), LinearAcT()]


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return ContrastSet(sentences(10, seed=1, must="sad"), sentences(7, seed=2, must="happy"))


@pytest.fixture(params=METHODS, ids=lambda method: type(method).__name__)
def method(request: pytest.FixtureRequest) -> ActivationTransport:
    return request.param


@pytest.mark.compat
def test_simultaneous_is_the_map_between_collected_activations(
    tiny: Any, contrast: ContrastSet, method: ActivationTransport
) -> None:
    acts = collect(tiny, contrast, "hook_resid_post", pool="mean")
    method = replace(method, causal=False)
    edit = method.fit(tiny, contrast, activations=acts)
    assert edit == method.fit(tiny, contrast)
    for site, e in zip(acts.sites, edit.edits, strict=True):
        assert e.site == site
        assert e.map.same_as(method.map_between(acts.source[site], acts.target[site]))
        assert torch.equal(e.map.low, acts.source[site].amin(0))
        assert torch.equal(e.map.high, acts.source[site].amax(0))


@pytest.mark.compat
@pytest.mark.parametrize("pool", ["mean", "last"])
@pytest.mark.parametrize("sites", ["hook_resid_post", "attn.hook_z"])
def test_mean_act_is_caa(tiny: Any, contrast: ContrastSet, pool: Any, sites: str) -> None:
    mean = MeanAcT(sites=sites, causal=False, support="unbounded", moves="source", pool=pool)
    assert mean.fit(tiny, contrast) == CAA(sites=sites, layers="all", pool=pool).fit(tiny, contrast)


def test_the_source_arrives_at_the_targets_mean(tiny: Any, contrast: ContrastSet, method: ActivationTransport) -> None:
    name = "blocks.1.hook_resid_post"
    edit = replace(method, sites=name, support="unbounded", causal=False).fit(tiny, contrast)
    plain = collect(tiny, contrast, name, pool="mean")
    with edit.on(tiny):
        edited = collect(tiny, contrast, name, pool="mean")
    torch.testing.assert_close(edited.source[name].mean(0), plain.target[name].mean(0), rtol=1e-4, atol=1e-4)


def test_swap_is_the_inverse_direction(tiny: Any, contrast: ContrastSet) -> None:
    method = GaussianAcT(support="unbounded", causal=False)
    there, back = method.fit(tiny, contrast), method.fit(tiny, contrast.swap())
    for one, other in zip(there.inverse().edits[::-1], back.edits, strict=True):
        torch.testing.assert_close(one.map.scale, other.map.scale, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one.map.shift, other.map.shift, rtol=1e-4, atol=1e-4)


def test_a_dead_unit_stays_as_it_is(tiny: Any, contrast: ContrastSet, method: ActivationTransport) -> None:
    name = "blocks.0.hook_resid_post"
    source, target = torch.randn(10, 32), torch.randn(7, 32)
    source[:, 5] = 0.25
    acts = Activations.from_arrays(source={name: source}, target={name: target}, pool="mean")
    edit = replace(method, sites=name, causal=False, support="unbounded").fit(tiny, contrast, activations=acts)
    assert (edit.edits[0].map.scale[5].item(), edit.edits[0].map.shift[5].item()) == (1.0, 0.0)
    assert edit.support()["kept"].tolist() == [31]
    scale, _ = linear_transport(source, target)
    assert scale[5] == 1


def test_provenance_says_how(tiny: Any, contrast: ContrastSet, method: ActivationTransport) -> None:
    about = replace(method, support=(0.1, 0.9), moves="source").fit(tiny, contrast).provenance
    assert about["method"] == type(method).__name__
    assert about["settings"]["support"] == (0.1, 0.9)
    assert about["settings"]["moves"] == "source"
    assert about["texts"] == {"source": 10, "target": 7}


class TestRefusals:
    def test_one_text_has_no_spread(self, tiny: Any, method: ActivationTransport) -> None:
        for sides in [(1, 5), (5, 1)]:
            contrast = ContrastSet(sentences(sides[0], seed=1), sentences(sides[1], seed=2))
            with pytest.raises(ContrastError, match=f"{type(method).__name__} needs at least 2"):
                method.fit(tiny, contrast)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"support": (0.9, 0.1)},
            {"support": (0.0, 100.0)},
            {"support": (-0.1, 0.5)},
            {"support": "inside"},
            {"moves": "target"},
            {"batch_size": 0},
        ],
    )
    def test_settings_out_of_range(self, wrong: dict[str, Any]) -> None:
        with pytest.raises((SettingError, TypeError), match="LinearAcT|type"):
            LinearAcT(**wrong)

    @pytest.mark.parametrize("causal", [True, False])
    def test_foreign_activations(self, tiny: Any, contrast: ContrastSet, causal: bool) -> None:
        method = LinearAcT(causal=causal)
        with pytest.raises(ActivationError, match="pooled by max"):
            method.fit(tiny, contrast, activations=collect(tiny, contrast, "hook_resid_post"))
        acts = collect(tiny, contrast, "hook_resid_post", pool="mean")
        with pytest.raises(ActivationError, match="other texts"):
            method.fit(tiny, contrast.swap(), activations=acts)
        assert method.fit(tiny, contrast, activations=acts) == method.fit(tiny, contrast)

    def test_training_mode(self, tiny: Any, contrast: ContrastSet, method: ActivationTransport) -> None:
        tiny.train()
        try:
            with pytest.raises(ModelError, match="training mode"):
                method.fit(tiny, contrast)
        finally:
            tiny.eval()

    def test_a_site_that_cannot_be_edited(self, tiny: Any, contrast: ContrastSet) -> None:
        with pytest.raises(SiteError, match="no site is named"):
            LinearAcT(sites="hook_resid_poost").fit(tiny, contrast)
        with pytest.raises(SiteError, match="the MLP branch only"):
            LinearAcT(sites="hook_resid_mid").fit(tiny, contrast)
