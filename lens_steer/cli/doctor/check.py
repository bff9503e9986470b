"""One check of the doctor: what was looked at, whether it is as it should be, and what helps where it is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "fault"]


@dataclass(frozen=True)
class Check:
    """A check by name.

    state:
        ok: as it should be. note: as it may be, and worth knowing before one wonders. fault: something here cannot
        work, and `remedy` says what to do.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""

    @property
    def line(self) -> str:
        """The check in a line."""
        return f"{self.state:<5}  {self.name}: {self.detail}{f'; {self.remedy}' if self.remedy else ''}"


def verdict(checks: list[Check]) -> str:
    """Return what the checks come to, in a sentence."""
    faults = [check.name for check in checks if check.state == "fault"]
    if faults:
        return f"{len(faults)} fault{'s' * (len(faults) != 1)}: {', '.join(faults)}"
    notes = sum(check.state == "note" for check in checks)
    return "nothing is wrong" + (f"; {notes} thing{'s' * (notes != 1)} to know" if notes else "")
