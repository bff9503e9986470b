"""The downstream study: what its measures are, where they are known, and that its sentences follow from its frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import lens_steer as ls
from analyses import downstream
from tests.analyses.contrasts import contrast

SMALL: dict[str, Any] = {"fit_texts": 6, "steps": 6, "lr": 0.01, "most_texts": 6, "folds": 2}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("downstream") / "run"


@pytest.fixture(scope="module")
def study(tiny: Any, out: Path) -> ls.Study:
    return downstream.run(tiny, contrast("sad", "happy"), out=out, **SMALL)


def test_every_edit_is_measured_at_every_layer_on_every_kind_of_text(study: ls.Study) -> None:
    carried = study.frames["carried"]
    assert carried.columns.tolist() == ["edit", "texts", "layer", "measure", "value", "low", "high"]
    assert carried["edit"].nunique() == 5
    kinds = carried.groupby("texts")["measure"].unique().map(set).to_dict()
    everything = {"arrived", "removed", "moved"}
    assert kinds == {"heldout": everything, "neutral": {"moved"}, "foreign": {"moved"}}
    assert (carried.groupby(["edit", "texts", "measure"])["layer"].agg(list).map(tuple) == (0, 1)).all()
    assert (carried["low"] <= carried["value"]).all()
    assert np.isfinite(carried["high"]).all()


def test_a_difference_of_means_arrives_on_the_texts_of_its_fit(tiny: Any) -> None:
    texts, site = contrast("sad", "happy"), "blocks.0.hook_resid_post"
    edit = ls.MeanAcT(sites=site, causal=False, support="unbounded").fit(tiny, texts)
    measures = downstream._measures(ls.downstream_shift(tiny, edit, texts, neutral=texts.target).frame)
    assert measures["heldout", "all", 0, "arrived"] == pytest.approx(1, abs=1e-4)
    assert measures["heldout", "all", 0, "moved"] == pytest.approx(measures["neutral", "all", 0, "moved"], rel=1e-4)
    assert measures["heldout", "layer 0", 0, "left"] == pytest.approx(0, abs=1e-12)
    later = measures["heldout", "layer 0", 1, "arrived"]
    assert measures["heldout", "layer 0", 1, "left"] == pytest.approx(later - 1, abs=1e-4)


def test_twice_the_edit_overshoots(tiny: Any) -> None:
    texts, site = contrast("sad", "happy"), "blocks.0.hook_resid_post"
    edit = ls.MeanAcT(sites=site, causal=False, support="unbounded").fit(tiny, texts)
    measures = downstream._measures(ls.downstream_shift(tiny, edit, texts, strength=2.0).frame)
    assert measures["heldout", "all", 0, "arrived"] == pytest.approx(2, abs=1e-4)


def test_the_same_seed_gives_the_same_frames_and_the_folder_holds_them(study: ls.Study, tiny: Any, out: Path) -> None:
    again, saved = downstream.run(tiny, contrast("sad", "happy"), out=None, **SMALL), ls.Study.load(out)
    for name, frame in study.frames.items():
        pd.testing.assert_frame_equal(again.frames[name], frame)
        pd.testing.assert_frame_equal(saved.frames[name], frame)
    assert saved.summary == study.summary


def test_overshoot_is_read_off_the_carried_shares(study: ls.Study) -> None:
    carried, told = study.frames["carried"], " ".join(study.summary)
    arrived = carried[(carried["measure"] == "arrived") & (carried["texts"] == "heldout")]
    for row in study.frames["overshoot"].to_dict("records"):
        part = arrived[arrived["edit"] == row["edit"]].set_index("layer")
        assert row["beyond"] == (part["low"] > 1).sum()
        assert row["furthest_value"] == part["value"].max()
        assert row["last_value"] == part.loc[1, "value"]
        assert f"{row['last_value']:.2f} [{row['last_low']:.2f}, {row['last_high']:.2f}]" in told


def test_a_title_follows_from_the_intervals(study: ls.Study) -> None:
    frames = dict(study.frames)

    def title(apart: int, joint: int) -> str:
        beyond = frames["overshoot"]["edit"].map({downstream.APART: apart, downstream.END_TO_END: joint}).fillna(0)
        return downstream._summary({**frames, "overshoot": frames["overshoot"].assign(beyond=beyond)}, "sad")[0]

    assert "No edit was found to overshoot" in title(0, 0)
    assert "the end-to-end edit was not found to" in title(2, 0)
    assert "the end-to-end edit does so at fewer layers" in title(2, 1)
    assert "end-to-end edit overshoots on sad at more layers" in title(0, 1)


def test_a_foreign_contrast_has_a_way_of_its_own(tiny: Any) -> None:
    foreign = contrast("sad", "happy", n=8, seed=31)
    study = downstream.run(tiny, contrast("sad", "happy"), out=None, foreign=foreign, **SMALL)
    carried = study.frames["carried"]
    assert set(carried[carried["texts"] == "foreign"]["measure"]) == {"arrived", "removed", "moved"}


def test_words_in_random_order_are_the_same_words() -> None:
    texts = ["the sad dog ran home", "a cat"]
    mixed = downstream._scrambled(texts, 0)
    assert [sorted(text.split()) for text in mixed] == [sorted(text.split()) for text in texts]
    assert mixed == downstream._scrambled(texts, 0)
    assert mixed[0] != texts[0]


@pytest.mark.parametrize("folds", [1, 50])
def test_impossible_folds_are_refused(tiny: Any, folds: int) -> None:
    with pytest.raises(ls.LensSteerError, match="folds="):
        downstream.run(tiny, contrast("sad", "happy"), out=None, **{**SMALL, "folds": folds})
