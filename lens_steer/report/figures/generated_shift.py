"""A shift on generated text beside the shift on given text, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lens_steer.report.figures.lines import dose_response

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from lens_steer.effects.generated_shift import GeneratedShift


def generated_shift_figure(result: GeneratedShift) -> go.Figure:
    """How far the edit moves the source's mean, on given and on generated text."""
    moved = result.frame[result.frame["measure"] == "moved"]
    confidence = result.settings.get("confidence", 0.95)
    note = "Root mean square over units of the source's mean move, in standard deviations of the given texts.<br>"
    note += (
        f"Bands: {confidence:.0%} intervals over rows. The two generated texts of a row differ, so only means compare."
    )
    figure = dose_response(
        moved,
        x="layer",
        y="value",
        by="of",
        low="low",
        high="high",
        title="The edit's shift on given text and on what the model writes",
        note=note,
        y_title="moved, in sd",
    )
    return figure.update_xaxes(dtick=1 if moved["layer"].nunique() <= 24 else 4)
