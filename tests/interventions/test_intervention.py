"""Interventions on a live model: algebra, guards, artifacts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from lens_steer.activations.collect import collect
from lens_steer.errors import ArtifactError, MapError, OutputError, SettingError, SiteError, UnitError
from lens_steer.host.sites import Site, find_sites
from lens_steer.host.units import Unit
from lens_steer.interventions.ablation import ablate, random_units
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import Chain, DiagonalAffine
from lens_steer.ranking.experts import rank_experts
from lens_steer.texts.contrast import ContrastSet
from tests.families import make_tiny, sentences


def random_edit(model: Any, kind: str, *, seed: int, fitted: bool = False) -> Intervention:
    generator = torch.Generator().manual_seed(seed)
    edits = []
    for site in find_sites(model, kind):
        scale = 1 + 0.3 * torch.randn(site.width, generator=generator)
        edits.append(Edit(site, DiagonalAffine(scale, 0.3 * torch.randn(site.width, generator=generator))))
    return Intervention.fitted(model, edits, method="random") if fitted else Intervention(tuple(edits))


def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model(model.to_tokens("the dog was sad and ran"))
    return result


class TestAlgebra:
    @pytest.mark.compat
    @pytest.mark.parametrize("other", ["hook_resid_post", "mlp.hook_post"])
    def test_then_equals_nesting(self, tiny: Any, other: str) -> None:
        first, second = random_edit(tiny, "hook_resid_post", seed=1), random_edit(tiny, other, seed=2)
        together = first.then(second)
        assert len(together.edits) == len({edit.site for edit in (*first.edits, *second.edits)})
        with first.on(tiny), second.on(tiny):
            nested = logits(tiny)
        with together.on(tiny):
            torch.testing.assert_close(logits(tiny), nested, rtol=1e-4, atol=1e-4)

    def test_order_matters(self, tiny: Any) -> None:
        first, second = random_edit(tiny, "hook_resid_post", seed=1), random_edit(tiny, "hook_resid_post", seed=2)
        assert first.then(second) != second.then(first)

    @pytest.mark.compat
    def test_inverse_after_the_map_is_the_identity(self, tiny: Any) -> None:
        edit = random_edit(tiny, "hook_resid_post", seed=3)
        plain = logits(tiny)
        with edit.then(edit.inverse()).on(tiny):
            torch.testing.assert_close(logits(tiny), plain, rtol=1e-4, atol=1e-4)

    def test_a_chain_is_made_where_scopes_agree_and_no_closed_form_exists(self, tiny: Any) -> None:
        (site, *_) = find_sites(tiny, "hook_resid_post")
        bounded = DiagonalAffine(
            torch.ones(site.width) * 2,
            torch.zeros(site.width),
            low=-torch.ones(site.width),
            high=torch.ones(site.width),
        )
        one = Intervention((Edit(site, bounded),))
        assert isinstance(one.then(one).edits[0].map, Chain)
        assert len(one.then(one.scoped("generated")).edits) == 2

    def test_restrict(self, tiny: Any) -> None:
        edit = random_edit(tiny, "mlp.hook_post", seed=4)
        units = [Unit(edit.sites[0], 3), Unit(edit.sites[0], 7)]
        assert edit.restrict(units).units() == tuple(units)
        assert edit.restrict([edit.sites[1]]).edits == edit.edits[1:]
        assert edit.restrict(edit.units()) == edit
        with pytest.raises(MapError, match="nothing is left"):
            edit.restrict(["blocks.0.hook_resid_post"])

    def test_support_counts_what_moved(self, tiny: Any) -> None:
        (site, *_) = find_sites(tiny, "mlp.hook_post")
        scale, shift = torch.ones(site.width), torch.zeros(site.width)
        scale[2], shift[5], scale[6] = 0.5, -2.0, 1 + 1e-6
        row = Intervention((Edit(site, DiagonalAffine(scale, shift)),)).support().iloc[0]
        assert (row.kept, row.units) == (2, site.width)
        assert row.share == pytest.approx(2 / site.width)
        assert (row.max_abs_scale_change, row.max_abs_shift) == (pytest.approx(0.5), pytest.approx(2.0))

    def test_to_frame_holds_every_unit(self, tiny: Any) -> None:
        edit = random_edit(tiny, "hook_resid_post", seed=5)
        frame = edit.to_frame()
        assert len(frame) == sum(site.width for site in edit.sites)
        assert frame.loc[frame.site == edit.sites[1].name, "scale"].tolist() == edit.edits[1].map.scale.tolist()


class TestOnAModel:
    def test_plain_hooks_do_the_same(self, tiny: Any) -> None:
        edit = random_edit(tiny, "attn.hook_z", seed=6)
        with edit.on(tiny, strength=0.4):
            inside = logits(tiny)
        with tiny.hooks(fwd_hooks=edit.hooks(strength=0.4)):
            assert torch.equal(logits(tiny), inside)
        with pytest.raises(SettingError, match="positions"):
            edit.scoped("last").hooks()

    def test_width_and_site_are_checked(self, tiny: Any) -> None:
        wide = Site("blocks.0.hook_resid_post", 0, "hook_resid_post", 99)
        with (
            pytest.raises(SiteError, match="has 32 units in this model, the edit has 99"),
            Intervention((Edit(wide, DiagonalAffine.identity(99)),)).on(tiny),
        ):
            pass
        missing = Site("blocks.7.hook_resid_post", 7, "hook_resid_post", 32)
        with (
            pytest.raises(SiteError, match="no site is named"),
            Intervention((Edit(missing, DiagonalAffine.identity(32)),)).on(tiny),
        ):
            pass
        with pytest.raises(MapError, match="its map has 5"):
            Edit(missing, DiagonalAffine.identity(5))

    def test_a_strength_is_finite(self, tiny: Any) -> None:
        with (
            pytest.raises(SettingError, match="finite"),
            random_edit(tiny, "hook_resid_post", seed=0).on(tiny, float("nan")),
        ):
            pass


class TestArtifact:
    def test_round_trip(self, tiny: Any, tmp_path: Path) -> None:
        edit = random_edit(tiny, "attn.hook_z", seed=7, fitted=True).scoped("generated")
        back = Intervention.load(edit.save(tmp_path / "edit"))
        assert back == edit
        assert back.edits[0].site.heads == 4
        assert dict(back.provenance) == dict(edit.provenance)
        assert back.fingerprint == edit.fingerprint
        assert {path.name for path in (tmp_path / "edit").iterdir()} == {"intervention.json", "maps.safetensors"}

    def test_damage_foreign_format_and_occupied_places_are_refused(self, tiny: Any, tmp_path: Path) -> None:
        place = random_edit(tiny, "hook_resid_post", seed=8).save(tmp_path / "edit")
        with pytest.raises(OutputError, match="already holds other results"):
            random_edit(tiny, "hook_resid_post", seed=9).save(place)
        about = json.loads((place / "intervention.json").read_text())
        (place / "intervention.json").write_text(json.dumps({**about, "format": 99}))
        with pytest.raises(ArtifactError, match="format 99"):
            Intervention.load(place)
        (place / "intervention.json").write_text(json.dumps(about))
        data = bytearray((place / "maps.safetensors").read_bytes())
        data[-1] ^= 1
        (place / "maps.safetensors").write_bytes(data)
        with pytest.raises(ArtifactError, match="sha256"):
            Intervention.load(place)
        (place / "intervention.json").write_text("{")
        with pytest.raises(ArtifactError, match="damaged"):
            Intervention.load(place)
        with pytest.raises(ArtifactError, match="not a directory that lens_steer wrote"):
            Intervention.load(tmp_path)

    def test_a_failed_save_leaves_nothing(self, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("lens_steer.interventions.artifact.write_json", fail)
        with pytest.raises(KeyboardInterrupt):
            random_edit(tiny, "hook_resid_post", seed=8).save(tmp_path / "edit")
        assert list(tmp_path.iterdir()) == []


class TestFingerprint:
    def test_other_weights_are_refused_and_may_be_overridden(self, tiny: Any) -> None:
        other = make_tiny("gpt2", seed=5)
        edit = random_edit(tiny, "hook_resid_post", seed=1, fitted=True)
        with edit.on(tiny):
            pass
        with (
            pytest.raises(ArtifactError, match=r"other weights: 2 of 2 edited sites differ.*check_model=False"),
            edit.on(other),
        ):
            pass
        with edit.on(other, check_model=False):
            logits(other)

    def test_another_dtype_is_the_same_model(self) -> None:
        edit = random_edit(make_tiny("llama"), "hook_resid_post", seed=1, fitted=True)
        half = make_tiny("llama")
        half.to(torch.bfloat16)
        with edit.on(half):
            assert logits(half).dtype == torch.bfloat16


class TestAblation:
    @pytest.fixture
    def contrast(self) -> ContrastSet:
        return ContrastSet(sentences(8, seed=1, must="sad"), sentences(8, seed=2, must="happy"))

    @pytest.mark.compat
    def test_units_are_held_at_the_constant(self, tiny: Any, contrast: ContrastSet) -> None:
        acts = collect(tiny, contrast)
        unit = Unit(acts.sites[1], 11)
        constants = {
            "zero": 0.0,
            "mean": float(acts.token_mean(unit.site, "all")[11]),
            "target_mean": float(acts.token_mean(unit.site, "target")[11]),
        }
        for mode, constant in constants.items():
            with ablate([unit], mode=mode, activations=acts).on(tiny):
                _, cache = tiny.run_with_cache(tiny.to_tokens("the dog was sad"))
            assert cache[unit.site.name][..., 11].tolist()[0] == pytest.approx([constant] * 5, abs=1e-6)
        with ablate([unit], mode="value", value=-1.5).on(tiny):
            _, cache = tiny.run_with_cache(tiny.to_tokens("the dog was sad"))
        assert float(cache[unit.site.name][0, 2, 11]) == -1.5

    def test_every_way_to_list_units(self, tiny: Any, contrast: ContrastSet, tmp_path: Path) -> None:
        ranking = rank_experts(collect(tiny, contrast))
        units = ranking.units(5)
        frame = ranking.top(5)
        frame.to_csv(tmp_path / "units.csv")
        expected = ablate(units)
        assert ablate(frame) == expected
        assert ablate(tmp_path / "units.csv") == expected
        assert ablate([str(unit) for unit in units], model=tiny) == expected
        assert ablate([(unit.site.name, unit.index) for unit in units], activations=ranking.activations) == expected
        with pytest.raises(UnitError, match="width of blocks"):
            ablate([(units[0].site.name, units[0].index)])
        with pytest.raises(UnitError, match="columns site and unit"):
            ablate(pd.DataFrame({"layer": [1]}))
        with pytest.raises(UnitError, match="more than once"):
            ablate([units[0], units[0]])
        with pytest.raises(UnitError, match="there is no unit 999"):
            ablate([(units[0].site.name, 999)], model=tiny)
        with pytest.raises(SettingError, match="needs activations"):
            ablate(units, mode="mean")
        with pytest.raises(SettingError, match="value="):
            ablate(units, mode="value")

    def test_random_units_are_drawn_by_seed(self, tiny: Any) -> None:
        sites = find_sites(tiny, "mlp.hook_post")
        drawn = random_units(sites, 40, seed=1)
        assert len(set(drawn)) == 40
        assert drawn == random_units(sites, 40, seed=1)
        assert drawn != random_units(sites, 40, seed=2)
        assert {unit.site for unit in drawn} == set(sites)
        with pytest.raises(UnitError, match="256 units"):
            random_units(sites, 257, seed=0)


def test_units_print_and_parse_with_heads(tiny: Any) -> None:
    sites = find_sites(tiny, "attn.hook_z")
    unit = Unit(sites[1], 3 * 8 + 5)
    assert str(unit) == "blocks.1.attn.hook_z[3, 5]"
    assert Unit.parse(str(unit), sites) == unit
    assert Unit.parse("blocks.1.attn.hook_z[29]", sites) == unit
    with pytest.raises(UnitError, match="4 heads of 8"):
        Unit.parse("blocks.1.attn.hook_z[4, 0]", sites)
    with pytest.raises(UnitError, match="is not a unit"):
        Unit.parse("layer 3 unit 5", sites)
