"""The study of experts: its tables, its controls, and sentences that say what the tables do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import lens_steer as ls
from analyses import expert_ranking
from tests.families import sentences

CLAIM = {"heldout_auroc", "heldout_low", "heldout_high", "q_value", "probe_auroc", "shuffled_auroc", "length_auroc"}


def sad(n: int = 24) -> ls.ContrastSet:
    return ls.ContrastSet(sentences(n, seed=1, must="sad"), sentences(n, seed=2, must="happy"), name="sad")


@pytest.fixture(scope="module")
def study(tiny: Any) -> ls.Study:
    return expert_ranking.run(tiny, sad(), out=None, shuffles=3, top=4, shown=2)


def test_the_claim_stands_beside_its_controls(study: ls.Study) -> None:
    row = study.frames["by_concept"].iloc[0]
    assert set(row.index) >= CLAIM
    assert row[list(CLAIM)].notna().all()
    assert row["heldout_low"] <= row["heldout_auroc"] <= row["heldout_high"]
    assert row["source_texts"] == row["target_texts"] == 24
    control = study.frames["shuffled_labels"]
    assert len(control) == 3
    assert row["shuffled_auroc"] == pytest.approx(control["heldout_auroc"].mean())
    assert (control["best_auroc"] >= 0.5).all()


def test_the_best_unit_is_the_first_of_the_ranking(study: ls.Study) -> None:
    best, first = study.frames["by_concept"].iloc[0], study.frames["experts"].iloc[0]
    assert (best["site"], best["unit"], best["heldout_auroc"]) == (first["site"], first["unit"], first["heldout_auroc"])
    layers = study.frames["by_layer"]
    assert layers["site"].tolist() == ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"]
    assert layers["selection_auroc"].max() == first["selection_auroc"]
    experts = study.frames["experts"]
    assert layers["different"].sum() == (experts["q_value"] <= expert_ranking.FALSE_DISCOVERIES).sum()


def test_the_sentences_say_what_the_tables_do(study: ls.Study) -> None:
    row = study.frames["by_concept"].iloc[0]
    said = " ".join(study.summary)
    for number in ("heldout_auroc", "heldout_low", "heldout_high", "shuffled_auroc", "probe_auroc", "length_auroc"):
        assert f"{row[number]:.2f}" in said
    assert f"{row['site']}[{row['unit']}]" in said
    length = study.frames["confounds"]["auroc for length"]
    assert f"{length.iloc[0]:.2f}" in study.summary[-1]
    assert list(study.tokens) == ["sad"]
    assert len(study.tokens["sad"].units) == 2


def test_nothing_is_claimed_where_there_is_nothing(tiny: Any) -> None:
    same = ls.ContrastSet(sentences(24, seed=3), sentences(24, seed=4), name="nothing")
    study = expert_ranking.run(tiny, same, out=None, shuffles=1, top=2, shown=1)
    row = study.frames["by_concept"].iloc[0]
    assert row["heldout_low"] < 0.5
    assert study.summary[0].startswith("No single unit was found to tell nothing from other texts")


def test_the_seed_repeats_the_study(tiny: Any, study: ls.Study) -> None:
    again = expert_ranking.run(tiny, sad(), out=None, shuffles=3, top=4, shown=2)
    for name, frame in study.frames.items():
        pd.testing.assert_frame_equal(frame, again.frames[name])
    assert list(again.summary) == list(study.summary)


def test_many_concepts_in_one_pass(tiny: Any, study: ls.Study, tmp_path: Path) -> None:
    """A concept of the table has the numbers that it has alone; the run folder holds what was returned."""
    dog = ls.ContrastSet(sentences(20, seed=5, must="dog"), sentences(20, seed=6, must="cat"), name="dog")
    table = ls.LabelledTexts.of([sad(), dog], name="both")
    many = expert_ranking.run(tiny, table, out=tmp_path / "run", shuffles=1, top=2, shown=2)
    frame = many.frames["by_concept"].set_index("concept")
    assert set(frame.index) == {"sad", "dog"}
    alone = study.frames["by_concept"].iloc[0]
    for column in ("site", "unit", "heldout_auroc", "probe_auroc", "length_auroc"):
        assert frame.loc["sad", column] == pytest.approx(alone[column]), column
    assert set(many.figures) == {"by_concept", "experts"}
    reached = int((frame["heldout_auroc"] >= expert_ranking.EXPERT).sum())
    assert many.summary[0].startswith(f"For {reached} of 2 concepts")
    saved = ls.Study.load(tmp_path / "run")
    pd.testing.assert_frame_equal(saved.frames["by_concept"], many.frames["by_concept"])
    assert list(saved.summary) == list(many.summary)
