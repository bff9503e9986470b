"""Downstream shift as heat maps: edited layer x measured layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_steer.report.figures.style import DIVERGING, SEQUENTIAL, colour_bar, styled

if TYPE_CHECKING:
    from lens_steer.effects.downstream import DownstreamShift
    from lens_steer.effects.text_groups import Texts


_ORDER: tuple[Texts, ...] = ("heldout", "foreign", "neutral")
_MOST_NUMBERS = 16  # measured layers beside which numbers still fit into the cells
_FAINTEST = 0.25  # share that reaches full colour at least: a figure of tiny effects shall look like one


def downstream_figure(shift: DownstreamShift) -> go.Figure:
    """Heat maps edited layer x measured layer: share of the distance removed; for neutral texts, how far they moved.

    A number in brackets has an interval that holds 0; "?" stands where source and target are not shown to differ.
    """
    kinds = set(shift.frame["texts"])
    panels: dict[Texts, str] = {texts: "removed" for texts in _ORDER[:2] if texts in kinds}
    if "neutral" in kinds:
        panels["neutral"] = "collateral"
    shares = np.concatenate([shift.matrix(texts).to_numpy().ravel() for texts in panels if texts != "neutral"])
    largest = float(np.abs(shares[np.isfinite(shares)]).max(initial=_FAINTEST))
    limit = min(1.0, largest)
    titles = {"heldout": "held-out texts: share of the distance removed"}
    titles["foreign"] = f"other data ({shift.settings.get('foreign')}): share of the distance removed"
    titles["neutral"] = "neutral texts: distance moved"
    shape = shift.matrix().shape
    tall = max(110, 26 * shape[0])
    height = tall * len(panels) + 62 * (len(panels) - 1)
    gap = 62 / height if len(panels) > 1 else 0
    figure = make_subplots(
        rows=len(panels), cols=1, subplot_titles=[titles[texts] for texts in panels], vertical_spacing=gap
    )
    for row, (texts, measure) in enumerate(panels.items(), start=1):
        figure.add_trace(_cells(shift, texts, measure), row=row, col=1)
    place = {"lenmode": "pixels", "len": min(tall, 200) + 30, "yanchor": "top", "x": 1.02}
    bars = [
        colour_bar("share<br>removed", tickformat=".0%", y=1, **place),
        colour_bar("moved,<br>in sd", y=(tall + 2) / height, **place),
    ]
    figure.update_layout(
        coloraxis={"colorscale": DIVERGING, "cmin": -limit, "cmid": 0, "cmax": limit, "colorbar": bars[0]},
        coloraxis2={"colorscale": SEQUENTIAL, "cmin": 0, "colorbar": bars[1]},
    )
    figure.update_yaxes(title="edited", autorange="reversed", ticksuffix=" ", showgrid=False)
    # A category each: measured layers need not follow one another.
    figure.update_xaxes(type="category", dtick=1 if shape[1] <= 24 else 4, showgrid=False)
    figure.update_xaxes(title="measured layer", row=len(panels))
    note = f"{shift.settings.get('method', 'Intervention')} at strength {shift.settings.get('strength', 1):g}; "
    note += "energy distances between source and target, added up over units in standard deviations (sd).<br>"
    note += "Blue: edited source lies closer to the untouched target. Red: further away. In brackets: the interval<br>"
    note += "holds 0. ?: cannot be judged, source and target are not shown to differ there."
    title = "Distance between source and target, removed downstream"
    return styled(figure, title, note, height=height).update_layout(margin_r=110)


def _cells(shift: DownstreamShift, texts: Texts, measure: str) -> go.Heatmap:
    """Cells, with their numbers where there is room, and their intervals when pointed at."""
    matrix = shift.matrix(texts, measure)
    values, low, high = (shift.matrix(texts, measure, column=column).to_numpy() for column in ("value", "low", "high"))
    form = "{:.2f}" if measure == "collateral" else "{:.0%}"
    rows = shift.measures.query("texts == @texts and measure == @measure")
    measured = set(zip(rows["edited"], rows["layer"], strict=True))

    def cell(place: tuple[int, int]) -> str:
        value = values[place]
        if np.isnan(value):
            return "?" if (matrix.index[place[0]], matrix.columns[place[1]]) in measured else ""
        text = form.format(round(value, 2) + 0.0).replace("-", "\N{MINUS SIGN}")  # no minus in front of a zero
        return f"({text})" if low[place] <= 0 <= high[place] else text

    room = values.shape[1] <= _MOST_NUMBERS
    return go.Heatmap(
        z=values,
        x=list(matrix.columns),
        y=list(matrix.index),
        text=[[cell((row, column)) if room else "" for column in range(matrix.shape[1])] for row in range(len(matrix))],
        texttemplate="%{text}",
        textfont={"size": 11},
        customdata=np.stack([low, high], axis=-1),
        coloraxis="coloraxis2" if measure == "collateral" else "coloraxis",
        xgap=2,
        ygap=2,
        hovertemplate="edited %{y}, measured layer %{x}: %{z:.3f} "
        "[%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra></extra>",
        hoverongaps=False,
    )
