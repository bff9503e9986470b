"""Interaction of interventions: what each does, alone and in pairs, and what does not add up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from lens_steer.report.figures.style import COLOURS, FAINT, legend_below, styled

if TYPE_CHECKING:
    import pandas as pd

    from lens_steer.effects.interaction import Interaction

_PANEL, _GAP = 190, 66


def interaction_figure(result: Interaction) -> go.Figure:
    """One row per pair, along the measured sites: how far source texts move, and how far the pair is from its sum."""
    pairs = result.pairs
    titles = [title for one, other in pairs for title in (f"{one} and {other}: moved", "does not add up")]
    height = _PANEL * len(pairs) + _GAP * (len(pairs) - 1)
    figure = make_subplots(
        rows=len(pairs),
        cols=2,
        shared_xaxes=True,
        shared_yaxes="rows",
        subplot_titles=titles,
        vertical_spacing=_GAP / height if len(pairs) > 1 else 0,
        horizontal_spacing=0.05,
    )
    moved, added, turned, bent = (result.of(measure) for measure in ("moved", "additivity", "commutation", "curvature"))
    for row, (one, other) in enumerate(pairs, start=1):
        lines = [
            (1, "first alone", moved, (one, None), COLOURS[1], "dot"),
            (1, "second alone", moved, (other, None), COLOURS[4], "dot"),
            (1, "first, then second", moved, (one, other), COLOURS[0], "solid"),
            (1, "second, then first", moved, (other, one), COLOURS[5], "dash"),
            (2, "pair against the sum of its parts", added, (one, other), COLOURS[2], "solid"),
            (2, "the same, second first", added, (other, one), COLOURS[2], "dash"),
            (2, "one order against the other", turned, (one, other), COLOURS[3], "solid"),
            (2, "two halves of the pair against the pair", bent, (one, other), FAINT, "dot"),
        ]
        for column, name, frame, names, colour, dash in lines:
            line = _line(_rows(frame, *names), name, colour, dash)
            figure.add_trace(line.update(showlegend=row == 1), row=row, col=column)
    figure.update_yaxes(rangemode="tozero")
    figure.update_yaxes(title="size, in sd", col=1)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_xaxes(title="measured " + ("layer" if _by_layer(moved) else "site"), row=len(pairs))
    texts = result.settings.get("texts", {}).get("source")
    note = f"Source texts{'' if texts is None else f' ({texts})'} at strength {result.settings.get('strength', 1):g}; "
    note += "distances of pooled activations, root mean square over units in standard deviations (sd).<br>"
    note += "Dotted grey: what even two halves of one and the same edit are from adding up, as blocks are not linear. "
    note += f"Bars: {result.settings.get('confidence', 0.95):.0%} intervals over texts."
    return legend_below(styled(figure, "How interventions combine", note, height=height, width=860))


def _rows(frame: pd.DataFrame, first: str, later: str | None) -> pd.DataFrame:
    of_first = frame[frame["first"] == first]
    return of_first[of_first["later"].isna() if later is None else of_first["later"] == later]


def _by_layer(frame: pd.DataFrame) -> bool:
    """Whether a layer names its site."""
    return bool(frame.groupby("layer")["site"].nunique().max() == 1)


def _line(rows: pd.DataFrame, name: str, colour: str, dash: str) -> go.Scatter:
    places = rows["layer"] if _by_layer(rows) else rows["site"]
    return go.Scatter(
        x=places.astype(str),
        y=rows["value"],
        error_y={
            "array": (rows["high"] - rows["value"]).fillna(0),
            "arrayminus": (rows["value"] - rows["low"]).fillna(0),
            "width": 0,
            "thickness": 1.2,
        },
        name=name,
        legendgroup=name,
        mode="lines+markers",
        cliponaxis=False,
        marker={"color": colour, "size": 6},
        line={"color": colour, "width": 1.6, "dash": dash},
        hovertemplate=name + ": %{y:.3g} sd at %{x}<extra></extra>",
    )
