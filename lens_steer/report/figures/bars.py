"""One row per thing compared: shares beside chance, and the two orders of a composition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from lens_steer.report.figures.style import COLOURS, FAINT, INK, require_columns, require_interval, styled

if TYPE_CHECKING:
    import pandas as pd

_ROW = 30  # pixels


def overlap_bars(
    frame: pd.DataFrame,
    *,
    label: str,
    value: str,
    chance: str | None = None,
    low: str | None = None,
    high: str | None = None,
    title: str,
    note: str = "",
    x_title: str = "share of units in common",
    percent: bool = True,
) -> go.Figure:
    """Return one horizontal bar per row of `frame`, in its order, with its interval and a mark at what chance gives.

    `label`, `value`, `chance`, `low` and `high` are names of columns (`low` and `high` bounds of `value` itself).
    SettingError where one is not there, or one of `low` and `high` is given alone.
    """
    require_interval(low, high)
    require_columns(frame, label, value, chance, low, high)
    names = frame[label].astype(str)
    form = ".0%" if percent else ".3~g"
    bar: dict[str, Any] = {"x": frame[value], "y": names, "orientation": "h", "marker": {"color": COLOURS[0]}}
    if low is not None and high is not None:
        ends = {"array": frame[high] - frame[value], "arrayminus": frame[value] - frame[low]}
        bar["error_x"] = {"type": "data", **ends, "color": INK, "thickness": 1.2, "width": 4}
    else:
        bar |= {
            "text": frame[value],
            "texttemplate": f"%{{text:{form}}}",
            "textposition": "outside",
            "cliponaxis": False,
        }
    figure = go.Figure(go.Bar(**bar, name="measured", hovertemplate=f"%{{y}}: %{{x:{form}}}<extra></extra>"))
    if chance is not None:
        marker = {"symbol": "line-ns", "size": 18, "line": {"color": COLOURS[1], "width": 3}}
        tip = f"chance: %{{x:{form}}}<extra></extra>"
        figure.add_scatter(x=frame[chance], y=names, mode="markers", name="chance", marker=marker, hovertemplate=tip)
    figure.update_xaxes(title=x_title, tickformat=form, rangemode="tozero")
    figure.update_yaxes(autorange="reversed", type="category", showgrid=False, ticksuffix=" ", automargin=True)
    shown = styled(figure, title, note, height=max(90, _ROW * len(frame)))
    return shown.update_layout(showlegend=chance is not None, bargap=0.35)


def order_dependence(
    frame: pd.DataFrame,
    *,
    label: str,
    first: str,
    second: str,
    before: str | None = None,
    title: str,
    note: str = "",
    x_title: str,
    names: tuple[str, str] = ("a, then b", "b, then a"),
    percent: bool = False,
) -> go.Figure:
    """Return one row per pair of edits with a dot for either order, joined: a long line says that order matters.

    `label`, `first` and `second` (the measure in either order) and `before` (unedited) are names of columns, `x_title`
    the measure in its unit. SettingError where a column is not there.
    """
    require_columns(frame, label, first, second, before)
    rows = frame[label].astype(str)
    form = ".1%" if percent else ".4~g"
    figure = go.Figure()
    for name, one, other in zip(rows, frame[first], frame[second], strict=True):
        line = {"color": "#bbbbbb", "width": 4}
        figure.add_scatter(x=[one, other], y=[name] * 2, mode="lines", line=line, showlegend=False, hoverinfo="skip")
    dots = [(first, names[0], COLOURS[0], "circle"), (second, names[1], COLOURS[1], "diamond")]
    if before is not None:
        dots.insert(0, (before, "no edit", FAINT, "circle-open"))
    for column, name, colour, symbol in dots:
        marker = {"size": 11, "color": colour, "symbol": symbol, "line": {"width": 2, "color": colour}}
        tip = f"%{{y}}, {name}: %{{x:{form}}}<extra></extra>"
        figure.add_scatter(x=frame[column], y=rows, mode="markers", name=name, marker=marker, hovertemplate=tip)
    figure.update_xaxes(title=x_title, tickformat=".0%" if percent else None)
    figure.update_yaxes(autorange="reversed", type="category", ticksuffix=" ", automargin=True)
    return styled(figure, title, note, height=max(110, _ROW * rows.nunique()))
