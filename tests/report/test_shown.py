"""How tables and figures are set on the page."""

from __future__ import annotations

from time import process_time

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from lens_steer.activations.show_page import depth
from lens_steer.display.shown_table import number, shown_table
from lens_steer.report.figures.style import styled
from lens_steer.report.shown_figure import shown_figure
from lens_steer.report.shown_tokens import shown_units
from lens_steer.report.token_view import TokenText, TokenView, UnitTokens

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


def column(values: list[object]) -> list[str]:
    return [row[0].text for row in shown_table(pd.DataFrame({"x": values})).rows]


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.91234, 0.5, float("nan")], ["0.912", "0.500", ""]),
        ([-0.0001, 0.9], ["0.000", "0.900"]),
        ([1234567, -5, 0], ["1,234,567", MINUS + "5", "0"]),
        ([12.345, 350.0], ["12.3", "350.0"]),
        ([0.066, 0.00066], ["0.06600", "0.00066"]),
        ([3e-12, 0.04, 0.9], [f"3.0{TIMES}10⁻¹²", "0.0400", "0.900"]),
        ([float("inf"), 1.5], ["∞", "1.500"]),
        ([0.401, 0.489, 350.0], ["0.401", "0.489", "350.0"]),  # shares beside something large
        (["a", None], ["a", ""]),
        ([True, False], ["yes", "no"]),
        ([[1, 2.5], []], ["1, 2.50", ""]),
    ],
)
def test_numbers_of_a_column_are_rounded_alike(values: list[object], shown: list[str]) -> None:
    assert column(values) == shown


def test_whole_numbers_may_be_missing() -> None:
    frame = pd.DataFrame({"layer": pd.array([3, None, 4], dtype="Int64")})
    assert [row[0].text for row in shown_table(frame).rows] == ["3", "", "4"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.5, "0.500"),
        (-2, MINUS + "2"),
        (0.0, "0"),
        (1e-9, f"1.0{TIMES}10⁻⁹"),
        (123.456, "123"),
        (9_999_999, "9,999,999"),
        (1e7, f"1.0{TIMES}10⁷"),
        (2e7, f"2.0{TIMES}10⁷"),
    ],
)
def test_numbers_that_stand_alone(value: float, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("name", "values", "shown"),
    [
        ("before", [0.4005, 350.02, 36.64], ["0.401", "350.0", "36.64"]),  # a share beside perplexities
        ("change", [0.0878, -0.0020, 12.0], ["0.088", f"{MINUS}0.0020", "12.00"]),
        ("after_score", [1.9e-13, 0.5, 0.0], ["0.000", "0.500", "0.000"]),
        ("p_value", [1.9e-13, 0.5], [f"1.9{TIMES}10⁻¹³", "0.500"]),
        ("heldout_auroc", [0.0912, float("nan")], ["0.091", ""]),
    ],
)
def test_a_score_is_rounded_by_its_own_size(name: str, values: list[float], shown: list[str]) -> None:
    assert [row[0].text for row in shown_table(pd.DataFrame({name: values})).rows] == shown


def test_constants_are_of_values_not_of_what_is_shown_of_them() -> None:
    frame = pd.DataFrame(
        {
            "edit": list("abcd"),
            "perplexity": [36.56, 36.58, 36.60, 36.64],
            "cost": [0.1231, 0.1234, 0.1229, 0.1226],
            "ends": [np.inf, np.nan, np.inf, np.nan],
            "same": [0.1231] * 4,
        }
    )
    table = shown_table(frame)
    assert [column.title for column in table.columns] == ["edit", "perplexity", "cost", "ends"]
    assert table.constants == (("same", "0.123"),)
    assert [row[3].text for row in table.rows] == ["\N{INFINITY}", "", "\N{INFINITY}", ""]


def test_a_column_that_is_empty_only_where_the_table_is_shown_stays() -> None:
    frame = pd.DataFrame({"x": range(1000), "late": [np.nan] * 600 + [1.0] * 400})
    assert [column.title for column in shown_table(frame).columns] == ["x", "late"]


def test_a_long_table_costs_what_is_shown_of_it() -> None:
    rows = 300_000
    frame = pd.DataFrame({f"column{number}": np.arange(rows) / 7 for number in range(12)})
    started = process_time()
    table = shown_table(frame.assign(site=["blocks.0.mlp.hook_post"] * rows))
    assert process_time() - started < 1
    assert table.constants == (("site", "blocks.0.mlp.hook_post"),)


