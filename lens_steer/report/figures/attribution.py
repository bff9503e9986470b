"""Attribution: layers by positions, heads or kinds of sites as a heat map; the strongest units as bars."""

from __future__ import annotations

from typing import TYPE_CHECKING

import plotly.graph_objects as go

from lens_steer.report.figures.matrix import matrix
from lens_steer.report.figures.style import COLOURS, FAINT, styled

if TYPE_CHECKING:
    from lens_steer.effects.attribution.attribution import Attribution

_BARS = 25


def attribution_figure(result: Attribution) -> go.Figure:
    """Draw every part's value in the metric's unit; at level unit the strongest ones with their intervals."""
    settings = result.settings
    title = {"patch": "Patched in"}.get(settings["method"], "Estimated effect") + f", by {result.level}"
    note = (
        f"Rise of {settings['metric']} in the corrupted run with the part's clean activation (method "
        f"{settings['method']}), mean over {settings['pairs']} pairs.<br>"
        f"Clean {settings['clean']:.3g}, corrupted {settings['corrupted']:.3g}: all parts together make "
        f"{result.gap:+.3g}."
    )
    if result.level == "unit":
        return _bars(result, title, note)
    across = {"site": "kind", "position": "position", "head": "head"}[result.level]
    several = result.frame["kind"].nunique() > 1 and across != "kind"
    down = "site" if several or result.frame.duplicated(["layer", across]).any() else "layer"
    wide = result.frame.pivot_table(index=down, columns=across, values="value", sort=False)
    return matrix(
        wide, title=title, note=note, x_title=across, y_title=down, value_title=str(settings["metric"]), diverging=True
    )


def _bars(result: Attribution, title: str, note: str) -> go.Figure:
    rows = result.top(_BARS)
    names = [f"{site}[{unit}]" for site, unit in zip(rows["site"], rows["unit"], strict=True)]
    bars = go.Bar(
        x=rows["value"],
        y=names,
        orientation="h",
        marker={"color": [COLOURS[0] if value >= 0 else COLOURS[1] for value in rows["value"]]},
        error_x={
            "array": (rows["high"] - rows["value"]).fillna(0),
            "arrayminus": (rows["value"] - rows["low"]).fillna(0),
            "width": 0,
            "thickness": 1.2,
            "color": FAINT,
        },
        hovertemplate="%{y}: %{x:.3g}<extra></extra>",
    )
    figure = go.Figure(bars)
    figure.update_xaxes(title=str(result.settings["metric"]))
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True)
    note += f" Shown are the {len(rows)} strongest of {len(result.frame)} units, "
    note += f"{result.settings['confidence']:.0%} intervals over pairs."
    return styled(figure, title, note, height=max(110, 20 * len(rows)))
