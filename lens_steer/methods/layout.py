"""Layout: how the scales and shifts of several sites lie in one flat vector of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from lens_steer.host.sites import Site
from lens_steer.host.units import Unit

ScaleAndShift = tuple[Float[Tensor, "*text unit"], Float[Tensor, "*text unit"]]


class Layout:
    """Per site the deviations scale - 1, then the shifts; the zero vector is the identity.

    With sites A of two units and B of one the vector is
    [A scale 0, A scale 1, A shift 0, A shift 1, B scale 0, B shift 0].

    `spreads` (site -> [unit]) is what a shift of 1 in the vector is in the activations' own scale: with a unit's
    standard deviation there, a vector means the same edit whatever the scale of the activations. Without, 1.
    """

    def __init__(self, sites: Sequence[Site], spreads: Mapping[Site, Float[Tensor, " unit"]] | None = None) -> None:
        self.sites = tuple(sites)
        self._spreads = spreads
        self._sizes = [site.width for site in self.sites for _ in range(2)]

    def __len__(self) -> int:
        return sum(self._sizes)

    @cached_property
    def group(self) -> Int[Tensor, " parameter"]:
        """Group of every parameter: the scales of a site are one, its shifts another."""
        return torch.repeat_interleave(torch.arange(len(self._sizes)), torch.tensor(self._sizes))

    def parts(self, vector: Shaped[Tensor, "*text parameter"]) -> dict[Site, tuple[Tensor, Tensor]]:
        """Return what the vector holds for every site: the entries of its scales and of its shifts."""
        parts = torch.split(vector, self._sizes, dim=-1)
        return {site: (parts[2 * place], parts[2 * place + 1]) for place, site in enumerate(self.sites)}

    def maps(self, parameters: Float[Tensor, "*text parameter"]) -> dict[Site, ScaleAndShift]:
        """Return scale and shift of every site, the shift in the activations' own scale."""
        parts = self.parts(parameters).items()
        return {site: (1 + deviation, shift * self._spread(site, shift)) for site, (deviation, shift) in parts}

    def _spread(self, site: Site, like: Tensor) -> Tensor | float:
        return 1.0 if self._spreads is None else self._spreads[site].to(like)

    def support(self, parameters: Float[Tensor, " parameter"], *, tol: float = 1e-5) -> int:
        """Return how many units are edited: |scale - 1| > tol or |shift| > tol spreads."""
        return int(self.edited(parameters, tol=tol).sum()) // 2

    def edited(self, parameters: Float[Tensor, " parameter"], *, tol: float = 1e-5) -> Bool[Tensor, " parameter"]:
        """Return which parameters are those of edited units: both of a unit where one of them is not 0."""
        parts = self.parts(parameters).values()
        moved = [(scale.abs() > tol) | (shift.abs() > tol) for scale, shift in parts]
        return torch.cat([of_site for of_site in moved for _ in range(2)])

    def furthest(self, parameters: Float[Tensor, " parameter"], units: int) -> Bool[Tensor, " parameter"]:
        """Return which parameters are those of the `units` units moved furthest, and of no unit that is not moved."""
        moved = [torch.hypot(scale, shift) for scale, shift in self.parts(parameters).values()]
        places = torch.cat(moved).topk(units).indices
        kept = torch.zeros(sum(len(part) for part in moved), dtype=torch.bool, device=parameters.device)
        kept[places] = True
        by_site = torch.split(kept, [len(part) for part in moved])
        return torch.cat([of_site for of_site in by_site for _ in range(2)]) & self.edited(parameters)

    def vector(self, maps: Mapping[Site, ScaleAndShift]) -> Float[Tensor, " parameter"]:
        """Return the parameters of these scales and shifts; sites without any are left alone."""
        parts: list[Tensor] = []
        for site in self.sites:
            if site in maps:
                scale, shift = maps[site]
                parts += [scale - 1, shift / self._spread(site, shift)]
            else:
                parts += [torch.zeros(2 * site.width)]
        return torch.cat(parts)

    def of_units(self, units: Iterable[Unit]) -> Bool[Tensor, " parameter"]:
        """Return which parameters are those of some units, all of which lie at the layout's sites."""
        mask = torch.zeros(len(self), dtype=torch.bool)
        parts = self.parts(mask)
        for unit in units:
            for part in parts[unit.site]:
                part[unit.index] = True
        return mask
