"""Do the verbs of a summary follow from the intervals that stand beside them? Random rows of changes, and the check."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import pandas as pd
from hypothesis import settings
from hypothesis import strategies as st

import lens_steer as ls

FEW = settings(max_examples=25)
"""Tables are slow to draw, and each holds many rows."""
LOWER = ("lowers", "lower the", "leaves less", "decays", "falls")
HIGHER = ("raises", "raise the", "leaves more", "grows", "goes beyond")
DOUBT = ("not shown",)
NONE = ("cannot be judged",)
_NUMBER = r"[+-]?(?:\d+(?:\.\d+)?|nan|inf)"
_INTERVAL = re.compile(rf"change {_NUMBER}(?: points)? \[({_NUMBER}), ({_NUMBER})\] at [\d.]+ %")
_CLAUSES = re.compile(r";\s|(?<=[^\d])\.\s|\.$")

hundredths = st.integers(-200, 200).map(lambda value: value / 100)
"""Written with three digits they are what they are, so that a test may read them off a sentence."""


@st.composite
def changes(draw: st.DrawFn) -> dict[str, float]:
    """Draw the columns before, after, change, low, high and confidence of a row; sometimes nothing is known."""
    before, after = draw(hundredths), draw(hundredths)
    low, high = sorted((draw(hundredths), draw(hundredths)))
    match draw(st.sampled_from(["known", "known", "known", "no interval", "no value"])):
        case "no interval":
            low = high = math.nan
        case "no value":
            after = low = high = math.nan
    return {"before": before, "after": after, "change": after - before, "low": low, "high": high, "confidence": 0.95}


def expected(row: Any) -> ls.Verdict:
    """Return the verdict of a row by comparing numbers, not by the code under test."""
    if any(math.isnan(row[column]) for column in ("before", "after", "low", "high")):
        return ls.Verdict.CANNOT_JUDGE
    if row["high"] < 0:
        return ls.Verdict.LOWER
    return ls.Verdict.HIGHER if row["low"] > 0 else ls.Verdict.NOT_SHOWN


def check_verbs(summary: Iterable[str]) -> int:
    """Check every clause that shows an interval, or says that there is none, and return how many there were.

    The verb is that of the interval; a clause of no interval says that nothing can be judged; "does not" is no finding.
    """
    count = 0
    for sentence in summary:
        assert not re.search(r"\b(does|do|did) not\b|\bno (effect|difference)\b", sentence), sentence
        for clause in _CLAUSES.split(sentence):
            interval = _INTERVAL.search(clause)
            if interval is not None:
                low, high = map(float, interval.groups())
                wanted = LOWER if high < 0 else HIGHER if low > 0 else DOUBT
                count += 1
            elif "no interval" in clause:
                wanted = NONE
                count += 1
            else:
                continue
            present = {kind for kind in (LOWER, HIGHER, DOUBT, NONE) for word in kind if word in clause}
            assert present == {wanted}, (clause, sentence)
    return count


def check_doses(text: str, rows: pd.DataFrame, name: str) -> None:
    """Check a list such as `lower: k = 4 and k = 16; not shown: k = 64` against the rows that it tells of."""
    for row in rows.to_dict("records"):
        name_of_row = re.compile(rf"{name} = {row[name]}\b(?!.*:)")
        said = [part.rpartition(": ") for part in text.rstrip(".").split("; ")[1:]]
        (verdict,) = [before for before, _, names in said if name_of_row.search(names)]
        assert verdict.rpartition(": ")[2] == expected(row), (row, text)
