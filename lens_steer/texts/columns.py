"""Columns of a table: which hold texts, labels, scores and groups, and the contrast that they make."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from lens_steer.errors import ContrastError, SettingError
from lens_steer.texts.contrast import ChatFormat, ContrastSet, Row, first_few
from lens_steer.texts.messages import ConversationRow

if TYPE_CHECKING:
    import pandas as pd

Labels = str | bool | int | float | Sequence[str | bool | int | float] | None
Threshold = int | float | tuple[int | float, int | float] | None

WHOLE_NUMBER = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0+)?")
TAKE_OUT = "take these rows out"


@dataclass(frozen=True)
class Columns:
    """Where a table holds what, as `read_contrast` describes; the defaults are those of a text and a label per row."""

    text: str | tuple[str, str] = "text"
    label: str = "label"
    source: Labels = None
    target: Labels = None
    threshold: Threshold = None
    prompt: str | None = None
    source_text: str | None = None
    target_text: str | None = None
    groups: str | None = None

    @property
    def given(self) -> list[str]:
        """The names of the settings that are not at their defaults."""
        return [field.name for field in fields(self) if getattr(self, field.name) != field.default]

    def refuse(self, what: str) -> None:
        """Raise where something was chosen for a source of texts that has no columns or labels."""
        if self.given:
            named = ", ".join(f"{name}=" for name in self.given)
            hint = (
                "; for the other direction call .swap() on the result" if {"source", "target"} & {*self.given} else ""
            )
            raise ContrastError(f"{what} has no columns and labels: {named} does not apply{hint}")

    @property
    def both_sides(self) -> bool:
        """Whether a row holds both sides; raises where the settings contradict one another."""
        if self.source_text is None and self.target_text is None:
            self._check_one_side()
            return False
        if self.source_text is None or self.target_text is None:
            raise ContrastError("give source_text= and target_text=, the columns of the two sides, not one of them")
        if self.source_text == self.target_text:
            raise ContrastError(f"source_text and target_text are one column, {self.source_text!r}")
        if other := {"text", "label", "source", "target", "threshold"} & {*self.given}:
            named = ", ".join(f"{name}=" for name in sorted(other))
            raise ContrastError(f"a row that holds both sides has no label: {named} does not go with source_text=")
        return True

    def _check_one_side(self) -> None:
        if self.threshold is not None and not (self.source is None and self.target is None):
            raise ContrastError("threshold= says which scores are the source: leave source= and target= out")
        if self.prompt is not None and not isinstance(self.text, str):
            raise ContrastError("text= holds a column of prompts already: leave prompt= out, or give one column")

    def needed(self, present: Sequence[str], where: str) -> list[str]:
        """Return the columns of the table to read, in which nested ones lie; raises where one is absent."""
        if self.both_sides:
            named = [self.prompt, self.source_text, self.target_text, self.groups]
        else:
            named = [self.prompt, *([self.text] if isinstance(self.text, str) else self.text), self.label, self.groups]
        return homes_of(named, present, where)


def homes_of(columns: Iterable[str | None], present: Sequence[str], where: str) -> list[str]:
    """Return the columns of a table in which the named ones lie; raises where one is absent."""
    wanted = dict.fromkeys(column for column in columns if column is not None)
    homes = {column: home_of(column, present) for column in wanted}
    if absent := [column for column, home in homes.items() if home is None]:
        hint = "; of rows that hold both sides give source_text= and target_text=" if absent == ["label"] else ""
        raise ContrastError(f"{where} has no column {quoted(absent)}; its columns are {quoted(present)}{hint}")
    return list(dict.fromkeys(home for home in homes.values() if home is not None))


def contrast_of_table(
    frame: pd.DataFrame, columns: Columns, where: str, name: str, *, paired: bool | None, chat: ChatFormat
) -> ContrastSet:
    """Make the contrast of a table, whose index counts its rows as the file does."""
    frame = frame.rename(columns=str)
    columns.needed(list(frame.columns), where)
    if frame.empty:
        raise ContrastError(f"{where} has a header and no row")
    if columns.both_sides:
        return _paired_contrast(frame, columns, where, name, paired=paired is not False, chat=chat)
    if paired:
        raise ContrastError(f"{where} has a label per row, and no row that holds both sides: nothing pairs its texts")
    return _labelled_contrast(frame, columns, where, name, chat)


def _paired_contrast(
    frame: pd.DataFrame, columns: Columns, where: str, name: str, *, paired: bool, chat: ChatFormat
) -> ContrastSet:
    """Both sides in a row."""
    sides = [rows_of(frame, (columns.prompt, side), where) for side in (columns.source_text, columns.target_text)]
    groups = None if columns.groups is None else group_names(frame, columns.groups)
    return ContrastSet(*sides, paired=paired, name=name, source_groups=groups, target_groups=groups, chat=chat)


def _labelled_contrast(frame: pd.DataFrame, columns: Columns, where: str, name: str, chat: ChatFormat) -> ContrastSet:
    """A text and its label, or score, per row."""
    sides = _scored_sides(frame, columns, where) if columns.threshold is not None else _sides(frame, columns, where)
    named = (columns.prompt, columns.text) if isinstance(columns.text, str) else columns.text
    rows_of(frame[[in_source or in_target for in_source, in_target in zip(*sides)]], named, where)  # names all bad rows
    parts = [frame[side] for side in sides]
    groups: list[list[str] | None] = [None, None]
    if columns.groups is not None:
        groups = [group_names(part, columns.groups) for part in parts]
    texts = [rows_of(part, named, where) for part in parts]
    return ContrastSet(*texts, name=name, source_groups=groups[0], target_groups=groups[1], chat=chat)


def rows_of(frame: pd.DataFrame, named: tuple[str | None, str | None], where: str) -> list[Row]:
    """Return the texts or (prompt, completion) pairs of some rows; a prompt may be blank, a text or completion not."""
    columns = [column for column in named if column is not None]
    cells = [cells_of(frame, column) for column in columns]
    for place, (column, values) in enumerate(zip(columns, cells)):
        rows = frame.index.tolist()
        refuse_blank(values, f"{where}, {column!r} in row", rows, prompt=place < len(columns) - 1, column=column)
    rows = [_row(*values) for values in zip(*cells)]
    if mixed := [row for row, given in zip(frame.index.tolist(), rows) if given is None]:
        raise ContrastError(
            f"{where}, {' and '.join(map(repr, columns))} in row {first_few(mixed)}: a text beside a list of messages; "
            "write both as texts or both as messages"
        )
    return [row for row in rows if row is not None]


def _row(*cells: Any) -> Row | None:
    """The row of a cell, or of a prompt and a completion, which may be messages too; None where one is and one not."""
    conversations = [ConversationRow.of(as_messages(cell)) for cell in cells]
    if all(one is None for one in conversations):
        return cells[0] if len(cells) == 1 else tuple(cells)
    known = [one for one in conversations if one is not None]
    return ConversationRow(message for one in known for message in one) if len(known) == len(cells) else None


def as_messages(cell: Any) -> Any:
    """Return a cell that holds an array, as tables of arrow do, as a list; any other as it is."""
    return cell.tolist() if hasattr(cell, "tolist") and cell.ndim else cell


def home_of(column: str, present: Iterable[str]) -> str | None:
    """Return the column of the table in which a column lies: itself, or the one that a dotted name begins with."""
    names = set(present)
    parts = column.split(".")
    heads = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((head for head in heads if head in names), None)


def cells_of(frame: pd.DataFrame, column: str) -> list[Any]:
    """Return the values of a column, of records those under a dotted name; None where one is missing."""
    home = home_of(column, frame.columns)
    if home is None:
        raise ContrastError(f"there is no column {column!r}; there is {quoted(map(str, frame.columns))}")
    cells = [None if missing else value for value, missing in zip(frame[home].tolist(), _missing(frame[home]))]
    for key in column.removeprefix(home).split(".")[1:]:
        cells = [_inside(cell, key) for cell in cells]
    return cells


def _missing(cells: pd.Series[Any]) -> list[bool]:
    return [bool(missing) for missing in cells.isna()]


def _inside(cell: Any, key: str) -> Any:
    """The value of a record under its key, or of a list at its place; None where there is none."""
    if isinstance(cell, dict):
        return cell.get(key)
    if hasattr(cell, "__getitem__") and not isinstance(cell, str) and key.isdecimal() and int(key) < len(cell):
        return cell[int(key)]
    return None


def _sides(frame: pd.DataFrame, columns: Columns, where: str) -> tuple[list[bool], list[bool]]:
    """Which rows are source and which are target, by their labels."""
    labels = [label_text(value) for value in cells_of(frame, columns.label)]
    known = _side_labels(Counter(filter(None, labels)), columns, f"{where}, column {columns.label!r}")
    blank = [row for row, label in zip(frame.index, labels) if not label]
    if blank and (columns.source is None or columns.target is None):
        raise ContrastError(f"{where} has no {columns.label!r} in row {first_few(blank)}; {TAKE_OUT}")
    source, target = ([label in side for label in labels] for side in known)
    return source, target


def _side_labels(counts: Counter[str], columns: Columns, where: str) -> tuple[set[str], set[str]]:
    """The labels of the source and of the target."""
    known, listing = set(counts), ", ".join(f"{label!r} ({count} rows)" for label, count in counts.most_common(20))
    source, target = _label_set(columns.source), _label_set(columns.target)
    if source is None and target is None:
        if len(known) == 1:
            raise ContrastError(f"{where}: all rows have the label {listing}, and a contrast needs two sides")
        if known not in ({"0", "1"}, {"false", "true"}):
            raise ContrastError(
                f"{where} does not say which side is the source; give source=, out of {listing or 'no label at all'}; "
                "for a score give threshold=, for both sides in a row source_text= and target_text="
            )
        source = {"1", "true"} & known
    if unknown := ((source or set()) | (target or set())) - known:
        raise ContrastError(f"{where} has no label {quoted(sorted(unknown))}; there is {listing or 'none'}")
    source = known - (target or set()) if source is None else source
    target = known - source if target is None else target
    if not source or not target or source & target:
        raise ContrastError(f"{where}: source and target need different labels, one or more each, of {listing}")
    return source, target


def _scored_sides(frame: pd.DataFrame, columns: Columns, where: str) -> tuple[list[bool], list[bool]]:
    """Which rows are source and which are target, by their scores."""
    return sides_by_score(cells_of(frame, columns.label), frame.index, columns.threshold, where, columns.label)


def sides_by_score(
    cells: Sequence[Any], rows: Iterable[Any], threshold: Threshold, where: str, column: str
) -> tuple[list[bool], list[bool]]:
    """Return which rows are source and which are target; those between two thresholds are neither."""
    low, high = _thresholds(threshold)
    scores = [_number(value) for value in cells]
    if bad := [row for row, score in zip(rows, scores) if math.isnan(score)]:
        raise ContrastError(f"{where} has no number as {column!r} in row {first_few(bad)}; {TAKE_OUT}")
    source = [score >= high for score in scores]
    target = [score < high if low == high else score <= low for score in scores]
    if not any(source) or not any(target):
        span = f"the scores lie from {min(scores):g} to {max(scores):g}"
        raise ContrastError(f"{where}, column {column!r}: threshold={threshold} empties a side; {span}")
    return source, target


def _thresholds(threshold: Threshold) -> tuple[float, float]:
    ends = threshold if isinstance(threshold, tuple) else (threshold, threshold)
    low, high = (_number(end) for end in ends) if len(ends) == 2 else (math.nan, math.nan)
    if not low <= high:
        raise ContrastError(f"threshold is a score or (low, high), low first, not {threshold!r}")
    return low, high


def _number(value: object) -> float:
    """A score, also from text; NaN where it is none."""
    try:
        return math.nan if value is None or isinstance(value, bool) else float(str(value))
    except ValueError:
        return math.nan


def group_names(frame: pd.DataFrame, column: str) -> list[str]:
    """Return the group of every row, by name; nothing where the cell is blank."""
    return [value if isinstance(value, str) else label_text(value) for value in cells_of(frame, column)]


def _label_set(labels: Labels) -> set[str] | None:
    if labels is None:
        return None
    return {label_text(label) for label in ([labels] if isinstance(labels, str | int | float) else labels)}


def label_text(value: object) -> str:
    """Return a label as the text by which it compares; nothing where it is missing."""
    text = "" if value is None else str(value).strip()
    whole = WHOLE_NUMBER.fullmatch(text)
    return whole[1] if whole else text.lower() if text.lower() in ("true", "false") else text


def refuse_blank(
    values: Sequence[object], where: str, rows: Sequence[Any] = (), *, prompt: bool = False, column: str = ""
) -> None:
    """Raise where a value is no text, or is blank and no prompt; `rows` counts them, from 1 unless given."""
    if records := [value for value in values if isinstance(value, dict)]:
        keys = list(records[0])
        raise ContrastError(
            f"{where} {first_few([*rows])}: records, not texts; they hold {quoted(map(str, keys))}: name one of these "
            f"with a dot, such as {f'{column}.{keys[0]}' if keys else column!r}"
        )
    numbered = zip(rows or range(1, len(values) + 1), values)
    if bad := [row for row, value in numbered if not _holds_text(value, f"{where} {row}", prompt=prompt)]:
        raise ContrastError(f"{where} {first_few(bad)}: blank, missing or not a text; {TAKE_OUT}")


def _holds_text(value: object, where: str, *, prompt: bool) -> bool:
    if isinstance(value, str):
        return prompt or bool(value.strip())
    try:
        conversation = ConversationRow.of(as_messages(value))
    except SettingError as error:
        raise ContrastError(f"{where}: {error}") from None
    return conversation is not None and (prompt or bool(conversation[-1][1].strip()))


def quoted(names: Iterable[str]) -> str:
    """Return names in quotes, with commas."""
    return ", ".join(map(repr, names))
