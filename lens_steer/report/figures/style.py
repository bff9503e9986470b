"""The look that every figure shares: one font, no boxes, colour-blind safe colours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from lens_steer.errors import SettingError
from lens_steer.report.figures.picture import PicturedFigure

if TYPE_CHECKING:
    import pandas as pd

FONT = "Helvetica Neue, Helvetica, Arial, sans-serif"
INK, FAINT = "#222222", "#767676"
# Okabe and Ito's colours, which keep apart under every colour blindness; the first two are for after and before.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DIVERGING = "RdBu"
"""Red below 0, white at 0, blue above."""
SEQUENTIAL = "Purples"
"""White at 0."""
_BOTTOM = 60
_LEGEND = 52
_BUTTONS = ("zoom", "pan", "select", "lasso", "zoomIn", "zoomOut", "autoScale")  # they would stand over the title


def styled(figure: go.Figure, title: str, note: str, *, width: int = 760, height: int = 400) -> go.Figure:
    """Set title, a note in small type below it, font and margins; `height` is that of the plots alone."""
    figure = PicturedFigure(figure)
    top = 92 + 16 * note.count("<br>")
    heading = f'<b>{title}</b><br><span style="font-size:12px;color:{FAINT}">{note}</span>'
    figure.update_layout(
        template="plotly_white",
        title={
            "text": heading,
            "x": 0,
            "xref": "container",
            "xanchor": "left",
            "pad": {"l": 24},
            "y": 1 - 22 / (height + top + _BOTTOM),
            "yanchor": "top",
        },
        title_font={"size": 16},
        font={"family": FONT, "size": 12.5, "color": INK},
        width=width,
        height=height + top + _BOTTOM,
        margin={"l": 76, "r": 36, "t": top, "b": _BOTTOM},
        hoverlabel={"font_family": FONT},
        modebar={"remove": list(_BUTTONS), "bgcolor": "rgba(0,0,0,0)", "color": "#cccccc"},
        legend={"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "itemsizing": "constant"},
    )
    axes = {"showline": False, "zeroline": False, "gridcolor": "#ececec", "ticks": "", "title_font": {"size": 13}}
    figure.update_xaxes(**axes)
    figure.update_yaxes(**axes, title_standoff=8)
    figure.update_annotations(font_size=12.5)
    return figure


def legend_below(figure: go.Figure) -> go.Figure:
    """Move a styled figure's legend below its axes: two lines of it have no room between note and axes."""
    layout = figure.layout
    inner = layout.height - layout.margin.t - layout.margin.b
    return figure.update_layout(
        legend={"y": -(_LEGEND + 6) / inner, "yanchor": "top", "font": {"color": FAINT}},
        height=layout.height + _LEGEND,
        margin_b=layout.margin.b + _LEGEND,
    )


def colour_bar(title: str, **place: Any) -> dict[str, Any]:
    """Return a slim colour bar with its title above."""
    return {
        "title": {"text": title, "side": "top", "font": {"size": 11.5}},
        "thickness": 11,
        "outlinewidth": 0,
        "tickfont": {"size": 11},
        **place,
    }


def require_columns(frame: pd.DataFrame, *names: str | None) -> None:
    """Raise SettingError if the table lacks one of the columns (None: not asked for)."""
    missing = [name for name in names if name is not None and name not in frame.columns]
    if missing:
        raise SettingError(f"the table has no column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}")


def require_interval(low: str | None, high: str | None) -> None:
    """Raise SettingError if an interval is given one of its ends alone."""
    if (low is None) != (high is None):
        raise SettingError("an interval has two ends: give both low and high, or neither")
