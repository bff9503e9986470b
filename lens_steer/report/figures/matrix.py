"""An annotated heat map of a wide table: overlaps of sets, edited layer against measured layer, and the like."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from lens_steer.report.figures.style import DIVERGING, SEQUENTIAL, colour_bar, styled

if TYPE_CHECKING:
    import pandas as pd

_MOST_LABELLED = 16  # columns: beyond, the numbers do not fit into their cells


def matrix(
    frame: pd.DataFrame,
    *,
    title: str,
    note: str = "",
    x_title: str = "",
    y_title: str = "",
    value_title: str = "",
    percent: bool = False,
    diverging: bool = False,
    low: float | None = None,
    high: float | None = None,
) -> go.Figure:
    """Return a heat map of a wide table: its index down, its columns across, nan left white.

    Colours run from `low` to `high` (of the table where None): white at 0 upwards, or where `diverging` red below 0 and
    blue above, alike on both sides.
    """
    values = frame.to_numpy(dtype=float)
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max()) if len(finite) else 1.0
    top = (largest or 1.0) if high is None else high
    bottom = (-top if diverging else min(0.0, float(finite.min(initial=0.0)))) if low is None else low
    cells = go.Heatmap(
        z=values,
        x=[str(name) for name in frame.columns],
        y=[str(name) for name in frame.index],
        zmin=bottom,
        zmax=top,
        colorscale=DIVERGING if diverging else SEQUENTIAL,
        colorbar=colour_bar(value_title, tickformat=".0%" if percent else None),
        text=_labels(values, percent=percent) if frame.shape[1] <= _MOST_LABELLED else None,
        texttemplate="%{text}" if frame.shape[1] <= _MOST_LABELLED else None,
        textfont={"size": 11},
        xgap=2,
        ygap=2,
        hoverongaps=False,
        hovertemplate=f"%{{y}}, %{{x}}: %{{z:{'.1%' if percent else '.3g'}}}<extra></extra>",
    )
    figure = go.Figure(cells)
    figure.update_xaxes(title=x_title, type="category", showgrid=False)
    figure.update_yaxes(
        title=y_title, type="category", autorange="reversed", showgrid=False, ticksuffix=" ", automargin=True
    )
    return styled(figure, title, note, height=max(110, 28 * len(frame)))


def _labels(values: np.ndarray, *, percent: bool) -> list[list[str]]:
    rounded = values.round(2) + 0.0  # no minus in front of a zero
    form = "{:.0%}" if percent else "{:.2f}"
    shown = [["" if np.isnan(value) else form.format(value) for value in row] for row in rounded]
    return [[cell.replace("-", "\N{MINUS SIGN}") for cell in row] for row in shown]
