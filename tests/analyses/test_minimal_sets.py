"""Minimal sets: chosen on some prompts, reported on others; greedy steps; and what all and nothing read as."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lens_steer as ls
from analyses import minimal_sets
from analyses.causal_scores import concept_pairs
from analyses.greedy import greedy_order
from analyses.measurements import COLUMNS, PERPLEXITY, Measurements
from analyses.minimal_sets import GREEDY, MATCHED, RANDOM
from analyses.minimal_sets_findings import CONCEPT, summary
from analyses.set_sizes import dose, size_ratios, smallest_sets
from analyses.unit_orders import ORDERS
from tests.analyses.contrasts import GENERATION, contrast
from tests.analyses.test_necessity import CHOOSING
from tests.analyses.verbs import FEW, changes, check_verbs

SMALL: dict[str, Any] = {
    **GENERATION,
    **CHOOSING,
    "most_prompts": 8,
    "most_neutral": 8,
    "samples": 1,
    "ks": (2, 16),
    "greedy_units": 2,
    "screened": 2,
    "draws": 1,
}


@pytest.fixture(scope="module")
def study(tiny: Any) -> ls.Study:
    return minimal_sets.run(tiny, contrast("sad", "happy"), out=None, **SMALL)


def test_every_order_is_tried_and_what_halved_is_reported_on_other_prompts(study: ls.Study) -> None:
    doses, table = study.frames["doses"], study.frames["minimal_sets"]
    assert {*ORDERS, GREEDY, RANDOM} >= set(table["order"]) >= {GREEDY, RANDOM}
    concept = doses[doses["measure"] == CONCEPT]
    assert concept["before"].nunique() == 1
    for row in table.to_dict("records"):
        left = concept[concept["order"] == row["order"]].query("after <= before / 2")["k"].min()
        np.testing.assert_equal(row["k"], float(left))
        assert np.isnan(row["after"]) == np.isnan(row["k"])
    assert set(study.frames["against_controls"]["control"]) <= {RANDOM, MATCHED}


def test_a_greedy_step_is_the_best_of_those_patched(tiny: Any) -> None:
    texts = contrast("sad", "happy")
    activations = ls.collect(tiny, texts, "mlp.hook_post", pool="mean", progress=False)
    pairs = concept_pairs(tiny, texts, ls.ConceptProbability(["sad"]), most=4, words=4, seed=0)
    order, steps = greedy_order(tiny, pairs, activations, most=3, screened=64 * 4)
    assert len(set(order)) == len(order) == len(steps) >= 2
    assert (steps["effect"] < 0).all()
    # With every unit of a falling estimate patched, the first step is the lowest effect of these.
    removing: Any = {"level": "unit", "positions": pairs.places, "progress": False}
    given_pairs = (tiny, pairs.corrupted, pairs.clean, pairs.metric)
    exact = ls.attribute(*given_pairs, sites="mlp.hook_post", method="patch", **removing).frame
    estimated = ls.attribute(*given_pairs, sites="mlp.hook_post", **removing).frame
    lowest = exact[estimated["value"] < 0].sort_values("value").iloc[0]
    assert (order[0].site.name, order[0].index) == (lowest["site"], lowest["unit"])
    assert steps["effect"].iloc[0] == pytest.approx(lowest["value"], abs=1e-6)
    # The second knows that the first is held.
    with ls.ablate(order[:1], mode="target_mean", activations=activations).on(tiny):
        again = ls.attribute(*given_pairs, sites="mlp.hook_post", units=order[1:2], method="patch", **removing)
    assert steps["effect"].iloc[1] == pytest.approx(again.frame["value"].item(), abs=1e-6)
    assert steps["metric"].iloc[1] == pytest.approx(again.settings["corrupted"], abs=1e-6)
    none = greedy_order(tiny, pairs, activations, most=1, screened=1)[0]
    assert len(none) <= 1


def measurements(after: float) -> Measurements:
    """Twenty prompts of which `after` keep the concept, all of them before."""
    rows = [
        {"edit": "AUROC", "draw": 0, "measure": measure, "when": when, "row": row, "counted": value, "of": 1.0}
        for measure in (CONCEPT, PERPLEXITY)
        for when, share in (("before", 1.0), ("after", after))
        for row, value in enumerate(np.arange(20) < share * 20)
    ]
    return Measurements(pd.DataFrame(rows, columns=list(COLUMNS)).astype({"counted": float}), 0)


@pytest.mark.parametrize(
    ("after", "verdict"), [(0.0, ls.Verdict.LOWER), (0.5, ls.Verdict.NOT_SHOWN), (1.0, ls.Verdict.HIGHER)]
)
def test_halving_is_judged_beside_one_half(after: float, verdict: ls.Verdict) -> None:
    doses = pd.DataFrame(
        [("AUROC", 4, CONCEPT, 1.0, 0.9), ("AUROC", 8, CONCEPT, 1.0, 0.5), ("RelP", 8, CONCEPT, 1.0, 0.6)],
        columns=["order", "k", "measure", "before", "after"],
    )
    assert smallest_sets(doses) == {"AUROC": 8}
    assert smallest_sets(doses.assign(before=0.0, after=0.0)) == {}  # nothing there is not halved
    units = tuple(ls.Unit(ls.Site("blocks.0.mlp.hook_post", 0, "mlp.hook_post", 8), index) for index in range(8))
    table = minimal_sets.minimal_sets(measurements(after), doses, {"AUROC": units})
    row = table.iloc[0]
    assert (row["order"], row["k"], row["left_choosing"]) == ("AUROC", 8, 0.5)
    assert ls.verdict_of(row["half_low"], row["half_high"]) is verdict
    assert np.isnan(table.iloc[1]["k"])


def test_an_order_is_said_to_need_fewer_units_only_where_it_does() -> None:
    """The same order twice, one that halves at once, one that never does, and one that was asked less."""
    random, ks = np.random.default_rng(0), (2, 4, 8)
    keeps = {"AUROC": (0.9, 0.8, 0.1), "again": (0.9, 0.8, 0.1), "RelP": (0.1, 0.1, 0.1), "never": (0.9, 0.9, 0.9)}
    keeps["short"] = (0.1,)
    rows, doses = [], []
    for name, shares in keeps.items():
        for k, share in zip(ks, shares, strict=False):
            kept = np.arange(40) < 40 * share if name in ("AUROC", "again") else random.random(40) < share
            for when, values in (("before", np.ones(40)), ("after", kept.astype(float))):
                about = {"edit": dose(name, k), "draw": 0, "measure": CONCEPT, "when": when}
                rows += [{**about, "row": row, "counted": value, "of": 1.0} for row, value in enumerate(values)]
            doses.append((name, k, CONCEPT, 1.0, float(kept.mean())))
    read = Measurements(pd.DataFrame(rows), 0)
    columns = ["order", "k", "measure", "before", "after"]
    table = size_ratios(read, pd.DataFrame(doses, columns=columns), "AUROC", seed=0).set_index("order")
    assert list(table.index) == ["again", "RelP", "never"]
    assert table.loc["again", ["value", "low", "high"]].tolist() == [1, 1, 1]
    assert table.loc["RelP", "high"] < 1
    assert table.loc["never", ["value", "low"]].tolist() == [2, 2]


@st.composite
def frames(draw: st.DrawFn) -> dict[str, pd.DataFrame]:
    concept, cost, half = draw(changes()), draw(changes()), draw(changes())
    row = {"order": "RelP", "k": 4.0, "tried": 16, "left_choosing": 0.4, **concept}
    row |= {"half_low": half["low"], "half_high": half["high"]}
    row |= {f"perplexity_{key}": cost[key] for key in ("before", "after", "low", "high")}
    against = {"order": "RelP", "control": RANDOM, "k": 4, "measure": CONCEPT, "draws": 20, **draw(changes())}
    never = {"order": "AUROC", "k": np.nan, "tried": 16}
    ratio = {"order": "RelP", "reference": "AUROC", "value": 0.5, "low": 0.25, "high": 0.5, "confidence": 0.95}
    tables = {"minimal_sets": [row, never], "against_controls": [against], "size_ratios": [ratio]}
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


@FEW
@given(frames())
def test_verbs_follow_from_intervals(tables: dict[str, pd.DataFrame]) -> None:
    said = summary("sad", tables, "held-out target texts")
    assert check_verbs(said) == 3
    row = tables["minimal_sets"].iloc[0]
    words = {ls.Verdict.LOWER: "less than half", ls.Verdict.HIGHER: "more than half"}
    verdict = ls.verdict_of(row["half_low"], row["half_high"])
    assert words.get(verdict, "neither shown" if verdict is ls.Verdict.NOT_SHOWN else "cannot be judged") in said[2]
    assert said[1].endswith("against AUROC's: fewer: RelP.")
    nothing = summary("sad", {**tables, "minimal_sets": tables["minimal_sets"].iloc[1:]}, "texts")
    assert len(nothing) == 1
    assert "at no number tried: AUROC (up to 16)" in nothing[0]


@pytest.mark.parametrize(
    ("setting", "culprit"),
    [
        ({"ks": ()}, "numbers of units lie between"),
        ({"ks": (500,)}, "numbers of units lie between"),
        ({"draws": 0}, "draws=0"),
        ({"screened": 0}, "screened=0"),
        ({"mode": "Zero"}, "mode='Zero': choose one of 'zero', 'mean'"),
    ],
)
def test_impossible_settings_are_refused_before_the_work(
    tiny: Any, setting: dict[str, Any], culprit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ls, "collect", pytest.fail)
    with pytest.raises(ls.LensSteerError, match=culprit):
        minimal_sets.run(tiny, contrast("sad", "happy"), out=None, **{**SMALL, **setting})
