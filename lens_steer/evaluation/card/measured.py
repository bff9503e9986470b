"""What an item of a card holds: measured values with intervals and nulls, and sentences that follow from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from lens_steer.statistics.verdict import Change, NumberStyle, verdict_of

if TYPE_CHECKING:
    import pandas as pd

ItemName = Literal["dose", "steerable", "effect", "cost", "random", "shuffled", "others", "strength", "downstream"]
ITEMS: tuple[ItemName, ...] = get_args(ItemName)
"""The items of a card, in the order of the page."""


@dataclass(frozen=True)
class Measured:
    """One value of a card: `low` and `high` bound it, `null` is what it reads if there is nothing.

    A change is the value after less the one before, which stand beside it; its null is 0. `of` names what was measured
    where there are several: a site, a scorer, a strength, another contrast. `interval`: whether one belongs to the
    value; where it does and there is none, nothing can be judged.
    """

    item: str
    measure: str
    value: float
    low: float = math.nan
    high: float = math.nan
    null: float = math.nan
    of: str = ""
    before: float = math.nan
    after: float = math.nan
    unit: str = ""
    confidence: float = 0.95
    interval: bool = True

    @classmethod
    def change(
        cls,
        item: str,
        measure: str,
        before: float,
        after: float,
        bounds: tuple[float, float],
        *,
        of: str = "",
        unit: str = "",
        confidence: float,
    ) -> Measured:
        """Return the row of a change, bounded by `bounds`."""
        return cls(item, measure, after - before, *bounds, 0.0, of, before, after, unit, confidence)

    @property
    def verdict(self) -> str:
        """What the interval says beside the null; nothing for a value that has no null, or of which none is taken."""
        if math.isnan(self.null) or not self.interval:
            return ""
        return verdict_of(self.low, self.high, reference=self.null).value

    @property
    def as_change(self) -> Change:
        """The row as a change, which makes sentences."""
        return Change(self.before, self.after, self.low, self.high, self.confidence)

    def sentence(self, subject: str, measure: str, style: NumberStyle = "share") -> str:
        """Say what became of a measure, with the verb that the interval allows."""
        return self.as_change.sentence(subject, measure, style=style)


@dataclass(frozen=True)
class Item:
    """One item of a card: its values, what they say, and what of it could not be measured."""

    rows: tuple[Measured, ...] = ()
    sentences: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


COLUMNS = ("item", "measure", "of", "value", "low", "high", "null", "before", "after", "verdict", "unit", "confidence")


def frame_of(rows: Sequence[Measured]) -> pd.DataFrame:
    """Return rows as one long table."""
    import pandas as pd

    return pd.DataFrame([[getattr(row, name) for name in COLUMNS] for row in rows], columns=list(COLUMNS))
