"""In which script a text is written, by the names that Unicode gives to its letters."""

from __future__ import annotations

import unicodedata
from collections import Counter
from functools import cache

# Japanese is written in all three; names of characters begin with their script.
_TOGETHER = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "IDEOGRAPHIC": "CJK", "FULLWIDTH": "LATIN", "HALFWIDTH": "CJK"}


@cache
def _script(letter: str) -> str:
    first = unicodedata.name(letter, "UNKNOWN").split(" ", 1)[0].split("-", 1)[0]
    return _TOGETHER.get(first, first).title()


def script_of(text: str) -> str | None:
    """Return the script of most of a text's letters, such as Latin, Cyrillic or Cjk; None without letters."""
    if text.isascii():
        return "Latin" if any(letter.isalpha() for letter in text) else None
    counts = Counter(_script(letter) for letter in text if letter.isalpha())
    return max(counts, key=lambda script: (counts[script], script)) if counts else None
