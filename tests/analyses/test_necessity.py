"""Necessity and sufficiency: what is held and what is kept, what all and nothing read as, and the sentences."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lens_steer as ls
from analyses import necessity
from analyses.causal_scores import AUROC, EXACT, LINEAS, signed_name
from analyses.experiment import Experiment, Measurement
from analyses.necessity import ABLATED, KEPT, MODES, RANDOM, matched
from analyses.necessity_findings import CONCEPT, NOTHING, UNEDITED, summary
from analyses.unit_orders import ORDERS, UnitOrders
from tests.analyses.contrasts import GENERATION, contrast
from tests.analyses.verbs import FEW, changes, check_verbs

CHOOSING: dict[str, Any] = {"context_words": 4, "pairs": 4, "patched": 6, "fit_texts": 6, "steps": 6}
SMALL: dict[str, Any] = {
    **GENERATION,
    **CHOOSING,
    "most_prompts": 4,
    "samples": 1,
    "ks": (2,),
    "draws": 1,
    "matched_to": (AUROC,),
    "modes": MODES[::2],
}


@pytest.fixture(scope="module")
def study(tiny: Any) -> ls.Study:
    return necessity.run(tiny, contrast("sad", "happy"), out=None, **SMALL)


@pytest.fixture(scope="module")
def chosen(tiny: Any) -> UnitOrders:
    measurement = Measurement(scorer=GENERATION["scorer"])
    experiment = Experiment("orders", tiny, contrast("sad", "happy"), None, 0, {}, measurement)
    settings: dict[str, Any] = {**CHOOSING, "metric_words": None, "gamma_share": 0.1}
    return UnitOrders.of(experiment, "mlp.hook_post", **settings)


def test_every_choice_is_held_and_kept_in_every_mode(study: ls.Study) -> None:
    held, kept, against = (study.frames[name] for name in ("necessity", "sufficiency", "against_controls"))
    choices = set(held["choice"]) & set(ORDERS)
    assert {AUROC, EXACT} <= choices
    for frame in (held[held["choice"].isin(ORDERS)], kept):
        assert set(frame["mode"]) == set(SMALL["modes"])
        assert set(frame["choice"]) == choices
    assert set(held.loc[~held["choice"].isin(ORDERS), "mode"]) == {MODES[0]}
    assert set(against["side"]) == {ABLATED, KEPT}
    assert set(against["control"]) == {RANDOM, matched(AUROC)}
    assert kept.groupby(["mode", "measure", "against"])["before"].nunique().eq(1).all()
    assert study.frames["chosen_units"].groupby("choice").size().eq(2).all()


def test_orders_put_first_what_brings_the_concept(chosen: UnitOrders) -> None:
    assert set(chosen.orders) == set(ORDERS)
    for name, order in chosen.orders.items():
        column = LINEAS if name == LINEAS else signed_name(name)
        scores: Any = chosen.scores.set_index(["site", "unit"])[column]
        values = [scores[unit.site.name, unit.index] for unit in order]
        assert values == sorted(values, reverse=True)
        assert min(values) > 0
        assert len(order) == (scores > 0).sum()
    patched = chosen.scores[signed_name(EXACT)].notna()
    assert 6 <= patched.sum() <= 5 * 6  # those that a score puts first, no other


def test_all_but_a_set_and_the_set_are_everything(chosen: UnitOrders, tiny: Any) -> None:
    units = chosen.orders[AUROC][:3]
    rest = chosen.others(units)
    assert len(rest) + 3 == sum(site.width for site in chosen.sites)
    assert not set(rest) & set(units)
    assert chosen.others(rest) == tuple(sorted(units, key=lambda unit: (unit.site.layer, unit.index)))
    assert chosen.others(chosen.others(())) == ()
    # Both held one after the other is nothing kept.
    texts = ["the sad dog ran", "a big cat sat"]
    held = [ls.ablate(part, mode="target_mean", activations=chosen.activations) for part in (units, rest)]
    nothing = ls.ablate(chosen.others(()), mode="target_mean", activations=chosen.activations)
    both = ls.perplexity(tiny, texts, intervention=held[0].then(held[1]))
    assert both == pytest.approx(ls.perplexity(tiny, texts, intervention=nothing), rel=1e-5)
    assert both != pytest.approx(ls.perplexity(tiny, texts), rel=1e-3)


@st.composite
def frames(draw: st.DrawFn) -> dict[str, pd.DataFrame]:
    named = {"mode": "zero", "k": 4, "measure": CONCEPT}
    held = [{**named, "choice": choice, **draw(changes())} for choice in (AUROC, EXACT)]
    kept = [{**row, "against": against, **draw(changes())} for row in held for against in (NOTHING, UNEDITED)]
    against = [
        {**named, "side": side, "choice": AUROC, "control": control, "draws": 20, **draw(changes())}
        for side in (ABLATED, KEPT)
        for control in (RANDOM, matched(AUROC))
    ]
    tables = {"necessity": held, "sufficiency": kept, "against_controls": against}
    return {name: pd.DataFrame(rows) for name, rows in tables.items()}


@FEW
@given(frames())
def test_verbs_follow_from_intervals(tables: dict[str, pd.DataFrame]) -> None:
    said = summary("sad", tables, "held-out target texts")
    assert check_verbs(said) == 3
    assert len(said) == 7


@pytest.mark.parametrize(
    ("setting", "culprit"),
    [
        ({"ks": ()}, "numbers of units lie between"),
        ({"ks": (500,)}, "numbers of units lie between"),
        ({"modes": ("Zero",)}, "give one or more of zero, mean"),
        ({"modes": ()}, "give one or more of zero, mean"),
        ({"draws": 0}, "draws=0"),
        ({"matched_to": ("Auroc",)}, "matched_to names 'Auroc'"),
    ],
)
def test_impossible_settings_are_refused_before_the_work(
    tiny: Any, setting: dict[str, Any], culprit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ls, "collect", pytest.fail)
    with pytest.raises(ls.LensSteerError, match=culprit):
        necessity.run(tiny, contrast("sad", "happy"), out=None, **{**SMALL, **setting})
