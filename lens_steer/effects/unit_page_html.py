"""The HTML of a unit page: static, every text escaped, nothing loaded; the top texts are those of `show_units`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from lens_steer.display.paper import paper_style
from lens_steer.effects.unit_facts import UnitFacts

if TYPE_CHECKING:
    from jinja2 import Template

_MINUS = "\N{MINUS SIGN}"
_WIDTH, _ROW, _MARGIN = 340, 26, 10
_PARTS = {
    "writes": "writes: tokens it promotes and suppresses",
    "mlp.in": "reads by mlp.in",
    "mlp.gate": "reads by mlp.gate",
    "attn.v": "reads by attn.v",
    "stream": "reads the stream itself",
}


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["number"] = _number
    environment.filters["token"] = _token
    return environment.get_template("unit_page.html.j2")


def page(result: UnitFacts) -> str:
    """Return the HTML of a unit page, to stand in another document."""
    return _template().render(
        style=paper_style(),
        name=str(result.unit),
        about=result.settings,
        sentences=result.sentences,
        notes=result.notes,
        chance=result.settings.get("chance_z"),
        tokens=_token_lists(result),
        concepts=result.concepts.to_dict("records"),
        edits=result.edits.to_dict("records"),
        causes=[{**row, "plot": _strip(row, result.controls)} for row in result.causes.to_dict("records")],
        next_tokens=_next_tokens(result),
        nearest=_nearest(result),
        # Written by a template that escapes every text.
        texts=Markup(result.texts._repr_html_()),
        by_contrast=[(name, Markup(view._repr_html_())) for name, view in result.by_contrast.items()],
    )


def _token_lists(result: UnitFacts) -> list[dict[str, Any]]:
    frame = result.tokens
    order = sorted(frame["part"].unique(), key=lambda part: part == "writes") if len(frame) else []
    return [
        {
            "title": _PARTS.get(part, f"reads by {part}"),
            "most": frame[(frame["part"] == part) & (frame["direction"] == "most")].to_dict("records"),
            "least": frame[(frame["part"] == part) & (frame["direction"] == "least")].to_dict("records"),
        }
        for part in order
    ]


def _next_tokens(result: UnitFacts) -> list[dict[str, Any]]:
    texts = []
    for rank, rows in result.next_tokens.groupby("rank", sort=True):
        first = rows.iloc[0]
        by = {way: rows[rows["direction"] == way].to_dict("records") for way in ("falls", "rises")}
        texts.append({"rank": int(str(rank)) + 1, "at": first["at"], "next": first["next"], "kl": first["kl"], **by})
    return texts


def _nearest(result: UnitFacts) -> list[dict[str, Any]]:
    return [
        {"by": by, "chance": float(rows["chance"].iloc[0]), "rows": rows.to_dict("records")}
        for by, rows in result.nearest.groupby("by", sort=False)
    ]


def _strip(row: Mapping[Any, Any], controls: Any) -> dict[str, Any]:
    """The unit's change with its interval above the changes of the controls, on one axis with 0."""
    dots: Sequence[float] = np.asarray(controls.get(row["measure"], ())).tolist()
    shown = [0.0, row["change"], *dots, *(end for end in (row["low"], row["high"]) if np.isfinite(end))]
    low, high = min(shown), max(shown)
    if low == high:
        low, high = low - 1.0, high + 1.0

    def x(value: float) -> str:
        return f"{_MARGIN + (value - low) / (high - low) * (_WIDTH - 2 * _MARGIN):.1f}"

    interval = [x(row["low"]), x(row["high"])] if np.isfinite(row["low"]) and np.isfinite(row["high"]) else None
    return {
        "width": _WIDTH,
        "height": 3 * _ROW,
        "zero": x(0.0),
        "unit": x(row["change"]),
        "interval": interval,
        "dots": [x(dot) for dot in dots],
        "low": _number(low),
        "high": _number(high),
    }


def _number(value: Any, digits: int = 3) -> str:
    if value is None or value != value:
        return "\N{EN DASH}"
    return f"{value:.{digits}g}".replace("-", _MINUS)


def _token(text: str) -> str:
    """A token with its white space visible."""
    return text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "\N{OPEN BOX}") or "\N{MIDDLE DOT}"
