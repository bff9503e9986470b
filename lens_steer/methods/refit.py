"""Refitting: a descent that may move the parameters of chosen units only, and where it starts."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

from lens_steer.errors import SettingError, UnitError
from lens_steer.host.units import UnitsLike, as_units
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.methods.descent_run import Loss
from lens_steer.methods.layout import Layout


class LossOnUnits:
    """A loss whose gradient is zero at every parameter that is not `free`, so that a descent leaves those alone."""

    def __init__(self, loss: Loss, free: Bool[Tensor, " parameter"]) -> None:
        self._loss, self._free = loss, free

    def __call__(self, parameters: Tensor, source: list[int] | None = None, target: list[int] | None = None) -> float:
        """Return the loss over some rows or all."""
        return self._loss(parameters, source, target)

    def with_gradient(
        self, parameters: Tensor, source: list[int] | None = None, target: list[int] | None = None
    ) -> tuple[float, Float[Tensor, " parameter"]]:
        """Return the loss over some rows or all, and its gradient at the free parameters."""
        value, gradient = self._loss.with_gradient(parameters, source, target)
        return value, gradient * self._free


def free_parameters(chosen: Intervention | UnitsLike, layout: Layout) -> Bool[Tensor, " parameter"]:
    """Return which parameters belong to the chosen units.

    UnitError if there is no unit, or one lies at none of the sites; SettingError for an intervention with edits of some
    tokens or rows only, because maps are learned for every token of every row.
    """
    if isinstance(chosen, Intervention):
        for edit in chosen.edits:
            if edit.gate is not None or not edit.scope.is_all:
                what = "rows" if edit.gate is not None else f"tokens ({edit.scope})"
                raise SettingError(
                    f"the edit at {edit.site.name} is for some {what} only, and refit learns maps for every token of "
                    "every row: give its units, intervention.units(), or the intervention before scoped() and gated()"
                )
    units = chosen.units() if isinstance(chosen, Intervention) else as_units(chosen, sites=layout.sites)
    if not units:
        raise UnitError("there is no unit to refit: the intervention moves none")
    names = {site.name for site in layout.sites}
    for unit in units:
        if unit.site.name not in names:
            listed = ", ".join(site.name for site in layout.sites)
            raise UnitError(f"{unit} lies at none of the edited sites ({listed}): set sites= to hold it")
    return layout.of_units(units)


def deviations(chosen: Intervention | UnitsLike, layout: Layout) -> Float[Tensor, " parameter"]:
    """Return an intervention's scale - 1 and shift; 0 where it has no single diagonal map.

    Units without maps of their own are at 0, the identity, altogether.
    """
    edits = chosen.edits if isinstance(chosen, Intervention) else ()
    maps = {}
    for site in layout.sites:
        at_site = [edit.map for edit in edits if edit.site == site]
        one = at_site[0] if len(at_site) == 1 else None
        if isinstance(one, DiagonalAffine) and not one.bounded:
            maps[site] = (one.scale, one.shift)
    return layout.vector(maps)
