"""A unit's effect on the next tokens of its own top texts, beside units of like scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from lens_steer.report.figures.style import COLOURS, INK, styled

if TYPE_CHECKING:
    from lens_steer.effects.unit_page import UnitPage


def unit_figure(result: UnitPage) -> go.Figure:
    """One row per measure: the unit's change with its interval, and a dot for each control."""
    figure, confidence = go.Figure(), result.settings.get("confidence", 0.95)
    for place, row in enumerate(result.causes.to_dict("records")):
        dots = np.asarray(result.controls[row["measure"]])
        figure.add_scatter(
            x=dots,
            y=[row["measure"]] * len(dots),
            mode="markers",
            name="units of like scale",
            marker={"color": COLOURS[0], "size": 7, "opacity": 0.45},
            showlegend=place == 0,
        )
        figure.add_scatter(
            x=[row["change"]],
            y=[row["measure"]],
            mode="markers",
            name=str(result.unit),
            marker={"color": COLOURS[1], "size": 11, "symbol": "diamond"},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": [row["high"] - row["change"]],
                "arrayminus": [row["change"] - row["low"]],
            },
            showlegend=place == 0,
        )
    figure.add_vline(x=0, line={"color": INK, "width": 1, "dash": "dot"})
    figure.update_xaxes(title="change of the mean log-probability, nats")
    figure.update_yaxes(showgrid=False)
    note = f"Held at its token mean, on its own top texts ({int(result.causes['texts'].iloc[0])}). "
    note += f"Bar: {confidence:.0%} interval over texts."
    return styled(figure, f"Without {result.unit}", note, height=90 + 70 * len(result.causes)).update_layout(
        margin_l=110
    )
