"""What is shown of a unit: the texts where it is largest, token by token, and its largest value in every text."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lens_steer.host.units import Unit


@dataclass(frozen=True, eq=False)
class TopText:
    """One text around its largest activation: `values` and `pooled` go with `tokens`, the first at `start`."""

    row: int
    side: str | None
    largest: float
    start: int
    length: int
    tokens: tuple[str, ...]
    pooled: tuple[bool, ...]
    values: Float[Tensor, " pos"]


@dataclass(frozen=True, eq=False)
class ShownUnit:
    """A unit, its largest activation in every text (with that text's side), and the texts where it is largest.

    `low` and `high` are the extremes over all pooled tokens of all texts.
    """

    unit: Unit
    largest: Float[Tensor, " text"]
    sides: tuple[str | None, ...]
    low: float
    high: float
    top: tuple[TopText, ...]
