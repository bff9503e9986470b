"""Drawings of a card: an interval beside its null, and the curve of strengths; numbers for SVG, no library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lens_steer.evaluation.card.measured import Measured

_ROOM = 0.06  # of an axis, free at both ends


@dataclass(frozen=True)
class IntervalBar:
    """Places between 0 and 100 on the axis that rows of one measure share; None where there is no such end."""

    value: float
    low: float | None
    high: float | None
    null: float | None


def bars_of(rows: Sequence[Measured]) -> list[IntervalBar | None]:
    """Return where values, intervals and nulls lie; None for a row without an interval, which has nothing to draw."""
    numbers = [number for row in rows for number in (row.value, row.low, row.high, row.null) if math.isfinite(number)]
    low, high = (min(numbers), max(numbers)) if numbers else (0.0, 1.0)
    if rows and rows[0].unit.startswith(("share", "mean score", "AUROC")) and max(-low, high) <= 1:
        low, high = (0.0, 1.0) if math.isnan(rows[0].before) else (-1.0, 1.0)
    room = _ROOM * (high - low) or 1.0
    low, high = low - room, high + room

    def place(number: float) -> float | None:
        return round(100 * (number - low) / (high - low), 2) if math.isfinite(number) else None

    bars: list[IntervalBar | None] = []
    for row in rows:
        value, ends = place(row.value), (place(row.low), place(row.high))
        bars.append(None if value is None or None in ends else IntervalBar(value, *ends, place(row.null)))
    return bars


@dataclass(frozen=True)
class Point:
    """A strength, what is left of the concept there, what it costs; `x`, `y` in per cent of the drawing."""

    strength: float
    concept: float
    cost: float
    x: float
    y: float


@dataclass(frozen=True)
class Curve:
    """The strengths within the budget as a line, and all of them as a list."""

    points: tuple[Point, ...]
    all: tuple[tuple[float, float, float], ...]
    largest: float
    budget: str
    top: float


def curve(rows: Sequence[Measured]) -> Curve:
    """Return the curve of an item of strengths."""
    costs = {_strength(row): row.value for row in rows if row.measure == "cost"}
    concepts = {_strength(row): row.value for row in rows if row.measure == "concept"}
    largest = next(row for row in rows if row.measure == "largest within the budget")
    known = {at: value for at, value in concepts.items() if math.isfinite(value)}
    left, right = min([*costs, 0.0]), max([*costs, 1.0])
    top = max([*known.values(), 0.05])
    points = tuple(
        Point(at, value, costs[at], 100 * (at - left) / (right - left), 100 * (1 - value / top))
        for at, value in sorted(known.items())
    )
    return Curve(points, tuple((at, costs[at], concepts[at]) for at in sorted(costs)), largest.value, largest.of, top)


def _strength(row: Measured) -> float:
    return float(row.of.removeprefix("strength "))
