"""Studies on disk: what is saved is what is loaded, whole or not at all, and damage is named."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from lens_steer.activations.show import UnitView, show_units
from lens_steer.activations.shown_unit import ShownUnit, TopText
from lens_steer.errors import ArtifactError, OutputError, SettingError
from lens_steer.host.sites import Site, find_sites
from lens_steer.host.units import Unit
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.report.run_folder import read_run
from lens_steer.report.run_writing import recorded, versions
from lens_steer.report.study import Study
from lens_steer.report.token_view import TokenText, TokenView, UnitTokens
from lens_steer.texts.contrast import LabelledTexts
from tests.report.runs import CONTRAST, save, study_of


@pytest.fixture
def folder(tiny: Any, tmp_path: Path) -> Path:
    return save(study_of(tiny), tmp_path / "run", tiny)


def test_a_study_comes_back_as_it_was(tiny: Any, folder: Path) -> None:
    study, back = study_of(tiny), Study.load(folder)
    assert list(back.frames) == ["experts", "empty"]
    for name, frame in study.frames.items():
        pd.testing.assert_frame_equal(back.frames[name], frame)
    assert list(back.figures) == ["experts", "alone"]
    for name, figure in study.figures.items():
        assert json.loads(back.figures[name].to_json()) == json.loads(figure.to_json())
    assert list(back.summary) == list(study.summary)
    assert back.captions == study.captions
    assert back.interventions == study.interventions
    assert back.tokens == study.tokens


def test_run_json_says_how_to_repeat_it(tiny: Any, folder: Path) -> None:
    about = json.loads((folder / "run.json").read_text())
    assert about["name"] == "a_study"
    assert about["seed"] == 7
    assert about["settings"] == {"k": 3, "path": {"gamma": [1.0, 0.5]}}
    assert about["contrast"] == {"name": "sad", "data": CONTRAST.data_hash, "texts": {"source": 2, "target": 2}}
    assert {"model", "weights", "dtype"} <= set(about["model"])
    assert "logits" in about["fingerprint"]["readings"]
    assert {"python", "torch", "lens-steer"} <= set(about["versions"])
    # A worker of pytest-xdist has no command line of its own: then the call in Python stands there.
    assert "pytest" in about["command"] or about["command"].startswith("a_study.run(model, contrast, seed=7")


def test_settings_keep_the_words_of_a_list_and_the_texts_of_a_second_contrast(tiny: Any, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Scorer:
        words: tuple[str, ...]

    settings = {"scorer": Scorer(("sad", "cry")), "second": CONTRAST, "place": Path("a"), "ks": (1, 2), "none": None}
    about = json.loads((save(study_of(tiny), tmp_path / "run", tiny, settings=settings) / "run.json").read_text())
    assert about["settings"] == {
        "scorer": {"type": "Scorer", "words": ["sad", "cry"]},
        "second": {"name": "sad", "data": CONTRAST.data_hash, "texts": {"source": 2, "target": 2}},
        "place": "a",
        "ks": [1, 2],
        "none": None,
    }


def test_a_notebook_has_a_call_in_place_of_a_command(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", [""])
    about = json.loads((save(study_of(tiny), tmp_path / "run", tiny, settings={"k": 3}) / "run.json").read_text())
    assert about["command"] == "a_study.run(model, contrast, seed=7, k=3)"


def test_names_that_would_be_one_file_are_refused(tiny: Any) -> None:
    frame = pd.DataFrame({"x": [1]})
    with pytest.raises(SettingError, match="'A' and 'a' would be one file"):
        study_of(tiny, frames={"a": frame, "A": frame}, figures={}, captions={})


def test_an_index_is_kept_where_it_says_something(tiny: Any, tmp_path: Path) -> None:
    rows = pd.DataFrame({"x": [1, 2, 3]})
    frames = {"chosen": rows[rows.x > 1], "named": rows.set_axis(["a", "b", "c"]).rename_axis("method")}
    wide = pd.DataFrame([[1.0, 2.0]], index=pd.Index(["layer 0"], name="edited"), columns=[0, 1])
    study = study_of(tiny, frames={**frames, "wide": wide}, captions={})
    back = Study.load(save(study, tmp_path / "run", tiny)).frames
    assert back["chosen"].to_dict("list") == {"x": [2, 3]}
    assert back["named"].to_dict("list") == {"method": ["a", "b", "c"], "x": [1, 2, 3]}
    assert back["wide"].to_dict("list") == {"edited": ["layer 0"], "0": [1.0], "1": [2.0]}


def test_shown_units_become_tokens_of_what_a_pool_reads(tiny: Any, tmp_path: Path) -> None:
    view = show_units(tiny, CONTRAST, [("blocks.0.mlp.hook_post", 3)], top=2)
    back = Study.load(save(study_of(tiny, tokens={"best": view}), tmp_path / "run", tiny)).tokens["best"]
    assert isinstance(back, TokenView)
    for text, shown in zip(back.units[0].texts, view.units[0].top, strict=True):
        kept = [value for value, pooled in zip(shown.values.tolist(), shown.pooled, strict=True) if pooled]
        assert list(text.values) == kept
        assert max(text.values) == pytest.approx(shown.largest)
        assert len(text.tokens) == len(kept) == shown.pooled.count(True) < len(shown.pooled)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"summary": []}, "says what was found"),
        ({"summary": ["  "]}, "says what was found"),
        ({"summary": "one sentence"}, "list of sentences"),
        ({"captions": {"expert": "x"}}, "'expert'"),
        ({"frames": {"a/b": pd.DataFrame()}, "captions": {}}, "'a/b' cannot be a file's name"),
        ({"figures": {"..": None}, "captions": {}}, "cannot be a file's name"),
    ],
)
def test_a_study_that_makes_no_sense_is_refused(tiny: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        study_of(tiny, **changes)


def test_a_view_lists_its_units_and_says_where_the_texts_are() -> None:
    texts = (TokenText(("a", "secret"), (0.5, -0.25)),)
    units = (UnitTokens("blocks.0.mlp.hook_post[3]", -0.25, 0.5, texts),)
    html = TokenView(units * 11)._repr_html_()
    cells = re.findall(r"<t[hd] [^>]*>([^<]*)<", html)
    assert cells[:4] == ["unit", "texts", "smallest", "largest"]
    assert cells[4:8] == ["blocks.0.mlp.hook_post[3]", "1", "\N{MINUS SIGN}0.250", "0.500"]
    assert "10 of 11 rows; all are in .units" in html
    assert "Tokens with the activations of units" in html
    assert "secret" not in html
    cut = TokenText(("a",), (1.0,))
    assert (cut.side, cut.cut_before, cut.cut_after, cut.prompt) == (None, False, False, "")


@pytest.mark.parametrize("values", [(), (1.0,), (1.0, float("nan"))])
def test_every_token_needs_a_value(values: tuple[float, ...]) -> None:
    with pytest.raises(SettingError, match="2 tokens need as many finite values"):
        TokenText(("a", "b"), values)


def test_saving_is_whole_or_not_at_all(tiny: Any, folder: Path) -> None:
    with pytest.raises(OutputError, match="already holds"):
        save(study_of(tiny), folder, tiny)
    mixed = study_of(tiny, frames={"mixed": pd.DataFrame({"x": [1, "a", {"b": 2}]})}, captions={})
    with pytest.raises(SettingError, match="'mixed'"):
        save(mixed, folder.parent / "other", tiny)
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "file",
    [
        "tables/experts.parquet",
        "figures/alone.json",
        "tokens/best.json",
        "run.json",
        "interventions/edit/maps.safetensors",
    ],
)
@pytest.mark.parametrize("content", ["", '{"a": 1', '{"a": 1}', "[1]"])
def test_damage_is_named(folder: Path, file: str, content: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(ArtifactError, match=file.replace("/", ".")):
        read_run(folder)


@pytest.mark.parametrize("file", ["tables/experts.parquet", "figures/alone.json", "tokens/best.json"])
def test_a_missing_part_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(ArtifactError, match=f"{file} is missing"):
        read_run(folder)


@pytest.mark.parametrize("key", ["summary", "captions", "order", "name", "format"])
def test_an_incomplete_run_json_is_refused(folder: Path, key: str) -> None:
    about = json.loads((folder / "run.json").read_text())
    del about[key]
    (folder / "run.json").write_text(json.dumps(about))
    with pytest.raises(ArtifactError, match=r"run.json"):
        read_run(folder)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="not a directory that lens_steer wrote"):
        Study.load(tmp_path)
    with pytest.raises(ArtifactError, match="nowhere"):
        Study.load(tmp_path / "nowhere")


def test_the_folder_of_an_intervention_is_read_too(tiny: Any, tmp_path: Path) -> None:
    edit = study_of(tiny).interventions["edit"]
    run = read_run(edit.save(tmp_path / "edit"))
    assert run.study.summary == ["a method moves 3 units at 1 of 1 site"]
    assert list(run.study.interventions.values()) == [edit]
    kept = ("model", "revision", "host", "weights", "dtype")
    assert run.about["model"] == {name: edit.provenance[name] for name in kept if name in edit.provenance}
    assert {"model", "host", "weights", "dtype"} <= set(run.about["model"])


def test_a_notebook_shows_every_sentence_and_the_names_of_the_tables() -> None:
    shown = Study({"doses": pd.DataFrame({"k": [1]})}, {}, ["The title.", "And more."])._repr_markdown_()
    assert shown.startswith("**The title.**\n\nAnd more.")
    assert "`doses`" in shown
    assert "figures" not in shown
    drawn = Study({"doses": pd.DataFrame({"k": [1]})}, {"curve": go.Figure()}, ["The title."])._repr_markdown_()
    assert drawn.endswith("<sub>tables: `doses`; figures: `curve`</sub>")


@pytest.mark.parametrize(
    ("start", "length", "cut"), [(0, 3, (False, False)), (1, 4, (True, False)), (0, 4, (False, True))]
)
def test_a_text_says_at_which_end_it_was_cut(start: int, length: int, cut: tuple[bool, bool]) -> None:
    """And shows the tokens alone that a pool reads."""
    pooled = (False, True, True)
    top = TopText(0, "source", 2.0, start, length, ("<bos>", "a", "b"), pooled, torch.tensor([9.0, 1.0, 2.0]))
    unit = ShownUnit(
        Unit(Site("blocks.0.mlp.hook_post", 0, "mlp.hook_post", 8), 3), torch.zeros(1), ("source",), 1.0, 2.0, (top,)
    )
    ((shown,),) = (one.texts for one in TokenView.of(UnitView((unit,))).units)
    assert (shown.tokens, shown.values, shown.side) == (("a", "b"), (1.0, 2.0), "source")
    assert (shown.cut_before, shown.cut_after) == cut


def test_the_versions_name_this_python() -> None:
    assert sys.version.startswith(versions()["python"])


def test_a_model_that_moves_one_unit_is_said_to_move_one(tiny: Any, tmp_path: Path) -> None:
    """The finding of an edit's own folder counts units and sites in the singular and the plural."""
    first, second = find_sites(tiny, "mlp.hook_post")[:2]
    for sites, units, said in (
        ([first], 1, "a method moves 1 unit at 1 of 1 site"),
        ([first, second], 2, "a method moves 4 units at 2 of 2 sites"),
    ):
        edits = []
        for site in sites:
            scale = torch.ones(site.width)
            scale[:units] = 0.5
            edits.append(Edit(site, DiagonalAffine(scale, torch.zeros(site.width))))
        place = tmp_path / str(units)
        Intervention.fitted(tiny, edits, method="a method", settings={}).save(place)
        assert read_run(place).study.summary == [said]


def test_what_is_recorded_of_texts_is_their_count_and_their_hash() -> None:
    table = LabelledTexts(("a", "b", "c"), np.eye(3, 2, dtype=np.int8), ("sad", "glad"))
    about = recorded(table)
    assert (about["texts"], about["concepts"], about["data"]) == (3, ["sad", "glad"], table.data_hash)
    assert recorded(CONTRAST)["texts"] == {"source": 2, "target": 2}


def test_what_is_recorded_of_an_object_is_its_name() -> None:
    class Named:
        name = "a name"

    assert recorded({"sites": (Named(), np.float32(0.5), Path("x"))}) == {"sites": ["a name", 0.5, "x"]}
