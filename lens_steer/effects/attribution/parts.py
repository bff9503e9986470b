"""Parts: what is moved, and judged, as one: a whole site, its vector at one position, a head, a unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_steer.errors import SettingError, SiteError, UnitError
from lens_steer.host.sites import Site
from lens_steer.host.units import UnitsLike, as_units

Level = Literal["site", "position", "head", "unit"]
"""A whole site at all compared positions; its vector at each position; each head, or each unit, at all positions."""


@dataclass(frozen=True)
class Parts:
    """The parts of one site: `columns` are the units of each; at level position all units, place by place.

    `names` are what a table calls them: the position's place among the compared ones, the head, the unit; 0 of a site.
    """

    site: Site
    level: Level
    columns: Int[Tensor, "column unit"]
    names: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    def total(
        self, products: Float[Tensor, "pair place unit"], counted: Bool[Tensor, "pair place"]
    ) -> Float[Tensor, "pair part"]:
        """Sum what single units at single places contribute, over each part."""
        if not counted.all():
            products = products * counted[..., None]
        match self.level:
            case "site":
                return products.sum((1, 2))[:, None]
            case "position":
                return products.sum(2)
            case "head":
                heads = rearrange(products, "pair place (head dim) -> pair place head dim", head=self.site.heads)
                return heads.sum((1, 3))
            case _:
                summed = products.sum(1)
                return summed if len(self) == self.site.width else summed[:, self.columns[:, 0]]

    def moves(
        self, difference: Float[Tensor, "pair place unit"], counted: Bool[Tensor, "pair place"]
    ) -> Float[Tensor, "pair part"]:
        """Return how far each part differs: a unit's mean over places, signed; of others the root of summed squares."""
        if self.level == "unit":
            return self.total(difference, counted) / counted.sum(1)[:, None]
        return self.total(difference.square(), counted).sqrt()

    def places_of(self, part: Int[Tensor, " row"], places: Int[Tensor, "row place"]) -> Int[Tensor, "row _"]:
        """Return the places that a part of each row takes, among all places of the row."""
        return places.gather(1, part[:, None]) if self.level == "position" else places

    def units_of(self, part: Int[Tensor, " row"]) -> Int[Tensor, "row unit"]:
        """Return the units of a part of each row."""
        return self.columns.expand(len(part), -1) if self.level in ("site", "position") else self.columns[part]


def parts_of(
    sites: Sequence[Site], level: Level, places: int, units: UnitsLike | None, device: torch.device
) -> tuple[Parts, ...]:
    """Return the parts of every site.

    Raises
    ------
    SettingError
        Units are given at a level that has none.
    SiteError
        Heads are asked for where a site has none.
    UnitError
        A unit lies at none of the sites, or outside its site.

    """
    if units is not None and level != "unit":
        raise SettingError(f"units are given, and the level is {level!r}: ask for level='unit'")
    chosen = None if units is None else _chosen(units, sites)
    parts = []
    for site in sites:
        every = torch.arange(site.width, device=device)
        names = range(places) if level == "position" else range(1)
        columns = every[None]
        if level == "head":
            if site.heads == 1:
                raise SiteError(f"{site.name} has no heads: ask for attn.hook_z, hook_q, hook_k or hook_v")
            columns, names = rearrange(every, "(head dim) -> head dim", head=site.heads), range(site.heads)
        if level == "unit":
            if chosen is not None and site.name not in chosen:
                continue
            kept = every if chosen is None else torch.tensor(chosen[site.name], device=device)
            columns, names = kept[:, None], tuple(kept.tolist())  # type: ignore[assignment]
        parts.append(Parts(site, level, columns, tuple(names)))
    return tuple(parts)


def _chosen(units: UnitsLike, sites: Sequence[Site]) -> dict[str, list[int]]:
    known = {site.name: site for site in sites}
    chosen: dict[str, list[int]] = {}
    for unit in dict.fromkeys(as_units(units, sites=sites)):
        if unit.site.name not in known:
            raise UnitError(f"{unit} lies at none of the sites asked for: name its site in sites= too")
        if unit.index >= known[unit.site.name].width:
            raise UnitError(
                f"{unit.site.name} has {known[unit.site.name].width} units here: there is no unit {unit.index}"
            )
        chosen.setdefault(unit.site.name, []).append(unit.index)
    return {name: sorted(indices) for name, indices in chosen.items()}
