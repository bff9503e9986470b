"""Distinctive words: those by which source texts are known, as a scorer that anyone can read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from lens_steer.errors import ContrastError
from lens_steer.evaluation.scorers import WordList
from lens_steer.statistics.scores import auroc
from lens_steer.statistics.significance import auroc_interval
from lens_steer.texts.blocks import pooled_text
from lens_steer.texts.contrast import ContrastSet, Row
from lens_steer.texts.scripts import word_features

_FEWEST = 3  # source texts that hold a word
_FACTOR = 5.0  # times as often in source texts as in target texts


def distinctive_words(contrast: ContrastSet, *, most: int = 20, test: float = 0.5, seed: int = 0) -> WordList:
    """Return, as a scorer, the words that stand in many source texts and in hardly any target text.

    They are taken from one part of the contrast, and judged on the other like a `ConceptClassifier`.

    Raises
    ------
    ContrastError
        There is no such word, or they were not shown to tell held-out source texts from target texts.

    """
    train, held = contrast.split(test=test, seed=seed)
    source, target = (_shares(side) for side in (train.source, train.target))
    fewest = _FEWEST / len(train.source)
    gaps = {
        word: share - target.get(word, 0.0)
        for word, share in source.items()
        if share >= fewest and share >= _FACTOR * target.get(word, 0.0)
    }
    words = sorted(gaps, key=lambda word: (-gaps[word], word))[:most]
    if not words:
        raise ContrastError(f"no word tells the sides of {contrast!r} apart: give a word list of your own")
    scorer = WordList(words, name=f"words of {contrast.name}")
    hits = [
        torch.from_numpy(scorer([pooled_text(row) for row in side]))[:, None] for side in (held.source, held.target)
    ]
    area = auroc(hits[0], hits[1])
    interval = auroc_interval(hits[0], hits[1], area, confidence=0.95)
    if float(interval.low) <= 0.5:
        raise ContrastError(
            f"the words that tell the sides of {contrast!r} apart cannot judge: on held-out texts their AUROC is "
            f"{float(area):.2f} [{float(interval.low):.2f}, {float(interval.high):.2f}], not shown to be above .5"
        )
    return scorer


def _shares(rows: Sequence[Row]) -> dict[str, float]:
    """Word -> share of the texts that hold it; pairs of words are none."""
    counts = Counter(word for row in rows for word in set(word_features(pooled_text(row))) if " " not in word)
    return {word: count / len(rows) for word, count in counts.items()}
