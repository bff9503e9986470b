"""Contrasts and test sizes for studies on the tiny random model."""

from __future__ import annotations

from typing import Any

import lens_steer as ls
from tests.families import sentences

LENGTHS = (4, 10)


def contrast(word: str, other: str, *, n: int = 16, seed: int = 0) -> ls.ContrastSet:
    """Texts that hold a word against texts that hold another."""
    source = sentences(n, seed=seed, must=word, length=LENGTHS)
    target = sentences(n, seed=seed + 100, must=other, length=LENGTHS)
    return ls.ContrastSet(
        [text for text in source if other not in text.split()],
        [text for text in target if word not in text.split()],
        name=word,
    )


GENERATION: dict[str, Any] = {
    "scorer": ls.WordList(["sad", "cried", "dog"], name="sad words"),
    "prompt_words": 2,
    "most_prompts": 6,
    "most_neutral": 6,
    "samples": 2,
    "max_new_tokens": 5,
}
