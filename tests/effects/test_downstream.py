"""Downstream shift: identities at strength 0, against scipy, and what lies before an edit."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import wasserstein_distance

from lens_steer.activations.collect import collect
from lens_steer.effects.downstream import DownstreamShift, downstream_shift
from lens_steer.effects.interaction import interaction
from lens_steer.effects.paths.trace import trace_shift
from lens_steer.effects.text_groups import tokenized_groups
from lens_steer.errors import ActivationError, ArtifactError, LensSteerWarning, SettingError, SiteError
from lens_steer.host.scope import Scope
from lens_steer.host.sites import Site, find_sites
from lens_steer.host.tokens import tokenize
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.statistics.distances import removed_share
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.readers import read_contrast
from tests.families import make_tiny, sentences


def telling(n: int, *, seed: int, word: str) -> list[str]:
    """Texts in which a word stands so often that few of them are told from those of another word."""
    return [f"{text} {' '.join([word] * 8)}" for text in sentences(n, seed=seed, length=(2, 4))]


CONTRAST = ContrastSet(telling(12, seed=1, word="sad"), telling(9, seed=2, word="happy"))
FOREIGN = ContrastSet(telling(6, seed=3, word="cried"), telling(5, seed=4, word="smiled"), name="other")
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


def values_of(tiny: Any, site: str, edit: Intervention | None = None) -> list[np.ndarray]:
    """Collected by hand: source and target [text, unit]."""
    with nullcontext() if edit is None else edit.on(tiny):
        activations = collect(tiny, CONTRAST, site, pool="mean")
    return [side[site].double().numpy() for side in (activations.source, activations.target)]


def test_distances_are_those_of_scipy_on_collected_values(tiny: Any, shift: DownstreamShift) -> None:
    site = "blocks.1.hook_resid_post"
    source, target = values_of(tiny, site)
    moved_source, moved_target = values_of(tiny, site, random_edit(tiny).restrict(["blocks.0.hook_resid_post"]))
    rows = shift.frame.query("texts == 'heldout' and edited == 'layer 0' and layer == 1").set_index("unit")
    for unit in range(32):
        expected = {
            "wasserstein_before": wasserstein_distance(source[:, unit], target[:, unit]),
            "wasserstein_after": wasserstein_distance(moved_source[:, unit], target[:, unit]),
            "collateral": np.abs(moved_target - target)[:, unit].mean(),
            "gap": (target.mean(0) - source.mean(0))[unit],
            "moved": (moved_source - source)[:, unit].mean(),
            "sd": np.concatenate([source, target])[:, unit].std(),
        }
        for column, value in expected.items():
            assert rows.loc[unit, column] == pytest.approx(value, rel=1e-5, abs=1e-6), column


def test_measures_are_those_of_collected_values(tiny: Any, shift: DownstreamShift) -> None:
    """In standard deviations of both sides: removed and its interval, arrived, moved, collateral, apart, left."""
    edit, site = random_edit(tiny).restrict(["blocks.0.hook_resid_post"]), "blocks.1.hook_resid_post"
    plain, moved = values_of(tiny, site), values_of(tiny, site, edit)
    sd = np.concatenate(plain).std(0)
    (source, target), (moved_source, moved_target) = ([side / sd for side in sides] for sides in (plain, moved))
    measures = shift.measures.query("texts == 'heldout' and edited == 'layer 0'").set_index(["measure", "layer"])
    removed = removed_share(source, moved_source, target)
    assert tuple(measures.loc[("removed", 1), ["value", "low", "high"]]) == pytest.approx(
        (removed.estimate, removed.low, removed.high), rel=1e-4
    )
    effects, n, m = moved_source - source, len(source), len(target)
    gap = target.mean(0) - source.mean(0)
    squared = gap @ gap - source.var(0, ddof=1).sum() / n - target.var(0, ddof=1).sum() / m
    way = [target.mean(0) - np.delete(source, text, 0).mean(0) for text in range(n)]
    arrived = np.mean([effect @ along for effect, along in zip(effects, way, strict=True)]) / squared
    size = effects.mean(0) @ effects.mean(0) - effects.var(0, ddof=1).sum() / n
    within = [np.abs(side[:, None] - side[None]).sum() / (len(side) * (len(side) - 1)) for side in (source, target)]
    apart = 2 * np.abs(source[:, None] - target[None]).sum(-1).mean() - sum(within)
    expected = {
        "arrived": arrived,
        "moved": np.sqrt(size / 32),
        "collateral": np.abs(moved_target - target).mean(),
        "apart": apart / 32,
        "left": arrived - measures.loc[("arrived", 0), "value"],
    }
    for measure, value in expected.items():
        assert measures.loc[(measure, 1), "value"] == pytest.approx(value, rel=1e-4, abs=1e-5), measure
    assert shift.matrix().loc["layer 0", 1] == measures.loc[("removed", 1), "value"]
    assert shift.matrix(measure="arrived", column="high").loc["layer 0", 1] == measures.loc[("arrived", 1), "high"]
    assert (measures.loc[("left", 0), ["value", "low", "high"]] == 0).all()
    whole = shift.measures.query("texts == 'heldout' and edited == 'all' and measure == 'removed' and layer == 1")
    value, low, high = whole[["value", "low", "high"]].iloc[0]
    assert f"{value:.0%} [{low:.0%}, {high:.0%}] of the held-out distance removed at layer 1" in repr(shift)


def test_every_kind_of_texts_has_its_measures(shift: DownstreamShift) -> None:
    measures = shift.measures
    assert list(measures.columns) == ["texts", "edited", "layer", "measure", "value", "low", "high"]
    names = measures.groupby("texts")["measure"].unique().map(set).to_dict()
    sided = {"apart", "removed", "arrived", "left", "moved", "collateral"}
    assert names == {"heldout": sided, "foreign": sided, "neutral": {"moved", "collateral"}}
    assert set(measures.query("measure == 'left'")["edited"]) == {"layer 0", "layer 1"}
    assert measures["low"].le(measures["value"]).all()
    assert (measures["low"] < measures["high"]).any()
    assert (measures.query("measure == 'collateral' or measure == 'moved'")["low"] >= 0).all()


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
    shift = downstream_shift(tiny, random_edit(tiny), CONTRAST, neutral=NEUTRAL, foreign=FOREIGN, strength=0.0)
    frame, measures = shift.frame, shift.measures
    sided = frame["texts"] != "neutral"
    assert (frame["wasserstein_after"] == frame["wasserstein_before"]).all()
    assert (frame["collateral"] == 0).all()
    assert (frame["wasserstein_before"][sided] > 0).any()
    idle = measures[measures["measure"] != "apart"]
    assert (idle[["value", "low", "high"]] == 0).all(axis=None)


def test_a_layer_is_measured_however_small_its_edit_and_left_out_where_it_has_none(tiny: Any) -> None:
    """Of an edit with nothing at layer 0, layer 1 alone does what all do."""
    edits = [
        Edit(site, DiagonalAffine(torch.full((site.width,), scale), torch.zeros(site.width)))
        for site, scale in zip(find_sites(tiny, "mlp.hook_post")[:2], (1.0, 0.5), strict=True)
    ]
    measures = downstream_shift(tiny, Intervention(tuple(edits)), CONTRAST, neutral=NEUTRAL).measures
    moved = measures.query("texts == 'neutral' and measure == 'collateral'").set_index(["edited", "layer"])["value"]
    assert moved["layer 0"].eq(0).all()
    assert moved.loc[("layer 1", 1)] == moved.loc[("all", 1)] > 0


def test_an_edit_onto_the_targets_moments_is_shown_to_remove_nearly_all(tiny: Any) -> None:
    """Fitted on the very texts: a little more than all, since the target's noise is matched as well."""
    site = "blocks.1.hook_resid_post"
    shift = downstream_shift(tiny, moment_match(tiny, CONTRAST, site), CONTRAST, sites=site)
    assert 0.95 < shift.matrix().loc["all", 1] < 1.3
    assert shift.matrix(column="low").loc["all", 1] > 0.8
    assert shift.matrix().loc["layer 1", 1] == shift.matrix().loc["all", 1]
    # The way is cross-fitted, so the noise of these very texts counts a little beyond the target.
    assert shift.matrix(measure="arrived").loc["all", 1] == pytest.approx(1, abs=0.15)


