"""The downstream study: its intervals know texts and fits, and its verbs follow from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lens_steer as ls
from analyses import downstream, downstream_findings
from analyses.downstream_edits import equal_effect
from analyses.downstream_findings import APART, CAUSAL, END_TO_END, LAYERWISE, NULLS
from tests.analyses.contrasts import contrast
from tests.analyses.verbs import FEW, changes, check_verbs

SMALL: dict[str, Any] = {"fit_texts": 6, "fits": 2, "most_texts": 6, "steps": 4}
EDITS = (*LAYERWISE, END_TO_END, *NULLS)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downstream") / "run"


@pytest.fixture(scope="module")
def study(tiny: Any, out: Path) -> ls.Study:
    return downstream.run(tiny, contrast("sad", "happy", n=24), out=out, **SMALL)


def test_every_edit_is_measured_at_every_layer_on_every_kind_of_text(study: ls.Study) -> None:
    carried = study.frames["carried"]
    assert set(carried["edit"]) == set(EDITS)
    kinds = carried.groupby("texts")["measure"].unique().map(set).to_dict()
    assert kinds["heldout"] >= {"arrived", "removed", "moved"}
    assert "arrived" not in kinds["neutral"] | kinds["foreign"]
    assert (carried.groupby(["edit", "texts", "measure"])["layer"].agg(list).map(tuple) == (0, 1)).all()
    assert set(study.frames["one_layer"]["edited"]) == {"layer 0", "layer 1"}


def test_the_same_seed_gives_the_same_frames_and_the_folder_holds_them(study: ls.Study, tiny: Any, out: Path) -> None:
    again, saved = downstream.run(tiny, contrast("sad", "happy", n=24), out=None, **SMALL), ls.Study.load(out)
    for name, frame in study.frames.items():
        pd.testing.assert_frame_equal(again.frames[name], frame)
        pd.testing.assert_frame_equal(saved.frames[name], frame)
    assert saved.summary == study.summary


def estimates(value: float, spread: float) -> dict[Any, Any]:
    """Three fits of every edit at two layers, whose arrived lies at `value`, and more at the last layer."""
    fits = value + spread * np.array([-1.0, 0.0, 1.0])
    return {
        (edit, texts, edited, layer, measure): np.repeat(fits[:, None] + layer, 6, axis=1)
        for edit in EDITS
        for texts in ("heldout", "neutral")
        for edited in ("all", "layer 0", "layer 1")
        for layer in (0, 1)
        for measure in ("arrived", "removed", "moved", "left")
    }


@pytest.mark.parametrize(
    ("value", "spread", "expected"),
    [
        (1.5, 0.01, "beyond it: layer 0 and layer 1"),
        (0.5, 0.01, "short of it: layer 0"),
        (1.5, 1.0, "neither shown: layer 0"),
    ],
)
def test_an_edit_overshoots_where_the_interval_over_fits_lies_beyond_the_target(
    value: float, spread: float, expected: str
) -> None:
    frames = downstream.frames_of(estimates(value, spread), foreign_has_sides=False)
    assert expected in downstream_findings._overshoot_sentence(frames["overshoot"], APART)


def test_the_same_edit_twice_shows_no_difference() -> None:
    frames = downstream.frames_of(estimates(0.9, 0.3), foreign_has_sides=False)
    assert (frames["compared"]["change"] == 0).all()
    assert (frames["compared"]["low"] <= 0).all()


@st.composite
def tables(draw: st.DrawFn) -> dict[str, pd.DataFrame]:
    frames = downstream.frames_of(estimates(1.0, 0.3), foreign_has_sides=False)
    for name in ("carried", "overshoot", "left", "compared"):
        rows = [draw(changes()) for _ in range(len(frames[name]))]
        columns = ("before", "after", "change", "low", "high") if name == "compared" else ("low", "high")
        frames[name] = frames[name].assign(**{column: [row[column] for row in rows] for column in columns})
    extra = frames["carried"][frames["carried"]["texts"] == "neutral"].assign(texts="foreign")
    return {**frames, "carried": pd.concat([frames["carried"], extra], ignore_index=True)}


def beside(row: Any, reference: float, words: tuple[str, str, str]) -> str:
    """Return the words for an interval below, around or above a reference."""
    if np.isnan(row["low"]):
        return "cannot be judged"
    return words[0] if row["high"] < reference else words[2] if row["low"] > reference else words[1]


@FEW
@given(tables())
def test_verbs_follow_from_intervals(frames: dict[str, pd.DataFrame]) -> None:
    summary = downstream.summary(frames, "sad", "control texts")
    assert check_verbs(summary) == 6
    for edit in EDITS:
        (line,) = [line for line in summary if line.lower().startswith(f"{edit} beside the target".lower())]
        groups = dict(part.split(": ", 1) for part in line.rstrip(".").split("; ")[1:])
        for row in frames["overshoot"].query("edit == @edit").to_dict("records"):
            group = beside(row, 1.0, ("short of it", "neither shown", "beyond it"))
            assert f"layer {row['layer']}" in groups[group]
    for edit in (APART, END_TO_END):
        (line,) = [line for line in summary if line.startswith(f"One layer's {edit} alone")]
        for row in frames["left"].query("edit == @edit").to_dict("records"):
            assert f"{beside(row, 0.0, ('less is left', 'neither shown', 'more is left'))}: {row['edited']}" in line
    for edit in (APART, CAUSAL, END_TO_END):
        rows = frames["carried"].query("edit == @edit and texts == 'heldout' and measure == 'removed' and layer == 1")
        words = ("drives source and target apart", "was not shown to change", "brings source and target nearer")
        if edit != END_TO_END:  # a plural
            words = ("drive source and target apart", "were not shown to change", "bring source and target nearer")
        assert any(f"{edit[1:]} {beside(rows.iloc[0], 0.0, words)}" in line or (
            edit[1:] in line and "cannot be judged" in line) for line in summary)  # fmt: skip


def test_what_does_not_reach_the_equal_effect_is_named() -> None:
    nan = float("nan")
    reached = pd.DataFrame({"fit": [0, 0, 1, 1], "edit": [APART, END_TO_END] * 2, "strength": [0.2, 1.1, 0.3, 0.9]})
    assert downstream_findings._unreached_sentences(reached) == []
    (line,) = downstream_findings._unreached_sentences(reached.assign(strength=[0.2, nan, 0.3, 1.1]))
    assert line == "By its point value the equal effect is reached at no strength up to 2 by LinEAS (1 of 2 fits)."


def test_linear_maps_and_lineas_are_compared_at_equal_strength_and_effect(study: ls.Study) -> None:
    rows = study.frames["end_to_end"]
    assert set(rows["edit"]) == set(LAYERWISE)
    assert rows.groupby(["equal", "edit"]).size().tolist() == [3] * 2 * len(LAYERWISE)
    strengths = study.frames["strengths"].groupby("edit")["strength"].agg(list)
    assert set(strengths.index) == {*LAYERWISE, END_TO_END}
    reached = rows[(rows["equal"] == "effect") & rows["edit"].map(lambda edit: np.isfinite(strengths[edit]).all())]
    if np.isfinite(strengths[END_TO_END]).all():
        assert reached["change"].notna().all()
    assert {"whole", "direct", "through", "attention", "mlp"} <= set(study.frames["paths"]["part"])
    assert {"paths_mean_differences", "paths_LinEAS"} <= set(study.figures)


def telling() -> ls.ContrastSet:
    """Texts in which one word stands so often that few of them are told apart."""
    sides = contrast("sad", "happy", n=12)
    return ls.ContrastSet(
        [f"{text} {' sad' * 8}" for text in sides.source], [f"{text} {' happy' * 8}" for text in sides.target]
    )


def test_equal_effect_is_equal(tiny: Any) -> None:
    """Strengths are those of the tuning texts, where the mean then has gone that share of the way, or there is none."""
    tuning = telling()
    held = ls.ContrastSet(tuning.source[::-1][:8], tuning.target[::-1][:8])
    means = ls.MeanAcT(sites="hook_resid_post", pool="mean", causal=False, support="unbounded").fit(tiny, tuning)
    edits = {**dict.fromkeys(LAYERWISE, means), END_TO_END: means.scaled(0.01)}
    one = ls.downstream_shift(tiny, means, held, by_layer=False, progress=False).estimates
    like = {(name, *key): cases for name in edits for key, cases in one.items()}
    rows, at_strength = equal_effect(
        tiny, edits, tuning, held, like, share=0.4, sites="hook_resid_post", pool="mean", foreign=held
    )
    strengths = {row["edit"]: row["strength"] for row in rows}
    assert 0 < strengths[APART] < 1
    assert np.isnan(strengths[END_TO_END])
    assert np.isnan(at_strength[END_TO_END, "heldout", "all", 1, "arrived"]).all()
    on_tuning = ls.downstream_shift(
        tiny, means, tuning, strength=strengths[APART], by_layer=False, progress=False
    ).estimates
    assert on_tuning["heldout", "all", 1, "arrived"][0] == pytest.approx(0.4, abs=0.02)
    for row in rows[:-1]:
        assert row["arrived"] == at_strength[row["edit"], "heldout", "all", 1, "arrived"][0] != pytest.approx(0.4)


def test_a_foreign_contrast_has_a_way_of_its_own(tiny: Any) -> None:
    foreign = contrast("sad", "happy", n=8, seed=31)
    study = downstream.run(tiny, contrast("sad", "happy", n=24), out=None, foreign=foreign, **{**SMALL, "fits": 1})
    carried = study.frames["carried"]
    assert set(carried[carried["texts"] == "foreign"]["measure"]) >= {"arrived", "removed", "moved"}


def test_words_in_random_order_are_the_same_words() -> None:
    texts = ["the sad dog ran home", "a cat"]
    mixed = downstream._scrambled(texts, 0)
    assert [sorted(text.split()) for text in mixed] == [sorted(text.split()) for text in texts]
    assert mixed == downstream._scrambled(texts, 0)
    assert mixed[0] != texts[0]


@pytest.mark.parametrize("setting", [{"fits": 0}, {"fits": 50}, {"most_texts": 2}, {"pool": "max"}])
def test_impossible_settings_are_refused(tiny: Any, setting: dict[str, Any]) -> None:
    with pytest.raises(ls.LensSteerError):
        downstream.run(tiny, contrast("sad", "happy"), out=None, **{**SMALL, **setting})
