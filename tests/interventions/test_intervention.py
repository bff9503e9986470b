"""Interventions on a live model: algebra, guards, artifacts."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lens_steer.activations.collect import collect
from lens_steer.errors import ArtifactError, LensSteerWarning, MapError, OutputError, SettingError, SiteError, UnitError
from lens_steer.evaluation.generation import generate
from lens_steer.host.scope import Scope
from lens_steer.host.sites import Site, find_sites
from lens_steer.host.units import Unit
from lens_steer.interventions.ablation import ablate, random_units
from lens_steer.interventions.bake import bake
from lens_steer.interventions.compose import compose
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.gated_map import Gated, LogisticGate
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import Chain, DiagonalAffine
from lens_steer.interventions.project_out import ProjectOut
from lens_steer.interventions.resample import Resample
from lens_steer.interventions.row_gate import RowGate
from lens_steer.methods.lineas import LinEAS
from lens_steer.methods.loreft import LoReFT
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


def damage(content: Any, generator: random.Random) -> None:
    """Replace, somewhere in plain data, one value by another of some other type, or leave it out."""
    inner = [
        value
        for value in (content.values() if isinstance(content, dict) else content)
        if isinstance(value, dict | list)
    ]
    values = content.values() if isinstance(content, dict) else content
    inner = [value for value in values if isinstance(value, dict | list) and value]
    if inner and generator.random() < 0.8:
        damage(generator.choice(inner), generator)
        return
    key = generator.choice(list(content) if isinstance(content, dict) else range(len(content)))
    value = generator.choice([None, -1, 10**9, 0.5, "", "x", [], {}, [1], {"a": 1}, True, "drop"])
    if value == "drop":
        del content[key]
    else:
        content[key] = value


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

    def test_restrict_takes_what_ablate_takes_and_sites(self, tiny: Any, tmp_path: Path) -> None:
        contrast = ContrastSet(sentences(8, seed=1, must="sad"), sentences(8, seed=2, must="happy"))
        ranking = rank_experts(collect(tiny, contrast))
        edit = random_edit(tiny, "mlp.hook_post", seed=4)
        frame, units = ranking.top(5), ranking.units(5)
        frame.to_csv(tmp_path / "units.csv")
        expected = edit.restrict(units)
        assert set(expected.units()) == set(units)
        pairs = [(unit.site.name, unit.index) for unit in units]
        for listed in (frame, tmp_path / "units.csv", str(tmp_path / "units.csv"), [str(u) for u in units], pairs):
            assert edit.restrict(listed) == expected
        assert edit.restrict(ranking) == edit
        # Sites beside units, by name or as objects; a site is all of its units.
        mixed = edit.restrict([f"{edit.sites[0].name}[3]", edit.sites[1].name])
        assert mixed == edit.restrict([Unit(edit.sites[0], 3), edit.sites[1]])
        assert mixed.edits[1] == edit.edits[1]
        assert len(mixed.units()) == 1 + edit.sites[1].width
        assert edit.restrict(edit.sites[1].name) == edit.restrict([edit.sites[1]])

    def test_restrict_refuses_what_is_not_edited_by_name(self, tiny: Any) -> None:
        edit = random_edit(tiny, "mlp.hook_post", seed=4)
        (stream,) = find_sites(tiny, "hook_resid_post", layers=[0])
        for unknown in (stream, stream.name, "blocks.0.mlp.hook_psot"):
            with pytest.raises(SiteError, match=r"blocks.0\.\S+ is not edited here; these sites are: blocks.0.mlp"):
                edit.restrict([edit.sites[1], unknown])
        with pytest.raises(UnitError, match=r"blocks.0.hook_resid_post\[3\] lies at none of the edited sites"):
            edit.restrict([Unit(stream, 3), Unit(edit.sites[0], 3)])
        with pytest.raises(UnitError, match="empty"):
            edit.restrict([])
        with pytest.raises(UnitError, match="no unit 999"):
            edit.restrict([(edit.sites[0].name, 999)])
        wide = Site(edit.sites[0].name, 0, "mlp.hook_post", 2000)
        with pytest.raises(UnitError, match="no unit 1999"):
            edit.restrict([Unit(wide, 1999)])

    def test_it_says_at_how_many_of_its_sites_units_move(self, tiny: Any) -> None:
        moving = random_edit(tiny, "hook_resid_post", seed=1)
        still = Edit(moving.edits[1].site, DiagonalAffine.identity(32))
        assert repr(moving).endswith("at 2 of 2 sites)")
        assert repr(Intervention((moving.edits[0], still))).endswith("at 1 of 2 sites)")
        assert repr(Intervention((still,))).endswith("0 units moved at 0 of 1 site)")

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
    def test_shared_tensors_are_saved(self, tiny: Any, tmp_path: Path) -> None:
        sites = find_sites(tiny, "hook_resid_post")
        one, gate = DiagonalAffine(torch.full((32,), 2.0), torch.ones(32)), LogisticGate(torch.ones(32), 0.1)
        out = ProjectOut(torch.ones(32))
        row_gate = RowGate(sites[0], torch.ones(32), 0.1)
        chains = Chain((out, out)), Chain((Chain((out, one)), out))
        shared = {
            "a chain of one map twice": tuple(Edit(sites[0], chain) for chain in chains),
            "one map at two sites": tuple(Edit(site, one) for site in sites),
            "one gate at two positions": tuple(Edit(sites[0], Gated(one, gate), Scope("all", start=n)) for n in (0, 1)),
            "one row gate for all": tuple(Edit(site, one, gate=row_gate) for site in sites),
        }
        plain = {name: Intervention(edits) for name, edits in shared.items()}
        made = {**plain, **{f"{name}, then half": edit.then(edit.scaled(0.5)) for name, edit in plain.items()}}
        made |= {f"{name}, composed": compose(edit, edit) for name, edit in plain.items()}
        for name, edit in made.items():
            assert Intervention.load(edit.save(tmp_path / name)) == edit

    def test_its_json_is_json(self, tiny: Any, tmp_path: Path) -> None:
        """No NaN and no Infinity, which jq, JavaScript and Rust refuse, whatever the provenance holds."""
        contrast = ContrastSet(sentences(8, seed=1, must="sad"), sentences(8, seed=2, must="happy"))
        with pytest.warns(LensSteerWarning, match="moved nothing"):  # every loss behind the first is no number
            lost = LinEAS.paper(steps=3, lr=1e30, progress=False).fit(tiny, contrast)
        edits = {
            "lineas": lost,
            "loreft": LoReFT(rank=1, steps=2, progress=False).fit(tiny, contrast),
            "by hand": replace(
                random_edit(tiny, "attn.hook_z", seed=7),
                provenance={"a": float("nan"), "b": [float("inf"), (1, -float("inf"))], "c": np.float32("nan")},
            ),
        }

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is not JSON")

        for name, edit in edits.items():
            text = (edit.save(tmp_path / name) / "intervention.json").read_text()
            about = json.loads(text, parse_constant=refuse)
            assert about["provenance"].keys() == edit.provenance.keys()
        assert json.loads(text)["provenance"] == {"a": None, "b": [None, [1, None]], "c": None}
        assert dict(Intervention.load(tmp_path / "lineas").provenance) == dict(edits["lineas"].provenance)
        assert edits["lineas"].history.heldout_loss.isna().all()

    @pytest.mark.parametrize("seed", range(60))
    def test_a_damaged_artifact_is_an_artifact_error(self, tiny: Any, tmp_path: Path, seed: int) -> None:
        """Values replaced, bytes changed, files cut short: read back, or ArtifactError, and nothing else."""
        generator = random.Random(seed)
        sites = find_sites(tiny, "hook_resid_post")
        chain = Chain((ProjectOut(torch.ones(32)), DiagonalAffine.identity(32)))
        maps = (chain, Resample(32, torch.arange(3), torch.ones(2, 3)))
        gate = RowGate(sites[0], torch.ones(32), 0.1)
        edits = tuple(Edit(site, one, gate=gate) for site, one in zip(sites, maps, strict=True))
        place = Intervention.fitted(tiny, edits).save(tmp_path / "edit")
        file = place / generator.choice(["intervention.json"] * 5 + ["maps.safetensors"])
        if file.suffix == ".json" and generator.random() < 0.8:
            about = json.loads(file.read_text())
            damage(about, generator)
            file.write_text(json.dumps(about))
        else:
            content = bytearray(file.read_bytes())
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
            file.write_bytes(content[: generator.choice([len(content), generator.randrange(len(content))])])
        try:
            Intervention.load(place)
        except ArtifactError as error:
            assert str(place) in str(error)

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
    def test_a_part_of_a_fit_is_used_baked_and_saved_on_a_fresh_model(self, tmp_path: Path) -> None:
        """Its fingerprint is that of its own sites, on a model object that nothing has been tried on before."""
        edit = random_edit(make_tiny("gpt2"), "mlp.hook_post", seed=1, fitted=True)
        units = edit.restrict(edit.units()[:3])
        positions = Edit(edit.sites[0], edit.edits[0].map, Scope("prompt", stop=1))
        parts = {
            "units": units,
            "site": edit.restrict([edit.sites[1]]),
            "scope": replace(edit, edits=(positions, edit.edits[1])).scoped(Scope("all", start=1)),
            "first": compose(units, edit, policy="first"),
            "first at a whole site": compose(edit.restrict([edit.sites[0]]), edit, policy="first"),
        }
        for name, part in parts.items():
            assert set(part.fingerprint) == {site.name for site in part.sites}
            with part.on(make_tiny("gpt2")):
                pass
            back = Intervention.load(part.save(tmp_path / name))
            assert back == part
            assert back.fingerprint == part.fingerprint
            with pytest.raises(ArtifactError, match="other weights"), part.on(make_tiny("gpt2", seed=5)):
                pass
        fresh = make_tiny("gpt2")
        bake(fresh, units)
        assert len(generate(fresh, ["the dog"], intervention=units, max_new_tokens=2)) == 1

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

    def test_a_model_without_the_edited_sites_is_another_model(self, tiny: Any) -> None:
        deeper = Site("blocks.7.hook_resid_post", 7, "hook_resid_post", 32)
        fitted = random_edit(tiny, "hook_resid_post", seed=1, fitted=True)
        edits = (Edit(deeper, DiagonalAffine.identity(32)),)
        reading = next(iter(fitted.fingerprint.values()))
        edit = replace(fitted, edits=edits, fingerprint={deeper.name: reading})
        with pytest.raises(SiteError, match=r"fitted on another model: no site is named 'blocks\.7"), edit.on(tiny):
            pass

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
