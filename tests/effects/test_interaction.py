"""Interaction: shifts add up, colliding maps do not; against activations collected by hand."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lens_steer.activations.collect import collect
from lens_steer.effects.interaction import Interaction, interaction
from lens_steer.errors import ActivationError, LensSteerWarning, SettingError, SiteError
from lens_steer.host.scope import Scope
from lens_steer.host.sites import Site, find_sites
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.interventions.project_out import ProjectOut
from lens_steer.texts.contrast import ContrastSet
from tests.effects.test_downstream import telling
from tests.handles import Forwards, handles

CONTRAST = ContrastSet(telling(10, seed=1, word="sad"), telling(8, seed=2, word="happy"))
FIRST, LAST = "blocks.0.hook_resid_post", "blocks.1.hook_resid_post"


def random_edit(
    model: Any, sites: str | list[str], *, seed: int, scaled: bool = True, shifted: bool = True, method: str = "random"
) -> Intervention:
    generator = torch.Generator().manual_seed(seed)
    edits = []
    for site in find_sites(model, sites):
        scale, shift = (0.5 * torch.randn(site.width, generator=generator) for _ in range(2))
        edits.append(Edit(site, DiagonalAffine(1 + scale * scaled, shift * shifted)))
    return Intervention(tuple(edits), {"method": method})


@pytest.fixture(scope="module")
def pair(tiny: Any) -> dict[str, Intervention]:
    return {name: random_edit(tiny, "hook_resid_post", seed=seed) for seed, name in enumerate("ab")}


@pytest.fixture(scope="module")
def result(tiny: Any, pair: dict[str, Intervention]) -> Interaction:
    return interaction(tiny, pair, CONTRAST)


def value(result: Interaction, measure: Any, first: str, later: str | None, site: str, side: Any = "source") -> float:
    rows = result.of(measure, side=side).query("site == @site and first == @first")
    rows = rows[rows["later"].isna()] if later is None else rows[rows["later"] == later]
    return float(rows["value"].item())


def test_measures_are_those_of_collected_activations(
    tiny: Any, pair: dict[str, Intervention], result: Interaction
) -> None:
    def values(*edits: Intervention) -> dict[str, np.ndarray]:
        with ExitStack() as stack:
            if edits:
                stack.enter_context((edits[0] if len(edits) == 1 else edits[0].then(edits[1])).on(tiny))
            activations = collect(tiny, CONTRAST, LAST, pool="mean")
        return {
            "source": activations.source[LAST].double().numpy(),
            "target": activations.target[LAST].double().numpy(),
        }

    a, b = pair["a"], pair["b"]
    plain, halves = values(), (a.scaled(0.5), b.scaled(0.5))
    sd = np.concatenate(list(plain.values())).std(0)
    source, target = (side / sd for side in plain.values())
    gap, sizes = target.mean(0) - source.mean(0), (len(source), len(target))
    squared = gap @ gap - source.var(0, ddof=1).sum() / sizes[0] - target.var(0, ddof=1).sum() / sizes[1]
    for side in plain:
        runs = ((a,), (b,), (a, b), (b, a), halves[:1], halves)
        e_a, e_b, e_ab, e_ba, half_a, half_ab = ((values(*edits)[side] - plain[side]) / sd for edits in runs)

        def size(effect: np.ndarray) -> float:
            return float(np.sqrt((effect**2).mean(1)).mean())

        def towards(effect: np.ndarray, of: str = side) -> float:
            """Each text on the way that leaves the text itself out."""
            products = []
            for text, row in enumerate(effect):
                others = [
                    np.delete(s, text, 0) if name == of else s for name, s in (("source", source), ("target", target))
                ]
                products.append(row @ (others[1].mean(0) - others[0].mean(0)))
            return float(np.mean(products) / squared)

        expected = {
            ("moved", "a", None): size(e_a),
            ("moved", "b", "a"): size(e_ba),
            ("towards", "b", None): towards(e_b),
            ("towards", "a", "b"): towards(e_ab),
            ("curvature", "a", None): size(e_a - 2 * half_a),
            ("curvature", "a", "b"): size(e_ab - 2 * half_ab),
            ("additivity", "a", "b"): size(e_ab - e_a - e_b),
            ("additivity", "b", "a"): size(e_ba - e_a - e_b),
            ("excess", "a", "b"): size(e_ab - e_a - e_b) - size(e_ab - 2 * half_ab),
            ("commutation", "a", "b"): size(e_ab - e_ba),
            ("commutation", "b", "a"): size(e_ab - e_ba),
            ("synergy", "a", "b"): towards(e_ab) - towards(e_a) - towards(e_b),
        }
        for (measure, first, later), number in expected.items():
            assert value(result, measure, first, later, LAST, side) == pytest.approx(number, rel=1e-4, abs=1e-5), (
                measure
            )


def test_two_halves_of_one_edit_depart_from_their_sum_by_the_curvature(tiny: Any) -> None:
    """What "additive" reads where blocks are not linear: the same for one edit split in two, so no excess."""
    half = random_edit(tiny, FIRST, seed=0, scaled=False)
    result = interaction(tiny, {"one half": half, "other half": half}, CONTRAST)
    at_end = result.frame.query("site == @LAST and later.notna()").set_index("measure")
    assert (at_end.loc["additivity", "value"] > 0.01).all()
    np.testing.assert_allclose(at_end.loc["additivity", "value"], at_end.loc["curvature", "value"], rtol=1e-3)
    np.testing.assert_allclose(at_end.loc["excess", ["low", "high"]].astype(float), 0, atol=1e-4)
    assert (at_end.loc["commutation", "value"] == 0).all()
    at_site = result.frame.query("site == @FIRST and measure in ('curvature', 'additivity')")
    np.testing.assert_allclose(at_site["value"], 0, atol=1e-4)


def test_towards_is_nan_where_the_sides_do_not_differ(tiny: Any, pair: dict[str, Intervention]) -> None:
    with pytest.warns(LensSteerWarning, match="both sides"):
        equal = ContrastSet(CONTRAST.source, CONTRAST.source)
    result = interaction(tiny, pair, equal)
    assert result.frame.query("measure in ('towards', 'synergy')")["value"].isna().all()
    assert result.frame.query("measure not in ('towards', 'synergy')")["low"].notna().all()
    assert "order matters most" in repr(result)


def test_frame_covers_everything_in_forward_order(result: Interaction) -> None:
    counts = result.frame.groupby(["side", "site", "measure"]).size().unstack("measure")
    assert (counts[["moved", "towards"]] == 4).all(axis=None)
    assert (counts["curvature"] == 4).all()
    assert (counts[["additivity", "excess", "commutation", "synergy"]] == 2).all(axis=None)
    assert list(dict.fromkeys(result.frame["site"])) == [FIRST, LAST]
    assert ((result.frame["low"] <= result.frame["value"]) & (result.frame["value"] <= result.frame["high"])).all()
    assert (result.frame["low"] < result.frame["high"]).any()
    assert result.settings["texts"] == {"source": 10, "target": 8}
    assert result.settings["colliding_units"] == {"a, b": 64}
    assert "order matters most to a and b" in repr(result) or "to b and a" in repr(result)


def test_shifts_of_one_site_add_up_there_and_commute_everywhere(tiny: Any) -> None:
    shifts = {name: random_edit(tiny, FIRST, seed=seed, scaled=False) for seed, name in enumerate("ab")}
    found = interaction(tiny, shifts, CONTRAST)
    assert found.of("commutation")["value"].max() < 1e-4  # (h + x) + y against (h + y) + x, in float32
    additivity = found.of("additivity").set_index("site")["value"]
    assert (additivity[FIRST] < 1e-4).all()
    assert (additivity[LAST] > 0.01).all()  # the block in between is no linear map
    assert (found.of("synergy").query("site == @FIRST")["value"].abs() < 1e-4).all()


def test_a_scale_and_a_shift_do_not_commute_by_the_closed_form(tiny: Any) -> None:
    (site,) = find_sites(tiny, FIRST)
    scale = Intervention((Edit(site, DiagonalAffine(torch.full((32,), 0.5), torch.zeros(32))),))
    shift = Intervention((Edit(site, DiagonalAffine(torch.ones(32), torch.full((32,), 2.0))),))
    found = interaction(tiny, {"scale": scale, "shift": shift}, CONTRAST, sites=FIRST)
    spread = collect(tiny, CONTRAST, FIRST, pool="mean").values[FIRST].double().std(0, correction=0)
    expected = float((1.0 / spread).square().mean().sqrt())  # (s - 1) b = -1 at every unit and text
    for row in found.of("commutation").itertuples():
        assert row.value == pytest.approx(expected, rel=1e-4)
        assert row.low == pytest.approx(row.high, rel=1e-4)


def test_edits_that_share_no_unit_run_once(tiny: Any) -> None:
    apart = {"early": random_edit(tiny, FIRST, seed=0), "late": random_edit(tiny, LAST, seed=1)}
    tiny(torch.tensor([[1, 2]]))
    interaction(tiny, apart, CONTRAST, batch_size=32)  # guards and fingerprints have run
    with Forwards(tiny) as forwards:
        found = interaction(tiny, apart, CONTRAST, batch_size=32)
    assert forwards.count == 2 * 7  # two sides: unedited, each alone and both, whole and at half strength
    assert (found.of("commutation")["value"] == 0).all()
    assert found.of("additivity").query("site == @LAST")["value"].min() > 0
    # At the first site the late edit has not acted yet.
    assert (found.of("additivity").query("site == @FIRST")["value"] == 0).all()
    assert value(found, "moved", "late", None, FIRST) == 0


def test_strength_scales_each_and_0_changes_nothing(tiny: Any, pair: dict[str, Intervention]) -> None:
    nothing = interaction(tiny, pair, CONTRAST, strength=0.0)
    assert (nothing.frame[["value", "low", "high"]] == 0).all(axis=None)
    half = interaction(tiny, {name: each.scaled(0.5) for name, each in pair.items()}, CONTRAST)
    pd.testing.assert_frame_equal(interaction(tiny, pair, CONTRAST, strength=0.5).frame, half.frame)


def test_matrix_is_first_by_later(result: Interaction) -> None:
    moved = result.matrix("moved")
    assert list(moved.index) == list(moved.columns) == ["a", "b"]
    assert moved.loc["a", "b"] == value(result, "moved", "a", "b", LAST)
    assert moved.loc["b", "b"] == value(result, "moved", "b", None, LAST)
    departure = result.matrix(site=FIRST)
    assert departure.loc["a", "b"] == departure.loc["b", "a"] == value(result, "commutation", "a", "b", FIRST)
    assert np.isnan(departure.loc["a", "a"])
    with pytest.raises(SettingError, match="was not measured"):
        result.matrix(site="blocks.9.hook_resid_post")


def test_maps_without_a_closed_form_and_a_third_one(tiny: Any, pair: dict[str, Intervention]) -> None:
    (site,) = find_sites(tiny, LAST)
    projection = Intervention((Edit(site, ProjectOut(torch.randn(32, generator=torch.Generator().manual_seed(0)))),))
    found = interaction(tiny, {**pair, "out": projection}, CONTRAST, sites=LAST)
    assert found.pairs == (("a", "b"), ("a", "out"), ("b", "out"))
    assert (found.of("commutation")["value"] > 0).all()
    assert len(found.of("moved")) == 3 + 6


def test_names_come_from_the_methods(tiny: Any) -> None:
    edits = [random_edit(tiny, FIRST, seed=seed, method=name) for seed, name in enumerate(["ablate zero", "m", "m"])]
    assert interaction(tiny, edits, CONTRAST, sites=FIRST).names == ("ablate zero", "m", "m 2")
    nameless = [Intervention(edit.edits) for edit in edits[:2]]
    assert interaction(tiny, nameless, CONTRAST, sites=FIRST).names == ("intervention", "intervention 2")


def test_the_same_call_gives_the_same_numbers_and_leaves_nothing(
    tiny: Any, pair: dict[str, Intervention], result: Interaction
) -> None:
    before = handles(tiny)
    again = interaction(tiny, pair, CONTRAST)
    pd.testing.assert_frame_equal(again.frame, result.frame)
    assert handles(tiny) == before
    wider = interaction(tiny, pair, CONTRAST, confidence=0.99).frame
    pd.testing.assert_series_equal(wider["value"], result.frame["value"])
    assert (wider["high"] - wider["low"]).sum() > 1.3 * (result.frame["high"] - result.frame["low"]).sum()


def test_one_text_has_no_interval(tiny: Any, pair: dict[str, Intervention]) -> None:
    single = ContrastSet(CONTRAST.source[:1], CONTRAST.target)
    found = interaction(tiny, pair, single)
    assert found.of("moved")["low"].isna().all()
    assert found.of("moved", side="target")["low"].notna().all()


def test_bad_input_is_named(tiny: Any, pair: dict[str, Intervention]) -> None:
    with pytest.raises(SettingError, match="two or more interventions interact, not 1"):
        interaction(tiny, [pair["a"]], CONTRAST)
    late = {name: each.restrict([LAST]) for name, each in pair.items()}
    with pytest.raises(SiteError, match="comes at or after the first edit"):
        interaction(tiny, late, CONTRAST, sites=FIRST)
    foreign = Intervention((Edit(Site("blocks.7.hook_resid_post", 7, "x", 32), DiagonalAffine.identity(32)),))
    with pytest.raises(SiteError, match=r"blocks\.7"):
        interaction(tiny, [pair["a"], foreign], CONTRAST)
    huge = Intervention((Edit(find_sites(tiny, FIRST)[0], DiagonalAffine(torch.full((32,), 3e38), torch.zeros(32))),))
    with pytest.raises(ActivationError, match="of the model edited by huge is"):
        interaction(tiny, {"a": pair["a"], "huge": huge}, CONTRAST)
    with pytest.warns(LensSteerWarning, match="no token was in the scope .*'all from position 60'"):
        idle = interaction(tiny, [pair["a"], pair["b"].scoped(Scope(start=60))], CONTRAST)
    assert (idle.of("commutation")["value"] == 0).all()
