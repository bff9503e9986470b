"""The two passes that everything else is held against: a batch unedited, and edited, component by component.

Every component has three values: `plain` in the unedited pass; `carried`, on the edited stream but without the edits
inside the component itself; and what it gives in the edited pass. carried - plain is what the component makes of edits
before it, edited - carried is what its own edits write into the stream. These and the writes of edits on the stream
itself add up to the shift of the stream, whatever the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.activations.pooling import Pool, TokenPool
from lens_steer.host.adapter import host_of
from lens_steer.host.attach import attach
from lens_steer.host.components import Component, owners
from lens_steer.host.sites import Site
from lens_steer.host.tokens import TokenBatch
from lens_steer.host.trunk import as_hook, trunk
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.touched import Touched
from lens_steer.interventions.writes import writes_of

Pooled = Float[Tensor, "text stream"]
Tokenwise = Float[Tensor, "text pos stream"]
Hook = tuple[str, Callable[..., Tensor | None]]


@dataclass(frozen=True, eq=False)
class Route:
    """What is traced: an edit at a strength, from where it acts through `components` to a site of the stream.

    Attributes
    ----------
    edits:
        The edits that lie before the site.
    components:
        Those that lie between the first edit and the site, in forward order.
    inside:
        Component -> the edited sites that lie inside it or at its output.
    on_stream:
        The edited sites on the stream itself.
    touched:
        Counts the tokens that the edits changed.

    """

    model: nn.Module
    edits: Intervention
    strength: float
    site: Site
    pool: Pool
    components: tuple[Component, ...]
    inside: Mapping[Component, tuple[Site, ...]]
    on_stream: tuple[Site, ...]
    touched: Touched

    @classmethod
    def of(
        cls,
        model: nn.Module,
        edits: Intervention,
        strength: float,
        site: Site,
        pool: Pool,
        components: Sequence[Component],
    ) -> Route:
        """Sort the edits into those of a component and those on the stream."""
        host = host_of(model)
        inside: dict[Component, tuple[Site, ...]] = {}
        on_stream: dict[str, Site] = {}  # by the host's own name: one hook point may be edited under two
        for edited in edits.sites:
            own = owners(host, edited, components)
            for component in own:
                inside[component] = (*inside.get(component, ()), edited)
            if not own:
                on_stream.setdefault(host.canonical(edited.name), edited)
        stream, touched = tuple(on_stream.values()), Touched(edits.edits)
        return cls(model, edits, strength, site, pool, tuple(components), inside, stream, touched)

    def run(
        self,
        batch: TokenBatch,
        *,
        before: Sequence[Hook] = (),
        edits: Intervention | None = None,
        hooks: Sequence[Hook] = (),
        until: Site | None = None,
    ) -> Tensor:
        """Run a batch up to a site (the route's own) and return what stands there, token by token.

        `before` sees what the edits see, `hooks` what they wrote.
        """
        host, site = host_of(self.model), until or self.site
        streams: list[Tensor] = []

        def read(activation: Tensor, batch: TokenBatch) -> None:
            streams.append(activation.detach().clone())

        attached: Any = nullcontext()
        if edits is not None:
            counts = self.touched if edits is self.edits else Touched(edits.edits)
            attached = attach(self.model, writes_of(edits.edits, self.strength, counts))
        with torch.no_grad(), host.hooks(before), attached, host.hooks(hooks), trunk(self.model, {site: read}) as run:
            run(batch)
        return streams[0]

    def pooled(self, values: Tensor, batch: TokenBatch) -> Float[Tensor, "text unit"]:
        """Pool the values of a batch's tokens; linear, so that parts may be pooled one by one."""
        return TokenPool(batch.pooled.to(values.device))(values, self.pool)


@dataclass(frozen=True, eq=False)
class Base:
    """One batch unedited and edited: pooled where only the sum is asked for, token by token what is put back later.

    Attributes
    ----------
    unedited, edited:
        Pooled, at the traced site.
    plain, carried:
        Component -> its values, see the module's docstring.
    written:
        Component or site on the stream -> what edits write there.
    heads:
        Component -> how far the units of its heads are carried, pooled, for `Projection.by_head`.
    patterns:
        Component -> its unedited attention pattern.

    """

    unedited: Pooled
    edited: Pooled
    plain: Mapping[Component, Tokenwise]
    carried: Mapping[Component, Tokenwise]
    written: Mapping[Component | Site, Tokenwise]
    heads: Mapping[Component, Float[Tensor, "text unit"]] = field(default_factory=dict)
    patterns: Mapping[Component, Tensor] = field(default_factory=dict)


class _Readings(dict[str, Tensor]):
    """What stood at hook points in one pass, by the name that it was asked for."""

    def hooks(self, sites: Sequence[Site]) -> list[Hook]:
        """Return hooks that note the values of sites, heads laid side by side."""
        return [(site.name, as_hook(self._note(site.name))) for site in dict.fromkeys(sites)]

    def raw_hooks(self, names: Sequence[str]) -> list[Hook]:
        """Return hooks that note tensors of any shape."""

        def note(name: str) -> Callable[..., None]:
            def take(tensor: Tensor, hook: Any) -> None:
                self[name] = tensor.detach().clone()

            return take

        return [(name, note(name)) for name in names]

    def _note(self, name: str) -> Callable[[Tensor], None]:
        def take(flat: Tensor) -> None:
            self[name] = flat.detach().clone()

        return take


def read_base(route: Route, batch: TokenBatch, *, patterns: bool) -> Base:
    """Run one batch unedited and edited, and once more for every component whose own edits have no closed form."""
    outputs = [component.output for component in route.components]
    headed = [one for one in route.components if one.heads_add_up and one.units is not None]
    units = [one.units for one in headed if one.units is not None]
    plain, before, after = _Readings(), _Readings(), _Readings()
    looks = [one.pattern for one in route.components if one.pattern is not None] if patterns else []
    unedited = route.run(batch, hooks=[*plain.hooks([*outputs, *units]), *plain.raw_hooks(looks)])
    owned = [one.output for one in route.inside]
    entrances = [one.units for one in route.inside if one.units is not None]
    edited = route.run(
        batch,
        before=before.hooks([*owned, *units, *entrances, *route.on_stream]),
        edits=route.edits,
        hooks=after.hooks([*outputs, *route.on_stream]),
    )
    written: dict[Component | Site, Tokenwise] = {
        site: after[site.name] - before[site.name] for site in route.on_stream
    }
    carried: dict[Component, Tokenwise] = {}
    moved_units: dict[Component, Tensor] = {}
    for component in route.components:
        values, own_units = after[component.output.name], before
        if component in route.inside:
            values, own_units = _without_own_edits(route, component, batch, plain, before)
            written[component] = after[component.output.name] - values
        carried[component] = values
        if component in headed and component.units is not None and component.projection is not None:
            scaled = [
                route.pooled(component.projection.shared_scale(one[component.units.name]), batch)
                for one in (plain, own_units)
            ]
            moved_units[component] = scaled[1] - scaled[0]
    return Base(
        route.pooled(unedited, batch),
        route.pooled(edited, batch),
        {one: plain[one.output.name] for one in route.components},
        carried,
        written,
        moved_units,
        {one: plain[one.pattern] for one in route.components if one.pattern is not None and one.pattern in looks},
    )


def _without_own_edits(
    route: Route, component: Component, batch: TokenBatch, plain: _Readings, before: _Readings
) -> tuple[Tokenwise, _Readings]:
    """Return what a component gives on the edited stream without the edits inside it, and the units in front of it."""
    host = host_of(route.model)
    own = {host.canonical(site.name) for site in route.inside[component]}
    output = host.canonical(component.output.name)
    entrance = None if component.units is None else host.canonical(component.units.name)
    if own == {output}:
        return before[component.output.name], before
    if own <= {output, entrance} and component.projection is not None and component.units is not None:
        # What stood in front of the projection before its edits is what it would have projected without them.
        projected = component.projection(before[component.units.name])
        return projected.to(before[component.output.name].dtype), before
    rest = tuple(edit for edit in route.edits.edits if host.canonical(edit.site.name) not in own)
    if not rest:
        return plain[component.output.name], plain
    read = _Readings()
    hooks = read.hooks([component.units]) if component.units is not None else []
    value = route.run(batch, edits=replace(route.edits, edits=rest), hooks=hooks, until=component.output)
    return value, read
