"""The gamma path of LinEAS: loss and support against the penalty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_steer.report.figures.style import COLOURS, FAINT, INK, styled

if TYPE_CHECKING:
    import pandas as pd

    from lens_steer.methods.lineas_path import LinEASPath

_TWO_DECADES = 100


def path_figure(path: LinEASPath) -> go.Figure:
    """Loss and support along gamma / gamma_max, on logarithmic axes."""
    frame = path.frame[path.frame["gamma_share"] > 0].sort_values("gamma_share")
    x = frame["gamma_share"]
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.09)
    losses = [("loss", "training texts"), ("heldout_loss", "held-out texts")]
    for place, (column, name) in enumerate(losses):
        if frame[column].notna().any():
            style = {"color": COLOURS[place]}
            tip = f"{name}: %{{y:.4g}} at %{{x:.3g}}<extra></extra>"
            figure.add_scatter(
                x=x, y=frame[column], name=name, mode="lines+markers", marker=style, hovertemplate=tip, row=1, col=1
            )
    if "identity_loss" in frame:
        figure.add_hline(y=frame["identity_loss"].iloc[0], line={"color": INK, "width": 1, "dash": "dot"}, row=1, col=1)
        label = {"text": "no edit", "x": 1, "xref": "paper", "xanchor": "left", "xshift": 4, "showarrow": False}
        figure.add_annotation(y=frame["identity_loss"].iloc[0], yref="y", font={"color": FAINT}, **label)
    figure.add_scatter(
        x=x,
        y=frame["support"].where(frame["support"] > 0),
        text=frame["sites_used"],
        mode="lines+markers+text",
        textposition="top center",
        textfont={"size": 11, "color": FAINT},
        marker={"color": COLOURS[2]},
        cliponaxis=False,
        showlegend=False,
        hovertemplate="%{y} units at %{text} sites, gamma ratio %{x:.3g}<extra></extra>",
        row=2,
        col=1,
    )
    figure.update_xaxes(**_log_axis(x), autorange="reversed")
    figure.update_xaxes(title="gamma / gamma_max (log scale, less penalty to the right)", row=2)
    figure.update_yaxes(title="squared W<sub>2</sub> loss", rangemode="tozero", row=1)
    figure.update_yaxes(title="units moved", **_log_axis(frame["support"]), row=2)
    note = "Small numbers: how many sites are edited. Nothing is edited at gamma_max."
    return styled(figure, "LinEAS: fit and support along the penalty", note, height=460).update_layout(margin_r=80)


def _log_axis(values: pd.Series[Any]) -> dict[str, Any]:
    """A tick per decade, or where no two decades are crossed as many as there is room for."""
    some = values[values > 0]
    wide = len(some) > 0 and some.max() > _TWO_DECADES * some.min()
    return {"type": "log", "dtick": 1} if wide else {"type": "log", "nticks": 6}
