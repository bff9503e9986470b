"""Unit pages, traced shifts and attributions become run folders and sections of a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lens_steer.activations.show import show_units
from lens_steer.effects.attribution.attribution import Attribution
from lens_steer.effects.unit_page import UnitPage, unit_page
from lens_steer.errors import SettingError
from lens_steer.report.page import write_report
from lens_steer.report.result_study import result_study
from lens_steer.report.study import Study
from lens_steer.texts.contrast import ContrastSet
from tests.families import sentences
from tests.report.test_trace_figure import traced

CONTRAST = ContrastSet(sentences(8, seed=1, must="sad"), sentences(8, seed=2, must="happy"), name="sad")
UNIT = "blocks.1.mlp.hook_post[5]"


@pytest.fixture(scope="module")
def page(tiny: Any) -> UnitPage:
    return unit_page(tiny, UNIT, contrasts=CONTRAST, top=3)


@pytest.mark.filterwarnings("ignore:.*has no units of the scale")
def test_a_unit_page_is_kept_and_shown(tiny: Any, page: UnitPage, tmp_path: Path) -> None:
    study = result_study(page)
    assert study.summary == [*page.sentences, *page.notes]
    study.save(tmp_path / "unit", name="unit", model=tiny, contrast=CONTRAST, seed=0, settings={"unit": UNIT})
    kept = Study.load(tmp_path / "unit")
    pd.testing.assert_frame_equal(kept.frames["causes"], page.causes, check_dtype=False)
    (shown,) = kept.tokens["top_texts"].units
    assert shown.unit == UNIT
    assert len(shown.texts) == 3
    html = write_report(tmp_path / "report.html", tmp_path / "unit").read_text(encoding="utf-8")
    assert f"Without {UNIT}" in html
    assert "units of like scale held in its place" in html


def test_a_trace_says_its_own_sentence_and_draws_the_words_it_has() -> None:
    trace = traced()
    study = result_study(trace)
    assert study.summary == [f"{trace.sentence}."]
    assert set(study.figures) == {"paths"}  # this one read no words
    words = pd.DataFrame(
        [(layer, f"blocks.{layer}", 0.2, 0.1, -0.2, 0.0) for layer in range(3)],
        columns=["layer", "site", "before", "after", "low", "high"],
    )
    figure = result_study(type(trace)(trace.frame, words, trace.law, trace.estimates, trace.settings)).figures["words"]
    assert [(line.name, list(line.y)) for line in figure.data] == [("unedited", [0.2] * 3), ("edited", [0.1] * 3)]
    assert figure.layout.yaxis.title.text == "probability of the words"
    assert figure.layout.yaxis.tickformat == ".0%"
    assert "Logit lens: their probability together, mean over source texts." in figure.layout.title.text


def attribution(verdict: str, *, value: float = 0.5) -> Attribution:
    names = ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"]
    frame = pd.DataFrame({"site": names, "layer": [0, 1], "kind": "mlp.hook_post", "value": [0.01, value]})
    frame = frame.assign(low=frame["value"] - 0.1, high=frame["value"] + 0.1, verdict=["not shown", verdict])
    settings = {"method": "patch", "level": "site", "metric": "logit difference", "clean": 2.0, "corrupted": 1.0}
    return Attribution(frame, {name: np.zeros((2, 1)) for name in names}, {**settings, "pairs": 9, "confidence": 0.95})


@pytest.mark.parametrize(
    ("verdict", "value", "said"),
    [
        ("higher", 0.5, "raises logit difference"),
        ("lower", -0.5, "lowers logit difference"),
        ("not shown", 0.05, "was not shown to change logit difference"),
        ("cannot be judged", 0.5, "cannot be judged"),
    ],
)
def test_an_attribution_names_its_largest_part_by_its_verdict(verdict: str, value: float, said: str) -> None:
    study = result_study(attribution(verdict, value=value))
    assert "blocks.1.mlp.hook_post" in study.summary[0]
    assert said in study.summary[0]
    shown = 1 if verdict in ("higher", "lower") else 0
    assert study.summary[1].startswith(f"Of 2 parts {shown} ")
    assert study.frames["attribution"]["site"].iloc[0] == "blocks.1.mlp.hook_post"


def test_other_results_are_refused(tiny: Any) -> None:
    with pytest.raises(SettingError, match="not a UnitView"):
        result_study(show_units(tiny, CONTRAST, [UNIT], top=1))
