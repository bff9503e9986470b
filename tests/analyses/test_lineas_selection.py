"""The study of LinEAS's selection: as many units for every choice, controls beside claims, sentences from tables."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lens_steer as ls
from analyses import lineas_selection
from analyses.selection import ALL, AUROC, LINEAS, RANDOM, REAL, SHUFFLED
from analyses.sentences import interval
from tests.analyses.verbs import FEW, changes, check_verbs, expected
from tests.families import sentences

SETTINGS: dict[str, Any] = {
    "draws": 2, "fit_texts": 6, "gamma_shares": (0.5, 0.1), "steps": 4, "samples": 1, "most_prompts": 4,
    "most_neutral": 4, "max_new_tokens": 4, "scorer": ls.WordList(["sad"]),
}  # fmt: skip


def sad() -> ls.ContrastSet:
    return ls.ContrastSet(sentences(24, seed=1, must="sad"), sentences(24, seed=2, must="happy"), name="sad")


@pytest.fixture(scope="module")
def study(tiny: Any) -> ls.Study:
    return lineas_selection.run(tiny, sad(), out=None, **SETTINGS)


def test_every_choice_has_as_many_units(study: ls.Study) -> None:
    table = study.frames["selections"]
    chosen = table[table["choice"] != ALL]
    counts = study.frames["overlap"].groupby("draw")["units"].first()
    for number, draw in chosen.groupby("draw"):
        assert draw["choice"].nunique() == 7
        # A refit may leave a chosen unit where it is, never move another.
        assert 0 < draw["units"].max() <= counts[number]
    assert set(study.frames["removed"]["choice"]) == set(table["choice"])
    assert (table["fit_loss"] > 0).all()


def test_without_a_penalty_every_choice_learns_its_texts_further(tiny: Any, study: ls.Study) -> None:
    free = lineas_selection.run(tiny, sad(), out=None, relaxed=0.0, **SETTINGS)
    penalised, without = (one.frames["selections"].set_index(["choice", "draw"]) for one in (study, free))
    assert (without["fit_loss"] < penalised["fit_loss"]).all()
    with pytest.raises(ls.LensSteerError, match="relaxed=1.5 lies between 0 and 1"):
        lineas_selection.run(tiny, sad(), out=None, relaxed=1.5, **SETTINGS)


def test_the_path_and_its_held_out_loss(tiny: Any, study: ls.Study) -> None:
    path = study.frames["path"]
    assert path["support"].is_monotonic_increasing
    assert (path["loss"] <= path["identity_loss"]).all()
    _, held = sad().split(test=0.5, seed=0)
    assert path["heldout_identity_loss"].iloc[0] == pytest.approx(ls.LinEAS().loss_of(tiny, held))
    kept = study.frames["kept_by_layer"].groupby("gamma", sort=False)["kept"].sum()
    assert kept.tolist() == path["support"].tolist()


def test_controls_stand_beside_the_claims(study: ls.Study) -> None:
    pairs = study.frames["stability"].set_index("against")
    assert list(pairs.index) == [REAL, SHUFFLED, SHUFFLED]
    assert 0 <= pairs.loc[REAL, "jaccard_chance"] <= 1
    overlap = study.frames["overlap"]
    assert overlap["share_chance"].between(0, 1).all()
    # As many units are chosen on both sides: what one shares with the other, the other shares with it.
    assert (overlap["units"] == overlap["other_units"]).all()
    units = study.frames["kept_units"]
    assert units["draws_kept"].between(1, 2).all()
    assert (units["draws_kept"] == 2).sum() == pairs.loc[REAL, "common"]


def test_the_sentences_say_what_the_tables_do(study: ls.Study) -> None:
    removed = study.frames["removed"].set_index("choice")
    for name in (LINEAS, ALL, RANDOM):
        assert f"{name} {interval(removed.loc[name])}" in study.summary[0]
    text = " ".join(study.summary)
    pairs = study.frames["stability"].set_index("against")
    assert f"Jaccard overlap {pairs.loc[REAL, 'jaccard']:.2f}" in text
    share = study.frames["overlap"].groupby("choice")["share"].mean()
    assert f"AUROC {share[AUROC]:.0%}" in text
    assert set(study.frames["effects"]["measure"]) == {"concept", "perplexity"}
    assert set(study.captions) == set(study.frames)


@st.composite
def frames(draw: st.DrawFn, study_frames: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    others = [name for name in study_frames["removed"]["choice"] if name != LINEAS]
    measures = ("concept", "perplexity")
    return {
        **study_frames,
        "against_lineas": pd.DataFrame([{"choice": name, **draw(changes())} for name in others]),
        "effects": pd.DataFrame([{"choice": LINEAS, "measure": name, **draw(changes())} for name in measures]),
        "effects_against_lineas": pd.DataFrame(
            [{"choice": name, "measure": measure, **draw(changes())} for name in others for measure in measures]
        ),
    }


@FEW
@given(st.data())
def test_verbs_follow_from_intervals(study: ls.Study, data: st.DataObject) -> None:
    tables = data.draw(frames(dict(study.frames)))
    gamma = tables["kept_by_layer"]["gamma"].iloc[0]
    summary = lineas_selection.summary("sad", tables, gamma, "control texts")
    verdicts = {row["choice"]: expected(row) for row in tables["against_lineas"].to_dict("records")}
    shown = [verdict in (ls.Verdict.LOWER, ls.Verdict.HIGHER) for verdict in verdicts.values()]
    assert check_verbs(summary) == sum(shown) + 2 * (1 + 3)
    (line,) = [line for line in summary if "against LinEAS's choice: " in line]
    groups = dict(part.split(": ", 1) for part in line.rpartition("LinEAS's choice: ")[2].rstrip(".").split("; "))
    for name, verdict in verdicts.items():
        assert name in groups[verdict]


def test_the_seed_repeats_the_study(tiny: Any, study: ls.Study) -> None:
    again = lineas_selection.run(tiny, sad(), out=None, **SETTINGS)
    for name, frame in study.frames.items():
        pd.testing.assert_frame_equal(frame, again.frames[name])


def test_what_cannot_be_studied_is_refused(tiny: Any) -> None:
    with pytest.raises(ls.LensSteerError, match="draws=1"):
        lineas_selection.run(tiny, sad(), out=None, draws=1)
    with pytest.raises(ls.LensSteerError, match="keeps a unit"):
        lineas_selection.run(tiny, sad(), out=None, **{**SETTINGS, "gamma_shares": (2.0,)})


def test_fits_that_are_not_finished_are_told(study: ls.Study) -> None:
    table = study.frames["selections"].assign(fit_loss=1.0)
    assert lineas_selection._unfinished(table) == []
    table.loc[table["choice"] == AUROC, "fit_loss"] = 0.9
    (sentence,) = lineas_selection._unfinished(table)
    assert sentence.startswith("The fits are not finished: AUROC reach")