def test_a_shift_moves_equal_sides_apart_by_its_size(tiny: Any) -> None:
    site = find_sites(tiny, "blocks.0.hook_resid_post")[0]
    amount = torch.linspace(0.5, 2, site.width)
    edit = Intervention((Edit(site, DiagonalAffine(torch.ones(site.width), amount)),))
    with pytest.warns(LensSteerWarning, match="both sides"):
        equal = ContrastSet(CONTRAST.source, CONTRAST.source)
    shift = downstream_shift(tiny, edit, equal, sites=site.name, neutral=CONTRAST.source, by_layer=False)
    frame = shift.frame
    assert (frame["wasserstein_before"] == 0).all()
    for column in ("wasserstein_after", "collateral", "moved"):
        np.testing.assert_allclose(frame[column].to_numpy().reshape(2, -1), amount.expand(2, -1), rtol=1e-5)
    # Nothing lay between the sides: shares of it cannot be judged, and nothing stumbles over that.
    assert shift.matrix().isna().all(axis=None)
    assert shift.matrix(measure="arrived").isna().all(axis=None)
    assert "cannot be judged" in repr(shift)
    values = collect(tiny, equal, site.name, pool="mean").values[site.name].double()
    sizes = amount.double() / values.std(0, correction=0)
    moved = shift.measures.query("measure == 'moved'")
    np.testing.assert_allclose(moved[["value", "low", "high"]], float(sizes.square().mean().sqrt()), rtol=1e-5)
    np.testing.assert_allclose(shift.collateral("heldout"), float(sizes.mean()), rtol=1e-5)


