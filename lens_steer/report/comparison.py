"""All evaluations of a report side by side: one row per edit, one column per measure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lens_steer.report.run_folder import RunFolder
from lens_steer.statistics.verdict import Change, NumberStyle

if TYPE_CHECKING:
    import pandas as pd

_NEEDED = {"measure", "before", "after", "low", "high"}
_NO_LABELS = {"measure", "unit", "verdict"}
_MOST_EDITS = 24  # of one table: a sweep over hundreds is compared by its own study


@dataclass(frozen=True)
class ComparedChange:
    """A measure under one edit, in words: both values, the difference with its interval, and the verdict."""

    values: str
    change: str
    verdict: str


@dataclass(frozen=True)
class ComparedEdit:
    """A row: the run's number, the edit, and its change of every measure, None where it was not measured."""

    run: int
    edit: str
    changes: tuple[ComparedChange | None, ...]


@dataclass(frozen=True)
class Comparison:
    """What all edits of a report do; `measures` are (name, unit)."""

    measures: tuple[tuple[str, str], ...]
    edits: tuple[ComparedEdit, ...]


def comparison(runs: Sequence[RunFolder]) -> Comparison | None:
    """Return the table, or None where there are not two edits to compare.

    It is made of every frame that has the columns measure, before, after, low and high, and holds one row per measure
    and edit; whatever other texts a row has name the edit. Values of a `unit` that is a share are told in per cent,
    their changes in percentage points.
    """
    cells: dict[tuple[int, str, tuple[str, str]], ComparedChange] = {}
    for number, run in enumerate(runs, start=1):
        for frame in run.study.frames.values():
            if set(frame.columns) >= _NEEDED:
                cells |= {(number, edit, measure): shown for edit, measure, shown in _changes(run, frame)}
    edits = list(dict.fromkeys((number, edit) for number, edit, _ in cells))
    measures = tuple(dict.fromkeys(measure for _, _, measure in cells))
    if len(edits) < 2:
        return None
    rows = (ComparedEdit(*edit, tuple(cells.get((*edit, measure)) for measure in measures)) for edit in edits)
    return Comparison(measures, tuple(rows))


def _changes(run: RunFolder, frame: pd.DataFrame) -> Iterator[tuple[str, tuple[str, str], ComparedChange]]:
    """Yield edit, measure with its unit, and change, row by row; nothing where the frame compares something else."""
    labels = [name for name in frame.columns if name not in _NO_LABELS and _is_text(frame[name])]
    varying = [name for name in labels if frame[name].nunique() > 1]
    names = frame[varying].astype(str).agg(", ".join, axis=1) if varying else None
    own = ", ".join(run.study.interventions) or run.path.name
    edits = [own] * len(frame) if names is None else names.tolist()
    keys = list(zip(edits, frame["measure"], strict=True))
    if len(set(keys)) < len(keys) or len(set(edits)) > _MOST_EDITS:
        return
    for edit, row in zip(edits, frame.to_dict("records"), strict=True):
        unit = str(row.get("unit", ""))
        style: NumberStyle = "share" if unit.startswith("share") else "number"
        change = Change.of(row)
        yield (
            edit,
            (str(row["measure"]), unit),
            ComparedChange(_minus(change.ends(style)), _minus(change.text(style)), change.verdict),
        )


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _is_text(values: pd.Series[Any]) -> bool:
    return bool(values.map(lambda value: isinstance(value, str)).all())
