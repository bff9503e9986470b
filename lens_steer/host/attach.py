"""Attaching edits: for the length of a context, each site's activation passes through a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.host.adapter import host_of
from lens_steer.host.clock import PositionClock, TokenPositions
from lens_steer.host.guards import check_edit_sites
from lens_steer.host.sites import Site
from lens_steer.host.trunk import as_hook

Write = Callable[[Float[Tensor, "text pos unit"], TokenPositions | None], Tensor]
"""Turns a site's activation (heads flattened) into what shall stand there; positions come with a clock only."""


@contextmanager
def attach(model: nn.Module, writes: Sequence[tuple[Site, Write]], *, clock: bool) -> Iterator[None]:
    """Let every forward pass inside go through `writes`; those at one site act in the order given.

    `clock` says whether the writes need positions. On leaving, normally or by an exception, the model is as before.
    """
    host = host_of(model)
    check_edit_sites(model, [site for site, _ in writes])
    with ExitStack() as stack:
        ticking = PositionClock(model) if clock else None
        if ticking is not None:
            stack.callback(ticking.stop)

        def visit(write: Write) -> Callable[[Tensor], Tensor]:
            return lambda flat: write(flat, None if ticking is None else ticking.now)

        hooks = [(site.name, as_hook(visit(write))) for site, write in writes]
        stack.enter_context(host.hooks(hooks))
        yield
