"""Verdicts: what an interval lets one say of a change, and the sentence that says no more than that."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from lens_steer.errors import SettingError

NumberStyle = Literal["number", "share"]
"""How values are written: as they are, or (shares of 1) in per cent, their changes in percentage points."""


class Verdict(StrEnum):
    """What an interval says of a quantity beside a reference.

    LOWER, HIGHER: the whole interval lies on that side. NOT_SHOWN: it holds the reference, so neither a difference nor
    its absence was shown. CANNOT_JUDGE: there is no interval (nan), so nothing was measured.
    """

    LOWER = "lower"
    HIGHER = "higher"
    NOT_SHOWN = "not shown"
    CANNOT_JUDGE = "cannot be judged"


def verdict_of(low: float, high: float, *, reference: float = 0.0) -> Verdict:
    """Return what the interval from `low` to `high` says beside `reference`; an end that is the reference holds it.

    Raises
    ------
    SettingError
        The ends are in the wrong order.

    """
    if math.isnan(low) or math.isnan(high) or math.isnan(reference):
        return Verdict.CANNOT_JUDGE
    if low > high:
        raise SettingError(f"an interval runs from its low end to its high end, not from {low} to {high}")
    if high < reference:
        return Verdict.LOWER
    return Verdict.HIGHER if low > reference else Verdict.NOT_SHOWN


@dataclass(frozen=True)
class Change:
    """A value before and after (or of a reference and of what stands beside it), and the interval of the difference.

    `low` and `high` bound after - before at `confidence`; nan where there is no interval.
    """

    before: float
    after: float
    low: float
    high: float
    confidence: float = 0.95

    @classmethod
    def of(cls, row: Any, *, confidence: float = 0.95) -> Change:
        """Return the change that a row of a table holds in its columns before, after, low and high."""
        before, after, low, high = (float(row[column]) for column in ("before", "after", "low", "high"))
        return cls(before, after, low, high, confidence)

    @property
    def difference(self) -> float:
        """After less before."""
        return self.after - self.before

    @property
    def verdict(self) -> Verdict:
        """What the interval says; without a finite difference there is nothing to judge."""
        if not math.isfinite(self.difference):
            return Verdict.CANNOT_JUDGE
        return verdict_of(self.low, self.high)

    def text(self, style: NumberStyle = "number") -> str:
        """Return the difference and its interval, such as `-0.245 [-0.276, -0.214]`."""
        difference, low, high = (_number(value, style, sign=True) for value in (self.difference, self.low, self.high))
        return f"{difference}{' points' if style == 'share' else ''} [{low}, {high}]"

    def ends(self, style: NumberStyle = "number") -> str:
        """Return both values, such as `0.460 to 0.415`."""
        return f"{_number(self.before, style)} to {_number(self.after, style)}"

    def sentence(
        self,
        subject: str,
        measure: str,
        *,
        style: NumberStyle = "number",
        verbs: tuple[str, str] = ("lowers", "raises"),
        doubt: str = "was not shown to change",
    ) -> str:
        """Return a clause, without a full stop, whose verb follows from the verdict.

        `subject` is what acts ("ablating 64 experts"), `measure` what is measured ("the share of rude texts"). `verbs`
        are said where the interval lies below or above 0, `doubt` where it holds 0.
        """
        values = self.ends(style)
        interval = f"change {self.text(style)} at {_percent(self.confidence)}"
        match self.verdict:
            case Verdict.LOWER | Verdict.HIGHER:
                verb = verbs[self.verdict is Verdict.HIGHER]
                return f"{subject} {verb} {measure} from {values} ({interval})"
            case Verdict.NOT_SHOWN:
                return f"{subject} {doubt} {measure} ({values}, {interval})"
            case _:
                return f"{subject}: whether {measure} changes cannot be judged ({values}, no interval)"

    def comparison(
        self,
        subject: str,
        other: str,
        measure: str,
        *,
        style: NumberStyle = "number",
        words: tuple[str, str] = ("lower", "higher"),
    ) -> str:
        """Return a clause, without a full stop, on what one of two things has beside the other.

        `before` holds the value of `other`, `after` that of `subject`. `words` are said where the interval of the
        difference lies below or above 0; where it holds 0, the two were not shown to differ.
        """
        values = f"{_number(self.after, style)} against {_number(self.before, style)}"
        interval = f"difference {self.text(style)} at {_percent(self.confidence)}"
        match self.verdict:
            case Verdict.LOWER | Verdict.HIGHER:
                word = words[self.verdict is Verdict.HIGHER]
                return f"{subject}: {word} {measure} than {other} ({values}, {interval})"
            case Verdict.NOT_SHOWN:
                return f"{subject} was not shown to differ from {other} in {measure} ({values}, {interval})"
            case _:
                return f"{subject}: whether {measure} differs from {other} cannot be judged ({values}, no interval)"


def _number(value: float, style: NumberStyle, *, sign: bool = False) -> str:
    if math.isnan(value):
        return "nan"
    scaled = 100 * value if style == "share" else value
    size = abs(scaled)
    digits = 1 if style == "share" else 3 if size < 10 else 2 if size < 100 else 1
    written = f"{scaled:{'+' if sign else ''}.{digits}f}"
    return written if sign or style == "number" else f"{written} %"


def _percent(confidence: float) -> str:
    return f"{100 * confidence:.4g} %"
