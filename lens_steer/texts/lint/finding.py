"""What a check found: one finding, and the result that holds all of them with a verdict in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, get_args

from lens_steer.display.shown_result import shown_result

if TYPE_CHECKING:
    import pandas as pd

Severity = Literal["severe", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One fault of a contrast: its name, such as "length" or "near copies across sides", and what was seen.

    Severe: what is measured on these texts says nothing, or too much. Warning: it may be about something else. Note:
    worth knowing. `count` is of rows (for "giveaways" of words and marks, for "imbalance" and "few texts" of rows and
    blocks of the smaller side). `examples` are places of rows that show it, such as "source[3]", never the rows
    themselves. `detail` has the numbers, `remedy` says what to do.
    """

    finding: str
    severity: Severity
    count: int
    detail: str
    remedy: str
    examples: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The finding in a line."""
        where = f" ({', '.join(self.examples)})" if self.examples else ""
        return f"{self.severity}: {self.finding}: {self.detail}{where}; {self.remedy}"


@dataclass(frozen=True)
class ContrastLint:
    """What `ContrastSet.lint` found, worst first; empty where nothing stands out.

    sizes, independent:
        Rows and blocks of the source and of the target side: rows of one block count once.
    judged:
        Whether there are enough blocks to judge whether length or words give the sides away.
    """

    name: str
    sizes: tuple[int, int]
    independent: tuple[int, int]
    findings: tuple[Finding, ...]
    judged: bool

    @property
    def ok(self) -> bool:
        """Whether nothing is severe or a warning; notes do not count."""
        return all(finding.severity == "note" for finding in self.findings)

    @property
    def severe(self) -> bool:
        """Whether something is severe."""
        return any(finding.severity == "severe" for finding in self.findings)

    @property
    def frame(self) -> pd.DataFrame:
        """One row per finding, worst first: finding, severity, count, examples (places of rows), detail, remedy."""
        import pandas as pd

        columns = ["finding", "severity", "count", "examples", "detail", "remedy"]
        return pd.DataFrame([asdict(finding) for finding in self.findings], columns=columns)

    @property
    def verdict(self) -> str:
        """What was found, in a sentence; a contrast that cannot be judged is not called fine."""
        source, target = self.sizes
        what = f"{self.name}: {source} source and {target} target texts"
        if self.independent != self.sizes:
            what += f" ({self.independent[0]} and {self.independent[1]} independent ones)"
        counts = Counter(finding.severity for finding in self.findings)
        counted = [f"{counts[kind]} {kind}" for kind in get_args(Severity) if counts[kind]]
        names = ", ".join(finding.finding for finding in self.findings)
        summary = f"{' and '.join(counted)} ({names})" if counted else "nothing stands out"
        doubt = "" if self.judged else "; whether length or words give the sides away cannot be judged from so few"
        return f"{what}: {summary}{doubt}"

    @property
    def sentences(self) -> list[str]:
        """The verdict, then every severe finding and warning in a line of its own."""
        return [self.verdict, *(one.sentence for one in self.findings if one.severity != "note")]

    def __repr__(self) -> str:
        return f"ContrastLint({self.verdict})"

    def _repr_html_(self) -> str:
        columns = ["severity", "finding", "count", "detail", "examples", "remedy"]
        return shown_result(self.verdict, table=self.frame[columns])