def test_what_all_rows_share_is_said_once_and_empty_columns_are_left_out() -> None:
    frame = pd.DataFrame({"concept": "sad", "heldout_auroc": [0.9, 0.8, 0.7, 0.6], "none": np.nan})
    table = shown_table(frame)
    assert [column.title for column in table.columns] == ["held-out AUROC"]
    assert table.constants == (("concept", "sad"),)
    assert [column.title for column in shown_table(frame.head(2)).columns] == ["concept", "held-out AUROC"]


def test_rows_sort_by_their_exact_values() -> None:
    table = shown_table(pd.DataFrame({"x": [0.91234, 0.91235]}))
    assert [row[0].order for row in table.rows] == [0.91234, 0.91235]


def test_a_long_table_says_that_it_is_cut() -> None:
    table = shown_table(pd.DataFrame({"x": range(1000)}))
    assert table.is_cut
    assert len(table.rows) == 250
    assert table.total == 1000
    # A value that only the shown rows share is no constant.
    mixed = shown_table(pd.DataFrame({"x": [1] * 600 + [2] * 400}))
    assert mixed.constants == ()


def test_a_table_of_constants_alone_stays_readable() -> None:
    table = shown_table(pd.DataFrame({"x": [1] * 5}))
    assert table.constants == ()
    assert [row[0].text for row in table.rows] == ["1"] * 5


def test_title_and_note_become_text_and_give_back_their_room() -> None:
    figure = styled(go.Figure(go.Scatter(x=[1], y=[2])), "A title &amp; more", "W<sub>2</sub> in<br>two lines")
    shown = shown_figure(figure)
    assert (shown.heading, shown.note) == ("A title & more", "W2 in two lines")
    assert "title" not in shown.spec["layout"]
    before, after = figure.layout, shown.spec["layout"]
    assert before.height - before.margin.t == after["height"] - after["margin"]["t"]
    assert figure.layout.title.text  # the figure itself is left as it was


def test_a_subtitle_of_plotly_is_a_note_too() -> None:
    shown = shown_figure(
        go.Figure(layout={"title": {"text": "A title<br>a note", "subtitle": {"text": "<i>more</i>"}}})
    )
    assert (shown.heading, shown.note) == ("A title", "a note more")


def test_a_bare_figure_has_no_heading() -> None:
    shown = shown_figure(go.Figure())
    assert (shown.heading, shown.note) == ("", "")
    assert shown.spec["layout"]["height"] > 0


def test_colours_of_tokens_are_as_deep_for_a_value_as_for_its_negative() -> None:
    values = np.array([1.0, 2.0, 4.0])
    units = [
        UnitTokens("a unit", min(shown), max(shown), (TokenText(("a\nb", "", "c"), tuple(shown)),))
        for shown in ((sign * values).tolist() for sign in (1, -1, 0))
    ]
    above, below, nothing = shown_units(TokenView(tuple(units)))
    depths = [[token.depth for token in unit.texts[0].tokens] for unit in (above, below, nothing)]
    assert depths[0] == depths[1] == [round(depths[0][2] * share) for share in (0.25, 0.5, 1)]
    assert depths[2] == [0, 0, 0]
    deepest = depths[0][2]
    assert [unit.stops for unit in (above, below)] == [((0, 0), (deepest, 100)), ((deepest, 100), (0, 100))]
    assert [token.text for token in above.texts[0].tokens] == ["a↵\nb", "·", "c"]
    assert [(unit.low, unit.high, unit.texts[0].largest) for unit in (above, below)] == [
        ("0", "4", "4"),
        (f"{MINUS}4", "0", f"{MINUS}1"),
    ]


def test_the_ramp_of_a_unit_is_white_where_zero_lies() -> None:
    """A quarter of the way from -1 to 3; at an end where nothing lies beyond it; a unit of zeros has no depth."""
    cases = [((-1.0, 3.0), 25, (1 / 3, 1.0)), ((0.5, 2.0), 0, (0.0, 1.0)), ((-2.0, -1.0), 100, (1.0, 0.0))]
    for (low, high), zero, shares in cases:
        text = TokenText(("a", "b"), (low, high))
        (unit,) = shown_units(TokenView((UnitTokens("a unit", low, high, (text,)),)))
        (at_low, white), (at_high, end) = unit.stops
        assert (white, end) == (zero, 100)
        assert [at_low, at_high] == [depth(share, 1.0) for share in shares]
    (unit,) = shown_units(TokenView((UnitTokens("silent", 0.0, 0.0, (TokenText(("a",), (0.0,)),)),)))
    assert unit.stops == ((0, 0), (0, 100))
