"""The tests' own type check refuses what jaxtyping's refuses, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jaxtyping
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import Float

from tests.type_checks import _hooks_own, checked

Row = Float[np.ndarray, " n"]
TWO, THREE = np.ones(2), np.ones(3)


def plain(number: int, *more: int, word: str = "a", **words: str) -> str:
    return word if number == 1 else number  # type: ignore[return-value]


def of_rows(one: Row, other: Row | None = None) -> Row:
    return one[:2]


def rows_of(check: Callable[[Any], Any]) -> Any:
    """Return a dataclass of two rows, made anew: a decorator changes it."""

    @check
    @dataclass(frozen=True)
    class Rows:
        one: Row
        other: Row
        name: str = ""

    return Rows


@dataclass
class Unchecked:
    name: str
    __no_type_check__ = True


def within(check: Callable[[Any], Any], keep: int) -> Any:
    """Return a function inside a function, defined anew by every call."""

    @check
    def cut(row: Row, *more: int, other: Row | None = None, **words: str) -> Row:
        return row[:keep]

    return cut


CASES: dict[str, tuple[Callable[[Any], Any], tuple[Any, ...], dict[str, Any], bool]] = {
    "plain": (lambda check: check(plain), (1, 2, 3), {"word": "b", "other": "c"}, True),
    "another type": (lambda check: check(plain), ("1",), {}, False),
    "one of many": (lambda check: check(plain), (1, 2, "3"), {}, False),
    "a keyword": (lambda check: check(plain), (1,), {"word": 2}, False),
    "any keyword": (lambda check: check(plain), (1,), {"other": 2}, False),
    "what is returned": (lambda check: check(plain), (2,), {}, False),
    "rows": (lambda check: check(of_rows), (TWO, TWO), {}, True),
    "no row": (lambda check: check(of_rows), (2,), {}, False),
    "rows of two lengths": (lambda check: check(of_rows), (TWO, THREE), {}, False),
    "a returned row of another length": (lambda check: check(of_rows), (THREE,), {}, False),
    "a dataclass": (rows_of, (TWO, TWO, "a"), {}, True),
    "a dataclass of two lengths": (rows_of, (TWO, THREE), {}, False),
    "a dataclass of another type": (rows_of, (TWO, TWO, 1), {}, False),
    "left out": (lambda check: check(Unchecked), (1,), {}, True),
    "inside": (lambda check: within(check, 2), (TWO, 1, 2), {"other": TWO, "a": "b"}, True),
    "inside, no row": (lambda check: within(check, 2), (2,), {}, False),
    "inside, one of many": (lambda check: within(check, 2), (TWO, "1"), {}, False),
    "inside, any keyword": (lambda check: within(check, 2), (TWO,), {"a": 1}, False),
    "inside, two lengths": (lambda check: within(check, 2), (TWO,), {"other": THREE}, False),
    "inside, returned": (lambda check: within(check, 1), (TWO,), {}, False),
}


@pytest.mark.parametrize("decorator", [checked, _hooks_own])
@pytest.mark.parametrize("case", CASES)
def test_the_same_calls_are_refused(case: str, decorator: Any) -> None:
    make, given, named, is_fine = CASES[case]
    function = make(decorator(typechecker=beartype))
    if is_fine:
        function(*given, **named)
    else:
        with pytest.raises(jaxtyping.TypeCheckError):
            function(*given, **named)


def test_a_property_is_checked() -> None:
    class Holder:
        @checked(typechecker=beartype)
        def word(self) -> str:
            return 1  # type: ignore[return-value]

        words = checked(property(word.__wrapped__), typechecker=beartype)

    with pytest.raises(jaxtyping.TypeCheckError):
        Holder().word()
    with pytest.raises(jaxtyping.TypeCheckError):
        _ = Holder().words
