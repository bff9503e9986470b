"""The command that makes a result, as its record tells it: the words that were typed, and the files that it read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Invocation:
    """A command line (None: that of the process) and the SHA-256 of each file that its options name."""

    command: str | None = None
    inputs: Mapping[str, str] = field(default_factory=dict)


_NONE = Invocation()
_INVOCATION: ContextVar[Invocation] = ContextVar("invocation", default=_NONE)


def invocation() -> Invocation:
    """Return what is running."""
    return _INVOCATION.get()


@contextmanager
def invoked(*, command: str | None = None, inputs: Mapping[str, str] | None = None) -> Iterator[None]:
    """Let records that are written inside tell this command and these files; what is left out stays as it is."""
    given: dict[str, Any] = {"command": command, "inputs": inputs}
    changes = {name: value for name, value in given.items() if value is not None}
    token = _INVOCATION.set(replace(_INVOCATION.get(), **changes))
    try:
        yield
    finally:
        _INVOCATION.reset(token)
