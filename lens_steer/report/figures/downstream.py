"""Downstream shift as heat maps: edited layer x measured layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_steer.report.figures.style import DIVERGING, SEQUENTIAL, colour_bar, styled

if TYPE_CHECKING:
    import pandas as pd

    from lens_steer.effects.distances import Texts
    from lens_steer.effects.downstream import DownstreamShift


_ORDER: tuple[Texts, ...] = ("heldout", "foreign", "neutral")
_FAINTEST = 0.25  # share that reaches full colour at least: a figure of tiny effects shall look like one


def downstream_figure(shift: DownstreamShift) -> go.Figure:
    """Heat maps edited layer x measured layer: share of the distance removed; for neutral texts, how far they moved."""
    there = set(shift.frame["texts"])
    panels = {texts: shift.matrix(texts) for texts in _ORDER[:2] if texts in there}
    shares = np.concatenate([matrix.to_numpy().ravel() for matrix in panels.values()])
    limit = min(1.0, max(_FAINTEST, float(np.nanmax(np.abs(shares)))))
    titles = {"heldout": "held-out texts: share of the distance removed"}
    titles["foreign"] = f"other data ({shift.settings.get('foreign')}): share of the distance removed"
    titles["neutral"] = "neutral texts: distance moved"
    if "neutral" in there:
        panels["neutral"] = shift.collateral("neutral")
    each = max(110, 26 * len(panels["heldout"]))
    height = each * len(panels) + 62 * (len(panels) - 1)
    gap = 62 / height if len(panels) > 1 else 0
    figure = make_subplots(
        rows=len(panels), cols=1, subplot_titles=[titles[texts] for texts in panels], vertical_spacing=gap
    )
    for row, (texts, matrix) in enumerate(panels.items(), start=1):
        axis = "coloraxis2" if texts == "neutral" else "coloraxis"
        figure.add_trace(_matrix_cells(matrix, axis, percent=texts != "neutral"), row=row, col=1)
    place = {"lenmode": "pixels", "len": min(each, 200) + 30, "yanchor": "top", "x": 1.02}
    bars = [
        colour_bar("share<br>removed", tickformat=".0%", y=1, **place),
        colour_bar("moved,<br>in sd", y=(each + 2) / height, **place),
    ]
    figure.update_layout(
        coloraxis={"colorscale": DIVERGING, "cmin": -limit, "cmid": 0, "cmax": limit, "colorbar": bars[0]},
        coloraxis2={"colorscale": SEQUENTIAL, "cmin": 0, "colorbar": bars[1]},
    )
    figure.update_yaxes(title="edited", autorange="reversed", ticksuffix=" ", showgrid=False)
    figure.update_xaxes(dtick=1 if panels["heldout"].shape[1] <= 24 else 4, showgrid=False)
    figure.update_xaxes(title="measured layer", row=len(panels))
    note = f"{shift.settings.get('method', 'Intervention')} at strength {shift.settings.get('strength', 1):g}; "
    note += "distances between source and target in standard deviations (sd), added up over units.<br>"
    note += "Blue: edited source lies closer to the untouched target. Red: further away."
    title = "Distance between source and target, removed downstream"
    return styled(figure, title, note, height=height).update_layout(margin_r=110)


def _matrix_cells(matrix: pd.DataFrame, axis: str, *, percent: bool) -> go.Heatmap:
    """Cells, with their numbers where there is room."""
    form = "{:.0%}" if percent else "{:.2f}"
    room = matrix.shape[1] <= 16
    rounded = matrix.to_numpy().round(2) + 0.0  # no minus in front of a zero
    text = [["" if np.isnan(value) or not room else form.format(value) for value in row] for row in rounded]
    return go.Heatmap(
        z=matrix.to_numpy(),
        x=list(matrix.columns),
        y=list(matrix.index),
        text=[[cell.replace("-", "\N{MINUS SIGN}") for cell in row] for row in text],
        texttemplate="%{text}",
        textfont={"size": 11},
        coloraxis=axis,
        xgap=2,
        ygap=2,
        hovertemplate="edited %{y}, measured layer %{x}: %{z:.3f}<extra></extra>",
        hoverongaps=False,
    )
