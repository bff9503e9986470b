"""Pairs of prompts of the tiny models' words, equally long; and of the embedded language's sentences of giving."""

from __future__ import annotations

from typing import Any

import lens_steer as ls

CLEAN = ["the dog ran home", "the sad cat sat in the park", "a big dog ran home", "the boy saw the dog"]
CORRUPTED = ["the cat ran home", "the big cat sat in the park", "a big boy ran home", "the boy saw the cat"]
METRIC = ls.LogitDifference("dog", "cat")
NAMES = ("ann", "mary", "bob", "tom", "jack", "lucy", "peter", "emma")


def attribute(
    model: Any, clean: Any = None, corrupted: Any = None, metric: Any = METRIC, **settings: Any
) -> ls.Attribution:
    """Attribute over the pairs above, quietly."""
    settings = {"progress": False, **settings}
    return ls.attribute(model, clean or CLEAN, corrupted or CORRUPTED, metric, **settings)


def giving(pairs: int = 12) -> tuple[list[str], list[str], ls.LogitDifference]:
    """Return prompts of the embedded language whose last word is the other name, and the same with another giver."""
    clean, corrupted, right, wrong = [], [], [], []
    for number in range(pairs):
        one, other = NAMES[number % 8], NAMES[(number + 1 + number // 8) % 8]
        start = f"when {one} and {other} went to the park ,"
        giver, taker = (one, other) if number % 2 else (other, one)
        clean.append(f"{start} {giver} gave the book to")
        corrupted.append(f"{start} {taker} gave the book to")
        right.append(taker)
        wrong.append(giver)
    return clean, corrupted, ls.LogitDifference(right, wrong)
