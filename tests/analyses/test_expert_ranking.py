"""The study of experts: its tables, its controls, and sentences that say what the tables do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import lens_steer as ls
from analyses import expert_ranking
from tests.analyses.verbs import FEW
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
    text = " ".join(study.summary)
    for number in ("heldout_auroc", "heldout_low", "heldout_high", "shuffled_auroc", "probe_auroc", "length_auroc"):
        assert f"{row[number]:.2f}" in text
    assert f"{row['site']}[{row['unit']}]" in text
    length = study.frames["confounds"]["auroc for length"]
    assert f"{length.iloc[0]:.2f}" in study.summary[-1]
    assert list(study.tokens) == ["sad"]
    assert len(study.tokens["sad"].units) == 2


def test_the_length_of_texts_is_ranked_like_a_unit() -> None:
    lengths, labels = [5, 7, 7, 9, 4, 7, 3, 2], [1, 1, 1, 1, 0, 0, 0, 0]
    auroc, low, high = expert_ranking.length_auroc(labels, lengths, confidence=0.95)
    assert auroc == pytest.approx(roc_auc_score(labels, lengths))
    assert low < auroc < high
    assert np.isnan(expert_ranking.length_auroc(labels, [5] * 8, confidence=0.95)).all()


def test_nothing_is_claimed_where_there_is_nothing(tiny: Any) -> None:
    same = ls.ContrastSet(sentences(24, seed=3), sentences(24, seed=4), name="nothing")
    study = expert_ranking.run(tiny, same, out=None, shuffles=1, top=2, shown=1)
    row = study.frames["by_concept"].iloc[0]
    assert row["heldout_low"] < 0.5
    assert study.summary[0].startswith("No single unit was shown to tell nothing from other texts")


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


SCORES = st.one_of(st.just(float("nan")), st.integers(0, 100).map(lambda value: value / 100))


@st.composite
def tables(draw: st.DrawFn, concepts: int) -> dict[str, pd.DataFrame]:
    rows = []
    for number in range(concepts):
        row: dict[str, Any] = {"concept": f"concept{number}", "site": "blocks.1.mlp.hook_post", "layer": 1, "unit": 3}
        row |= {"source_texts": 9, "target_texts": 9, "different": 2}
        row |= {name: draw(SCORES) for name in ("probe_auroc", "shuffled_auroc", "shuffled_best")}
        for of in ("heldout", "length"):
            ends = sorted((draw(SCORES), draw(SCORES)))
            row |= {f"{of}_auroc": draw(SCORES), f"{of}_low": ends[0], f"{of}_high": ends[1]}
            if any(map(np.isnan, ends)):
                row |= {f"{of}_low": np.nan, f"{of}_high": np.nan}
        rows.append(row)
    confounds = pd.DataFrame(
        {"site": "blocks.1.mlp.hook_post", "unit": [3, 4], "auroc for length": [draw(SCORES), draw(SCORES)]}
    )
    return {"by_concept": pd.DataFrame(rows), "confounds": confounds}


def side(row: Any, of: str) -> str:
    if np.isnan(row[f"{of}_low"]):
        return "nan"
    return "above" if row[f"{of}_low"] > 0.5 else "below" if row[f"{of}_high"] < 0.5 else "holds"


@FEW
@given(tables(1))
def test_a_finding_follows_from_its_interval(frames: dict[str, pd.DataFrame]) -> None:
    title, *_ = summary = expert_ranking.summary(frames, units=9)
    row = frames["by_concept"].iloc[0]
    beginning = {
        "above": "The best single unit tells",
        "below": "The best single unit tells",
        "holds": "No single unit was shown",
        "nan": "Whether a single unit",
    }
    assert title.startswith(beginning[side(row, "heldout")])
    assert ("other way round" in title) == (side(row, "heldout") == "below")
    (length,) = [line for line in summary if line.startswith("Length of texts")]
    words = {"above": "longer with it", "below": "shorter with it", "holds": "not shown", "nan": "cannot be judged"}
    assert words[side(row, "length")] in length
    told = frames["confounds"]["auroc for length"]
    assert ("cannot be judged: the texts without" in " ".join(summary)) == bool(told.isna().all())


@FEW
@given(tables(3))
def test_no_concept_is_told_of_beyond_its_interval(frames: dict[str, pd.DataFrame]) -> None:
    summary = expert_ranking.summary(frames, units=9)
    words = {
        "heldout": {"above": "tells it", "below": "tells it the other way round", "holds": "not shown",
                    "nan": "cannot be judged"},
        "length": {"above": "longer with it", "below": "shorter with it", "holds": "not shown",
                   "nan": "cannot be judged, all of one length"},
    }  # fmt: skip
    for of, beginning in (("heldout", "The best unit, beside chance (AUROC 1/2): "), ("length", "Length of texts, ")):
        (line,) = [line for line in summary if line.startswith(beginning)]
        groups = dict(part.split(": ", 1) for part in line.removeprefix(beginning).rstrip(".").split("; "))
        for row in frames["by_concept"].to_dict("records"):
            assert row["concept"] in groups[words[of][side(row, of)]]


@pytest.mark.parametrize("setting", [{"shuffles": -3}, {"top": -2}, {"keep": 0}, {"shown": 0}, {"pool": "median"}])
def test_impossible_settings_are_refused(tiny: Any, setting: dict[str, Any]) -> None:
    with pytest.raises(ls.LensSteerError, match=f"{next(iter(setting))}="):
        expert_ranking.run(tiny, sad(), out=None, **setting)
