"""Sentences about many changes: which are lower, higher, not shown, or cannot be judged, and never more than that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import lens_steer as ls

PLURAL: dict[str, Any] = {"verbs": ("lower", "raise"), "doubt": "were not shown to change"}
"""Of `Change.sentence`, for a subject such as "dense edits"."""
_ORDER = (ls.Verdict.LOWER, ls.Verdict.HIGHER, ls.Verdict.NOT_SHOWN, ls.Verdict.CANNOT_JUDGE)


def by_verdict(verdicts: Mapping[str, ls.Verdict], words: Mapping[ls.Verdict, str] | None = None) -> str:
    """Return what was found under which name: `lower at k = 4 and k = 16; not shown at k = 64`.

    `words` say a verdict in other words, such as "arrives beyond".
    """
    groups = {verdict: [name for name, of_name in verdicts.items() if of_name is verdict] for verdict in _ORDER}
    words = words or {}
    return "; ".join(f"{words.get(verdict, verdict)}: {listed(names)}" for verdict, names in groups.items() if names)


def listed(names: Iterable[str]) -> str:
    """Join names: `a, b and c`."""
    *first, last = list(names) or ["none"]
    return f"{', '.join(first)} and {last}" if first else last


def sentence(*clauses: str) -> str:
    """Join clauses to one sentence that begins with a capital and ends with a full stop."""
    text = "; ".join(clause for clause in clauses if clause)
    return f"{text[:1].upper()}{text[1:]}."


def interval(row: Any, value: str = "value", *, digits: int = 2) -> str:
    """Write a value and its interval; "cannot be judged" where there is none, such as of a score that never varies."""
    if not math.isfinite(row[value]):
        return ls.Verdict.CANNOT_JUDGE.value
    return f"{row[value]:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"
