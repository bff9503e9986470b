"""The figure of a TraceShift: components x layers, in shares of the way, or in sizes where there is no way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lens_steer.effects.paths.measures import Key, Measured
from lens_steer.effects.paths.result import TraceShift
from lens_steer.report.plots import plot

SETTINGS = {"method": "LinEAS", "site": "blocks.3.hook_resid_post", "strength": 1.0, "confidence": 0.95}


def cases(value: float, *, spread: float = 0.01) -> Any:
    return value + spread * np.concatenate([[0.0], np.linspace(-1, 1, 12)])


def traced(*, judged: bool = True, causal: bool = True) -> TraceShift:
    """An edit of layer 1 that the MLPs of layers 2 and 3 carry on, and the attention of layer 3 works against."""
    added = {("write", 1): 0.2, ("mlp", 2): 0.3, ("mlp", 3): 0.25, ("attention", 2): 0.001, ("attention", 3): -0.1}
    adds = {Key(part, layer, -1, f"blocks.{layer}.{part}", "adds"): value for (part, layer), value in added.items()}
    wholes = {"whole": 0.651, "direct": 0.2, "through": 0.451}
    values = {Key(part, -1, -1, SETTINGS["site"], "adds"): value for part, value in wholes.items()} | adds
    values |= {Key("head", 3, head, "blocks.3.attention", "adds"): -0.05 for head in range(2)}
    if causal:
        later = [key for key in adds if key.part != "write"]
        values |= {key._replace(measure=m): 2 * adds[key] for key in later for m in ("lost", "in_turn")}
    nothing = np.full(13, np.nan)
    estimates = {
        key: Measured(cases(value) if judged else nothing, np.abs(cases(value))) for key, value in values.items()
    }
    return TraceShift.of(estimates, [], {}, settings=SETTINGS)


def test_cells_are_the_matrices_of_the_measures() -> None:
    result = traced()
    figure = plot(result)
    assert [cell.z.shape for cell in figure.data] == [(3, 3), (2, 3), (2, 3)]
    assert list(figure.data[0].y) == ["edits' writes", "attention", "MLP"]
    np.testing.assert_array_equal(figure.data[0].z, result.matrix().to_numpy(dtype=float))
    np.testing.assert_array_equal(figure.data[1].z[:, 1:], result.matrix("lost").to_numpy(dtype=float))
    assert figure.data[0].text[2][1] == "30%"
    assert figure.data[0].text[1][2] == "\N{MINUS SIGN}10%"
    assert figure.data[0].text[1][1] == "(0%)"  # its interval holds 0
    rows = result.of_measure("adds")
    mlp = rows[(rows["part"] == "mlp") & (rows["layer"] == 2)].iloc[0]
    assert list(figure.data[0].customdata[2][1]) == [mlp["low"], mlp["high"], mlp["site"]]  # for who points at it
    assert figure.layout.coloraxis.cmin == -figure.layout.coloraxis.cmax
    assert "LinEAS at strength 1, measured at blocks.3.hook_resid_post" in figure.layout.title.text
    assert "NaN" not in figure.to_html(include_plotlyjs=False).split("Plotly.newPlot")[1]


@pytest.mark.parametrize("causal", [True, False])
def test_without_a_way_sizes_are_drawn(causal: bool) -> None:
    figure = plot(traced(judged=False, causal=causal))
    assert len(figure.data) == (3 if causal else 1)
    assert figure.layout.coloraxis.cmin == 0
    assert list(figure.data[0].text[2])[1:] == ["0.30", "0.25"]
    of_shares = plot(traced(causal=causal)).layout.coloraxis.colorscale
    scales = [[colour for _, colour in scale] for scale in (figure.layout.coloraxis.colorscale, of_shares)]
    assert scales[0] != scales[1]  # one that rises from 0, and one with two sides
    assert "sizes alone" in figure.layout.title.text


def test_the_sentence_names_neighbours_together_and_what_works_against() -> None:
    said = traced().sentence
    assert said.startswith("LinEAS goes 65% [")
    assert "the MLPs of layers 2 to 3 (+55%)" in said
    assert said.endswith("shown to work against it: the attention of layer 3 (-10%)")
    assert "attention of layer 2" not in said
    assert "cannot be judged" in traced(judged=False).sentence
