"""Learning curves: the training loss of learned interventions over their steps, and why each ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from lens_steer.errors import SettingError
from lens_steer.report.figures.style import COLOURS, FAINT, INK, legend_below, styled

if TYPE_CHECKING:
    from lens_steer.interventions.intervention import Intervention

_HELD_OUT = {"color": COLOURS[1], "symbol": "circle-open", "size": 8, "line": {"width": 2}}
_BACK = {"color": COLOURS[3], "symbol": "x", "size": 8}


def learning_curve(interventions: Intervention | Mapping[str, Intervention]) -> go.Figure:
    """Return the loss of one learned intervention, or of several by name, such as those of a path.

    Of one also the held-out loss where it was measured, the loss without the edit, and the steps that were taken back.
    SettingError where an intervention was not learned in steps.
    """
    several = dict(interventions) if isinstance(interventions, Mapping) else {"training texts": interventions}
    figure = go.Figure()
    for place, (name, edit) in enumerate(several.items()):
        history = edit.history
        if not {"step", "loss"} <= set(history.columns) or history.empty:
            raise SettingError(f"{edit!r} was not learned in steps: it has no learning curve")
        tip = "step %{x}: loss %{y:.4g}<extra></extra>"
        line = {"color": COLOURS[place % len(COLOURS)]}
        figure.add_scatter(x=history["step"], y=history["loss"], name=name, line=line, hovertemplate=tip)
    first = next(iter(several.values()))
    if len(several) == 1:
        _details(figure, first)
    identity = (first.provenance.get("loss") or {}).get("identity")
    if identity is not None and len(several) == 1:
        figure.add_hline(y=identity, line={"color": INK, "width": 1, "dash": "dot"})
        beside = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 4, "showarrow": False}
        figure.add_annotation(y=identity, text="no edit", font={"color": FAINT}, **beside)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title="loss", rangemode="tozero")
    shown = styled(figure, "Learning curve", _why(several), height=260).update_layout(margin_r=70, showlegend=True)
    return legend_below(shown) if len(several) > 1 else shown


def is_learned(intervention: Intervention) -> bool:
    """Whether an intervention has a learning curve: at least two steps are on record."""
    history = intervention.history
    return {"step", "loss"} <= set(history.columns) and len(history) > 1


def _details(figure: go.Figure, edit: Intervention) -> None:
    history = edit.history
    if "heldout_loss" in history and history["heldout_loss"].notna().any():
        rows = history[history["heldout_loss"].notna()]
        tip = "held-out loss after step %{x}: %{y:.4g}<extra></extra>"
        figure.add_scatter(
            x=rows["step"],
            y=rows["heldout_loss"],
            mode="lines+markers",
            name="held-out texts",
            line={"color": COLOURS[1], "dash": "dot"},
            marker=_HELD_OUT,
            hovertemplate=tip,
        )
    if "event" in history:
        back = history[history["event"].astype(str).str.contains("back")]
        if len(back):
            events = back["event"].astype(str)
            tip = "step %{x}: %{text}<extra></extra>"
            where = {"x": back["step"], "y": back["loss"]}
            figure.add_scatter(**where, mode="markers", name="taken back", marker=_BACK, text=events, hovertemplate=tip)


def _why(several: Mapping[str, Intervention]) -> str:
    """Say why each descent ended, those that ended alike together."""
    ends: dict[str, list[str]] = {}
    for name, edit in several.items():
        ends.setdefault(str(edit.provenance.get("stopped") or "not on record"), []).append(name)
    if len(ends) == 1:
        return f"Ended because: {next(iter(ends))}."
    return "Ended because:<br>" + ";<br>".join(f"{why} ({', '.join(names)})" for why, names in ends.items()) + "."
