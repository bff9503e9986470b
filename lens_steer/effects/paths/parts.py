"""The parts of a shift, text by text: what edits write, what every component adds to it, and what it causes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from lens_steer.effects.paths.base import Route, read_base
from lens_steer.effects.paths.causes import Cause, read_causes
from lens_steer.host.adapter import host_of
from lens_steer.host.components import Component
from lens_steer.host.sites import Site
from lens_steer.host.tokens import TOKEN_BUDGET, Tokens
from lens_steer.progress import progress_bar

_HELD = 2**21  # numbers of one batch held at a time (8 MiB in float32), or
_OF_WEIGHTS = 4  # this part of the model's own, where that is more

Effect = Float[Tensor, "text stream"]


class Place(NamedTuple):
    """A part of a shift: write (what the edits at one place write), attention or mlp; where, and of which layer."""

    part: str
    layer: int
    site: str


@dataclass
class Parts:
    """Effects on every text at the traced site, pooled, float32 on the CPU.

    `whole` is the shift; `writes` and `adds` are its exact parts. `heads` hold how far the units of heads are carried:
    `head_effects` makes of them what the heads add. `order` numbers places in forward order.
    """

    unedited: Effect
    whole: Effect
    writes: dict[Place, Effect] = field(default_factory=dict)
    adds: dict[Place, Effect] = field(default_factory=dict)
    causes: dict[tuple[Place, Cause], Effect] = field(default_factory=dict)
    order: dict[Place, int] = field(default_factory=dict)
    heads: dict[Place, tuple[Component, Float[Tensor, "text unit"]]] = field(default_factory=dict)

    @property
    def direct(self) -> Effect:
        """What all edits write, together."""
        return sum(self.writes.values(), torch.zeros_like(self.whole))

    @property
    def through(self) -> Effect:
        """What all components add, together."""
        return sum(self.adds.values(), torch.zeros_like(self.whole))

    @property
    def unexplained(self) -> float:
        """Size of the shift less all of its parts, in sizes of the shift: rounding."""
        rest = self.whole.double() - self.direct.double() - self.through.double()
        return float(rest.norm() / self.whole.double().norm())

    def before(self, place: Place) -> Effect:
        """Return what the edits before a place have written into the stream."""
        earlier = (effect for other, effect in self.writes.items() if self.order[other] < self.order[place])
        return sum(earlier, torch.zeros_like(self.whole))

    def head_effects(self, place: Place) -> list[Effect]:
        """Return what every head of an attention adds; none where heads do not add up."""
        if place not in self.heads:
            return []
        component, units = self.heads[place]
        assert component.projection is not None
        with torch.no_grad():
            return [head.cpu() for head in component.projection.by_head(units).unbind(1)]


def read_parts(route: Route, tokens: Tokens, *, causal: bool, batch_size: int | None, progress: bool) -> Parts:
    """Run all texts and return the parts of their shift; with `causal` also what the components cause."""
    host = host_of(route.model)
    shape = len(tokens), route.site.width
    parts = Parts(torch.zeros(shape), torch.zeros(shape), order=_order(route))
    batches = list(tokens.batches(batch_size, budget=_budget(route, tokens, causal=causal)))
    for rows, batch in progress_bar(batches, desc="trace shift", unit="batch", show=progress):
        batch = batch.to(host.device)
        base = read_base(route, batch, patterns=causal)
        parts.unedited[rows] = base.unedited.cpu()
        parts.whole[rows] = (base.edited - base.unedited).cpu()
        for at, written in base.written.items():
            _keep(parts.writes, _write_at(at), rows, route.pooled(written, batch), shape)
        for component in route.components:
            change = base.carried[component] - base.plain[component]
            _keep(parts.adds, _place_of(component), rows, route.pooled(change, batch), shape)
        for component, units in base.heads.items():
            kept = parts.heads.setdefault(_place_of(component), (component, torch.zeros(len(tokens), units.shape[1])))
            kept[1][rows] = units.cpu()
        for component, cause, effect in read_causes(route, batch, base) if causal else ():
            _keep(parts.causes, (_place_of(component), cause), rows, effect, shape)
    return parts


_Key = TypeVar("_Key")


def _keep(store: dict[_Key, Effect], key: _Key, rows: Sequence[int], effect: Tensor, shape: tuple[int, int]) -> None:
    if key not in store:
        store[key] = torch.zeros(shape)
    store[key][rows] = effect.cpu()


def _place_of(component: Component) -> Place:
    return Place(component.part, component.layer, component.output.name)


def _write_at(at: Component | Site) -> Place:
    site = at.output if isinstance(at, Component) else at
    return Place("write", site.layer, site.name)


def _order(route: Route) -> dict[Place, int]:
    """Number all parts in forward order: what a component's own edits write comes right behind what it carries."""
    host = host_of(route.model)
    written = [*map(_write_at, route.inside), *map(_write_at, route.on_stream)]
    places = [*(_place_of(component) for component in route.components), *written]
    places.sort(key=lambda place: host.firing_order(place.site))  # stable: a component stays in front of its write
    return {place: number for number, place in enumerate(places)}


def _budget(route: Route, tokens: Tokens, *, causal: bool) -> int:
    """Tokens of a batch, so few that what is held of it stays small beside the model."""
    host = host_of(route.model)
    headed = sum(one.heads_add_up for one in route.components)
    tensors = 2 * (len(route.components) + headed + len(route.on_stream)) + 3 * len(route.inside)
    patterns = sum(one.pattern is not None for one in route.components) if causal else 0
    per_token = tensors * route.site.width + patterns * int(host.model.cfg.n_heads) * max(tokens.lengths)
    held = max(_HELD, sum(weight.numel() for weight in route.model.parameters()) // _OF_WEIGHTS)
    return max(1, min(TOKEN_BUDGET, held // max(1, per_token)))
