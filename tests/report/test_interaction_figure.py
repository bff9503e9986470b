"""The figure of an Interaction: one row of panels per pair, each line the numbers of its measure."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pandas as pd
import pytest

from lens_steer.effects.interaction import Interaction
from lens_steer.report.plots import plot


def interaction(names: tuple[str, ...] = ("a", "b"), kinds: tuple[str, ...] = ("hook_out",)) -> Interaction:
    rows = []
    for layer, kind, side in product(range(3), kinds, ("source", "target")):
        place = {"site": f"blocks.{layer}.{kind}", "layer": layer, "side": side}
        for first, later in product(names, (None, *names)):
            for measure in ("moved", "towards", "curvature", "additivity", "excess", "commutation", "synergy"):
                if first == later or (later is None and measure not in ("moved", "towards", "curvature")):
                    continue
                value = len(rows) / 100
                bounds = {"value": value, "low": value - 0.1, "high": value + 0.2}
                rows.append({**place, "first": first, "later": later, "measure": measure, **bounds})
    return Interaction(pd.DataFrame(rows), {"strength": 1.0, "texts": {"source": 8, "target": 8}})


def test_lines_are_the_measures_of_the_source() -> None:
    result = interaction()
    figure = plot(result)
    moved, additivity, commutation, curvature = (
        result.of(name) for name in ("moved", "additivity", "commutation", "curvature")
    )
    wanted = [
        moved.query("first == 'a' and later.isna()"),
        moved.query("first == 'b' and later.isna()"),
        moved.query("first == 'a' and later == 'b'"),
        moved.query("first == 'b' and later == 'a'"),
        additivity.query("first == 'a'"),
        additivity.query("first == 'b'"),
        commutation.query("first == 'a'"),
        curvature.query("first == 'a' and later == 'b'"),
    ]
    assert len(figure.data) == len(wanted)
    for line, rows in zip(figure.data, wanted, strict=True):
        assert list(line.x) == ["0", "1", "2"]
        np.testing.assert_array_equal(line.y, rows["value"])
        np.testing.assert_allclose(line.error_y.array, 0.2)
        np.testing.assert_allclose(line.error_y.arrayminus, 0.1)
    assert [line.xaxis for line in figure.data] == ["x"] * 4 + ["x2"] * 4
    assert figure.layout.title.text
    assert figure.layout.yaxis2.title.text is None  # one scale, and its title at the left
    assert figure.layout.yaxis.title.text == "size, in sd"
    assert figure.layout.xaxis.title.text == "measured layer"


def test_a_row_per_pair_and_one_legend() -> None:
    figure = interaction(("a", "b", "c")).plot()
    assert len(figure.data) == 3 * 8
    assert sum(bool(line.showlegend) for line in figure.data) == 8
    assert [note.text for note in figure.layout.annotations][::2] == [
        f"{p}: moved" for p in ("a and b", "a and c", "b and c")
    ]


def test_a_notebook_shows_first_where_the_order_matters_most() -> None:
    result = interaction(("a", "b", "c"))
    shown = [float(cell) for cell in re.findall(r'<td class="number">([\d.]+)<', result._repr_html_())[::3]]
    assert shown == sorted(result.of("commutation")["value"], reverse=True)[:10]


@pytest.mark.parametrize("missing", [True, False])
def test_sites_of_one_layer_keep_their_names_and_a_single_text_has_no_bars(missing: bool) -> None:
    result = interaction(kinds=("hook_attn_out", "hook_mlp_out"))
    if missing:
        result.frame[["low", "high"]] = np.nan
    figure = plot(result)
    assert list(figure.data[0].x)[:2] == ["blocks.0.hook_attn_out", "blocks.0.hook_mlp_out"]
    assert "NaN" not in figure.to_html(include_plotlyjs=False).split("Plotly.newPlot")[1]
