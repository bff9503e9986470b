"""The run-time type check at a bearable price: shapes where an annotation names one, elsewhere types alone.

jaxtyping wraps every function of the package, and binds the arguments of every call to remember their shapes. Where no
annotation holds a shape nothing is remembered, and beartype's own wrapper checks the same in a fiftieth of the time.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

_with_shapes = jaxtyping.jaxtyped
_types_alone = beartype(conf=BeartypeConf(violation_type=jaxtyping.TypeCheckError))


def install() -> None:
    """Let what jaxtyping's import hook writes above every function choose between the two checks."""
    jaxtyping.jaxtyped = checked


def checked(made: Any = None, *, typechecker: Any) -> Any:
    """Return a function under the check that its annotations need, and a class under jaxtyping's own."""
    if made is None:
        return functools.partial(checked, typechecker=typechecker)
    if not inspect.isfunction(made) or holds_shape(made):
        return _with_shapes(made, typechecker=typechecker)
    with_types = _types_alone(made)

    @functools.wraps(made)
    def asked(*args: Any, **kwargs: Any) -> Any:
        return (made if jaxtyping.config.jaxtyping_disable else with_types)(*args, **kwargs)

    return asked


def holds_shape(function: Callable[..., Any]) -> bool:
    """Tell whether an annotation holds a shape, or names what is not known yet and so may hold one."""
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):
        return True
    return any(_is_or_holds_shape(hint) for hint in hints.values())


def _is_or_holds_shape(hint: Any) -> bool:
    if isinstance(hint, str) or (inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray)):
        return True
    parts = hint if isinstance(hint, list) else get_args(hint)
    return any(_is_or_holds_shape(part) for part in parts if not isinstance(part, str | int | None))
