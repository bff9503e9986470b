"""What a card holds: its verdict, what the edit is, and every item; how it is shown is for others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lens_steer.evaluation.card.identity import Facts
from lens_steer.evaluation.card.measured import Item, Measured, frame_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class CardContent:
    """The parts of an `EditCard`, which says what they are."""

    headline: str
    facts: Facts
    items: Mapping[str, Item]
    left_out: Mapping[str, str] = field(default_factory=dict)
    texts: tuple[tuple[str, str, str], ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> tuple[Measured, ...]:
        """Every value, item by item."""
        return tuple(row for item in self.items.values() for row in item.rows)

    @property
    def frame(self) -> pd.DataFrame:
        """One row per value.

        Columns: item, measure, of (a site, a scorer, a strength, another contrast), value with low and high, null (what
        it reads if there is nothing), before and after (of a change, which is the value), verdict (what the interval
        says beside the null), unit, confidence.
        """
        return frame_of(self.rows)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was found, the verdict first."""
        return (self.headline, *(sentence for item in self.items.values() for sentence in item.sentences))
