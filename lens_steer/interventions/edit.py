"""Edits: one map at one site, with the tokens and rows that it is for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from lens_steer.errors import MapError, SettingError, SiteError
from lens_steer.host.adapter import host_of
from lens_steer.host.scope import Scope, ScopeName, as_scope
from lens_steer.host.sites import Site, site_at
from lens_steer.interventions.maps import ActivationMap
from lens_steer.interventions.row_gate import RowGate


@dataclass(frozen=True, eq=False)
class Edit:
    """One map at one site, for the tokens of its scope and the rows for which its gate is open (all without one)."""

    site: Site
    map: ActivationMap
    scope: Scope = field(default_factory=Scope)
    gate: RowGate | None = None

    def __post_init__(self) -> None:
        if self.map.width != self.site.width:
            raise MapError(f"{self.site.name} has {self.site.width} units, its map has {self.map.width}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Edit):
            return NotImplemented
        same = self.site == other.site and self.scope == other.scope and self.gate == other.gate
        return same and self.map.same_as(other.map)

    def scoped(self, scope: Scope | ScopeName) -> Edit:
        """Return the same edit for other tokens, at the positions it is for; SettingError if none of those is meant."""
        narrowed = as_scope(scope).within(self.scope)
        if narrowed is None:
            raise SettingError(
                f"the edit at {self.site.name} is for '{self.scope}': '{scope}' shares no position with it"
            )
        return replace(self, scope=narrowed)


def check_gates(model: nn.Module, edits: Sequence[Edit]) -> None:
    """Raise SiteError where a gate's site does not exist, has another width, or comes after what the gate decides."""
    host = host_of(model)
    for edit in edits:
        if edit.gate is None:
            continue
        site = edit.gate.site
        actual = site_at(host, site.name)
        if actual.width != site.width:
            raise SiteError(f"{site.name} has {actual.width} units in this model, the gate has {site.width}")
        if host.firing_order(site.name) > host.firing_order(edit.site.name):
            raise SiteError(
                f"the gate reads {site.name}, which comes after the edit at {edit.site.name}: it could not decide in "
                "time. Read an earlier site, or keep the later edits only (intervention.restrict)"
            )
