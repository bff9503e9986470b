"""Downstream shift: identities at strength 0, against scipy, and what lies before an edit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import wasserstein_distance

from lens_steer.activations.collect import collect
from lens_steer.effects.downstream import DownstreamShift, downstream_shift
from lens_steer.errors import ActivationError, LensSteerWarning, SettingError, SiteError
from lens_steer.host.scope import Scope
from lens_steer.host.sites import Site, find_sites
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.readers import read_contrast
from tests.families import sentences

CONTRAST = ContrastSet(sentences(12, seed=1, must="sad"), sentences(9, seed=2, must="happy"))
FOREIGN = ContrastSet(sentences(6, seed=3, must="cried"), sentences(5, seed=4, must="smiled"), name="other")
NEUTRAL = sentences(7, seed=5)


def random_edit(model: Any, sites: str | list[str] = "hook_resid_post", *, size: float = 0.5) -> Intervention:
    generator = torch.Generator().manual_seed(0)
    edits = []
    for site in find_sites(model, sites):
        scale, shift = (size * torch.randn(site.width, generator=generator) for _ in range(2))
        edits.append(Edit(site, DiagonalAffine(1 + scale, shift)))
    return Intervention(tuple(edits), {"method": "random"})


def moment_match(model: Any, contrast: ContrastSet, sites: str | list[str]) -> Intervention:
    """Mean and deviation of the source's mean pool onto the target's, unit by unit."""
    values = collect(model, contrast, sites, pool="mean")
    edits = []
    for site in values.sites:
        source, target = values.source[site], values.target[site]
        scale = target.std(0) / source.std(0)
        edits.append(Edit(site, DiagonalAffine(scale, target.mean(0) - scale * source.mean(0))))
    return Intervention(tuple(edits))


@pytest.fixture(scope="module")
def shift(tiny: Any) -> DownstreamShift:
    return downstream_shift(tiny, random_edit(tiny), CONTRAST, neutral=NEUTRAL, foreign=FOREIGN)


def test_frame_covers_texts_parts_sites_and_units(shift: DownstreamShift) -> None:
    counts = shift.frame.groupby(["texts", "edited", "layer"])["unit"].nunique()
    per_texts = {("all", 0), ("all", 1), ("layer 0", 0), ("layer 0", 1), ("layer 1", 1)}
    assert set(counts.index) == {(t, *rest) for t in ("heldout", "neutral", "foreign") for rest in per_texts}
    assert (counts == 32).all()
    assert len(shift.frame) == counts.sum()
    assert shift.settings["texts"]["foreign target"] == 5


def test_distances_are_those_of_scipy_on_collected_values(tiny: Any, shift: DownstreamShift) -> None:
    edit, site = random_edit(tiny), "blocks.1.hook_resid_post"
    before = collect(tiny, CONTRAST, site, pool="mean")
    with edit.restrict(["blocks.0.hook_resid_post"]).on(tiny):
        after = collect(tiny, CONTRAST, site, pool="mean")
    rows = shift.frame.query("texts == 'heldout' and edited == 'layer 0' and layer == 1").set_index("unit")
    spread = before.values[site].double().numpy().std(0)
    for unit in range(32):
        source, target, moved_source, moved_target = (
            side[site][:, unit].double().numpy() for side in (before.source, before.target, after.source, after.target)
        )
        expected = {
            "before": wasserstein_distance(source, target),
            "after": wasserstein_distance(moved_source, target),
            "target_moved": wasserstein_distance(moved_target, target),
            "gap": target.mean() - source.mean(),
            "moved": moved_source.mean() - source.mean(),
        }
        for column, value in expected.items():
            assert rows.loc[unit, column] == pytest.approx(value, rel=1e-5, abs=1e-6)
        assert rows.loc[unit, "before_sd"] == pytest.approx(expected["before"] / spread[unit], rel=1e-5)
    share = 1 - rows["after_sd"].sum() / rows["before_sd"].sum()
    assert shift.matrix().loc["layer 0", 1] == pytest.approx(share, rel=1e-12)


def test_matrix_is_edited_by_measured_and_empty_before_the_edit(shift: DownstreamShift) -> None:
    matrix = shift.matrix()
    assert list(matrix.index) == ["layer 0", "layer 1", "all"]
    assert list(matrix.columns) == [0, 1]
    assert matrix.isna().to_numpy().tolist() == [[False, False], [True, False], [False, False]]
    # At layer 0 nothing but its own edit has acted.
    assert matrix.loc["all", 0] == matrix.loc["layer 0", 0]
    assert shift.collateral("neutral").isna().equals(matrix.isna())
    assert (shift.collateral("heldout").stack().dropna() > 0).all()


def test_strength_0_changes_nothing(tiny: Any) -> None:
    frame = downstream_shift(tiny, random_edit(tiny), CONTRAST, neutral=NEUTRAL, foreign=FOREIGN, strength=0.0).frame
    sided = frame["texts"] != "neutral"
    assert (frame["after"] == frame["before"]).all()
    assert (frame.loc[sided, "target_moved"] == 0).all()
    assert (frame.loc[~sided, "after"] == 0).all()
    assert (frame["before"][sided] > 0).any()


def test_moment_matching_removes_distance_at_its_site(tiny: Any) -> None:
    site = "blocks.1.hook_resid_post"
    shift = downstream_shift(tiny, moment_match(tiny, CONTRAST, site), CONTRAST, sites=site)
    assert 0.4 < shift.matrix().loc["all", 1] < 1
    assert shift.matrix().loc["layer 1", 1] == shift.matrix().loc["all", 1]


def test_an_edit_that_maps_source_onto_target_removes_everything(tiny: Any) -> None:
    """Two texts a side are two points per unit, which an affine map brings onto the target's exactly."""
    two, site = ContrastSet(CONTRAST.source[:2], CONTRAST.target[:2]), "blocks.0.hook_resid_post"
    shift = downstream_shift(tiny, moment_match(tiny, two, site), two, sites=site)
    np.testing.assert_allclose(shift.frame["after_sd"], 0, atol=1e-3)
    assert shift.matrix().loc["all", 0] == pytest.approx(1, abs=1e-4)


