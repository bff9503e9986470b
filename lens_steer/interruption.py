"""Interruption: what Ctrl-C does to a fit that has a best map so far."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from lens_steer.settings import require_settings

Interruption = Literal["keep", "raise"]

_INTERRUPTION: ContextVar[Interruption | None] = ContextVar("interruption", default=None)


@contextmanager
def on_interrupt(action: Interruption) -> Iterator[None]:
    """Say what Ctrl-C does to a fit inside the context.

    "keep": the fit ends and returns the best map so far, with a warning and `interrupted` in its provenance.
    "raise": KeyboardInterrupt goes on, so that whatever runs the fit ends too. Outside of any context an interactive
    session (Jupyter, IPython, the Python prompt) keeps, and a script or command raises. The innermost context holds.
    """
    require_settings(on_interrupt, locals())
    token = _INTERRUPTION.set(action)
    try:
        yield
    finally:
        _INTERRUPTION.reset(token)


def keeps_on_interrupt() -> bool:
    """Whether a fit that is interrupted now shall return the best map so far."""
    action = _INTERRUPTION.get()
    # An interactive interpreter has a prompt; IPython and Jupyter set one so that they can be told.
    return hasattr(sys, "ps1") if action is None else action == "keep"
