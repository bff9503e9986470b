"""The page of `show_units`: static HTML with inline SVG; every text is escaped by the template."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lens_steer.display.paper import paper_style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jinja2 import Template

    from lens_steer.activations.shown_unit import ShownUnit, TopText

_SIDE_COLOURS = {"source": "#d55e00", "target": "#0072b2", None: "#767676"}
_DEEPEST = 70  # per cent of the colour at the largest value, so that text on it stays readable
_BINS, _WIDTH, _HEIGHT, _MARGIN = 28, 300, 96, 8


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    return environment.get_template("show.html.j2")


def page(units: Sequence[ShownUnit]) -> str:
    """Return the HTML of some units, one below the other."""
    return _template().render(style=paper_style(), units=[_unit(shown) for shown in units])


def _unit(shown: ShownUnit) -> dict[str, Any]:
    low, high = min(shown.low, 0.0), max(shown.high, 0.0)
    scale = max(-low, high) or 1.0
    zero = 100 * -low / ((high - low) or 1.0)
    return {
        "name": str(shown.unit),
        "sides": [_side(shown, side) for side in _sides(shown)],
        "low": _number(low),
        "high": _number(high),
        "ramp": {"low": depth(low, scale), "zero": round(zero), "high": depth(high, scale)},
        "plot": _histogram(shown),
        "texts": [shown_text(text, scale) for text in shown.top],
    }


def _sides(shown: ShownUnit) -> list[str | None]:
    named = [side for side in ("source", "target") if side in shown.sides]
    return list(named) or [None]


def _of_side(shown: ShownUnit, side: str | None) -> np.ndarray:
    return shown.largest.numpy()[[other == side for other in shown.sides]]


def _side(shown: ShownUnit, side: str | None) -> dict[str, Any]:
    values = _of_side(shown, side)
    about = {"name": side or "all texts", "colour": _SIDE_COLOURS[side], "count": len(values)}
    return {**about, "mean": _number(float(values.mean()))}


def shown_text(text: TopText, scale: float) -> dict[str, Any]:
    """Return a text as a template shows it; `scale` is the size of the value that has the deepest colour."""
    tokens = [
        {
            "text": token.replace("\n", "↵\n") or "·",
            "title": f"{value:.4g}",
            "aside": not pooled,
            "depth": depth(value, scale),
            "way": "above" if value > 0 else "below",
        }
        for token, value, pooled in zip(text.tokens, text.values.tolist(), text.pooled, strict=True)
    ]
    return {
        "value": _number(text.largest),
        "side": text.side,
        "colour": _SIDE_COLOURS[text.side],
        "tokens": tokens,
        "cut_before": text.start > 0,
        "cut_after": text.start + len(tokens) < text.length,
    }


def _histogram(shown: ShownUnit) -> dict[str, Any]:
    """Bars of the share of each side's texts per bin, both sides over the same bins and laid over each other."""
    low, high = float(shown.largest.min()), float(shown.largest.max())
    if low == high:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _BINS + 1)
    floor, left, step = _HEIGHT - 20, _MARGIN, (_WIDTH - 2 * _MARGIN) / _BINS
    shares = {}
    for side in _sides(shown):
        values = _of_side(shown, side)
        shares[side] = np.histogram(values, edges)[0] / len(values)
    tallest = max(share.max() for share in shares.values())
    bars = [
        {
            "x": f"{left + place * step:.1f}",
            "y": f"{floor - share / tallest * (floor - 4):.1f}",
            "width": f"{step - 0.5:.1f}",
            "height": f"{share / tallest * (floor - 4):.1f}",
            "colour": _SIDE_COLOURS[side],
            "title": f"{side or 'texts'}: {share:.0%} from {_number(edges[place])} to {_number(edges[place + 1])}",
        }
        for side, of_bins in shares.items()
        for place, share in enumerate(of_bins)
        if share > 0
    ]
    ticks = [
        {"x": left, "anchor": "start", "text": _number(low)},
        {"x": _WIDTH - _MARGIN, "anchor": "end", "text": _number(high)},
    ]
    size = {"width": _WIDTH, "height": _HEIGHT, "left": left, "right": _WIDTH - _MARGIN, "floor": floor}
    return {**size, "bars": bars, "ticks": ticks}


def depth(value: float, scale: float) -> int:
    """Return how deep a value is coloured, in per cent of the colour: nothing at 0, as deep for -x as for x."""
    return round(_DEEPEST * min(abs(value) / scale, 1.0))


def _number(value: float) -> str:
    return f"{value + 0.0:.3g}".replace("-", "\N{MINUS SIGN}")
