"""Figures of frames show the numbers of their columns, and name a column that is missing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import lens_steer as ls
from lens_steer.activations.activations import Activations
from lens_steer.errors import SettingError
from lens_steer.report import figures
from lens_steer.report.figures.learning import is_learned
from tests.report.runs import edit_of

DOSES = pd.DataFrame(
    {
        "k": [10, 1, 1, 10, 0],
        "units": ["experts", "experts", "random", "random", "random"],
        "score": [0.1, 0.4, 0.5, 0.5, 0.5],
        "low": [0.0, 0.3, 0.4, 0.4, 0.4],
        "high": [0.2, 0.5, 0.6, 0.6, 0.6],
    }
)
HOW: dict[str, Any] = {"x": "k", "y": "score", "by": "units", "title": "Dose"}


def test_they_are_public() -> None:
    assert ls.figures is figures


def test_dose_response_draws_each_line_by_rising_dose_with_its_band() -> None:
    figure = figures.dose_response(DOSES, **HOW, low="low", high="high", baseline=0.6)
    lines = {trace.name: trace for trace in figure.data if trace.mode == "lines+markers"}
    assert list(lines) == ["experts", "random"]
    assert list(lines["experts"].x) == [1, 10]
    assert list(lines["experts"].y) == [0.4, 0.1]
    assert list(lines["random"].x) == [0, 1, 10]
    low, high = figure.data[0], figure.data[1]
    assert (list(low.y), list(high.y)) == ([0.3, 0.0], [0.5, 0.2])
    assert high.fill == "tonexty"
    assert low.mode == high.mode == "lines"
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("k", "score")
    named = figures.dose_response(DOSES, **HOW, x_title="units kept", y_title="mean score").layout
    assert (named.xaxis.title.text, named.yaxis.title.text) == ("units kept", "mean score")
    assert [annotation.text for annotation in figure.layout.annotations] == ["no edit"]


def test_dose_response_leaves_zero_out_of_a_logarithmic_axis_and_averages_repeats() -> None:
    twice = pd.concat([DOSES, DOSES.assign(score=DOSES["score"] + 0.2)])
    line = figures.dose_response(twice, **HOW, log_x=True).data[-1]
    assert list(line.x) == [1, 10]
    assert list(line.y) == pytest.approx([0.6, 0.6])


def test_dose_response_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(SettingError, match="both low and high"):
        figures.dose_response(DOSES, **HOW, low="low")
    with pytest.raises(SettingError, match="no column 'dose'"):
        figures.dose_response(DOSES, **{**HOW, "x": "dose"})
    with pytest.raises(SettingError, match="nothing to draw"):
        figures.dose_response(DOSES[DOSES["k"] == 0], **HOW, log_x=True)


def test_support_by_layer_adds_up_the_sites_of_a_layer() -> None:
    frame = pd.DataFrame({"layer": [1, 0, 0], "kept": [5, 2, 3], "share": [0.5, 0.2, 0.4], "edit": "a"})
    assert list(figures.support_by_layer(frame).data[0].y) == [5, 5]
    assert list(figures.support_by_layer(frame, kept="share", share=True, by="edit").data[0].y) == pytest.approx(
        [0.3, 0.5]
    )


def test_overlap_bars_show_value_interval_and_chance() -> None:
    frame = pd.DataFrame({"set": ["a", "b"], "value": [0.3, 0.1], "low": [0.2, 0.0], "high": [0.6, 0.3], "null": 0.05})
    figure = figures.overlap_bars(
        frame, label="set", value="value", chance="null", low="low", high="high", title="Overlap"
    )
    bars, chance = figure.data
    assert list(bars.x) == [0.3, 0.1]
    assert list(bars.error_x.array) == pytest.approx([0.3, 0.2])
    assert list(bars.error_x.arrayminus) == pytest.approx([0.1, 0.1])
    assert list(chance.x) == [0.05, 0.05]


def test_order_dependence_joins_the_two_orders() -> None:
    frame = pd.DataFrame({"pair": ["dense", "sparse"], "ab": [0.3, 0.1], "ba": [0.2, 0.1], "none": 0.4})
    figure = figures.order_dependence(
        frame, label="pair", first="ab", second="ba", before="none", title="Order", x_title="score"
    )
    joins = [list(trace.x) for trace in figure.data if trace.mode == "lines"]
    assert joins == [[0.3, 0.2], [0.1, 0.1]]
    dots = {trace.name: list(trace.x) for trace in figure.data if trace.mode == "markers"}
    assert dots == {"no edit": [0.4, 0.4], "a, then b": [0.3, 0.1], "b, then a": [0.2, 0.1]}


def test_matrix_is_white_at_zero() -> None:
    frame = pd.DataFrame([[-0.5, 0.25], [np.nan, 0.0]], index=["a", "b"])
    cells = figures.matrix(frame, title="Matrix", diverging=True, percent=True).data[0]
    assert (cells.zmin, cells.zmax) == (-0.5, 0.5)
    assert [list(row) for row in cells.text] == [["−50%", "25%"], ["", "0%"]]  # noqa: RUF001
    upward = figures.matrix(frame.abs(), title="Matrix").data[0]
    assert (upward.zmin, upward.zmax) == (0, 0.5)
    assert (cells.hovertemplate, upward.hovertemplate) == tuple(
        f"%{{y}}, %{{x}}: %{{z:{form}}}<extra></extra>" for form in (".1%", ".3g")
    )


def test_a_wide_matrix_has_no_numbers_in_its_cells() -> None:
    for columns in (16, 17):
        cells = figures.matrix(pd.DataFrame(np.ones((2, columns))), title="Matrix").data[0]
        assert (cells.text is None, cells.texttemplate) == ((False, "%{text}") if columns == 16 else (True, None))


def test_auroc_by_concept_shows_the_unit_that_the_selection_half_chose() -> None:
    generator = np.random.default_rng(0)
    frames = []
    for concept, distance in (("noise", 0), ("signal", 3)):
        source, target = (
            {f"blocks.{layer}.hook_out": generator.normal(size=(20, 6)) for layer in range(3)} for _ in range(2)
        )
        source["blocks.1.hook_out"][:, 4] += distance
        frames.append(ls.rank_experts(Activations.from_arrays(source=source, target=target, name=concept)).frame)
    frame = pd.concat(frames)
    cells = figures.auroc_by_concept(frame).data[0]
    assert list(cells.y) == ["signal", "noise"]
    for concept, row in zip(cells.y, cells.z, strict=True):
        for layer, shown in zip(cells.x, row, strict=True):
            here = frame[(frame["concept"] == concept) & (frame["layer"] == int(layer))]
            assert shown == here.loc[here["selection_auroc"].idxmax(), "heldout_auroc"]


def learned(model: Any, stopped: str) -> ls.Intervention:
    steps = [(0, 2.0, "", 2.1), (1, 5.0, "overshot: back, step / 4", None), (2, 1.0, "", 1.5)]
    history = [{"step": step, "loss": loss, "event": event, "heldout_loss": h} for step, loss, event, h in steps]
    about = {"history": history, "stopped": stopped, "loss": {"identity": 2.0}}
    return replace(edit_of(model), provenance=about)


def test_a_learning_curve_shows_its_steps_and_why_it_ended(tiny: Any) -> None:
    figure = figures.learning_curve(learned(tiny, "all 3 steps are done"))
    drawn = {trace.name: (list(trace.x), list(trace.y)) for trace in figure.data}
    assert drawn == {
        "training texts": ([0, 1, 2], [2.0, 5.0, 1.0]),
        "held-out texts": ([0, 2], [2.1, 1.5]),
        "taken back": ([1], [5.0]),
    }
    assert figure.layout.yaxis.rangemode == "tozero"
    assert "Ended because: all 3 steps are done." in figure.layout.title.text
    assert [note.text for note in figure.layout.annotations] == ["no edit"]
    several = figures.learning_curve({"a": learned(tiny, "converged"), "b": learned(tiny, "all steps are done")})
    assert [trace.name for trace in several.data] == ["a", "b"]
    assert "converged (a);" in several.layout.title.text
    assert "Ended because: not on record." in figures.learning_curve(learned(tiny, "")).layout.title.text
    assert is_learned(learned(tiny, ""))
    assert not is_learned(edit_of(tiny))
    with pytest.raises(SettingError, match="was not learned in steps"):
        figures.learning_curve(edit_of(tiny))


@pytest.mark.parametrize(("percent", "form"), [(True, ".0%"), (False, ".3~g")])
def test_bars_write_their_values_as_shares_or_as_numbers(percent: bool, form: str) -> None:
    frame = pd.DataFrame({"pair": ["a", "b"], "shared": [0.25, 0.5], "chance": [0.1, 0.1]})
    bars = {"label": "pair", "value": "shared", "title": "Shared"}
    plain = figures.overlap_bars(frame, **bars, percent=percent)
    assert plain.data[0].texttemplate == f"%{{text:{form}}}"
    assert plain.layout.xaxis.tickformat == form
    assert plain.data[0].hovertemplate == f"%{{y}}: %{{x:{form}}}<extra></extra>"


@pytest.mark.parametrize(("percent", "form"), [(True, ".1%"), (False, ".4~g")])
def test_either_order_is_told_as_a_share_or_as_a_number(percent: bool, form: str) -> None:
    frame = pd.DataFrame({"pair": ["a"], "ab": [0.25], "ba": [0.5]})
    settings: dict[str, Any] = {"label": "pair", "first": "ab", "second": "ba", "title": "Order", "x_title": "score"}
    figure = figures.order_dependence(frame, **settings, percent=percent)
    tips = [trace.hovertemplate for trace in figure.data if trace.hovertemplate]
    assert len(tips) == 2
    assert all(f"%{{x:{form}}}" in tip for tip in tips)


def test_a_matrix_names_its_columns_axis_and_has_no_minus_in_front_of_a_zero() -> None:
    frame = pd.DataFrame([[-0.004, -0.006]], index=["a"], columns=["b", "c"])
    figure = figures.matrix(frame, title="Cosines", value_title="cosine", x_title="of the other", diverging=True)
    assert figure.layout.xaxis.title.text == "of the other"
    assert list(figure.data[0].text[0]) == ["0.00", "\N{MINUS SIGN}0.01"]