def test_a_shift_moves_equal_sides_apart_by_its_size(tiny: Any) -> None:
    site = find_sites(tiny, "blocks.0.hook_resid_post")[0]
    amount = torch.linspace(0.5, 2, site.width)
    edit = Intervention((Edit(site, DiagonalAffine(torch.ones(site.width), amount)),))
    with pytest.warns(LensSteerWarning, match="both sides"):
        equal = ContrastSet(CONTRAST.source, CONTRAST.source)
    frame = downstream_shift(tiny, edit, equal, sites=site.name, neutral=CONTRAST.source, by_layer=False).frame
    assert (frame["before"] == 0).all()
    np.testing.assert_allclose(frame["after"].to_numpy().reshape(2, -1), amount.expand(2, -1), rtol=1e-5)
    np.testing.assert_allclose(frame.query("texts == 'heldout'")["target_moved"], amount, rtol=1e-5)


def test_sites_before_the_edit_are_dropped_and_unmoved(tiny: Any) -> None:
    edit = random_edit(tiny, "blocks.1.hook_mlp_out")
    sites = ["hook_resid_post", "mlp.hook_post", "hook_mlp_out"]
    frame = downstream_shift(tiny, edit, CONTRAST, sites=sites).frame
    assert set(frame["site"]) == {"blocks.1.hook_mlp_out", "blocks.1.hook_resid_post"}
    before = collect(tiny, CONTRAST, sites)
    with edit.on(tiny):
        after = collect(tiny, CONTRAST, sites)
    for site in (site for site in before.sites if site.name not in set(frame["site"])):
        assert torch.equal(before.values[site], after.values[site])


def test_control_texts_are_the_neutral_ones(tiny: Any) -> None:
    with_control = ContrastSet(CONTRAST.source, CONTRAST.target, control=NEUTRAL)
    edit = random_edit(tiny)
    given = downstream_shift(tiny, edit, CONTRAST, neutral=NEUTRAL, by_layer=False).frame
    pd.testing.assert_frame_equal(downstream_shift(tiny, edit, with_control, by_layer=False).frame, given)
    assert set(given["edited"]) == {"all"}


