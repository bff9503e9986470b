"""Settings: what a call or a method was given, checked against the type hints that stand at its parameters.

A number, a text, a choice or an object of ours that is none would otherwise fail deep inside, or pass for one. Ranges
are for whoever uses the value; where a hint names something that is not understood here, everything passes.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin, get_type_hints

from lens_steer.errors import SettingError

_Owner: TypeAlias = "Callable[..., object] | type"


class _Kind(NamedTuple):
    """What a hint allows: whether a value is of it, what it is called, and whether it is a class of lens_steer."""

    holds: Callable[[Any], bool]
    names: tuple[str, ...]
    is_ours: bool = False


def require_settings(owner: _Owner, given: Mapping[str, object]) -> None:
    """Raise SettingError for the first value that is not of the kind that the hint of its parameter or field says.

    A parameter without a default that takes one of our own classes is left to the function: it is what the call is
    about, and the function says how it is come by.

    Parameters
    ----------
    owner:
        A function, a method or a dataclass. Its name begins the message.
    given:
        Values by name: `locals()` on the first line of a function, `vars(self)` in a `__post_init__`.

    """
    for name, kind in _kinds(owner).items():
        if name in given and not kind.holds(given[name]):
            what = owner.__qualname__.removesuffix(".__init__")
            remedy = "".join(f": {way}" for made, way in _MADE_BY.items() if made in kind.names)
            raise SettingError(f"{what}: {name} is {_listed(kind.names)}, not {given[name]!r:.60}{remedy}")


_MADE_BY = {
    "an Intervention": "Intervention.load(DIR) reads a saved one",
    "a ContrastSet": "ContrastSet(source, target) or read_contrast(path) gives one",
    "an Activations": "collect(model, contrast, ...) gives them",
}


@cache
def _kinds(owner: _Owner) -> dict[str, _Kind]:
    """Return parameter or field -> kind, where its hint is understood."""
    if inspect.isclass(owner):
        bases = [(vars(base).get("__annotations__", {}), vars(sys.modules[base.__module__])) for base in owner.__mro__]
        read = {name: _kind(_read(hint, known)) for hints, known in reversed(bases) for name, hint in hints.items()}
        return {name: kind for name, kind in read.items() if kind is not None}
    function: Any = inspect.unwrap(owner)
    kinds = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = _kind(_read(parameter.annotation, function.__globals__))
        is_subject = parameter.default is inspect.Parameter.empty and kind is not None and kind.is_ours
        if kind is not None and not is_subject and parameter.kind not in _VARIADIC:
            kinds[name] = kind
    return kinds


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _read(hint: Any, known: dict[str, Any]) -> Any:
    """Return a hint that may be written as text; Any where it names what a type checker alone knows."""
    try:
        return get_type_hints(SimpleNamespace(__annotations__={"hint": hint}), known)["hint"]
    except (NameError, TypeError, AttributeError):
        return Any


def _kind(hint: Any) -> _Kind | None:
    """Return what a hint allows, or None where it, or a part of it, is not understood."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return _Kind(
            lambda value: isinstance(value, str | bool | int | float) and value in parts, tuple(map(repr, parts))
        )
    if origin in (Union, UnionType):
        return _union([_kind(part) for part in parts])
    if origin is os.PathLike:
        return _PLAIN[Path]
    if inspect.isclass(origin):
        return _collection(origin, parts)
    if hint in _PLAIN:
        return _PLAIN[hint]
    array = getattr(hint, "array_type", hint)  # jaxtyping's
    if getattr(array, "__name__", "") == "Tensor":
        return _Kind(lambda value: isinstance(value, array), ("a tensor",))
    if inspect.isclass(hint) and hint.__module__.startswith("lens_steer.") and not getattr(hint, "_is_protocol", False):
        article = "an" if hint.__name__[0] in "AEIO" else "a"
        return _Kind(lambda value: isinstance(value, hint), (f"{article} {hint.__name__}",), is_ours=True)
    return None


def _union(kinds: Iterable[_Kind | None]) -> _Kind | None:
    known = []
    for kind in kinds:
        if kind is None:
            return None
        known.append(kind)
    names = tuple(dict.fromkeys(name for kind in known for name in kind.names))
    return _Kind(
        lambda value: any(kind.holds(value) for kind in known), names, is_ours=all(kind.is_ours for kind in known)
    )


def _collection(origin: type, parts: tuple[Any, ...]) -> _Kind | None:
    """Return the kind of a mapping or of a list; of what a list holds, numbers, texts and choices are asked for.

    One text in the place of a list of texts passes: whoever takes the list says how a single one is written.
    """
    if issubclass(origin, Mapping):
        return _Kind(lambda value: isinstance(value, Mapping), ("a mapping",))
    if not issubclass(origin, Iterable):
        return None
    item = _kind(parts[0])
    is_simple = item is not None and (len(item.names) <= _MOST_KINDS or get_origin(parts[0]) is Literal)
    if item is None or item.is_ours or not is_simple:
        return _Kind(lambda value: isinstance(value, Iterable), ("a list",))

    def holds(value: Any) -> bool:
        if isinstance(value, str):
            return item.holds("")
        return isinstance(value, Iterable) and (not isinstance(value, list | tuple) or all(map(item.holds, value)))

    return _Kind(holds, (f"a list of {' or '.join(map(_several, item.names))}",))


_MOST_KINDS = 2


def _listed(names: Sequence[str]) -> str:
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def _several(name: str) -> str:
    article, _, noun = name.partition(" ")
    return f"{noun}s" if article in ("a", "an") else name


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", "") == "b"  # numpy's


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not _is_bool(value)


def _is_number(value: Any) -> bool:
    """Whether a value is a real number, also as an array or tensor without axes."""
    return not _is_bool(value) and (isinstance(value, Real) or getattr(value, "ndim", None) == 0)


_PATH = _Kind(lambda value: isinstance(value, os.PathLike), ("a path",))
_NONE = _Kind(lambda value: value is None, ("None",))
_PLAIN: dict[Any, _Kind] = {
    int: _Kind(_is_whole, ("a whole number",)),
    float: _Kind(_is_number, ("a number",)),
    bool: _Kind(_is_bool, ("True or False",)),
    str: _Kind(lambda value: isinstance(value, str), ("a text",)),
    Path: _PATH,
    NoneType: _NONE,
}
