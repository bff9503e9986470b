"""Long work: progress bars, in a notebook and on a terminal, never in a log; and what Ctrl-C does to a fit."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from tqdm.auto import tqdm

from lens_steer.errors import require_choice

Interruption = Literal["keep", "raise"]

_INTERRUPTION: ContextVar[Interruption | None] = ContextVar("interruption", default=None)


@contextmanager
def on_interrupt(action: Interruption) -> Iterator[None]:
    """Say what Ctrl-C does to a fit inside the context.

    "keep": the fit ends and returns the best map so far, with a warning and `interrupted` in its provenance.
    "raise": KeyboardInterrupt goes on, so that whatever runs the fit ends too. Outside of any context an interactive
    session (Jupyter, IPython, the Python prompt) keeps, and a script or command raises. The innermost context holds.
    """
    require_choice("on_interrupt: action", action, Interruption)
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


def progress_bar(iterable: Iterable[Any], *, desc: str, unit: str, show: bool) -> Any:
    """Return `iterable` behind a bar that appears after two seconds, where somebody can see it."""
    watched = "ipykernel" in sys.modules or sys.stderr.isatty()
    return tqdm(iterable, desc=desc, unit=unit, disable=not (show and watched), delay=2)
