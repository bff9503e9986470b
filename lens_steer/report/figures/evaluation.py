"""An evaluation: each measure before and after."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_steer.report.figures.style import COLOURS, FAINT, styled

if TYPE_CHECKING:
    from lens_steer.evaluation.evaluation import Evaluation


def evaluation_figure(evaluation: Evaluation) -> go.Figure:
    """One line per measure, on its own scale: before, after, and the interval of the change laid around `before`."""
    frame = evaluation.frame
    figure = make_subplots(rows=len(frame), cols=1, vertical_spacing=0.6 / len(frame))
    for row, measure in enumerate(frame.to_dict("records"), start=1):
        before, after = measure["before"], measure["after"]
        name = f"{measure['measure']}<br><i>{measure.get('verdict', '')}</i>"
        first = row == 1
        bounds = [before + measure[bound] for bound in ("low", "high")]
        traces: list[tuple[str, list[float], dict[str, Any]]] = [
            (
                "interval of the change",
                bounds,
                {"mode": "lines", "line": {"color": COLOURS[0], "width": 8}, "opacity": 0.25},
            ),
            ("before", [before], {"mode": "markers", "marker": {**_dot(FAINT), "symbol": "circle-open"}}),
            ("after", [after], {"mode": "markers", "marker": _dot(COLOURS[0])}),
        ]
        for label, x, style in traces:
            tip = f"{label}: %{{x:.4g}}<extra></extra>"
            line = go.Scatter(x=x, y=[name] * len(x), name=label, showlegend=first, hovertemplate=tip, **style)
            figure.add_trace(line, row=row, col=1)
        finite = [value for value in (before, after, *bounds) if np.isfinite(value)] or [0.0]
        low, high = min(finite), max(finite)
        room = 0.12 * ((high - low) or abs(high) or 1)
        figure.update_xaxes(title=measure.get("unit", name), range=[low - room, high + room], row=row, col=1)
    note = "Bar: interval of the change, counted from the value before. Below each measure: what it says of the change."
    return styled(figure, "Effect and cost of the intervention", note, height=130 * len(frame) - 50)


def _dot(colour: str) -> dict[str, Any]:
    return {"color": colour, "size": 11, "line": {"width": 2, "color": colour}}
