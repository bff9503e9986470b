"""Turns: calls of lens_steer on one model wait for each other, and one thread at a time holds it edited.

Hooks hang on a model and not on a thread, so that what one thread attaches acts in the passes of all.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from lens_steer.errors import ModelError
from lens_steer.host.adapter import Host, host_of


class _Turn:
    """The lock of one model, and the threads in whose contexts it is edited."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.editors: list[threading.Thread] = []


_TURNS: weakref.WeakKeyDictionary[Host, _Turn] = weakref.WeakKeyDictionary()
_NEW = threading.Lock()


def _turn(model: nn.Module) -> _Turn:
    with _NEW:
        return _TURNS.setdefault(host_of(model), _Turn())


@contextmanager
def taking_turns(model: nn.Module) -> Iterator[None]:
    """Wait until no other thread runs texts on this model through lens_steer, and keep others waiting inside."""
    with _turn(model).lock:
        yield


@contextmanager
def editing(model: nn.Module) -> Iterator[None]:
    """Hold the model for this thread's edits; ModelError while another living thread holds it."""
    turn, me = _turn(model), threading.current_thread()
    with turn.lock:
        other = next((thread for thread in turn.editors if thread is not me and thread.is_alive()), None)
        if other is not None:
            raise ModelError(
                f"an intervention of the thread {other.name!r} is on this model, and edits act in the passes of all "
                "threads: let one thread attach at a time, or give the intervention to the call itself, as in "
                "generate(..., intervention=), where calls wait for each other"
            )
        turn.editors.append(me)
    try:
        yield
    finally:
        turn.editors.remove(me)
