"""Expert units: AUROC by layer and unit, and the best of every concept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from lens_steer.errors import SettingError
from lens_steer.report.figures.matrix import matrix
from lens_steer.report.figures.style import COLOURS, FAINT, INK, styled

if TYPE_CHECKING:
    import pandas as pd

_DRAWN_PER_SITE = 300  # points: beyond, a strip is one blot and the file grows by megabytes
_EXTREME = 60  # of those, the ones furthest from chance are all drawn, at either end


def auroc_by_layer(frame: pd.DataFrame) -> go.Figure:
    """Return the AUROC of units by layer, one strip per kind of site, with the chance line and the best unit's name.

    `frame` is that of `rank_experts`, best unit first. SettingError where it holds several concepts.
    """
    if frame["concept"].nunique() > 1:
        names = ", ".join(frame["concept"].unique())
        raise SettingError(f"a figure shows one concept: ranking.concept(name).plot(), of {names}")
    heldout = bool(frame["heldout_auroc"].notna().any())
    score = "heldout_auroc" if heldout else "auroc"
    kinds = list(frame["kind"].unique())
    figure = go.Figure()
    best, others = frame.iloc[0], frame.iloc[1:]
    drawn = 1
    for place, kind in enumerate(kinds):
        strips = [_thinned(part, score) for _, part in others[others["kind"] == kind].groupby("layer")]
        x = [_jitter(part["layer"].to_numpy(), place, len(kinds)) for part in strips]
        y = [part[score].to_numpy() for part in strips]
        labels = [f"{site}[{unit}]" for part in strips for site, unit in zip(part["site"], part["unit"], strict=True)]
        drawn += len(labels)
        marker = {"size": 4, "color": COLOURS[place % len(COLOURS)], "opacity": 0.45}
        figure.add_scatter(
            x=np.concatenate(x),
            y=np.concatenate(y),
            mode="markers",
            name=kind,
            text=labels,
            marker=marker,
            hovertemplate="%{text}: %{y:.3f}<extra></extra>",
        )
    at = float(_jitter(np.array([best["layer"]]), kinds.index(best["kind"]), len(kinds))[0])
    label = f"{best['site']}[{best['unit']}]: {best[score]:.2f}"
    _mark_best(figure, at, float(best[score]), label, right=bool(best["layer"] > frame["layer"].mean()))
    figure.add_hline(y=0.5, line={"color": INK, "width": 1, "dash": "dot"})
    right = {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 4, "showarrow": False}
    figure.add_annotation(y=0.5, text="chance", font={"color": FAINT}, **right)
    figure.update_xaxes(title="layer", dtick=1 if frame["layer"].nunique() <= 24 else 4, showgrid=False)
    figure.update_yaxes(title="AUROC on held-out texts" if heldout else "AUROC (all texts, none held out)")
    note = "Above 0.5 a unit is larger in source texts, below in target texts."
    note += " The best unit was chosen on the other half of the texts." if heldout else ""
    if drawn < len(frame):
        note += f"<br>{drawn:,} of {len(frame):,} units are drawn: each site's extremes and a thinned sample between."
    shown = styled(figure, f"Expert units of “{best['concept']}”", note)
    return shown.update_layout(showlegend=len(kinds) > 1, margin_r=70)


def _mark_best(figure: go.Figure, x: float, y: float, label: str, *, right: bool) -> None:
    figure.add_scatter(
        x=[x], y=[y], mode="markers", marker={"size": 9, "color": INK}, showlegend=False, hoverinfo="skip"
    )
    side = {"xanchor": "right", "xshift": -9} if right else {"xanchor": "left", "xshift": 9}
    figure.add_annotation(x=x, y=y, text=label, showarrow=False, bgcolor="rgba(255,255,255,0.8)", **side)


def _thinned(part: pd.DataFrame, score: str) -> pd.DataFrame:
    """The units of one site that are drawn: both ends, and every n-th of the rest."""
    ordered = part.sort_values(score)
    if len(ordered) <= _DRAWN_PER_SITE:
        return ordered
    middle = np.linspace(_EXTREME, len(ordered) - _EXTREME - 1, _DRAWN_PER_SITE - 2 * _EXTREME).astype(int)
    ends = range(_EXTREME), middle, range(len(ordered) - _EXTREME, len(ordered))
    return ordered.iloc[np.unique(np.concatenate([np.asarray(end) for end in ends]))]


def _jitter(layer: np.ndarray, place: int, kinds: int) -> np.ndarray:
    """Spread a strip sideways, the same way at every call; kinds stand side by side."""
    spread = (np.arange(len(layer)) * 0.618034 + 0.5) % 1 - 0.5
    return np.asarray(layer + (place + 0.5) / kinds * 0.8 - 0.4 + spread * 0.6 / kinds)


def auroc_by_concept(frame: pd.DataFrame) -> go.Figure:
    """Return the AUROC of the best unit of every concept (down) at every layer (across), as a heat map.

    `frame` is that of `rank_experts` over many concepts. Where texts were held out, the unit is the best of the
    selection half and its AUROC that of the other half.
    """
    heldout = bool(frame["heldout_auroc"].notna().any())
    chosen_by, score = ("selection_auroc", "heldout_auroc") if heldout else ("auroc", "auroc")
    ordered = frame.sort_values(chosen_by, ascending=False, kind="stable")
    best = ordered.groupby(["concept", "layer"], sort=False)[score].first().unstack("layer").sort_index(axis=1)
    best = best.loc[best.max(axis=1).sort_values(ascending=False).index]
    where = "on the half of the texts that did not choose the unit" if heldout else "on all texts, none held out"
    return matrix(
        best,
        title="Best expert unit of every concept, by layer",
        note=f"AUROC of each layer's best unit, {where}. 0.5 is chance, 1 tells every text.",
        x_title="layer",
        value_title="AUROC",
        low=0.5,
        high=1.0,
    )
