"""Downstream: what arrives of the edit at the last layer, and what else moves there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lens_steer.effects.downstream import downstream_shift
from lens_steer.evaluation.card.measured import Item, Measured
from lens_steer.host.adapter import host_of
from lens_steer.interventions.intervention import Intervention
from lens_steer.statistics.verdict import Verdict, verdict_of
from lens_steer.texts.contrast import ContrastSet, Row

_NULLS = {"removed": 0.0, "arrived": 0.0, "collateral": 0.0}
_UNITS = {
    "removed": "share of the energy distance",
    "arrived": "share of the way",
    "collateral": "standard deviations per unit",
}


def downstream_item(
    model: nn.Module,
    edit: Intervention,
    contrast: ContrastSet,
    neutral: Sequence[Row],
    *,
    confidence: float,
    batch_size: int | None,
) -> Item:
    """Summarise `downstream_shift` at the last layer of the residual stream."""
    shift = downstream_shift(
        model, edit, contrast, sites=f"blocks.{host_of(model).n_layers - 1}.hook_resid_post", neutral=neutral,
        by_layer=False, confidence=confidence, batch_size=batch_size, progress=False,
    )  # fmt: skip
    measures: list[dict[str, Any]] = shift.measures.query("edited == 'all'").to_dict("records")  # type: ignore[assignment]
    rows = [
        Measured("downstream", row["measure"], row["value"], row["low"], row["high"], _NULLS[row["measure"]],
                 "target and source texts" if row["texts"] == "heldout" else f"{row['texts']} texts",
                 unit=_UNITS[row["measure"]], confidence=confidence)
        for row in measures
        if row["measure"] in _NULLS
    ]  # fmt: skip
    return Item(tuple(rows), (_sentence(rows),))


def _sentence(rows: Sequence[Measured]) -> str:
    value = {(row.measure, row.of): row for row in rows}
    arrived, removed = (value[measure, "target and source texts"] for measure in ("arrived", "removed"))
    moved = value["collateral", "target and source texts"]
    beside = f"target texts move by {moved.value:.2f} standard deviations per unit"
    ends = f"[{arrived.low:.2f}, {arrived.high:.2f}]"
    match verdict_of(arrived.low, arrived.high):
        case Verdict.CANNOT_JUDGE:
            return f"At the last layer source and target are not shown to differ, so nothing can arrive; {beside}."
        case Verdict.NOT_SHOWN:
            way = f"source texts were not shown to go towards the target's mean ({arrived.value:.2f} {ends} of the way)"
        case Verdict.LOWER:
            way = f"source texts go away from the target's mean ({arrived.value:.2f} {ends} of the way)"
        case _:
            way = f"source texts go {arrived.value:.2f} {ends} of the way to the target's mean"
    gone = f"{removed.value:.0%} [{removed.low:.0%}, {removed.high:.0%}] of the distance is removed"
    return f"At the last layer {way}; {gone}; {beside}."