def test_batch_size_changes_nothing_beyond_rounding(tiny: Any, shift: DownstreamShift) -> None:
    other = downstream_shift(tiny, random_edit(tiny), CONTRAST, neutral=NEUTRAL, foreign=FOREIGN, batch_size=2)
    pd.testing.assert_frame_equal(other.frame, shift.frame, rtol=1e-4, atol=1e-5)


def test_a_constant_unit_has_no_standard_deviation_and_drops_out_of_sums(tiny: Any) -> None:
    site = find_sites(tiny, "blocks.0.hook_resid_post")[0]
    scale, shift = torch.ones(site.width), torch.zeros(site.width)
    scale[3], shift[3] = 0.0, 5.0
    constant, edit = Intervention((Edit(site, DiagonalAffine(scale, shift)),)), random_edit(tiny)
    with constant.on(tiny):
        result = downstream_shift(tiny, edit, CONTRAST, sites=site.name)
    row = result.frame.query("unit == 3 and edited == 'all'").iloc[0]
    assert row["before"] < 1e-6
    assert np.isnan(row["sd"])
    assert np.isfinite(result.matrix().loc["all", 0])


def test_bad_input_is_named(tiny: Any) -> None:
    edit = random_edit(tiny)
    foreign_site = Site("blocks.7.hook_resid_post", 7, "hook_resid_post", 32)
    with pytest.raises(SiteError, match=r"blocks\.7\.hook_resid_post"):
        downstream_shift(tiny, Intervention((Edit(foreign_site, DiagonalAffine.identity(32)),)), CONTRAST)
    with pytest.raises(SiteError, match="comes at or after the first edit"):
        downstream_shift(tiny, edit.restrict(["blocks.1.hook_resid_post"]), CONTRAST, sites="blocks.0.*")
    with pytest.raises(SettingError, match=r"\[text\]"):
        downstream_shift(tiny, edit, CONTRAST, neutral="a sad dog")
    shift = downstream_shift(tiny, edit, CONTRAST, by_layer=False)
    with pytest.raises(SettingError, match="collateral"):
        shift.matrix("neutral")
    with pytest.raises(SettingError, match="foreign="):
        shift.matrix("foreign")
    huge = Edit(edit.sites[0], DiagonalAffine(torch.full((32,), 3e38), torch.zeros(32)))
    with pytest.raises(ActivationError, match=r"blocks\.0\.hook_resid_post\[\d+\] of the model edited at all is"):
        downstream_shift(tiny, Intervention((huge,)), CONTRAST)


def test_an_edit_of_generated_tokens_acts_on_texts_behind_bos(tiny: Any) -> None:
    generated, behind_bos = (
        downstream_shift(tiny, random_edit(tiny).scoped(scope), CONTRAST, by_layer=False).frame
        for scope in ("generated", Scope.from_position(1))
    )
    assert (generated["after"] != generated["before"]).any()
    np.testing.assert_allclose(generated["after"], behind_bos["after"])
    with pytest.raises(SettingError, match="plain texts have none"):
        downstream_shift(tiny, random_edit(tiny).scoped("prompt"), CONTRAST)


@pytest.mark.real
def test_ablating_experts_of_sad_on_heldout_texts(tinytalk: Any, shared: Path) -> None:
    from lens_steer.interventions.ablation import ablate
    from lens_steer.ranking.experts import rank_experts

    contrast = read_contrast(shared / "data" / "story_concepts" / "sad.json").subsample(60, seed=0)
    train, test = contrast.split(0.5, seed=0)
    activations = collect(tinytalk, train, "mlp.hook_post")
    experts = rank_experts(activations).units(40, min_auroc=0.8)
    edit = ablate(experts, mode="target_mean", activations=activations)
    shift = downstream_shift(tinytalk, edit, test, sites=["mlp.hook_post", "hook_resid_post"])
    frame = shift.frame
    first = min(site.layer for site in edit.sites)
    assert frame["layer"].min() == first
    assert len(shift.matrix()) == 1 + len({site.layer for site in edit.sites})
    edited_units = pd.DataFrame([(u.site.name, u.index) for u in experts], columns=["site", "unit"])
    at_experts = frame[frame["edited"] == "all"].merge(edited_units)
    assert at_experts["removed"].mean() > 0
