"""The page of an edit card: one HTML fragment for notebooks and reports, one file that stands alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, Template
from markupsafe import Markup

from lens_steer.display.paper import paper_style
from lens_steer.evaluation.card.content import CardContent
from lens_steer.evaluation.card.drawing import IntervalBar, bars_of, curve
from lens_steer.evaluation.card.measured import Item, Measured

_HERE = Path(__file__).parent
_SHOWN = 7  # rows of an item that stand open; more are folded
_TITLES = {
    "dose": "How far it writes",
    "steerable": "Is the contrast steerable at all?",
    "effect": "What it does",
    "cost": "What it costs",
    "random": "Among random edits of its size",
    "shuffled": "Beside the same fit on shuffled labels",
    "others": "What it does to other concepts",
    "strength": "How strong",
    "downstream": "What arrives at the last layer",
}


def page(card: CardContent) -> str:
    """Return a card as a file of its own: it loads nothing, and follows the reader's light or dark."""
    return _template("page.html.j2").render(card=card, body=Markup(fragment(card)))


def fragment(card: CardContent, *, heading: int = 2) -> str:
    """Return a card as a part of a page, with its style: dark where the reader's system is."""
    blocks = [_block(name, item) for name, item in card.items.items()]
    return _template("card.html.j2").render(
        card=card,
        heading=heading,
        blocks=blocks,
        style=paper_style() + Markup((_HERE / "card.css").read_text(encoding="utf-8")),
        about=_about(card),
        left_out=[(_TITLES[name], why) for name, why in card.left_out.items()],
    )


@dataclass(frozen=True)
class Line:
    """A row as it is shown."""

    measure: str
    of: str
    value: str
    detail: str
    verdict: str
    bar: IntervalBar | None


def _block(name: str, item: Item) -> dict[str, Any]:
    rows = [row for row in item.rows if name != "strength"]
    lines = _lines(rows)
    return {
        "name": name,
        "title": _TITLES[name],
        "sentences": item.sentences,
        "lines": lines,
        "folded": len(lines) > _SHOWN,
        "curve": curve(item.rows) if name == "strength" else None,
        "left_out": item.left_out,
    }


def _lines(rows: Sequence[Measured]) -> list[Line]:
    """Rows of one measure share an axis."""
    lines = []
    for measure in dict.fromkeys((row.measure, row.unit) for row in rows):
        group = [row for row in rows if (row.measure, row.unit) == measure]
        for row, bar in zip(group, bars_of(group), strict=True):
            lines.append(Line(_capital(row.measure), row.of, _value(row), _detail(row), row.verdict, bar))
    return lines


def _value(row: Measured) -> str:
    if not math.isnan(row.before):
        return f"{_number(row.before, row.unit)} → {_number(row.after, row.unit)}"
    return _number(row.value, row.unit)


def _detail(row: Measured) -> str:
    parts = []
    change = not math.isnan(row.before)
    if change:
        parts.append(_number(row.value, row.unit, sign=True) + (" points" if _is_share(row.unit) else ""))
    if not math.isnan(row.low):
        ends = ", ".join(_number(end, row.unit, sign=change, mark=False) for end in (row.low, row.high))
        parts.append(f"[{ends}]")
    if not change and not math.isnan(row.null) and (row.interval or row.null != 0):
        parts.append(f"null {_number(row.null, row.unit)}")
    return " ".join(parts)


def _number(value: float, unit: str, *, sign: bool = False, mark: bool = True) -> str:
    if math.isnan(value):
        return "\N{EN DASH}"
    if math.isinf(value):
        return "∞"
    if _is_share(unit):
        text = f"{100 * value:{'+' if sign else ''}.1f}"
        return _minus(text) + (" %" if mark and not sign else "")
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 100 else 0
    return _minus(f"{value:{'+' if sign else ''}.{digits}f}")


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _is_share(unit: str) -> bool:
    return unit.startswith(("share", "mean score"))


def _capital(text: str) -> str:
    return text if text[1:2] == "'" else text[:1].upper() + text[1:]


def _about(card: CardContent) -> str:
    given = card.settings
    if not given:
        return ""
    continued = f"{given['prompts']} prompts" + (f", {given['samples']} samples each" if given["samples"] > 1 else "")
    return (
        f"{given['contrast']}: {given['source_texts']} + {given['target_texts']} held-out texts; {continued}, "
        f"{given['max_new_tokens']} new tokens at temperature {given['temperature']:g}; {given['neutral']} neutral "
        f"texts ({given['neutral_texts']}); intervals at {100 * given['confidence']:.4g} %; seed {given['seed']}"
    )


@cache
def _template(name: str) -> Template:
    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template(name)
