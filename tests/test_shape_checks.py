"""The run-time check of the tests notices what jaxtyping's would, and costs functions without shapes little."""

from __future__ import annotations

from typing import Any, Literal

import jaxtyping
import numpy as np
import pytest
from beartype import beartype
from jaxtyping import Float

from tests.shape_checks import checked, holds_shape

Values = Float[np.ndarray, "text unit"]


def named(which: Literal["all", "last"], count: int = 1) -> list[str]:
    return [which] * count if count else "none"  # type: ignore[return-value]


def shaped(one: Values, other: Float[np.ndarray, " unit"]) -> list[Float[np.ndarray, " text"]]:
    return list(one[None, :, 0]) if one.shape[1] == len(other) else []


def test_shapes_are_found_behind_names_and_inside_others() -> None:
    assert holds_shape(shaped)
    assert not holds_shape(named)

    def inside(values: dict[str, tuple[Values, ...] | None]) -> None: ...

    assert holds_shape(inside)


@pytest.mark.parametrize("wrong", [("first", 1), ("all", "two"), ("all", 0)])
def test_types_are_checked_on_the_way_in_and_out(wrong: Any) -> None:
    check = checked(named, typechecker=beartype)
    assert check("all", 2) == ["all", "all"]
    with pytest.raises(jaxtyping.TypeCheckError):
        check(*wrong)
    with pytest.raises(jaxtyping.TypeCheckError):
        jaxtyping.jaxtyped(named, typechecker=beartype)(*wrong)


def test_a_shape_of_one_argument_binds_the_other() -> None:
    check = checked(typechecker=beartype)(shaped)
    assert len(check(np.ones((3, 2)), np.ones(2))) == 1
    with pytest.raises(jaxtyping.TypeCheckError):
        check(np.ones((3, 2)), np.ones(3))


def test_it_can_be_switched_off() -> None:
    check = checked(named, typechecker=beartype)
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        assert check("first") == ["first"]
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
