"""The composition study: its table of all, its orders, and that its sentences follow from its frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import lens_steer as ls
from analyses import composition
from analyses.heldout import unseen
from tests.analyses.contrasts import GENERATION, contrast

SMALL: dict[str, Any] = {
    **GENERATION,
    "second_scorer": ls.WordList(["cat", "bird"], name="cat words"),
    "fit_texts": 6,
    "steps": 6,
    "lr": 0.01,
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
    assert table.columns.tolist() == ["kind", "edit", "units", "measure", "before", "after", "change", "low", "high"]
    for _, rows in table.groupby("kind"):
        assert rows["edit"].unique().tolist() == ["sad", "cat", FIRST, SECOND, "shuffled labels"]
    assert (table.groupby(["kind", "edit"])["measure"].agg(list).map(tuple) == ("sad", "cat", "perplexity")).all()
    units = table.groupby(["kind", "edit"])["units"].first()
    assert units["sparse", "sad"] < units["dense", "sad"]
    assert units["sparse", FIRST] == units["sparse", SECOND]


def test_orders_and_interference_are_differences_of_the_table(study: ls.Study) -> None:
    table = study.frames["composition"].set_index(["kind", "edit", "measure"])["after"]
    for row in study.frames["order"].to_dict("records"):
        there, back = (table[row["kind"], order, row["measure"]] for order in (FIRST, SECOND))
        assert (row["first_order"], row["other_order"]) == pytest.approx((there, back))
        assert row["difference"] == pytest.approx(back - there)
    for row in study.frames["interference"].to_dict("records"):
        alone, composed = (table[row["kind"], edit, row["concept"]] for edit in (row["concept"], row["order"]))
        assert row["difference"] == pytest.approx(composed - alone)


def test_what_meets_nowhere_has_no_order(study: ls.Study) -> None:
    """Where two edits share no unit, the two orders are one function."""
    met = study.frames["collisions"].groupby("kind")["units"].sum()
    inside = study.frames["interaction"].query("measure == 'commutation'").groupby("kind")["value"].max()
    assert met["dense"] == 64
    assert (inside[met.reindex(inside.index).fillna(0) == 0] == 0).all()
    assert inside["dense"] > 0


def test_the_same_seed_gives_the_same_frames_and_the_folder_holds_them(study: ls.Study, tiny: Any, out: Path) -> None:
    second = contrast("cat", "tree", seed=7)
    again = composition.run(tiny, contrast("sad", "happy"), out=None, second=second, **SMALL)
    saved = ls.Study.load(out)
    for name, frame in study.frames.items():
        pd.testing.assert_frame_equal(again.frames[name], frame)
        pd.testing.assert_frame_equal(saved.frames[name], frame)
    assert saved.summary == study.summary


def test_the_sentences_show_the_changes_of_the_frame(study: ls.Study) -> None:
    table: Any = study.frames["composition"].set_index(["kind", "edit", "measure"])
    told = " ".join(study.summary)
    for kind in composition.KINDS:
        assert f"sad {table.loc[(kind, FIRST, 'sad'), 'change']:+.3f}" in told
        assert f"{table.loc[(kind, FIRST, 'perplexity'), 'after']:.1f}" in told
    lowers = [
        all(table.loc[(kind, order, concept), "high"] < 0 for order in (FIRST, SECOND) for concept in ("sad", "cat"))
        for kind in composition.KINDS
    ]
    assert ("No composition lowers both" in study.summary[0]) == (not any(lowers))


def test_order_is_told_where_its_interval_excludes_zero(study: ls.Study) -> None:
    frames = dict(study.frames)
    frames["order"] = frames["order"].assign(low=-1.0, high=1.0)
    assert "No dependence on order" in composition._order_sentence(frames)
    frames["order"].loc[0, ["difference", "low", "high"]] = [0.5, 0.25, 1.0]
    assert "dense, sad +0.500 [+0.250, +1.000]" in composition._order_sentence(frames)


def test_a_text_of_either_training_half_is_no_held_out_text() -> None:
    held = ls.ContrastSet(["a", "b"], ["c", "d"], control=["e"])
    left = unseen(held, [ls.ContrastSet(["a", "x"], ["y"], control=["e"])])
    assert (left.source, left.target, left.control) == (("b",), ("c", "d"), ())


def test_one_concept_twice_is_refused(tiny: Any) -> None:
    with pytest.raises(ls.LensSteerError, match="both concepts are named 'sad'"):
        composition.run(tiny, contrast("sad", "happy"), out=None, second=contrast("sad", "happy"), **SMALL)


def test_microworld_concepts_are_scored_by_the_oracle(embedded: Any) -> None:
    rude = ls.read_contrast("microworld:rude", n=14)
    sizes = {**SMALL, "scorer": None, "second_scorer": None, "prompt_words": 4, "max_new_tokens": 12}
    study = composition.run(embedded, rude, out=None, second="microworld:negative", **sizes)
    table = study.frames["composition"]
    assert {"rude", "negative", "grammatical", "unreadable", "perplexity"} <= set(table["measure"])
    grammatical = table[table["measure"] == "grammatical"]
    assert np.isfinite(grammatical["before"]).all()
    assert set(study.frames["order"]["measure"]) == {"rude", "negative", "perplexity"}
