"""Tokens with activations as a page shows them: static text, coloured on one scale per unit, white at 0."""

from __future__ import annotations

from dataclasses import dataclass

from lens_steer.activations.show_page import depth
from lens_steer.display.shown_table import number
from lens_steer.report.token_view import TokenText, TokenView, UnitTokens


@dataclass(frozen=True)
class ShownToken:
    """A token, its value as it is told, the depth of its colour in per cent, and whether it lies below 0."""

    text: str
    value: str
    depth: int
    below: bool


@dataclass(frozen=True)
class ShownText:
    """A text: the number in front of it is its largest value."""

    tokens: tuple[ShownToken, ...]
    largest: str
    text: TokenText


@dataclass(frozen=True)
class ShownUnit:
    """A unit with the ends of its scale and its texts; `edited` is empty or goes with `texts`, row by row."""

    name: str
    low: str
    high: str
    stops: tuple[tuple[int, int], tuple[int, int]]
    texts: tuple[ShownText, ...]
    edited: tuple[ShownText, ...]


def shown_units(view: TokenView) -> tuple[ShownUnit, ...]:
    """Return the units of a view, each with one scale for all its texts: as deep for -x as for x."""
    return tuple(_shown(unit) for unit in view.units)


def _shown(unit: UnitTokens) -> ShownUnit:
    low, high = min(unit.low, 0.0), max(unit.high, 0.0)
    end = max(-low, high) or 1.0
    zero = round(100 * -low / ((high - low) or 1.0))
    texts, edited = (tuple(_text(text, end) for text in side) for side in (unit.texts, unit.edited))
    ramp = ((depth(low, end), zero), (depth(high, end), 100))
    return ShownUnit(unit.unit, number(low), number(high), ramp, texts, edited)


def _text(text: TokenText, end: float) -> ShownText:
    tokens = tuple(
        ShownToken(token.replace("\n", "↵\n") or "·", number(value), depth(value, end), value < 0)
        for token, value in zip(text.tokens, text.values, strict=True)
    )
    return ShownText(tokens, number(max(text.values)), text)
