"""An intervention as it shows itself in a notebook: how it came about, where it acts, whether it bakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lens_steer.display.shown_result import shown_result
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.folding import why_not_bakeable

if TYPE_CHECKING:
    import pandas as pd


def edits_html(
    edits: Sequence[Edit],
    about: Mapping[str, Any],
    strengths: tuple[float, float] | None,
    support: pd.DataFrame,
) -> str:
    """Return the HTML of edits; `about` is their provenance, `support` a row per edit (see `Intervention.support`)."""
    moved = support[support["kept"] > 0]
    settings = about.get("settings") or {}
    gamma = about.get("gamma", settings.get("gamma"))
    gated = sum(edit.gate is not None for edit in edits)
    measured = "no useful range was measured" if strengths is None else "useful from {:g} to {:g}".format(*strengths)
    counts = f"{moved['kept'].sum():,} of {support['units'].sum():,}, by {len(moved)} of {len(support)} edits"
    facts = [
        ("gamma", None if gamma is None else f"{gamma:.4g}"),
        ("gamma / gamma_max", settings.get("gamma_share")),
        ("contrast", _contrast(about)),
        ("tokens", ", ".join(dict.fromkeys(str(edit.scope) for edit in edits))),
        ("gate", f"decides for {gated} of {len(edits)} edits" if gated else ""),
        ("strength", measured),
        ("units moved", counts),
        ("bakes", _bakes(edits)),
        ("derived by", ", ".join(about.get("derivation", []))),
    ]
    columns = ["kept", "site", "units", "share", "max_abs_scale_change", "max_abs_shift"]
    table = support.sort_values("kept", ascending=False, kind="stable")[columns]
    method = about.get("method", "not said how it was made")
    return shown_result(f"Intervention: {method}", facts=facts, table=table, rest=".support()")


def _contrast(about: Mapping[str, Any]) -> str:
    texts = about.get("texts")
    counts = " + ".join(f"{count} {side}" for side, count in texts.items()) if isinstance(texts, Mapping) else ""
    return f"{about.get('contrast', '')}{f' ({counts} texts)' if counts else ''}"


def _bakes(edits: Sequence[Edit]) -> str:
    """Say what the edits alone tell: of the architecture only `bake` can."""
    if (reason := why_not_bakeable(edits)) is not None:
        return f"no: {reason}"
    if (scaled := next(filter(_scales_stream, edits), None)) is not None:
        return f"no: {scaled.site.name} is the residual stream, where weights can shift units but not scale them"
    return "nothing in the edits is against it; bake(model, edit) asks the model's weights"


def _scales_stream(edit: Edit) -> bool:
    scale = getattr(edit.map, "scale", None)
    return edit.site.kind.startswith("hook_resid") and scale is not None and bool((scale != 1).any())
