"""Texts made from a template: rows that share a frame and differ in one or two words.

They are no independent texts: a unit that knows the frame, or one filling, looks like an expert on held-out rows that
share it. `groups` keeps them together.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations

import numpy as np
from jaxtyping import Int, UInt64

from lens_steer.texts.lint.finding import Finding
from lens_steer.texts.lint.material import Material

FEWEST = 4
"""So many different texts make a frame."""
_SHORTEST, _LONGEST = 4, 100  # words of a text with one open slot
_SHORTEST_OF_TWO, _LONGEST_OF_TWO = 6, 30
_OFTEN = 0.1
_MIX = np.uint64(0x9E3779B97F4A7C15)


def check_frames(material: Material) -> Iterator[Finding]:
    """Look for frames that are shared by several rows of different blocks."""
    members = shared_frames(material)
    rows = sorted({row for frame in members.values() for row in frame})
    if not rows:
        return
    largest = max(members, key=lambda frame: (len(members[frame]), frame))
    yield Finding(
        "templates",
        "warning" if len(rows) >= _OFTEN * len(material.rows) else "note",
        len(rows),
        f"{len(rows)} rows share a frame with others and differ in one or two words: "
        f"{len(members)} frame{'s' * (len(members) != 1)}, the largest of {len(members[largest])} rows, {largest!r}",
        "name the rows of a frame alike in groups, so that a split keeps them together",
        material.places(members[largest]),
    )


def shared_frames(material: Material) -> dict[str, list[int]]:
    """Return frames, slots written as _, with their rows: at least `FEWEST` different texts of two blocks or more.

    Every row is in one frame, its largest.
    """
    rows_of: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for row, text in enumerate(material.whole):
        rows_of[tuple(re.findall(r"\w+", text.lower()))].append(row)
    by_length: dict[int, list[tuple[str, ...]]] = defaultdict(list)
    for words in rows_of:
        by_length[len(words)].append(words)
    frames: dict[str, list[int]] = {}
    for length, texts in by_length.items():
        if len(texts) < FEWEST or not _SHORTEST <= length <= _LONGEST:
            continue
        for frame, members in _frames_of(texts).items():
            rows = sorted(row for member in members for row in rows_of[texts[member]])
            if len({int(material.blocks[row]) for row in rows}) > 1:
                frames[frame] = rows
    return frames


def _frames_of(texts: list[tuple[str, ...]]) -> dict[str, list[int]]:
    """The frames of texts of one length, and which of the texts are in each, the largest frames first."""
    length = len(texts[0])
    slots: list[tuple[int, ...]] = [(slot,) for slot in range(length)]
    if _SHORTEST_OF_TWO <= length <= _LONGEST_OF_TWO:
        slots += combinations(range(length), 2)
    keys = _keys(texts, slots)
    _, inverse, counts = np.unique(keys.ravel(), return_inverse=True, return_counts=True)
    sizes = counts[inverse].reshape(keys.shape)
    # Fewer slots first among frames of one size: argmax takes the first.
    best, rows = sizes.argmax(1), np.arange(len(texts))
    frames: dict[str, list[int]] = {}
    for row in rows[np.argsort(-sizes[rows, best], kind="stable")]:
        if sizes[row, best[row]] >= FEWEST:
            words = texts[row]
            frame = " ".join("_" if place in slots[best[row]] else word for place, word in enumerate(words))
            frames.setdefault(frame, []).append(int(row))
    return frames


def _keys(texts: list[tuple[str, ...]], slots: list[tuple[int, ...]]) -> UInt64[np.ndarray, "text slot"]:
    """A hash of every text without the words of its slots; equal, but for accidents of 64 bits, for equal frames."""
    number: dict[str, int] = {}
    ids: Int[np.ndarray, "text word"] = np.array(
        [[number.setdefault(word, len(number)) for word in words] for words in texts]
    )
    rng = np.random.default_rng(0)
    of_word = rng.integers(2**63, size=len(number), dtype=np.uint64)
    of_place = rng.integers(2**62, size=(2, ids.shape[1]), dtype=np.uint64)
    # Sums of products that wrap around: taking a word out again is a subtraction.
    parts = of_word[ids] * (of_place[0] * np.uint64(2) + np.uint64(1))
    parts ^= parts >> np.uint64(29)
    parts *= _MIX
    total = parts.sum(1, dtype=np.uint64)
    keys = np.empty((len(texts), len(slots)), dtype=np.uint64)
    for column, taken in enumerate(slots):
        keys[:, column] = total
        for slot in taken:
            keys[:, column] += of_place[1, slot] - parts[:, slot]
    return keys
