"""The edit card itself: what was found of an edit, as sentences, one table, and one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_steer.directories import replace_file
from lens_steer.errors import OutputError
from lens_steer.evaluation.card.identity import Facts
from lens_steer.evaluation.card.measured import Item, Measured, frame_of

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class EditCard:
    """Whether one should use an edit, and what that rests on.

    Attributes
    ----------
    headline:
        The verdict, as the intervals allow it.
    facts:
        What the edit is: pairs of a word and what there is to say.
    items:
        Name of an item -> its values, sentences, and what of it could not be measured; see `edit_card`.
    left_out:
        Name of an item that was not measured -> why.
    texts:
        At most three prompts with their continuation before and after the edit.
    settings:
        What the card was measured with.

    """

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

    def __repr__(self) -> str:
        return "EditCard: " + "\n  ".join(self.sentences)

    def _repr_html_(self) -> str:
        from lens_steer.evaluation.card.page import fragment

        return fragment(self)

    def save(self, path: str | Path) -> Path:
        """Write the card as one HTML file that loads nothing, and return it; OutputError where `path` exists."""
        from lens_steer.evaluation.card.page import page

        place = Path(path)
        if place.exists():
            raise OutputError(f"{place} already exists: give another name, or move it away")
        replace_file(place, partial(_write, text=page(self)))
        return place


def _write(place: Path, text: str) -> None:
    place.write_text(text, encoding="utf-8")
