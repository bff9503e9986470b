"""Rows and names as they are given: checked, and kept as tuples."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from lens_steer.errors import ContrastError
from lens_steer.texts.blocks import Row


def _pooled(row: object) -> str | None:
    """The text of `row` that pools cover; None where `row` is neither a text nor a pair of texts."""
    parts: tuple[object, ...] = row if isinstance(row, tuple) and len(row) == 2 else (row,)
    return str(parts[-1]) if all(isinstance(part, str) for part in parts) else None


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
    """Return every side as a tuple; ContrastError for blank rows, and for anything but texts alone or pairs alone."""
    for side, rows in sides.items():
        if isinstance(rows, str | bytes | dict) or not isinstance(rows, Iterable):
            raise ContrastError(f"{side} must be a list, not one {type(rows).__name__}; write a single text as [text]")
    listed = {side: tuple(rows) for side, rows in sides.items()}
    placed = [(f"{side}[{index}]", row) for side, rows in listed.items() for index, row in enumerate(rows)]
    if foreign := [place for place, row in placed if _pooled(row) is None]:
        raise ContrastError(f"neither a text nor a (prompt, completion) pair of texts: {first_few(foreign)}")
    if blank := [place for place, row in placed if not (_pooled(row) or "").strip()]:
        raise ContrastError(f"blank rows have nothing to pool, leave them out: {first_few(blank)}")
    pairs = [place for place, row in placed if not isinstance(row, str)]
    if 0 < len(pairs) < len(placed):
        what = f"{len(pairs)} of {len(placed)} rows are (prompt, completion) pairs, the others texts"
        raise ContrastError(f"{what}; write every text as ('', text), or no pairs: {first_few(pairs)}")
    return list(listed.values())


def checked_names(names: Iterable[object], what: str, count: int | None = None) -> tuple[str, ...]:
    """Return the names as a tuple of strings, as many as `count`; else ContrastError."""
    listed: tuple[Any, ...] = tuple(names)
    if foreign := [f"{what}[{index}]" for index, name in enumerate(listed) if not isinstance(name, str)]:
        raise ContrastError(f"not a string: {first_few(foreign)}")
    if count is not None and len(listed) != count:
        raise ContrastError(f"{what} must name one group per row: {len(listed)} names for {count} rows")
    return listed
