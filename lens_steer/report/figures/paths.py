"""A traced shift as heat maps, components x layers: where it is made, and what the components cause."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_steer.report.figures.style import DIVERGING, SEQUENTIAL, colour_bar, styled

if TYPE_CHECKING:
    import pandas as pd

    from lens_steer.effects.paths.result import Measure, TraceShift

_PANELS: dict[Measure, str] = {
    "adds": "adds to the shift (exact: all cells add up to it)",
    "lost": "lost when the component is held at its unedited value",
    "in_turn": "lost when it is held after all before it (these and the writes add up to the shift)",
}
_LABELS = {"write": "edits' writes", "attention": "attention", "mlp": "MLP"}
_MOST_NUMBERS = 16  # layers beside which numbers still fit into the cells
_FAINTEST = 0.05  # share that reaches full colour at least: a figure of tiny effects shall look like one
_ROW = 34


def trace_figure(trace: TraceShift) -> go.Figure:
    """Heat maps components x layers: what each adds to the shift, what is lost without it, what it causes in turn.

    Shares of the way from source to target; where that way is not shown to differ from 0, sizes in sd. A number in
    brackets has an interval that holds 0.
    """
    column = "value" if np.isfinite(trace.matrix().to_numpy(dtype=float)).any() else "size"
    measures = set(trace.frame["measure"])
    panels = {measure: title for measure, title in _PANELS.items() if measure in measures}
    tables = {measure: trace.matrix(measure, column=column) for measure in panels}
    rows = [len(table) for table in tables.values()]
    height = _ROW * sum(rows) + 58 * (len(rows) - 1)
    figure = make_subplots(
        rows=len(rows),
        cols=1,
        subplot_titles=list(panels.values()),
        row_heights=rows,
        vertical_spacing=58 / height if len(rows) > 1 else 0,
    )
    layers = sorted({layer for table in tables.values() for layer in table.columns})
    for row, (measure, table) in enumerate(tables.items(), start=1):
        figure.add_trace(_cells(trace, measure, table.reindex(columns=layers), column), row=row, col=1)
    largest = max(float(np.nanmax(np.abs(table.to_numpy(dtype=float)), initial=_FAINTEST)) for table in tables.values())
    shares = column == "value"
    bar = colour_bar(
        "share of<br>the way" if shares else "size,<br>in sd",
        tickformat=".0%" if shares else None,
        lenmode="pixels",
        len=min(height, 200) + 20,
        yanchor="top",
        y=1,
    )
    low = -largest if shares else 0.0
    scale = DIVERGING if shares else SEQUENTIAL
    figure.update_layout(coloraxis={"colorscale": scale, "cmin": low, "cmax": largest, "colorbar": bar})
    figure.update_yaxes(autorange="reversed", ticksuffix=" ", showgrid=False)
    figure.update_xaxes(dtick=1 if len(layers) <= 24 else 4, showgrid=False)
    figure.update_xaxes(title="layer", row=len(rows))
    about = trace.settings
    note = f"{about.get('method', 'Intervention')} at strength {about.get('strength', 1):g}, measured at "
    note += f"{about.get('site')}.<br>"
    note += (
        "Blue: towards the target. Red: away from it. In brackets: the interval holds 0."
        if shares
        else "Source and target are not shown to differ there, so nothing leads towards the target: sizes alone."
    )
    return styled(figure, "By which components the shift gets there", note, height=height).update_layout(margin_r=110)


def _cells(trace: TraceShift, measure: Measure, table: pd.DataFrame, column: str) -> go.Heatmap:
    """Cells, with their numbers where there is room; a cell of one part alone shows its interval when pointed at."""
    rows = trace.of_measure(measure)
    ends: dict[tuple[str, Any], tuple[float, float, str]] = {
        (row["part"], int(row["layer"])): (row["low"], row["high"], row["site"])
        for row in rows[rows["part"].isin(table.index)].to_dict("records")
    }
    counts = rows.groupby(["part", "layer"]).size().to_dict()

    def text(part: str, layer: Any, value: float) -> str:
        if not np.isfinite(value):
            return ""
        written = f"{value:.0%}" if column == "value" else f"{value:.2f}"
        low, high, _ = ends[part, layer]
        doubtful = column == "value" and counts[part, layer] == 1 and low <= 0 <= high
        written = written.replace("-", "\N{MINUS SIGN}")
        return f"({written})" if doubtful else written

    values = table.to_numpy(dtype=float)
    room = values.shape[1] <= _MOST_NUMBERS
    labels = [
        [text(part, layer, value) if room else "" for layer, value in zip(table.columns, line, strict=True)]
        for part, line in zip(table.index, values, strict=True)
    ]
    nothing = (np.nan, np.nan, "")
    hover = [[ends.get((part, layer), nothing) for layer in table.columns] for part in table.index]
    return go.Heatmap(
        z=values,
        x=list(table.columns),
        y=[_LABELS[part] for part in table.index],
        text=labels,
        texttemplate="%{text}",
        textfont={"size": 11},
        customdata=hover,
        coloraxis="coloraxis",
        xgap=2,
        ygap=2,
        hovertemplate="%{y}, layer %{x}: %{z:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra></extra>",
        hoverongaps=False,
    )
