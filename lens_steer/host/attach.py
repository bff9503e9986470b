"""Attaching edits: for the length of a context, each site's activation passes through a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.errors import SettingError
from lens_steer.host.adapter import host_of
from lens_steer.host.clock import ForwardPass, PositionClock
from lens_steer.host.guards import check_edit_sites, require_eval
from lens_steer.host.sites import Site
from lens_steer.host.trunk import as_hook
from lens_steer.host.turns import editing, taking_turns

Write = Callable[[Float[Tensor, "text pos unit"], ForwardPass | None], Tensor | None]
"""Turns a site's activation (heads flattened) into what shall stand there, or None to leave it as it is.

It is told of the pass under way; None in one that was not given token ids.
"""


@contextmanager
def attach(model: nn.Module, writes: Sequence[tuple[Site, Write]]) -> Iterator[None]:
    """Let every forward pass inside go through `writes`; those at one site act in the order given.

    On leaving, normally or by an exception, the model is as before. The writes act in the passes of every thread;
    ModelError while another thread has attached some.
    """
    host = host_of(model)
    with ExitStack() as stack:
        stack.enter_context(editing(model))
        with taking_turns(model):
            check_edit_sites(model, [site for site, _ in writes])
        clock = PositionClock(model)
        stack.callback(clock.stop)

        def visit(write: Write) -> Callable[[Tensor], Tensor | None]:
            return lambda flat: None if host.silenced else write(flat, clock.now)

        hooks = [(site.name, as_hook(visit(write))) for site, write in writes]
        stack.enter_context(host.hooks(hooks))
        yield


@runtime_checkable
class Attachable(Protocol):
    """What puts edits on a model for the length of a context: an intervention."""

    def on(self, model: nn.Module, strength: Any = 1.0) -> AbstractContextManager[object]:
        """Edit every forward pass inside the context, at one strength or at one per text."""
        ...


def not_an_intervention(given: object) -> SettingError:
    """Return the error for what stands in an intervention's place, such as the name of a directory."""
    return SettingError(f"an intervention is needed, not {given!r}: Intervention.load(DIR) reads a saved one")


@contextmanager
def edited(model: nn.Module, intervention: Attachable | None, strength: Any) -> Iterator[None]:
    """Run the model with this intervention, if there is one; calls of other threads wait until it is off again.

    ModelError for a model in training mode, SettingError for what is no intervention.
    """
    require_eval(model)
    if not isinstance(intervention, Attachable | None):
        raise not_an_intervention(intervention)
    with taking_turns(model):
        if intervention is None:
            yield
            return
        with intervention.on(model, strength):
            yield
