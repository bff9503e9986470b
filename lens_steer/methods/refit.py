"""Refitting: a descent that may move the parameters of chosen units only, and where it starts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_steer.errors import UnitError
from lens_steer.host.sites import Site
from lens_steer.host.units import UnitsLike, as_units
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.methods.descent import Loss


class LossOnUnits:
    """A loss whose gradient is zero at every parameter that is not `free`, so that a descent leaves those alone."""

    def __init__(self, loss: Loss, free: Bool[Tensor, " parameter"]) -> None:
        self._loss, self._free = loss, free

    def __call__(self, parameters: Tensor) -> float:
        """Return the loss over all rows."""
        return self._loss(parameters)

    def with_gradient(
        self, parameters: Tensor, source: list[int] | None = None, target: list[int] | None = None
    ) -> tuple[float, Float[Tensor, " parameter"]]:
        """Return the loss over some rows or all, and its gradient at the free parameters."""
        value, gradient = self._loss.with_gradient(parameters, source, target)
        return value, gradient * self._free


def free_parameters(chosen: Intervention | UnitsLike, sites: Sequence[Site]) -> Bool[Tensor, " parameter"]:
    """Return which parameters belong to the chosen units, in the order of `EndToEndLoss`: per site scales, then shifts.

    UnitError if there is no unit, or one lies at none of the sites.
    """
    units = chosen.units() if isinstance(chosen, Intervention) else as_units(chosen, sites=sites)
    if not units:
        raise UnitError("there is no unit to refit: the intervention moves none")
    masks = {site.name: torch.zeros(site.width, dtype=torch.bool) for site in sites}
    for unit in units:
        if unit.site.name not in masks:
            raise UnitError(f"{unit} lies at none of the edited sites ({', '.join(masks)}): set sites= to hold it")
        masks[unit.site.name][unit.index] = True
    return torch.cat([mask for mask in masks.values() for _ in range(2)])


def deviations(chosen: Intervention | UnitsLike, sites: Sequence[Site]) -> Float[Tensor, " parameter"]:
    """Return an intervention's scale - 1 and shift, in the same order; 0 where it has no single diagonal map.

    Units without maps of their own are at 0, the identity, altogether.
    """
    edits = chosen.edits if isinstance(chosen, Intervention) else ()
    parts = []
    for site in sites:
        maps = [edit.map for edit in edits if edit.site.name == site.name]
        one = maps[0] if len(maps) == 1 else None
        diagonal = one if isinstance(one, DiagonalAffine) and not one.bounded else DiagonalAffine.identity(site.width)
        parts += [diagonal.scale - 1, diagonal.shift]
    return torch.cat(parts)
