"""Lines with intervals: dose-response curves, and units kept per layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from lens_steer.errors import SettingError
from lens_steer.report.figures.style import COLOURS, FAINT, INK, legend_below, require_columns, require_interval, styled

if TYPE_CHECKING:
    import pandas as pd

_DASHES = ("solid", "dash", "dot", "dashdot")


def dose_response(
    frame: pd.DataFrame,
    *,
    x: str,
    y: str,
    by: str | None = None,
    low: str | None = None,
    high: str | None = None,
    title: str,
    note: str = "",
    x_title: str | None = None,
    y_title: str | None = None,
    log_x: bool = False,
    percent: bool = False,
    baseline: float | None = None,
    baseline_name: str = "no edit",
) -> go.Figure:
    """Return one line per value of `by` (in the order of the frame), each with the band from `low` to `high`.

    Parameters
    ----------
    frame:
        Long form: one row per point. Rows of one line are drawn by rising `x`; where a line has several rows at one
        `x`, their mean is drawn (give the interval's columns then too, or none is seen).
    x, y, by, low, high:
        Names of columns; `low` and `high` are bounds of `y` itself, not distances from it.
    title, note, x_title, y_title:
        Heading, the small line below it, and the axes with their units (the columns' names where None).
    log_x, percent:
        A logarithmic x axis (points at 0 or below are left out there); y in per cent.
    baseline, baseline_name:
        A dotted line at this y, and what is written beside it.

    Raises
    ------
    SettingError
        A column is not there, one of `low` and `high` is given alone, or nothing is left to draw.

    """
    require_interval(low, high)
    require_columns(frame, x, y, by, low, high)
    drawn = frame[frame[x] > 0] if log_x else frame
    drawn = drawn[drawn[y].notna()]
    if drawn.empty:
        raise SettingError(f"there is nothing to draw: no row with a value of {y!r}{' and x > 0' if log_x else ''}")
    figure = go.Figure()
    groups = [(None, drawn)] if by is None else list(drawn.groupby(by, sort=False))
    bounds = [] if low is None or high is None else [low, high]
    for place, (name, rows) in enumerate(groups):
        points = rows.groupby(x)[[y, *bounds]].mean()
        colour = COLOURS[place % len(COLOURS)]
        label = "" if name is None else str(name)
        if bounds:
            figure.add_traces(_band(points, bounds, colour, label))
        value = "%{y:.1%}" if percent else "%{y:.4g}"
        figure.add_scatter(
            x=points.index,
            y=points[y],
            name=label,
            legendgroup=label,
            mode="lines+markers",
            line={"color": colour, "dash": _DASHES[place // len(COLOURS) % len(_DASHES)]},
            marker={"size": 6},
            hovertemplate=f"{label} %{{x:.4g}}: {value}<extra></extra>".lstrip(),
        )
    if baseline is not None:
        figure.add_hline(y=baseline, line={"color": INK, "width": 1, "dash": "dot"})
        figure.add_annotation(y=baseline, text=baseline_name, font={"color": FAINT}, **_BESIDE)
    figure.update_xaxes(title=x_title or x, **_log_axis(log_x))
    figure.update_yaxes(title=y_title or y, tickformat=".0%" if percent else None)
    room = 40 + 6 * len(baseline_name) if baseline is not None else 36
    shown = styled(figure, title, note).update_layout(showlegend=by is not None, margin_r=room)
    return legend_below(shown) if len(groups) > _ONE_LINE else shown


_ONE_LINE = 3  # entries of a legend that fit in one line
_BESIDE: dict[str, Any] = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 4, "showarrow": False}


def _log_axis(log: bool) -> dict[str, Any]:
    return {"type": "log", "dtick": 1} if log else {}


def _band(points: pd.DataFrame, bounds: list[str], colour: str, label: str) -> list[go.Scatter]:
    """The two edges of an interval, filled between; in the legend the line alone stands."""
    common: dict[str, Any] = {"x": points.index, "mode": "lines", "line": {"width": 0, "color": colour}}
    quiet = {"showlegend": False, "hoverinfo": "skip", "legendgroup": label}
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    fill = {"fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},0.15)"}
    return [
        go.Scatter(y=points[bounds[0]], **common, **quiet),
        go.Scatter(y=points[bounds[1]], **common, **quiet, **fill),
    ]


def support_by_layer(
    frame: pd.DataFrame,
    *,
    by: str | None = None,
    layer: str = "layer",
    kept: str = "kept",
    title: str = "Units moved by layer",
    note: str = "",
    share: bool = False,
) -> go.Figure:
    """Return how many units of every layer an edit keeps (`share`: the column holds shares), one line per `by`.

    `frame` is what `Intervention.support()` gives, several of them with a column that names the edit; sites of one
    layer are added up (shares: averaged). SettingError where a column is not there.
    """
    require_columns(frame, layer, kept, by)
    keys = [layer] if by is None else [by, layer]
    grouped = frame.groupby(keys, sort=False)[kept]
    sums = (grouped.mean() if share else grouped.sum()).reset_index()
    figure = dose_response(
        sums,
        x=layer,
        y=kept,
        by=by,
        title=title,
        note=note,
        x_title="layer",
        y_title="share of the layer's units" if share else "units moved",
        percent=share,
    )
    figure.update_xaxes(dtick=1 if frame[layer].nunique() <= 24 else 4)
    return figure.update_yaxes(rangemode="tozero")
