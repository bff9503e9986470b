"""The comparison of methods: strengths are chosen and measured apart, and the verbs follow from the intervals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lens_steer as ls
from analyses import method_comparison
from analyses.compared_methods import compared_methods, named_methods
from analyses.experiment import as_pairs
from analyses.method_comparison import COMMON, NULL, OWN, summary
from tests.analyses.contrasts import GENERATION, contrast
from tests.analyses.verbs import FEW, changes, check_verbs, expected
from tests.families import sentences

SMALL: dict[str, Any] = {
    **{name: value for name, value in GENERATION.items() if name not in ("most_prompts", "most_neutral")},
    "most_prompts": 8,
    "most_neutral": 8,
    "strengths": (0.5, 2.0),
    "fit_texts": 10,
    "steps": 2,
    "seed": 3,
}


def texts() -> ls.ContrastSet:
    return replace(contrast("sad", "happy", n=24), control=tuple(sentences(12, seed=9)))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("comparison") / "run"


@pytest.fixture(scope="module")
def study(tiny: Any, out: Path) -> ls.Study:
    return method_comparison.run(tiny, texts(), out=out, only=("AurA", "CAA", "ITI", "DSAS", "CAST"), **SMALL)


def test_every_method_stands_at_both_places_beside_its_null(study: ls.Study) -> None:
    table = study.frames["methods"]
    for name, rows in table.groupby("method"):
        places = {OWN} if name == "ITI" else {COMMON, OWN}
        assert set(zip(rows["sites"], rows["control"], strict=True)) == {
            (where, control) for where in places for control in ("", NULL)
        }
    assert set(table["method"]) == {"AurA", "CAA", "CAST of CAA", "DSAS of LinearAcT", "ITI"}
    assert (table["units"] <= table["of_units"]).all()
    assert set(study.interventions) == {
        name.replace(" ", "_") for name in table.loc[table["sites"] == COMMON, "method"]
    }


def test_the_strength_is_the_best_of_those_tried_within_the_budget(study: ls.Study) -> None:
    keys = ["method", "sites"]
    tried = study.frames["strengths"].set_index(keys)
    assert (tried.groupby(keys).size() == 2).all()
    assert set(study.frames["strengths"]["control"]) == {""}
    for row in study.frames["methods"].to_dict("records"):
        curve = tried.loc[tuple(row[key] for key in keys)]
        fine = curve[curve["perplexity_after"] <= 1.25 * curve["perplexity_before"]]
        assert row["within_budget"] == (len(fine) > 0)
        expected = (
            fine.loc[fine["after"] == fine["after"].min()] if len(fine) else curve.nsmallest(1, "perplexity_after")
        )
        assert row["strength"] in set(expected["strength"])


def test_a_method_stands_beside_random_edits_that_write_as_far(tiny: Any) -> None:
    study = method_comparison.run(tiny, texts(), out=None, sites=None, only=("CAA",), random_edits=20, **SMALL)
    methods, beside = study.frames["methods"], study.frames["against_random"]
    row = methods[methods["control"] == ""].iloc[0]
    concept, perplexity = (beside[beside["measure"] == name].iloc[0] for name in ("concept", "perplexity"))
    assert concept["after"] == pytest.approx(row["after"])
    assert perplexity["after"] == pytest.approx(row["perplexity_after"])
    assert concept["change"] == pytest.approx(concept["after"] - concept["before"])
    assert concept["low"] <= concept["change"] <= concept["high"]
    assert set(beside["draws"]) == {20}
    assert beside["rank_p"].between(2 / 21, 1).all()
    assert "against one more random edit that writes as far (20 draws," in study.summary[-1]
    assert row["kl"] > 0


def test_a_number_of_random_edits_below_zero_is_refused_before_a_fit(tiny: Any) -> None:
    with pytest.raises(ls.LensSteerError, match="random_edits=-1: give how many, 0 for none"):
        method_comparison.run(tiny, texts(), out=None, random_edits=-1, **SMALL)


def test_the_folder_holds_the_study_and_the_seed_repeats_it(study: ls.Study, tiny: Any, out: Path) -> None:
    saved = ls.Study.load(out)
    again = method_comparison.run(tiny, texts(), out=None, only=("AurA",), **SMALL)
    assert saved.summary == study.summary
    table = study.frames["methods"]
    pd.testing.assert_frame_equal(saved.frames["methods"], table)
    part = table[table["method"].isin(["AurA"])].reset_index(drop=True)
    # Intervals know of how many methods they are to hold.
    varies = ["fit_seconds", "low", "high", "confidence", "perplexity_low", "perplexity_high"]
    pd.testing.assert_frame_equal(again.frames["methods"].drop(columns=varies), part.drop(columns=varies))
    assert (again.frames["methods"]["confidence"] < table["confidence"].max()).all()


def test_several_seeds_say_together_what_each_says_in_the_mean(tiny: Any) -> None:
    asked = {**SMALL, "prompts": ls.beginnings(sentences(8, seed=5), words=4), "neutral": sentences(8, seed=6)}
    runs = [
        method_comparison.run(tiny, texts(), out=None, only=("CAA", "ITI"), **{**asked, "seed": seed})
        for seed in (1, 2, 3)
    ]
    together = method_comparison.over_seeds(runs)
    by_seed = pd.concat([study.frames["methods"] for study in runs])
    keys = ["method", "sites", "control"]
    means = by_seed.groupby(keys, sort=False)[["before", "after", "change", "units", "kl", "fit_seconds"]].mean()
    assert list(together.set_index(keys).index) == list(means.index)
    for name in means:
        assert together[name].to_numpy() == pytest.approx(means[name].to_numpy(), abs=1e-12)
    assert (together["seeds"] == 3).all()
    assert (together["within_budget"] == by_seed.groupby(keys, sort=False)["within_budget"].sum().to_numpy()).all()
    assert (together["confidence"] == 1 - 0.05 / 3).all()  # CAA at two places, ITI at its own
    assert (together["low"] <= together["change"]).all()
    assert (together["change"] <= together["high"]).all()


def test_seeds_that_did_not_measure_alike_are_refused(tiny: Any, study: ls.Study) -> None:
    for runs in ([study], [study, method_comparison.run(tiny, texts(), out=None, only=("ITI",), **SMALL)]):
        with pytest.raises(ls.LensSteerError, match="two or more, of the same methods"):
            method_comparison.over_seeds(runs)


def test_a_name_means_its_method_and_a_beginning_all_that_share_it(tiny: Any) -> None:
    every = list(compared_methods(tiny, texts(), None, 1, 0.1, 0))

    def named(*names: str) -> list[str]:
        return [method.name for method in named_methods(every, names)]

    assert named() == [method.name for method in every]
    assert named("LinEAS") == ["LinEAS"]
    assert named("LinEAS, few") == ["LinEAS, few units"]
    assert named("CAST", "Lin", "CAA") == ["LinearAcT", "CAA", "LinEAS", "LinEAS, few units", "CAST of CAA"]


def test_wrong_names_are_refused_beside_right_ones(tiny: Any) -> None:
    with pytest.raises(ls.LensSteerError, match="no method is named 'Aurora' here; there are .*AurA, CAA"):
        method_comparison.run(tiny, texts(), out=None, only=("AurA", "Aurora"), **SMALL)


@st.composite
def tables(draw: st.DrawFn) -> pd.DataFrame:
    rows = []
    for method in ("AurA", "CAA"):
        for where in (COMMON, OWN):
            for control in ("", NULL):
                effect, cost = draw(changes()), draw(changes())
                costs = {f"perplexity_{name}": cost[name] for name in ("before", "after", "low", "high")}
                about = {"method": method, "sites": where, "control": control, "strength": 1.0, "units": 3}
                chosen = {"within_budget": draw(st.booleans()), "validation_after": draw(st.floats(0, 1))}
                rows.append({**about, **chosen, **effect, **costs, "of_units": 9})
    return pd.DataFrame(rows)


@FEW
@given(tables())
def test_verbs_follow_from_intervals(table: pd.DataFrame) -> None:
    said = summary("sad", table, 1.25, "control texts")
    real = table[table["control"] == ""]
    within = real[real["within_budget"]]
    assert check_verbs(said) == 2 * within["sites"].nunique()
    (verdicts,) = [line for line in said if "within the budget, against" in line] or [""]
    groups = dict(part.split(": ") for part in verdicts.removesuffix(".").partition(" edit: ")[2].split("; ") if part)
    for row in within.to_dict("records"):
        assert f"{row['method']} ({row['sites']})" in groups[expected(row)]


@FEW
@given(tables())
def test_the_method_that_is_named_is_the_best_on_the_validation_prompts(table: pd.DataFrame) -> None:
    """However well another does where it is reported."""
    real = table[(table["control"] == "") & (table["sites"] == COMMON) & table["within_budget"]]
    title = summary("sad", table, 1.25, "control texts")[0]
    if real.empty:
        assert "no strength" in title
    else:
        assert real.sort_values("validation_after", kind="stable")["method"].iloc[0] in title


def test_all_methods_are_taken_where_none_is_named(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    every = method_comparison.compared_methods

    def first_two(*given: Any) -> Any:
        listed = list(every(*given))
        names.extend(method.name for method in listed)
        return listed[:2]

    monkeypatch.setattr(method_comparison, "compared_methods", first_two)
    study = method_comparison.run(tiny, texts(), out=None, **SMALL)
    assert set(study.frames["methods"]["method"]) == set(names[:2])


def test_texts_are_measured_behind_their_first_words() -> None:
    rows = ("the sad dog ran home", "a cat", ("the bird", " flew"))
    assert as_pairs(rows, 2) == (("the sad", " dog ran home"), ("the bird", " flew"))
    with pytest.raises(ls.LensSteerError, match="lower prompt_words"):
        as_pairs(rows[:2], 4)


def test_the_steering_error_comes_with_the_paired_error_of_its_change(embedded_host: Any) -> None:
    site = ls.find_sites(embedded_host, "blocks.3.hook_resid_post")
    edit = ls.ablate(ls.random_units(site, 30, seed=0))
    row = method_comparison._steering_error(embedded_host, edit, 1.0, {"register": "plain"}, 0)
    frame = ls.steering_error(embedded_host, given={"register": "plain"}, intervention=edit, n=64, seed=1).frame
    nats = frame.set_index("measure").loc["nats"]
    assert row["error_change"] == pytest.approx(row["error_after"] - row["error_before"])
    assert row["error_change_se"] == pytest.approx(nats["change_se"])
    assert 0 < row["error_change_se"] < nats["before_se"] + nats["after_se"]
    prompts = method_comparison._steering_error(embedded_host, edit.scoped("prompt"), 1.0, {"register": "plain"}, 0)
    assert prompts["error_before"] == row["error_before"]
    assert all(prompts[name] != prompts[name] for name in ("error_after", "error_change", "error_change_se"))
