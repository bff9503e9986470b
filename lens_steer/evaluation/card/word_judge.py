"""Distinctive words as a judge: a scorer that anyone can read."""

from __future__ import annotations

import torch

from lens_steer.errors import ContrastError
from lens_steer.evaluation.scorers import WordList
from lens_steer.statistics.scores import auroc
from lens_steer.statistics.significance import auroc_interval
from lens_steer.texts.blocks import pooled_text
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.distinctive_words import distinctive_words


def word_judge(contrast: ContrastSet, *, most: int = 20, test: float = 0.5, seed: int = 0) -> WordList:
    """Return, as a scorer, the words that stand in many source texts and in hardly any target text.

    They are taken from one part of the contrast, and judged on the other like a `ConceptClassifier`.

    Raises
    ------
    ContrastError
        There is no such word, or they were not shown to tell held-out source texts from target texts.

    """
    train, held = contrast.split(test=test, seed=seed)
    words = distinctive_words(train.source, train.target)[:most]
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
