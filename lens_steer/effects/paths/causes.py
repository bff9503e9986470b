"""What components cause: the pass repeated with one of them held at its unedited value, alone, or all up to it held.

What edits write into the stream is put there as a constant, so that all that changes from pass to pass is what the
model makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from lens_steer.effects.paths.base import Base, Hook, Pooled, Route
from lens_steer.host.components import Component
from lens_steer.host.tokens import TokenBatch
from lens_steer.host.trunk import as_hook

Cause = Literal["lost", "alone", "in_turn", "looks"]


def read_causes(route: Route, batch: TokenBatch, base: Base) -> Iterator[tuple[Component, Cause, Pooled]]:
    """Yield what every component causes at the traced site: three passes each, four where it has a pattern.

    lost: the shift less the shift with the component held at its unedited value (its own edits' writes stay). alone:
    the shift of the unedited model when the component alone is set to its carried value. in_turn: what is lost when it
    is held too, after all before it: these and the direct path add up to the shift. looks: lost when its attention
    pattern alone is held.
    """
    before = base.edited
    for place, component in enumerate(route.components):
        if torch.equal(base.carried[component], base.plain[component]):  # no edit before it, and no pass could tell
            yield from ((component, cause, torch.zeros_like(before)) for cause in _causes_of(component, base))
            continue
        held = _run(route, batch, _injected(route, base, {component}))
        yield component, "lost", base.edited - held
        only = _run(route, batch, [_set(component.output.name, base.carried[component])])
        yield component, "alone", only - base.unedited
        upto = held if place == 0 else _run(route, batch, _injected(route, base, route.components[: place + 1]))
        yield component, "in_turn", before - upto
        before = upto
        if component in base.patterns and component.pattern is not None:
            fixed = [(component.pattern, _constant(base.patterns[component]))]
            yield component, "looks", base.edited - _run(route, batch, [*_injected(route, base, ()), *fixed])


def _causes_of(component: Component, base: Base) -> tuple[Cause, ...]:
    return ("lost", "alone", "in_turn", "looks") if component in base.patterns else ("lost", "alone", "in_turn")


def _run(route: Route, batch: TokenBatch, hooks: list[Hook]) -> Pooled:
    return route.pooled(route.run(batch, hooks=hooks), batch)


def _injected(route: Route, base: Base, held: Collection[Component]) -> list[Hook]:
    """Return hooks that write what the edits wrote, and hold some components at their unedited values."""
    hooks = []
    for component in route.components:
        written = base.written.get(component)
        if component in held:
            value = base.plain[component]
            hooks.append(_set(component.output.name, value if written is None else value + written))
        elif written is not None:
            hooks.append(_add(component.output.name, written))
    return [*hooks, *(_add(site.name, base.written[site]) for site in route.on_stream)]


def _set(name: str, value: Tensor) -> Hook:
    return name, as_hook(lambda flat: value)


def _add(name: str, value: Tensor) -> Hook:
    return name, as_hook(lambda flat: flat + value)


def _constant(value: Tensor) -> Callable[..., Tensor]:
    def write(tensor: Tensor, hook: Any) -> Tensor:
        return value

    return write
