"""A frame as an HTML table: rounded numbers, readable headings, what is the same in all rows said once."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, isfinite, log10
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_MOST_ROWS = 250
_FEWEST_FOR_CONSTANTS = 4  # below, a column of one value costs no room
_LONG = 32  # characters: a column of longer texts gets room and is set like prose
_WIDE_RANGE = 1e-4  # smallest over largest: below, one number of decimals cannot serve a column
_SCORES = {"auroc", "score", "share", "precision", "before", "after", "change", "low", "high"}
_DECIMALS_BELOW_1 = 2  # at least, beside numbers of any size
_TINY = 1e-5  # a score below is shown as 0.000
_WORDS = {"auroc": "AUROC", "heldout": "held-out", "lineas": "LinEAS", "kl": "KL"}
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
    filled = frame.notna()
    constant = _constant_columns(frame, filled)
    head = frame.head(_MOST_ROWS)
    columns: list[Column] = []
    cells: list[list[Cell]] = []
    constants: list[tuple[str, str]] = []
    for place, name in enumerate(head.columns):
        values = head.iloc[:, place]
        if not filled.iloc[:, place].any():
            continue
        kind, shown = _cells(values)
        if place in constant:
            constants.append((heading(name), shown[0].text))
        else:
            columns.append(Column(heading(name), kind))
            cells.append(shown)
    return ShownTable(tuple(columns), tuple(zip(*cells, strict=True)), tuple(constants), len(frame))


def _cells(values: pd.Series[Any]) -> tuple[str, list[Cell]]:
    """Return how a column is set, and its cells."""
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    if is_numeric_dtype(values) and not is_bool_dtype(values):
        return "number", _numbers(values.name, values.to_numpy(dtype=float, na_value=np.nan).tolist())
    shown = [Cell(_text(value)) for value in values.tolist()]
    return ("prose" if max(len(cell.text) for cell in shown) > _LONG else "text"), shown


def _constant_columns(frame: pd.DataFrame, filled: pd.DataFrame) -> set[int]:
    """Columns, by place, that hold one value throughout; none where no other column would be left.

    Values are compared, not what is shown of them: 36.56 and 36.58 differ, and so do an infinite and a missing value.
    """
    if len(frame) < _FEWEST_FOR_CONSTANTS:
        return set()
    some, whole = filled.any().to_numpy(), filled.all().to_numpy()
    constant = {place for place in range(frame.shape[1]) if whole[place] and _is_constant(frame.iloc[:, place])}
    return constant if len(constant) < some.sum() else set()


def _is_constant(values: pd.Series[Any]) -> bool:
    first, last = values.iloc[0], values.iloc[-1]
    if type(first) is type(last) and isinstance(first, int | float | str) and first != last:
        return False
    if isinstance(first, list | tuple | dict | np.ndarray):  # has no hash, or no one truth value
        return len({_text(value) for value in values.tolist()}) == 1
    return bool((values == first).all())


def heading(name: Any) -> str:
    """Return a column's or a part's name as words."""
    return " ".join(_WORDS.get(word, word) for word in str(name).replace("_", " ").split())


def _text(value: Any) -> str:
    import pandas as pd

    if isinstance(value, list | tuple | np.ndarray):
        return ", ".join(_text(part) for part in value)
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | float | np.number):
        return _cell(float(value), None).text
    return "" if pd.isna(value) is True else str(value)


def _numbers(name: Any, values: list[float]) -> list[Cell]:
    """Numbers of one column, so that they can be compared down the page.

    Scores, and what a measure was before and after, are rounded each by its own size, as one column may hold a share
    beside a perplexity; so is any column whose small numbers would lose their second digit. Any other column has the
    same decimals throughout, or powers of ten where its range is wide.
    """
    sizes = [abs(value) for value in values if isfinite(value)]
    largest = max(sizes, default=0.0)
    if all(size == int(size) for size in sizes):
        return [_cell(value, 0) for value in values]
    if _SCORES & set(str(name).split("_")):
        return [_cell(value, _own_decimals(abs(value))) for value in values]
    smallest = min((size for size in sizes if size > 0), default=largest)
    spread = smallest < _WIDE_RANGE * largest or largest < 1e-3
    decimals = None if spread else _decimals(smallest, largest)
    if decimals is not None and decimals < _DECIMALS_BELOW_1 and any(0 < size < 1 for size in sizes):
        return [_cell(value, _own_decimals(abs(value))) for value in values]
    return [_cell(value, decimals) for value in values]


def _own_decimals(size: float) -> int:
    """Three decimals; fewer for numbers of 10 and more, up to five where a small number needs them for two digits."""
    if not isfinite(size) or size < _TINY:
        return 3
    power = floor(log10(size))
    return max(0, min(3, 3 - power)) if size >= 1 else max(3, min(5, 1 - power))


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
