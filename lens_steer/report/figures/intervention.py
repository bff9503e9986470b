"""What an intervention edits: size of its changes by rank of the unit, and the share of units moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots
from torch import Tensor

from lens_steer.report.figures.style import COLOURS, SEQUENTIAL, colour_bar, styled

if TYPE_CHECKING:
    from lens_steer.interventions.intervention import Intervention


def intervention_figure(intervention: Intervention) -> go.Figure:
    """Heat maps of |scale - 1| and |shift|, each site's units sorted by size, beside the share of units moved.

    Maps that are not diagonal have no scale and shift: their rows stay empty there.
    """
    support = intervention.support()
    names = _row_names(intervention)
    panels = ["|scale \N{MINUS SIGN} 1|", "|shift|, in units of activation", "units moved"]
    figure = make_subplots(
        rows=1,
        cols=3,
        column_widths=[0.38, 0.38, 0.24],
        subplot_titles=panels,
        shared_yaxes=True,
        horizontal_spacing=0.1,
    )
    ranks = _ranks(int(support["units"].max()))
    for column, (what, neutral) in enumerate((("scale", 1.0), ("shift", 0.0)), start=1):
        sorted_rows = [_sorted_changes(getattr(edit.map, what, None), neutral, ranks) for edit in intervention.edits]
        rows = [changes for changes, _ in sorted_rows]
        axis = f"coloraxis{column}"
        largest = np.nanmax([*(value for row in rows for value in row), 0.0])
        tip = f"{_site_pattern(intervention, names)}[%{{customdata}}]: |{what}| change %{{z:.3g}}<extra></extra>"
        cells = go.Heatmap(
            x=np.log10(ranks),
            z=np.array(rows),
            y=names,
            coloraxis=axis,
            customdata=np.array([units for _, units in sorted_rows]),
            hovertemplate=tip,
            hoverongaps=False,
            ygap=2,
        )
        figure.add_trace(cells, row=1, col=column)
        decades = [place for place in range(6) if 10**place <= ranks[-1]]
        labels = [f"{10**place:,}" for place in decades]
        figure.update_xaxes(title="rank of the unit (log scale)", tickvals=decades, ticktext=labels, row=1, col=column)
        bar = colour_bar("", x=0.332 + 0.408 * (column - 1), xanchor="left", len=1, thickness=9)
        figure.update_layout({axis: _from_zero(float(largest), bar)})
    figure.add_trace(_support_bars(support["share"].tolist(), support["kept"].tolist(), names), row=1, col=3)
    widest = 1.3 * max(float(support["share"].max()), 1e-3)
    figure.update_xaxes(title="share of the site's units", tickformat=".0%", range=[0, widest], nticks=4, row=1, col=3)
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    figure.update_yaxes(title="layer" if names[0].isdigit() else "edited site", col=1)
    note = (
        f"{support['kept'].sum():,} of {support['units'].sum():,} units moved. The units of a row are sorted by size."
    )
    title = f"What the intervention edits ({intervention.provenance.get('method', 'no method named')})"
    return styled(figure, title, note, width=1000, height=max(110, 24 * len(names)))


def _from_zero(largest: float, bar: dict[str, Any]) -> dict[str, Any]:
    """Colours from 0 up; no bar where nothing differs from 0."""
    scale = {"colorscale": SEQUENTIAL, "cmin": 0, "cmax": largest or 1.0}
    return {**scale, "colorbar": bar, "showscale": largest > 0}


def _row_names(intervention: Intervention) -> list[str]:
    """Layers, where they tell the edits apart; else site names, and scopes beside them."""
    for names in (
        [str(edit.site.layer) for edit in intervention.edits],
        [edit.site.name for edit in intervention.edits],
    ):
        if len(set(names)) == len(names):
            return names
    return [f"{edit.site.name} ({place}: {edit.scope.name})" for place, edit in enumerate(intervention.edits)]


def _site_pattern(intervention: Intervention, names: list[str]) -> str:
    """Return how a row's site is named when it is pointed at; `%{y}` stands for the row's own name."""
    patterns = {
        edit.site.name.replace(f".{name}.", ".%{y}.", 1) for edit, name in zip(intervention.edits, names, strict=True)
    }
    pattern = next(iter(patterns))
    return pattern if len(patterns) == 1 and "%{y}" in pattern else "%{y}"


def _ranks(width: int) -> list[int]:
    """Ranks 1 .. width on a logarithmic scale, so that ten units of ten thousand can be seen."""
    return sorted(set(np.geomspace(1, width, 160).round().astype(int).tolist()))


def _sorted_changes(values: Tensor | None, neutral: float, ranks: list[int]) -> tuple[list[float], list[int]]:
    """Return the changes at some ranks, and whose they are: nan and -1 where there is none."""
    if values is None:
        return [float("nan")] * len(ranks), [-1] * len(ranks)
    ordered = (values - neutral).abs().sort(descending=True)
    changes, units = ordered.values.tolist(), ordered.indices.tolist()
    exists = [rank <= len(changes) for rank in ranks]
    return (
        [changes[rank - 1] if has else float("nan") for rank, has in zip(ranks, exists, strict=True)],
        [units[rank - 1] if has else -1 for rank, has in zip(ranks, exists, strict=True)],
    )


def _support_bars(share: list[float], kept: list[int], names: list[str]) -> go.Bar:
    return go.Bar(
        x=share,
        y=names,
        orientation="h",
        marker={"color": COLOURS[0]},
        text=kept,
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}: %{text} units, %{x:.1%}<extra></extra>",
        showlegend=False,
    )
