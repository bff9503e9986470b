"""Figures show the numbers of their results, say what their axes are, and fit into a file."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from lens_steer.activations.activations import Activations
from lens_steer.effects.downstream import DownstreamShift
from lens_steer.errors import SettingError
from lens_steer.evaluation.evaluation import Evaluation
from lens_steer.host.sites import Site
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import Chain, DiagonalAffine
from lens_steer.methods.lineas_path import LinEASPath
from lens_steer.ranking.experts import ExpertRanking, rank_experts
from lens_steer.report.figures.style import COLOURS
from lens_steer.report.plots import plot
from tests.report.test_interaction_figure import interaction
from tests.report.test_result_study import attribution
from tests.report.test_trace_figure import traced


def ranking(units: int = 20, kinds: tuple[str, ...] = ("mlp.hook_post",)) -> ExpertRanking:
    generator = np.random.default_rng(0)
    names = [f"blocks.{layer}.{kind}" for layer in range(3) for kind in kinds]
    source = {name: generator.normal(size=(12, units)) for name in names}
    target = {name: generator.normal(size=(10, units)) for name in names}
    source["blocks.1.mlp.hook_post"][:, 4] += 4
    return rank_experts(Activations.from_arrays(source=source, target=target, name="a concept"))


def intervention(layers: int = 3, width: int = 40) -> Intervention:
    edits = []
    for layer in range(layers):
        scale, shift = torch.ones(width), torch.zeros(width)
        scale[: 5 * layer], shift[layer] = 0.5, -2.0
        edits.append(Edit(Site(f"blocks.{layer}.hook_out", layer, "hook_out", width), DiagonalAffine(scale, shift)))
    return Intervention(tuple(edits), {"method": "a method"})


def shift(
    texts: tuple[str, ...] = ("heldout", "neutral", "foreign"), *, judged: bool = True, layers: int = 3
) -> DownstreamShift:
    """Shares of .8, .3 and -.2 at layers 0 to 2 and so on, that of layer 1 with an interval that holds 0."""
    parts = [
        (kind, edited, layer)
        for kind in texts
        for edited, first in (("layer 0", 0), ("layer 1", 1), ("all", 0))
        for layer in range(first, layers)
    ]
    frame = pd.DataFrame(parts, columns=["texts", "edited", "layer"])
    estimates = {}
    for kind, edited, layer in parts:
        removed = [0.8, 0.3, -0.2][layer % 3] if judged else np.nan
        spread = np.array([0.0, *np.linspace(-1, 1, 6)]) * (0.5 if layer == 1 else 0.01)
        measures = {"collateral": 0.5 + layer} if kind == "neutral" else {"removed": removed}
        estimates |= {(kind, edited, layer, name): value + spread for name, value in measures.items()}
    about = {"method": "a method", "foreign": "other", "strength": 1.0, "edited_layers": [0, 1]}
    return DownstreamShift(frame, estimates, about)


def path() -> LinEASPath:
    ratio = np.geomspace(1, 0.01, 5)
    columns = {"gamma": ratio * 0.1, "gamma_share": ratio, "support": [0, 3, 20, 40, 50], "sites_used": [0, 1, 2, 3, 3]}
    losses = {"loss": [1.0, 0.8, 0.6, 0.5, 0.45], "identity_loss": 1.0, "heldout_loss": [1.0, 0.9, 0.8, 0.8, 0.85]}
    return LinEASPath(tuple(intervention() for _ in ratio), pd.DataFrame({**columns, **losses}))


def evaluation() -> Evaluation:
    rows = [
        ("effect", 0.4, 0.1, -0.3, -0.4, -0.2, "mean score", 8),
        ("cost", 12.0, 13.0, 1.0, 0.5, 1.5, "perplexity", 9),
    ]
    names = ["measure", "before", "after", "change", "low", "high", "unit", "n"]
    return Evaluation(pd.DataFrame(rows, columns=names), pd.DataFrame(), pd.DataFrame(), {})


RESULTS = [shift(), ranking(), intervention(), path(), evaluation()]


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_every_axis_has_a_title_and_every_font_is_one(result: Any) -> None:
    figure = result.plot() if hasattr(result, "plot") else plot(result)
    assert isinstance(figure, go.Figure)
    assert figure.layout.title.text
    assert "Helvetica" in figure.layout.font.family
    layout = figure.layout.to_plotly_json()
    for letter in "xy":
        titles = [
            axis.get("title", {}).get("text") for name, axis in layout.items() if name.startswith(f"{letter}axis")
        ]
        assert any(titles) or isinstance(result, Evaluation)
    html = figure.to_html(include_plotlyjs=False)
    assert "NaN" not in html.split("Plotly.newPlot")[1]


_FORMAT = re.compile(r"%\{[a-z]+(?:\[\d\])?(?::[+,]?(?:\.\d)?~?[%fg])?\}")


@pytest.mark.parametrize(
    "result", [*RESULTS, traced(), interaction(), attribution("higher")], ids=lambda result: type(result).__name__
)
def test_what_is_pointed_at_says_its_numbers_and_labels_stand_within_the_figure(result: Any) -> None:
    figure = plot(result)
    for trace in figure.data:
        told = trace.hovertemplate or ""
        assert trace.hoverinfo == "skip" or told.endswith("<extra></extra>")
        assert "%{" not in _FORMAT.sub("", told)  # plotly shows what it cannot read as it stands
    notes = [note for note in figure.layout.annotations if note.xref == "paper"]
    assert all(0 <= note.x <= 1 for note in notes)


def test_downstream_cells_are_the_matrices() -> None:
    result = shift()
    figure = plot(result)
    wanted = [result.matrix("heldout"), result.matrix("foreign"), result.collateral("neutral")]
    panels: Any = [("heldout", "removed"), ("foreign", "removed"), ("neutral", "collateral")]
    assert len(figure.data) == 3
    for cells, matrix, (texts, measure) in zip(figure.data, wanted, panels, strict=True):
        np.testing.assert_array_equal(cells.z, matrix)
        ends = [result.matrix(texts, measure, column=column) for column in ("low", "high")]
        np.testing.assert_array_equal(cells.customdata, np.stack(ends, axis=-1))  # for who points at a cell
        assert list(cells.y) == ["layer 0", "layer 1", "all"]
        assert list(cells.x) == [0, 1, 2]
    assert [cells.coloraxis for cells in figure.data] == ["coloraxis", "coloraxis", "coloraxis2"]  # two scales
    assert figure.layout.xaxis.type == "category"  # layers 2, 15 and 29 stand side by side
    axis = figure.layout.coloraxis
    assert (axis.cmid, axis.cmin, axis.cmax) == (0, -axis.cmax, min(1.0, np.nanmax(np.abs(wanted[0]))))
    assert [list(row) for row in figure.data[0].text] == [
        ["80%", "(30%)", "\N{MINUS SIGN}20%"],
        ["", "(30%)", "\N{MINUS SIGN}20%"],
        ["80%", "(30%)", "\N{MINUS SIGN}20%"],
    ]
    unjudged = plot(shift(("heldout",), judged=False)).data[0]
    assert [list(row) for row in unjudged.text] == [["?", "?", "?"], ["", "?", "?"], ["?", "?", "?"]]
    assert len(plot(shift(("heldout",))).data) == 1


@pytest.mark.parametrize("layers", [16, 17])
def test_numbers_stand_in_the_cells_where_they_fit(layers: int) -> None:
    numbers = np.array(plot(shift(("heldout",), layers=layers)).data[0].text)
    assert (numbers != "").sum() == (3 * 16 - 1 if layers == 16 else 0)  # the second edit is of layer 1


def test_ranking_marks_the_best_unit_and_chance() -> None:
    figure = plot(ranking())
    notes = [note.text for note in figure.layout.annotations]
    best = ranking().frame.iloc[0]
    assert f"blocks.1.mlp.hook_post[4]: {best['heldout_auroc']:.2f}" in notes
    assert figure.layout.shapes[0].y0 == 0.5
    assert sum(len(trace.x) for trace in figure.data) == 60
    assert "held-out" in figure.layout.yaxis.title.text


def test_large_rankings_are_thinned_and_say_so() -> None:
    result = ranking(units=2000, kinds=("mlp.hook_post", "hook_resid_post"))
    figure = plot(result)
    drawn = sum(len(trace.x) for trace in figure.data)
    assert 1500 < drawn <= 1801
    assert f"{drawn:,} of 12,000 units" in figure.layout.title.text
    points = np.concatenate([trace.y for trace in figure.data])
    scores = result.frame["heldout_auroc"]
    assert points.max() == pytest.approx(scores.max())
    assert points.min() == pytest.approx(scores.min())


def test_strips_of_a_layer_stand_side_by_side_and_none_reaches_the_next_layer() -> None:
    figure = plot(ranking(kinds=("mlp.hook_post", "hook_resid_post")))
    first, second = (np.asarray(trace.x) for trace in figure.data[:2])
    for layer in range(3):
        one, other = (x[np.abs(x - layer) < 0.5] for x in (first, second))
        assert (
            -0.4 <= (one - layer).min() < (one - layer).max() < 0 < (other - layer).min() < (other - layer).max() < 0.4
        )
        assert len(one) + len(other) >= 39
    assert figure.layout.showlegend


def test_intervention_rows_are_sorted_changes_and_support() -> None:
    figure = plot(intervention())
    scale, moved, bars = figure.data
    assert list(scale.y) == ["0", "1", "2"]
    np.testing.assert_allclose(scale.z.max(axis=1), [0, 0.5, 0.5])
    assert (np.diff(scale.z, axis=1) <= 0).all()
    # Ranks are logarithmic but whole here: the first 10 units of layer 2 are scaled.
    ranks = np.round(10 ** np.array(scale.x))
    np.testing.assert_array_equal(scale.z[2] > 0, ranks <= 10)
    # What is pointed at is called by its unit.
    assert scale.hovertemplate.startswith("blocks.%{y}.hook_out[%{customdata}]: ")
    assert set(scale.customdata[2][scale.z[2] > 0]) == set(range(10))
    assert moved.customdata[1][0] == 1
    assert (moved.z[:, 0] == 2).all()
    assert [int(text) for text in bars.text] == [1, 5, 10]
    np.testing.assert_allclose(bars.x, [1 / 40, 5 / 40, 10 / 40])
    assert figure.layout.xaxis3.range == pytest.approx((0, 1.3 * 10 / 40))  # room for the numbers behind the bars
    assert {axis.matches for axis in (figure.layout.yaxis2, figure.layout.yaxis3)} == {"y"}  # one row of all panels


def test_a_map_that_is_not_diagonal_leaves_its_row_empty() -> None:
    edits = intervention().edits
    chain = Edit(edits[0].site, Chain((edits[0].map, edits[0].map)), edits[0].scope)
    figure = plot(Intervention((chain, *edits[1:])))
    assert np.isnan(figure.data[0].z[0]).all()
    assert int(figure.data[2].text[0]) == 1


def test_evaluation_interval_lies_around_the_change() -> None:
    figure = plot(evaluation())
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    np.testing.assert_allclose([trace.x for trace in lines], [[0.0, 0.2], [12.5, 13.5]])
    # Before, after and the interval, and 12 % of their range on either side.
    axes = figure.layout.xaxis, figure.layout.xaxis2
    np.testing.assert_allclose([axis.range for axis in axes], [[-0.048, 0.448], [11.82, 13.68]])
    assert [axis.title.text for axis in axes] == ["mean score", "perplexity"]


def test_evaluation_says_its_verdicts_also_where_nothing_can_be_judged() -> None:
    result = evaluation()
    result.frame["verdict"] = ["lower", "cannot be judged"]
    result.frame.loc[1, ["before", "after", "change", "low", "high"]] = np.nan
    figure = plot(result)
    assert [trace.y[0] for trace in figure.data[::3]] == ["effect<br><i>lower</i>", "cost<br><i>cannot be judged</i>"]
    assert list(figure.layout.xaxis2.range) == pytest.approx([-0.12, 0.12])


def test_the_strongest_units_of_an_attribution_stand_first_with_their_intervals() -> None:
    whole = attribution("higher")
    values = np.linspace(-3, 2.8, 30)
    frame = pd.DataFrame({"site": "blocks.0.mlp.hook_post", "layer": 0, "kind": "mlp.hook_post", "unit": range(30)})
    frame = frame.assign(value=values, low=values - 0.1, high=values + 0.2, verdict="not shown")
    frame.loc[0, ["low", "high"]] = np.nan
    figure = plot(replace(whole, frame=frame, settings={**whole.settings, "level": "unit"}))
    (bars,) = figure.data
    order = np.argsort(-np.abs(values))[:25]
    assert list(bars.y) == [f"blocks.0.mlp.hook_post[{unit}]" for unit in order]
    np.testing.assert_array_equal(bars.x, values[order])
    np.testing.assert_allclose(bars.error_x.arrayminus, [0.0, *[0.1] * 24])
    np.testing.assert_allclose(bars.error_x.array, [0.0, *[0.2] * 24])
    assert list(bars.marker.color) == [COLOURS[int(value < 0)] for value in values[order]]
    assert bars.hovertemplate == "%{y}: %{x:.3g}<extra></extra>"
    assert figure.layout.xaxis.title.text == "logit difference"
    assert "25 strongest of 30 units, 95% intervals over pairs" in figure.layout.title.text


def test_path_draws_losses_and_support() -> None:
    names = [trace.name for trace in plot(path()).data[:2]]
    assert names == ["training texts", "held-out texts"]
    without = path()
    without.frame["heldout_loss"] = np.nan
    assert len(plot(without).data) == len(plot(path()).data) - 1


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(SettingError, match="no figure of dict"):
        plot({})
    frame = pd.concat([ranking().frame, ranking().frame.assign(concept="second")])
    with pytest.raises(SettingError, match="concept"):
        plot(ExpertRanking(frame, ranking().activations))


def test_plots_are_loaded_only_when_drawn() -> None:
    import subprocess

    code = "import sys, lens_steer.report.plots; sys.exit('plotly' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
