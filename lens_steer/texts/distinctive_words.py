"""Distinctive words: those that stand in many source texts and in hardly any target text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lens_steer.errors import ContrastError
from lens_steer.settings import require_settings
from lens_steer.texts.blocks import pooled_text
from lens_steer.texts.contrast import Row
from lens_steer.texts.scripts import word_features

_FEWEST = 3  # source texts that hold a word
_FACTOR = 5.0  # times as often in source texts as in target texts


def distinctive_words(source: Sequence[Row], target: Sequence[Row]) -> tuple[str, ...]:
    """Return the words of at least 3 source texts, and 5 times the share of target texts, the widest gap first.

    Words are in lower case, and of two characters or more; in scripts without spaces they are n-grams of characters.
    """
    require_settings(distinctive_words, locals())
    if not len(source) or not len(target):
        raise ContrastError("distinctive words are of one side against the other: both need texts")
    of_source, of_target = (_shares(side) for side in (source, target))
    fewest = _FEWEST / len(source)
    gaps = {
        word: share - of_target.get(word, 0.0)
        for word, share in of_source.items()
        if share >= fewest and share >= _FACTOR * of_target.get(word, 0.0)
    }
    return tuple(sorted(gaps, key=lambda word: (-gaps[word], word)))


def _shares(rows: Sequence[Row]) -> dict[str, float]:
    """Word -> share of the texts that hold it; pairs of words are none."""
    counts = Counter(word for row in rows for word in set(word_features(pooled_text(row))) if " " not in word)
    return {word: count / len(rows) for word, count in counts.items()}
