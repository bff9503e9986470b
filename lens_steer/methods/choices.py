"""Choices: the settings of a method that take one of a few values, checked when the method is made."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lens_steer.errors import require_choice


def require_choices(method: Any) -> None:
    """Raise SettingError unless every setting whose type is a `Literal` has one of its values."""
    for name, choices in _choices_of(type(method)).items():
        require_choice(f"{type(method).__name__}: {name}", getattr(method, name), choices)


def _choices_of(method: type) -> dict[str, tuple[Any, ...]]:
    """Return setting -> its values, for the settings that take nothing else."""
    listed = {name: _values(hint) for name, hint in get_type_hints(method).items()}
    return {name: values for name, values in listed.items() if values}


def _values(hint: Any) -> tuple[Any, ...]:
    """Return the values of a `Literal`, or of one that may be None; nothing for any other type."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    if get_origin(hint) not in (Union, UnionType):
        return ()
    parts = [(None,) if part is NoneType else _values(part) for part in get_args(hint)]
    return tuple(value for part in parts for value in part) if all(parts) else ()