def test_effects_that_cancel_out_move_texts_and_not_their_mean(tiny: Any) -> None:
    """A unit mirrored about its mean: every text moves, the mean stays; the size of its noise is no move."""
    site = find_sites(tiny, "blocks.0.hook_resid_post")[0]
    texts = sentences(60, seed=9)
    pooled = collect(tiny, ContrastSet(texts, NEUTRAL), site.name, pool="mean").source[site.name]
    mirror = Intervention((Edit(site, DiagonalAffine(-torch.ones(site.width), 2 * pooled.mean(0))),))
    shift = downstream_shift(tiny, mirror, CONTRAST, sites=site.name, neutral=texts, by_layer=False)
    moved = shift.measures.query("texts == 'neutral' and measure == 'moved'").iloc[0]
    assert moved["value"] < 0.01
    assert moved["low"] == 0
    assert shift.collateral("neutral").loc["all", 0] > 0.1


def test_the_difference_of_two_edits_is_narrower_than_their_own_intervals(tiny: Any, shift: DownstreamShift) -> None:
    weaker = downstream_shift(tiny, random_edit(tiny), CONTRAST, neutral=NEUTRAL, foreign=FOREIGN, strength=0.9)
    rows = weaker.change_from(shift).query("texts == 'heldout' and edited == 'all' and measure == 'moved'")
    own = shift.measures.query("texts == 'heldout' and edited == 'all' and measure == 'moved'")
    np.testing.assert_array_equal(rows["before"], own["value"])
    np.testing.assert_allclose(rows["low"] + rows["high"], 2 * (rows["after"] - rows["before"]))
    assert ((rows["high"] - rows["low"]).to_numpy() < 0.5 * (own["high"] - own["low"]).to_numpy()).all()
    assert set(rows["verdict"]) == {"lower"}
    assert set(shift.change_from(shift).query("measure != 'apart'")["verdict"]) == {"not shown"}
    other = downstream_shift(tiny, random_edit(tiny), CONTRAST, neutral=NEUTRAL[:5])
    with pytest.raises(SettingError, match="other texts"):
        other.change_from(shift)


