"""The composition study: its table of all, its orders, and that its sentences follow from its frames."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lens_steer as ls
from analyses import composition
from analyses.composition import KINDS, NULL, unseen, without_concepts
from analyses.measurements import PERPLEXITY
from tests.analyses.contrasts import GENERATION, contrast
from tests.analyses.verbs import FEW, changes, check_verbs, expected
from tests.families import WORDS

SMALL: dict[str, Any] = {
    **GENERATION,
    "second_scorer": ls.WordList(["cat", "bird"], name="cat words"),
    "fit_texts": 6,
    "steps": 4,
}
FIRST, SECOND = "sad, then cat", "cat, then sad"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("composition") / "run"


@pytest.fixture(scope="module")
def study(tiny: Any, out: Path) -> ls.Study:
    second = contrast("cat", "tree", seed=7)
    return composition.run(tiny, contrast("sad", "happy"), out=out, second=second, **SMALL)


def test_every_edit_is_measured_on_both_concepts_and_the_cost(study: ls.Study) -> None:
    table = study.frames["composition"]
    for _, rows in table.groupby("kind"):
        assert rows["edit"].unique().tolist() == ["sad", "cat", FIRST, SECOND, NULL]
    assert (table.groupby(["kind", "edit"])["measure"].agg(list).map(tuple) == ("sad", "cat", "perplexity")).all()
    units = table.groupby(["kind", "edit"])["units"].first()
    assert units["sparse", "sad"] < units["dense", "sad"]
    assert units["sparse", FIRST] == units["sparse", SECOND]


def test_orders_and_interference_are_differences_of_the_table(study: ls.Study) -> None:
    table = study.frames["composition"].set_index(["kind", "edit", "measure"])["after"]
    for row in study.frames["order"].to_dict("records"):
        first, second = (table[row["kind"], order, row["measure"]] for order in (FIRST, SECOND))
        assert (row["before"], row["after"]) == pytest.approx((first, second))
    for row in study.frames["interference"].to_dict("records"):
        alone, composed = (table[row["kind"], edit, row["measure"]] for edit in (row["measure"], row["order"]))
        assert (row["before"], row["after"]) == pytest.approx((alone, composed))


def test_edits_that_share_no_unit_have_no_order(tiny: Any) -> None:
    """Their two orders are one function: nothing collides, and commutation is 0 at every site."""
    site = ls.find_sites(tiny, "blocks.0.mlp.hook_post")[0]
    one, two = (ls.ablate([ls.Unit(site, unit)], mode="value", value=3.0) for unit in (1, 2))
    edits = {kind: {"sad": one, "cat": two} for kind in KINDS}
    assert composition._collisions(edits, "sad", "cat")["units"].sum() == 0
    inside = composition._interaction(tiny, edits, contrast("sad", "happy"), "sad", "cat")
    turned = inside[inside["measure"] == "commutation"]
    assert len(turned) > 0
    np.testing.assert_allclose(turned["value"], 0, atol=1e-6)


def test_edits_that_share_a_unit_have_one(tiny: Any) -> None:
    site = ls.find_sites(tiny, "blocks.0.mlp.hook_post")[0]
    one, two = (ls.ablate([ls.Unit(site, 1)], mode="value", value=value) for value in (3.0, -3.0))
    edits = {kind: {"sad": one, "cat": two} for kind in KINDS}
    assert composition._collisions(edits, "sad", "cat")["units"].sum() == len(KINDS)
    inside = composition._interaction(tiny, edits, contrast("sad", "happy"), "sad", "cat")
    assert inside[inside["measure"] == "commutation"]["value"].max() > 0.1


def test_the_same_seed_gives_the_same_frames_and_the_folder_holds_them(study: ls.Study, tiny: Any, out: Path) -> None:
    second = contrast("cat", "tree", seed=7)
    again = composition.run(tiny, contrast("sad", "happy"), out=None, second=second, **SMALL)
    saved = ls.Study.load(out)
    for name, frame in study.frames.items():
        pd.testing.assert_frame_equal(again.frames[name], frame)
        pd.testing.assert_frame_equal(saved.frames[name], frame)
    assert saved.summary == study.summary


@st.composite
def frames(draw: st.DrawFn) -> dict[str, pd.DataFrame]:
    edits = ["sad", "cat", FIRST, SECOND, NULL]
    measures = ("sad", "cat", PERPLEXITY)
    return {
        "composition": pd.DataFrame(
            {"kind": kind, "edit": edit, "units": 3, "measure": measure, **draw(changes())}
            for kind in KINDS
            for edit in edits
            for measure in measures
        ),
        "order": pd.DataFrame(
            {"kind": kind, "measure": name, **draw(changes())} for kind in KINDS for name in measures
        ),
        "interference": pd.DataFrame(
            {"kind": kind, "order": order, "measure": name, **draw(changes())}
            for kind in KINDS
            for name in ("sad", "cat")
            for order in (FIRST, SECOND)
        ),
        "collisions": pd.DataFrame({"kind": [*KINDS], "units": [2, 0]}),
        "interaction": pd.DataFrame({"kind": [], "site": [], "side": [], "measure": [], "value": []}),
    }


@FEW
@given(frames())
def test_verbs_follow_from_intervals(tables: dict[str, pd.DataFrame]) -> None:
    summary = composition.summary(tables, "sad", "cat", "neutral texts")
    shown = [
        expected(row) in (ls.Verdict.LOWER, ls.Verdict.HIGHER)
        for name in ("order", "interference")
        for row in tables[name].to_dict("records")
    ]
    assert check_verbs(summary) == len(KINDS) * (3 + 2 + 2) + sum(shown)
    table = tables["composition"]
    for kind in KINDS:
        rows = table[
            (table["kind"] == kind) & table["edit"].isin([FIRST, SECOND]) & table["measure"].isin(["sad", "cat"])
        ]
        verdicts = {expected(row) for row in rows.to_dict("records")}
        (clause,) = [part for part in summary[0].split(": ", 1)[1].split("; ") if f"{kind} edits" in part]
        assert clause.startswith("both lower:") == (verdicts == {ls.Verdict.LOWER})
        assert clause.startswith("cannot be judged") == (ls.Verdict.CANNOT_JUDGE in verdicts)


def test_neutral_texts_show_neither_concept() -> None:
    scorers = [ls.WordList(["sad"]), ls.WordList(["cat"])]
    rows = ["a sad dog", ("the", "cat sat"), "a dog ran", ("sad", "it rained")]
    assert without_concepts(rows, scorers) == ("a dog ran", ("sad", "it rained"))
    words: Any = lambda texts: ["sad"] * len(texts)  # noqa: E731
    with pytest.raises(ls.LensSteerError, match="one number in"):
        without_concepts(rows, [words])


def test_texts_with_either_concept_do_not_measure_the_cost(tiny: Any) -> None:
    shown = ls.WordList(list(WORDS), name="everything")
    with pytest.raises(ls.LensSteerError, match="show neither"):
        composition.run(
            tiny,
            contrast("sad", "happy"),
            out=None,
            second=contrast("cat", "tree", seed=7),
            **{**SMALL, "scorer": shown},
        )


def test_a_text_of_either_training_half_is_no_held_out_text() -> None:
    held = ls.ContrastSet(["a", "b"], ["c", "d"], control=["e"])
    left = unseen(held, [ls.ContrastSet(["a", "x"], ["y"], control=["e"])])
    assert (left.source, left.target, left.control) == (("b",), ("c", "d"), ())


def test_one_concept_twice_is_refused(tiny: Any) -> None:
    with pytest.raises(ls.LensSteerError, match="both concepts are named 'sad'"):
        composition.run(tiny, contrast("sad", "happy"), out=None, second=contrast("sad", "happy"), **SMALL)


def test_microworld_concepts_are_scored_by_the_oracle(embedded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    few = partial(ls.read_contrast, n=14)
    rude = few("microworld:rude")
    monkeypatch.setattr(ls, "read_contrast", few)  # the second contrast is read by its name, of 200 texts a side
    sizes = {**SMALL, "scorer": None, "second_scorer": None, "prompt_words": 4, "max_new_tokens": 12}
    sizes |= {"steps": 8, "samples": 1, "most_prompts": 4}
    study = composition.run(embedded, rude, out=None, second="microworld:negative", **sizes)
    table = study.frames["composition"]
    assert {"rude", "negative", "grammatical", "unreadable", "perplexity"} <= set(table["measure"])
    grammatical = table[table["measure"] == "grammatical"]
    assert np.isfinite(grammatical["before"]).all()
    assert set(study.frames["order"]["measure"]) == {"rude", "negative", "perplexity"}
