"""What all figures have in common: no arrow, one name per colour, rows from the top, a tick for every layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

import lens_steer as ls
from lens_steer.activations.activations import Activations
from lens_steer.effects.downstream import DownstreamShift
from lens_steer.effects.generated_shift import GeneratedShift
from lens_steer.report import figures
from lens_steer.report.figures.style import COLOURS, FAINT
from lens_steer.report.plots import plot
from tests.report.test_interaction_figure import interaction
from tests.report.test_plots import evaluation, intervention, path, ranking, shift
from tests.report.test_result_study import attribution
from tests.report.test_trace_figure import traced

DOSES = pd.DataFrame({"k": [1, 2, 1, 2], "of": [*"aabb"], "y": [0.1, 0.2, 0.3, 0.4]})
PAIRS = pd.DataFrame({"pair": ["a", "b"], "one": [0.2, 0.5], "two": [0.3, 0.1], "none": 0.4})
OVERLAP: dict[str, Any] = {"label": "pair", "value": "one", "title": "Overlap"}


def generated(layers: int, **settings: Any) -> GeneratedShift:
    ways = ("given", "generated")
    estimates: Any = {(of, layer, "moved"): np.ones(4) for of in ways for layer in range(layers)}
    return GeneratedShift(estimates, settings)


def support(layers: int) -> go.Figure:
    return figures.support_by_layer(pd.DataFrame({"layer": range(layers), "kept": 1 + np.arange(layers)}))


def ranked(layers: int) -> Any:
    generator = np.random.default_rng(0)
    sides = [{f"blocks.{layer}.hook_out": generator.normal(size=(8, 2)) for layer in range(layers)} for _ in "ab"]
    return ls.rank_experts(Activations.from_arrays(source=sides[0], target=sides[1], name="x"), holdout=None)


FIGURES: dict[str, Callable[[], Any]] = {
    "downstream": lambda: plot(shift()),
    "ranking": lambda: plot(ranking(kinds=("mlp.hook_post", "hook_out"))),
    "intervention": lambda: plot(intervention()),
    "path": lambda: plot(path()),
    "evaluation": lambda: plot(evaluation()),
    "trace": lambda: plot(traced()),
    "interaction": lambda: plot(interaction(("a", "b", "c"))),
    "attribution": lambda: plot(attribution("higher")),
    "generated": lambda: plot(generated(3)),
    "doses": lambda: figures.dose_response(DOSES, x="k", y="y", by="of", title="Doses", baseline=0.3),
    "overlap": lambda: figures.overlap_bars(PAIRS, **OVERLAP, chance="two"),
    "orders": lambda: figures.order_dependence(
        PAIRS, label="pair", first="one", second="two", before="none", title="Orders", x_title="score"
    ),
    "matrix": lambda: figures.matrix(PAIRS.set_index("pair"), title="Matrix"),
    "concepts": lambda: figures.auroc_by_concept(ranking().frame),
}


@pytest.fixture(params=FIGURES)
def figure(request: pytest.FixtureRequest) -> Any:
    return FIGURES[request.param]()


def axes(figure: Any, letter: str) -> list[Any]:
    layout = figure.layout
    return [layout[name] for name in layout.to_plotly_json() if name.startswith(f"{letter}axis")]


def test_no_arrow_points_at_anything_and_reference_lines_are_dotted(figure: Any) -> None:
    assert all(note.showarrow is False for note in figure.layout.annotations)
    assert all((shape.line.dash, shape.line.width) == ("dot", 1) for shape in figure.layout.shapes)


def test_a_name_stands_once_in_the_legend(figure: Any) -> None:
    shown = [trace.name for trace in figure.data if trace.name and trace.showlegend is not False]
    if figure.layout.showlegend is not False:
        assert max(Counter(shown).values(), default=1) == 1


def test_cells_without_a_value_say_nothing(figure: Any) -> None:
    assert all(trace.hoverongaps is False for trace in figure.data if trace.type == "heatmap")


def test_rows_are_read_from_the_top(figure: Any) -> None:
    if any(trace.type in ("heatmap", "bar") for trace in figure.data):
        assert all(axis.autorange == "reversed" or axis.matches for axis in axes(figure, "y"))


def test_what_stands_beside_the_axes_has_room_there(figure: Any) -> None:
    beside = [note for note in figure.layout.annotations if note.xref == "paper" and note.xanchor == "left"]
    assert all(figure.layout.margin.r >= 4 + 6 * len(note.text) for note in beside)
    assert all(note.font.color == FAINT for note in beside)


def test_panels_of_a_column_leave_room_for_their_headings(figure: Any) -> None:
    inner = figure.layout.height - figure.layout.margin.t - figure.layout.margin.b
    spans = sorted({tuple(axis.domain) for axis in axes(figure, "y") if axis.domain})
    for (_, top), (bottom, _) in pairwise(spans):
        assert (bottom - top) * inner >= 30


def test_two_downstream_panels_leave_room_too() -> None:
    test_panels_of_a_column_leave_room_for_their_headings(plot(shift(("heldout", "neutral"))))


@pytest.mark.parametrize(
    "draw",
    [
        support,
        lambda layers: plot(ranked(layers)),
        lambda layers: plot(shift(("heldout",), layers=layers)),
        lambda layers: plot(generated(layers)),
    ],
)
def test_every_layer_has_a_tick_where_there_is_room(draw: Callable[[int], Any]) -> None:
    for layers, step in ((24, 1), (25, 4)):
        assert axes(draw(layers), "x")[-1].dtick == step


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("downstream", "measured layer", "edited"),
        ("ranking", "layer", "AUROC on held-out texts"),
        ("trace", "layer", None),
        ("interaction", "measured layer", "size, in sd"),
        ("path", "gamma / gamma_max (log scale, less penalty to the right)", "squared W<sub>2</sub> loss"),
        ("generated", "layer", "moved, in sd"),
        ("doses", "k", "y"),
        ("orders", "score", None),
        ("overlap", "share of units in common", None),
        ("concepts", "layer", ""),
    ],
)
def test_axes_say_what_they_measure(name: str, x: str, y: str | None) -> None:
    drawn = FIGURES[name]()
    assert axes(drawn, "x")[-1].title.text == x
    assert axes(drawn, "y")[0].title.text == y


def test_a_ranking_says_whether_texts_were_held_out() -> None:
    held, whole = plot(ranking()), plot(ranked(3))
    chosen = "The best unit was chosen on the other half of the texts."
    assert chosen in held.layout.title.text
    assert chosen not in whole.layout.title.text
    assert whole.layout.yaxis.title.text == "AUROC (all texts, none held out)"
    assert not held.layout.showlegend
    concepts = [figures.auroc_by_concept(one.frame).layout.title.text for one in (ranking(), ranked(3))]
    assert "best unit, on the half of the texts that did not choose the unit. 0.5 is chance" in concepts[0]
    assert "best unit, on all texts, none held out. 0.5 is chance" in concepts[1]


def test_an_edit_without_a_method_is_drawn_too() -> None:
    edit = intervention()
    drawn = plot(ls.Intervention(edit.edits))
    assert "What the intervention edits (no method named)" in drawn.layout.title.text
    assert "(a method)" in plot(edit).layout.title.text
    assert "16 of 120 units moved" in plot(edit).layout.title.text


def test_losses_and_sizes_are_read_from_zero() -> None:
    for name in ("path", "interaction"):
        assert FIGURES[name]().layout.yaxis.rangemode == "tozero"
    assert FIGURES["overlap"]().layout.xaxis.rangemode == "tozero"
    assert support(3).layout.yaxis.rangemode == "tozero"
    panels = FIGURES["interaction"]().layout
    assert panels.yaxis2.matches == "y"  # what does not add up stands on the scale of what moved


def test_names_of_reference_lines_stand_at_them() -> None:
    for name in ("doses", "path", "ranking"):
        drawn = FIGURES[name]()
        (line,) = drawn.layout.shapes
        beside = [note for note in drawn.layout.annotations if note.xref == "paper" and note.xanchor == "left"]
        assert [note.y for note in beside] == [line.y0] == [line.y1]


def test_bars_have_both_ends_of_their_interval_or_none() -> None:
    for end in ("low", "high"):
        with pytest.raises(ls.LensSteerError, match="both low and high"):
            figures.overlap_bars(PAIRS, **OVERLAP, **{end: "two"})
    plain = figures.overlap_bars(PAIRS, **OVERLAP)
    assert plain.data[0].error_x.array is None
    assert list(plain.data[0].text) == [0.2, 0.5]
    assert not plain.layout.showlegend
    assert plain.layout.xaxis.tickformat == ".0%"


def test_a_share_beyond_all_has_the_full_colour() -> None:
    """Else a single cell that goes three times the way would leave all others white."""
    whole = shift(("heldout",))
    far = DownstreamShift(whole.frame, {key: 5 * value for key, value in whole.estimates.items()}, whole.settings)
    assert plot(far).layout.coloraxis.cmax == 1.0
    assert plot(whole).layout.coloraxis.cmax == pytest.approx(0.8)


def test_before_and_after_have_the_first_two_colours() -> None:
    drawn = FIGURES["orders"]()
    dots = {trace.name: trace.marker for trace in drawn.data if trace.mode == "markers"}
    assert [dots[name].color for name in ("no edit", "a, then b", "b, then a")] == [FAINT, *COLOURS[:2]]
    assert len({dots[name].symbol for name in dots}) == 3
    marks = FIGURES["overlap"]().data
    assert [marks[0].marker.color, marks[1].marker.line.color] == list(COLOURS[:2])


def test_rows_that_are_numbers_stay_names() -> None:
    """Layers 2, 15 and 29 stand side by side."""
    table = pd.DataFrame(np.eye(3), index=[2, 15, 29], columns=[2, 15, 29])
    drawn = figures.matrix(table, title="Matrix")
    assert (drawn.layout.xaxis.type, drawn.layout.yaxis.type) == ("category", "category")
    bars = figures.overlap_bars(pd.DataFrame({"pair": [2, 15], "one": 0.5}), **OVERLAP)
    assert bars.layout.yaxis.type == "category"


def test_what_is_drawn_is_named_in_the_legend() -> None:
    drawn = FIGURES["evaluation"]()
    assert [trace.name for trace in drawn.data[:3]] == ["interval of the change", "before", "after"]
    pairs = FIGURES["interaction"]()
    assert all(line.legendgroup == line.name for line in pairs.data)  # a click hides a line in every row
    assert "Source texts (8) at strength 1;" in pairs.layout.title.text
    assert " Bars: 95% intervals over texts" in pairs.layout.title.text
    assert FIGURES["doses"]().layout.yaxis.rangemode is None  # a dose-response may be far from 0
    note = plot(generated(3)).layout.title.text
    assert "Root mean square over units" in note
    assert "Bands: 95% intervals over rows" in note
    assert "Bands: 90% intervals" in plot(generated(3, confidence=0.9)).layout.title.text


def test_a_figure_grows_with_its_rows() -> None:
    """Every row has room for its name: 20 px and more."""
    for rows in (2, 20):
        table = pd.DataFrame(np.eye(rows), index=[f"row {number}" for number in range(rows)])
        bars = pd.DataFrame({"pair": table.index, "one": 0.5, "two": 0.1})
        drawn = [
            figures.matrix(table, title="Matrix"),
            figures.overlap_bars(bars, **OVERLAP),
            figures.order_dependence(bars, label="pair", first="one", second="two", title="Orders", x_title="score"),
            plot(intervention(layers=rows)),
            plot(shift_of(rows)),
        ]
        for one in drawn:
            inner = one.layout.height - one.layout.margin.t - one.layout.margin.b
            assert inner >= max(90, 20 * rows)


def shift_of(edited: int) -> Any:
    """A shift with so many edited layers, all measured at one."""
    parts = [("heldout", f"layer {layer}", 30) for layer in range(edited)]
    estimates = {(*part, "removed"): np.linspace(0.4, 0.5, 7) for part in parts}
    return DownstreamShift(
        pd.DataFrame(parts, columns=["texts", "edited", "layer"]), estimates, {"edited_layers": list(range(edited))}
    )
