"""Rows and names as they are given: checked, and kept as tuples."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Int8

from lens_steer.errors import ContrastError, SettingError
from lens_steer.texts.blocks import Row, pooled_text
from lens_steer.texts.messages import ConversationRow


def _row(given: object, place: str) -> Row | None:
    """A text, a pair or a conversation as it is kept; None for anything else, ContrastError for a bad conversation."""
    if isinstance(given, str):
        return given
    if isinstance(given, tuple) and len(given) == 2 and all(isinstance(part, str) for part in given):
        return given
    try:
        return ConversationRow.of(given)
    except SettingError as error:
        raise ContrastError(f"{place}: {error}") from None


def kind_of(row: Row) -> str:
    """What a row is, in the plural."""
    if isinstance(row, ConversationRow):
        return "conversations that end with an answer" if row.answered else "conversations that end with a question"
    return "texts" if isinstance(row, str) else "(prompt, completion) pairs"


def numbered_copies(rows: Sequence[Row]) -> list[tuple[Row, int]]:
    """Every row with the number of its like before it."""
    before: Counter[Row] = Counter()
    copies = []
    for row in rows:
        copies.append((row, before[row]))
        before[row] += 1
    return copies


def first_few(places: Sequence[object]) -> str:
    """The first five of `places`, and how many there are in all."""
    shown = ", ".join(map(str, places[:5]))
    return shown if len(places) <= 5 else f"{shown}, ... ({len(places)} in all)"


def checked_rows(**sides: Any) -> list[tuple[Row, ...]]:
    """Return every side as a tuple; ContrastError for blank rows, for what is no row, and for rows of several kinds."""
    for side, rows in sides.items():
        if isinstance(rows, str | bytes | dict) or not isinstance(rows, Iterable):
            raise ContrastError(f"{side} must be a list, not one {type(rows).__name__}; write a single text as [text]")
    listed = {
        side: [(place := f"{side}[{index}]", _row(row, place)) for index, row in enumerate(rows)]
        for side, rows in sides.items()
    }
    placed = [one for rows in listed.values() for one in rows]
    if foreign := [place for place, row in placed if row is None]:
        raise ContrastError(
            "neither a text nor a (prompt, completion) pair of texts, nor a conversation (a list of messages): "
            f"{first_few(foreign)}"
        )
    known = [(place, row) for place, row in placed if row is not None]
    if blank := [place for place, row in known if not pooled_text(row).strip()]:
        raise ContrastError(f"blank rows have nothing to pool, leave them out: {first_few(blank)}")
    _require_onekind_of(known)
    return [tuple(row for _, row in rows if row is not None) for rows in listed.values()]


def _require_onekind_of(placed: Sequence[tuple[str, Row]]) -> None:
    counts = Counter(kind_of(row) for _, row in placed)
    if len(counts) > 1:
        fewest = min(counts, key=lambda kind: (counts[kind], kind == "texts"))
        others = " and ".join(kind for kind in counts if kind != fewest)
        remedy = "; write every text as ('', text), or no pairs" if len(counts) == 2 and "texts" in counts else ""
        places = [place for place, row in placed if kind_of(row) == fewest]
        raise ContrastError(
            f"{counts[fewest]} of {len(placed)} rows are {fewest}, the others {others}{remedy}: {first_few(places)}"
        )


def checked_names(names: Iterable[object], what: str, count: int | None = None) -> tuple[str, ...]:
    """Return the names as a tuple of strings, as many as `count`; else ContrastError."""
    listed: tuple[Any, ...] = tuple(names)
    if foreign := [f"{what}[{index}]" for index, name in enumerate(listed) if not isinstance(name, str)]:
        raise ContrastError(f"not a string: {first_few(foreign)}")
    if count is not None and len(listed) != count:
        raise ContrastError(f"{what} must name one group per row: {len(listed)} names for {count} rows")
    return listed


def checked_labels(values: object, shape: tuple[int, int]) -> Int8[np.ndarray, "text concept"]:
    """Return labels as a read-only int8 copy; a flat list does for one concept. ContrastError for others."""
    given = np.array(values, dtype=object)
    given = given[:, None] if given.ndim == 1 and shape[1] == 1 else given
    if given.shape != shape:
        raise ContrastError(f"labels must be texts x concepts, {shape}, not {given.shape}")
    if wrong := [f"labels[{row}]" for row in np.flatnonzero(~np.isin(given, (-1, 0, 1)).all(axis=1))]:
        raise ContrastError(f"labels must be 1 (source), 0 (target) or -1 (takes no part): {first_few(wrong)}")
    labels = given.astype(np.int8)
    labels.setflags(write=False)
    return labels


def checked_pairs(values: object, shape: tuple[int, int]) -> Int[np.ndarray, "text concept"]:
    """Return pair numbers as a read-only copy; ContrastError for another shape."""
    try:
        pairs = np.array(values, dtype=np.int64)
    except (TypeError, ValueError) as error:
        raise ContrastError(f"pairs must be texts x concepts, {shape}, of whole numbers: {error}") from None
    if pairs.shape != shape:
        raise ContrastError(f"pairs must be texts x concepts, {shape}, not {pairs.shape}")
    pairs.setflags(write=False)
    return pairs
