"""A frame as an HTML table: rounded numbers, readable headings, what is the same in all rows said once."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, isfinite, log10
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_MOST_ROWS = 500
_FEWEST_FOR_CONSTANTS = 4  # below, a column of one value costs no room
_LONG = 32  # characters: a column of longer texts gets room and is set like prose
_WIDE_RANGE = 1e-4  # smallest over largest: below, one number of decimals cannot serve a column
_WORDS = {"auroc": "AUROC", "heldout": "held-out"}
_MINUS, _TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


@dataclass(frozen=True)
class Cell:
    """What is shown; `order` is what rows are sorted by, None for text."""

    text: str
    order: float | None = None


@dataclass(frozen=True)
class Column:
    """A heading, and how its cells are set: number, text or prose."""

    title: str
    kind: str


@dataclass(frozen=True)
class ShownTable:
    """A table as it is printed: `constants` are (heading, value) of what all rows share."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    constants: tuple[tuple[str, str], ...]
    total: int

    @property
    def is_cut(self) -> bool:
        """Whether rows were left out."""
        return self.total > len(self.rows)


def shown_table(frame: pd.DataFrame) -> ShownTable:
    """Return the first rows of a frame, without empty columns and with constant ones taken out."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    head = frame.head(_MOST_ROWS).dropna(axis=1, how="all")
    columns: list[Column] = []
    cells: list[list[Cell]] = []
    constants: list[tuple[str, str]] = []
    lifted = _constant_columns(head, frame)
    for name in head.columns:
        values = head[name].tolist()
        if is_numeric_dtype(head[name]) and not is_bool_dtype(head[name]):
            kind, shown = "number", _numbers(values)
        else:
            shown = [Cell(_text(value)) for value in values]
            kind = "prose" if max(len(cell.text) for cell in shown) > _LONG else "text"
        if name in lifted:
            constants.append((heading(name), shown[0].text))
        else:
            columns.append(Column(heading(name), kind))
            cells.append(shown)
    return ShownTable(tuple(columns), tuple(zip(*cells, strict=True)), tuple(constants), len(frame))


def _constant_columns(head: pd.DataFrame, frame: pd.DataFrame) -> set[Any]:
    """Columns of one value throughout the whole frame; none where no other column would be left."""
    if len(frame) < _FEWEST_FOR_CONSTANTS:
        return set()
    constant = {name for name in head.columns if len({_text(value) for value in frame[name].tolist()}) == 1}
    return constant if len(constant) < len(head.columns) else set()


def heading(name: Any) -> str:
    """Return a column's or a part's name as words."""
    return " ".join(_WORDS.get(word, word) for word in str(name).replace("_", " ").split())


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and not isfinite(value)):
        return ""
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(_text(part) for part in value)
    return number(float(value)) if isinstance(value, int | float | np.number) else str(value)


def _numbers(values: list[Any]) -> list[Cell]:
    """Numbers of one column: the same decimals for all, so that they can be compared down the page."""
    sizes = [abs(float(value)) for value in values if value == value and isfinite(value)]
    largest = max(sizes, default=0.0)
    smallest = min((size for size in sizes if size > 0), default=largest)
    whole = all(size == int(size) for size in sizes)
    spread = not whole and (smallest < _WIDE_RANGE * largest or largest < 1e-3)
    decimals = None if spread else 0 if whole else _decimals(smallest, largest)
    return [_cell(float(value), decimals) for value in values]


def _decimals(smallest: float, largest: float) -> int:
    """Three digits of the largest number (four above 1); below 0.1 also two of the smallest, if two more will do."""
    if largest >= 0.1:
        return max(0, min(3, 3 - floor(log10(largest))))
    first = 2 - floor(log10(largest))
    return max(first, min(1 - floor(log10(smallest)), first + 2))


def _cell(value: float, decimals: int | None) -> Cell:
    if value != value:
        return Cell("", None)
    if not isfinite(value):
        return Cell("\N{INFINITY}" if value > 0 else _MINUS + "\N{INFINITY}", value)
    return Cell(number(value) if decimals is None else _signed(f"{value:,.{decimals}f}"), value)


def number(value: int | float) -> str:
    """Return a number that stands alone: three digits, whole numbers whole, tiny and huge ones as powers of ten."""
    size = abs(value)
    if size == int(size) and size < 1e7:
        return _signed(f"{int(value):,}")
    if size and not 1e-3 <= size < 1e6:
        digits, power = f"{value:.1e}".split("e")
        return _signed(f"{digits}{_TIMES}10") + f"{int(power)}".translate(_RAISED)
    return _signed(f"{value:,.{max(0, 2 - floor(log10(size)))}f}")


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _signed(text: str) -> str:
    """A true minus, and none in front of a zero."""
    return text.replace("-", _MINUS if any(digit in text for digit in "123456789") else "")