def test_copies_and_pairs_are_left_out_together(tiny: Any) -> None:
    """Texts twice say no more than once; as pairs, there are as many groups as pairs."""
    edit = random_edit(tiny)
    twice = ContrastSet(CONTRAST.source * 2, CONTRAST.target * 2)
    once, copies = (downstream_shift(tiny, edit, texts, by_layer=False).measures for texts in (CONTRAST, twice))
    pd.testing.assert_frame_equal(copies, once, rtol=1e-4, atol=1e-5)
    # Nine pairs, each of a source and a target text: a pair is left out on both sides at once.
    paired = ContrastSet(CONTRAST.source[:9], CONTRAST.target, paired=True)
    free = ContrastSet(CONTRAST.source[:9], CONTRAST.target)
    pairs, singles = (downstream_shift(tiny, edit, texts, by_layer=False) for texts in (paired, free))
    assert {len(cases) for cases in pairs.estimates.values()} == {10}
    key = ("heldout", "all", 1, "apart")
    assert pairs.estimates[key][0] != pytest.approx(singles.estimates[key][0], rel=1e-3)


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


def test_texts_of_every_kind_stand_in_the_chat_format(tiny: Any) -> None:
    chat = "boy {text} girl"
    contrast = ContrastSet(CONTRAST.source, CONTRAST.target, control=NEUTRAL, chat=chat)
    foreign = ContrastSet(FOREIGN.source, FOREIGN.target, chat=chat)
    heldout, neutral, other = tokenized_groups(tiny, contrast, (), foreign)
    (given,) = tokenized_groups(tiny, contrast, CONTRAST.target, None)[1:]
    for tokens, texts in (
        (heldout.tokens["source"], CONTRAST.source),
        (heldout.tokens["target"], CONTRAST.target),
        (neutral.tokens["source"], NEUTRAL),
        (given.tokens["source"], CONTRAST.target),
        (other.tokens["target"], FOREIGN.target),
    ):
        assert tokens.ids == tokenize(tiny, texts, chat=chat).ids


@pytest.mark.parametrize("measure", [downstream_shift, trace_shift, interaction])
def test_an_edit_of_other_weights_is_refused_unless_that_is_allowed(tiny: Any, measure: Any) -> None:
    fitted = Intervention.fitted(make_tiny("gpt2", seed=5), random_edit(tiny).edits, method="elsewhere")
    edits = [fitted, random_edit(tiny)] if measure is interaction else fitted
    few = ContrastSet(CONTRAST.source[:3], CONTRAST.target[:3])
    with pytest.raises(ArtifactError, match="other weights"):
        measure(tiny, edits, few, progress=False)
    measure(tiny, edits, few, check_model=False, progress=False)


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
    assert row["wasserstein_before"] < 1e-6
    assert np.isnan(row["sd"])
    assert np.isfinite(result.matrix().loc["all", 0])


def test_a_unit_that_hardly_varies_does_not_decide(tiny: Any) -> None:
    """Unit 3 is squeezed to a thousandth of its spread; an edit moves it as far as any other unit."""
    site = find_sites(tiny, "blocks.0.hook_resid_post")[0]
    scale = torch.ones(site.width)
    scale[3] = 1e-3
    squeezed = Intervention((Edit(site, DiagonalAffine(scale, torch.zeros(site.width))),))
    usual = downstream_shift(tiny, random_edit(tiny), CONTRAST, sites=site.name).frame["sd"].median()
    away, others = torch.zeros(site.width), torch.full((site.width,), float(usual))
    away[3], others[3] = usual, 0.0
    moves = [Intervention((Edit(site, DiagonalAffine(torch.ones(site.width), shift)),)) for shift in (away, others)]
    with squeezed.on(tiny):
        near_constant, rest = (downstream_shift(tiny, e, CONTRAST, sites=site.name, by_layer=False) for e in moves)
        perfect = moment_match(tiny, CONTRAST, site.name)
        matched = downstream_shift(tiny, perfect, CONTRAST, sites=site.name, by_layer=False)
    row = near_constant.frame.set_index("unit").loc[3]
    assert row["moved"] / row["sd"] > 100
    assert not row["counted"]
    assert near_constant.frame["counted"].sum() == site.width - 1
    idle = near_constant.measures.query("measure in ('removed', 'arrived', 'moved', 'collateral')")
    assert idle["value"].abs().max() < 1e-4
    assert (rest.measures.query("measure == 'collateral'")["value"] > 0.5).all()
    assert 0.95 < matched.matrix().loc["all", 0] < 1.3


