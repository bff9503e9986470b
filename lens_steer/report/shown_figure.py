"""A plotly figure on a page: its title and note become text of the page, the plot itself loses the room they took."""

from __future__ import annotations

import html
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import plotly.graph_objects as go

_TAGS = re.compile(r"</?(?:b|i|u|s|em|strong|sub|sup|span|a)(?:\s[^>]*)?>", re.IGNORECASE)
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_TOP = 44  # pixels: room for a line of legend or the titles of panels
_TITLE_TOP, _HEIGHT = 100, 450  # plotly's own, where a figure sets none


@dataclass(frozen=True)
class ShownFigure:
    """A figure's heading and note as plain text, and the rest as plotly's JSON."""

    heading: str
    note: str
    spec: dict[str, Any]


def shown_figure(figure: go.Figure) -> ShownFigure:
    """Take title and note off a figure; the note is what follows the title's first line."""
    spec = json.loads(figure.to_json())
    layout = spec.setdefault("layout", {})
    title = layout.pop("title", {})
    lines = [_plain(line) for line in _BREAK.split(title.get("text") or "")]
    lines += [_plain(line) for line in _BREAK.split(title.get("subtitle", {}).get("text") or "")]
    margin = layout.setdefault("margin", {})
    top = margin.get("t", _TITLE_TOP)
    layout["height"] = layout.get("height", _HEIGHT) - (top - _TOP)
    margin["t"] = _TOP
    return ShownFigure(lines[0], " ".join(line for line in lines[1:] if line), {"data": spec["data"], "layout": layout})


def _plain(text: str) -> str:
    return html.unescape(_TAGS.sub("", text)).strip()
