"""The run-time type check of the tests, cheaper: every call is checked once, with axis names where there are axes.

jaxtyping's import hook wraps every function so that an axis name means one size throughout a call, and checks what a
call takes a second time beside what it returns. That costs some ten times the check itself, on every call of every
small function. Functions and dataclasses without arrays in their signature have no axes: beartype alone checks them.
It also compiles a check whenever a function is defined: functions inside functions are checked value by value here.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial, wraps
from types import CodeType, FunctionType
from typing import Any, Literal, get_args

import jaxtyping
from beartype import BeartypeConf, beartype
from beartype.door import die_if_unbearable

_hooks_own = jaxtyping.jaxtyped
_CONF = BeartypeConf(violation_type=jaxtyping.TypeCheckError)
_once = beartype(conf=_CONF)
_inner: dict[CodeType, tuple[inspect.Signature, dict[str, Any], bool]] = {}
"""Signature, hints and whether these hold arrays, of functions inside functions."""


def install() -> None:
    """Check by `checked` what modules define that jaxtyping's hook imports from here on."""
    jaxtyping.jaxtyped = checked


def checked(target: Any = None, *, typechecker: Callable[..., Any] | None = None) -> Any:
    """Check a function, method or dataclass as jaxtyping's decorator does, whose place this takes."""
    if target is None:
        return partial(checked, typechecker=typechecker)
    if isinstance(target, classmethod | staticmethod):
        return type(target)(checked(target.__func__, typechecker=typechecker))
    if isinstance(target, property):
        return property(*(part and checked(part, typechecker=typechecker) for part in (target.fget, target.fset)))
    if inspect.isclass(target):
        own, left_out = vars(target).get("__init__"), getattr(target, "__no_type_check__", False)
        is_checked = not isinstance(own, FunctionType) or hasattr(own, "__wrapped__")
        if dataclasses.is_dataclass(target) and not left_out and not is_checked:
            target.__init__ = checked(own, typechecker=typechecker)
        return target
    if not isinstance(target, FunctionType):
        return _hooks_own(target, typechecker=typechecker)
    if "<locals>" in target.__qualname__:
        return _value_by_value(target)
    match _axes(target):
        case "none":
            return _once(target)
        case "some":
            return _hooks_own(_once(target), typechecker=None)
    return _hooks_own(target, typechecker=typechecker)


def _value_by_value(function: FunctionType) -> Callable[..., Any]:
    """Check as `_once` does without compiling a check for this one closure; hints that cannot be read are left out."""
    if function.__code__ not in _inner:
        hints = {}
        for name, hint in function.__annotations__.items():
            try:
                hints[name] = eval(hint, function.__globals__) if isinstance(hint, str) else hint
            except Exception:
                continue
        _inner[function.__code__] = inspect.signature(function), hints, any(map(_holds_arrays, hints.values()))
    signature, hints, has_axes = _inner[function.__code__]

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        given = signature.bind(*args, **kwargs).arguments
        with _hooks_own("context") if has_axes else nullcontext():
            for name, value in given.items():
                if name in hints:
                    kind = signature.parameters[name].kind
                    several = {inspect.Parameter.VAR_POSITIONAL: tuple, inspect.Parameter.VAR_KEYWORD: dict.values}
                    for one in several[kind](value) if kind in several else (value,):
                        die_if_unbearable(one, hints[name], conf=_CONF)
            result = function(*args, **kwargs)
            if "return" in hints:
                die_if_unbearable(result, hints["return"], conf=_CONF)
        return result

    return call


def _axes(function: FunctionType) -> Literal["none", "some", "unknown"]:
    """Say whether a signature holds arrays; unknown where it cannot be read yet, or a call is not one piece of work."""
    if inspect.isgeneratorfunction(function):
        return "unknown"
    try:
        hints = [
            eval(hint, function.__globals__) if isinstance(hint, str) else hint
            for hint in function.__annotations__.values()
        ]
    except Exception:  # a name that is defined further down, or for the type checker of the source alone
        return "unknown"
    return "some" if any(map(_holds_arrays, hints)) else "none"


def _holds_arrays(hint: Any) -> bool:
    if isinstance(hint, list | tuple):  # what a Callable takes
        return any(map(_holds_arrays, hint))
    is_array = inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)
    return is_array or any(map(_holds_arrays, get_args(hint)))