def test_bad_input_is_named(tiny: Any) -> None:
    edit = random_edit(tiny)
    foreign_site = Site("blocks.7.hook_resid_post", 7, "hook_resid_post", 32)
    with pytest.raises(SiteError, match=r"blocks\.7\.hook_resid_post"):
        downstream_shift(tiny, Intervention((Edit(foreign_site, DiagonalAffine.identity(32)),)), CONTRAST)
    with pytest.raises(SiteError, match="comes at or after the first edit"):
        downstream_shift(tiny, edit.restrict(["blocks.1.hook_resid_post"]), CONTRAST, sites="blocks.0.*")
    with pytest.raises(SettingError, match=r"\[text\]"):
        downstream_shift(tiny, edit, CONTRAST, neutral="a sad dog")
    shift = downstream_shift(tiny, edit, CONTRAST, neutral=NEUTRAL, by_layer=False)
    with pytest.raises(SettingError, match="collateral"):
        shift.matrix("neutral")
    with pytest.raises(SettingError, match="'gone', only"):
        shift.matrix(measure="gone")
    with pytest.raises(SettingError, match="column"):
        shift.matrix(column="middle")
    with pytest.raises(SettingError, match="confidence"):
        downstream_shift(tiny, edit, CONTRAST, confidence=1.5)
    with pytest.raises(SettingError, match="foreign="):
        shift.matrix("foreign")
    single = ContrastSet(CONTRAST.source[:1], CONTRAST.target)
    unit = int(collect(tiny, single, edit.sites[0].name, pool="max").source[edit.sites[0]].argmax())
    huge = Edit(edit.sites[0], DiagonalAffine(1 + 3e38 * torch.eye(32)[unit], torch.zeros(32)))
    named = rf"blocks\.0\.hook_resid_post\[{unit}\] of the model edited at all is (inf|nan) on heldout source text 0:"
    with pytest.raises(ActivationError, match=named):
        downstream_shift(tiny, Intervention((huge,)), single)


def test_an_edit_of_generated_tokens_acts_on_texts_behind_bos(tiny: Any) -> None:
    generated, behind_bos = (
        downstream_shift(tiny, random_edit(tiny).scoped(scope), CONTRAST, by_layer=False).frame
        for scope in ("generated", Scope.from_position(1))
    )
    assert (generated["wasserstein_after"] != generated["wasserstein_before"]).any()
    np.testing.assert_allclose(generated["wasserstein_after"], behind_bos["wasserstein_after"])
    with pytest.raises(SettingError, match="plain texts have none"):
        downstream_shift(tiny, random_edit(tiny).scoped("prompt"), CONTRAST)


def test_scopes_act_where_a_generation_would(tiny: Any) -> None:
    """At the last site itself: completions are what is generated, and only they are pooled."""
    edit = random_edit(tiny, "blocks.1.hook_resid_post")

    def moved(contrast: ContrastSet, scope: Any) -> np.ndarray:
        return downstream_shift(tiny, edit.scoped(scope), contrast, by_layer=False).frame["moved"].to_numpy()

    pairs = ContrastSet([("dog", f" {t}") for t in CONTRAST.source], [("cat", f" {t}") for t in CONTRAST.target])
    assert (moved(pairs, "prompt") == 0).all()
    np.testing.assert_allclose(moved(pairs, "generated"), moved(pairs, "all"), rtol=1e-5, atol=1e-6)
    assert np.abs(moved(CONTRAST, "generated")).max() > 0.1
    with pytest.raises(SettingError, match="pairs"):
        moved(CONTRAST, "prompt")


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
    assert (at_experts["wasserstein_before"] - at_experts["wasserstein_after"]).mean() > 0
