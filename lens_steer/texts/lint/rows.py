"""Single rows that are odd: without words, far too long, in another script than most, or full of chat markers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from lens_steer.texts.lint.alphabets import script_of
from lens_steer.texts.lint.finding import Finding
from lens_steer.texts.lint.material import SIDES, Material

FEWEST_JUDGED, FEWEST = 5, 20
"""With fewer blocks a side than the first nothing can be held out; with fewer than the second, halves of ten texts
give an AUROC no better than to a quarter either way."""
_UNEQUAL = 4
_LONG, _LONGER_THAN_MOST = 5000, 10
_NOTICEABLE = 1000
_OFTEN = 0.1
_SPECIAL = re.compile(
    r"<\|[a-z0-9_ ]{2,40}\|>|\[/?INST\]|<</?SYS>>|</?s>|<(start|end)_of_turn>|<(bos|eos|pad|unk)>", re.IGNORECASE
)
_ASKED = re.compile(r"^\W*(user|human|question|q)\W*:", re.IGNORECASE | re.MULTILINE)
_ANSWERED = re.compile(r"^\W*(assistant|ai|bot|answer|a)\W*:", re.IGNORECASE | re.MULTILINE)


def check_sizes(material: Material) -> Iterator[Finding]:
    """Look at how many texts there are, and how unequal the sides."""
    fewest = min(material.independent)
    if fewest < FEWEST:
        yield Finding(
            "few texts",
            "severe" if fewest < FEWEST_JUDGED else "warning",
            fewest,
            f"{material.independent[0]} source and {material.independent[1]} target texts that are independent of each "
            "other (copies, pairs, one prompt and a group count once)",
            f"give {FEWEST} or more a side; 64 leave 32 to fit on and 32 to measure",
        )
    few, many = sorted(material.sizes)
    if many >= _UNEQUAL * few:
        yield Finding(
            "imbalance",
            "warning",
            few,
            f"{material.sizes[0]} source and {material.sizes[1]} target texts: the smaller side sets how sure anything "
            "is, and pooled means are of the larger",
            f"contrast.subsample({few}), or more texts of the {SIDES[int(material.sizes[0] > material.sizes[1])]}",
        )


def check_rows(material: Material) -> Iterator[Finding]:
    """Look for odd rows."""
    texts = material.pooled
    if empty := [row for row, text in enumerate(texts) if not any(letter.isalnum() for letter in text)]:
        yield Finding(
            "rows without words",
            "warning",
            len(empty),
            f"{len(empty)} rows have neither a letter nor a digit",
            "leave them out",
            material.places(empty),
        )
    lengths = np.array([len(text) for text in material.whole])
    usual = max(_LONGER_THAN_MOST * float(np.median(lengths)), _NOTICEABLE)
    if len(long := np.flatnonzero(lengths > min(usual, _LONG))):
        yield Finding(
            "long rows",
            "warning",
            len(long),
            f"{len(long)} rows have up to {lengths.max():,} characters, the median is {int(np.median(lengths)):,}: a "
            "maximum over tokens grows with them, and a model may not take them",
            "cut or leave them out",
            material.places(long),
        )
    yield from _scripts(material)
    marked = [row for row, text in enumerate(material.whole) if _chat_markers(text)]
    if marked:
        yield Finding(
            "chat markers",
            "warning",
            len(marked),
            f"{len(marked)} rows spell out turns of a chat or special tokens, which the tokenizer reads as plain text, "
            "or as a second beginning",
            'give conversations (lists of {"role", "content"}) or plain texts with chat=True',
            material.places(marked),
        )


def _chat_markers(text: str) -> bool:
    return bool(_SPECIAL.search(text) or (_ASKED.search(text) and _ANSWERED.search(text)))


def _scripts(material: Material) -> Iterator[Finding]:
    scripts = [script_of(text) for text in material.pooled]
    counts = Counter(script for script in scripts if script is not None)
    if len(counts) < 2:
        return
    most = max(counts, key=lambda script: (counts[script], script))
    others = [row for row, script in enumerate(scripts) if script not in (None, most)]
    counted = ", ".join(f"{count} {script}" for script, count in counts.most_common())
    yield Finding(
        "mixed scripts",
        "warning" if len(others) >= _OFTEN * len(scripts) else "note",
        len(others),
        f"rows by script: {counted}",
        "give texts of one language, or name the language in groups",
        material.places(others),
    )
