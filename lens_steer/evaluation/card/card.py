"""The edit card itself: what was found of an edit, as sentences, one table, and one page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lens_steer.directories import replace_file, require_new_file
from lens_steer.evaluation.card.content import CardContent
from lens_steer.evaluation.card.page import fragment, page


@dataclass(frozen=True, eq=False, repr=False)
class EditCard(CardContent):
    """Whether one should use an edit, and what that rests on; made by `edit_card`.

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

    def __repr__(self) -> str:
        return "EditCard: " + "\n  ".join(self.sentences)

    def _repr_html_(self) -> str:
        return fragment(self)

    def save(self, path: str | Path) -> Path:
        """Write the card as one HTML file that loads nothing, and return it; OutputError where `path` exists."""
        place = Path(path)
        require_new_file(place)
        replace_file(place, partial(_write, text=page(self)))
        return place


def _write(place: Path, text: str) -> None:
    place.write_text(text, encoding="utf-8")
