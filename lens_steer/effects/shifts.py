"""What an edit does to one kind of texts, at one layer: the columns of its units, and measures of the whole layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from lens_steer.effects.text_groups import Sides, TextGroup
from lens_steer.host.sites import Site
from lens_steer.statistics.distances import (
    Sample,
    along_gap,
    energy_distance,
    ratio_of_shown,
    squared_gap,
    squared_size,
    varying,
)
from lens_steer.statistics.jackknife import leave_groups_out
from lens_steer.statistics.wasserstein import wasserstein

Ruler = Mapping[Site, Float[Tensor, " _"]]
"""Site -> the standard deviation of every unit; nan where the unit is constant."""

_CONSTANT = 1e-6  # a spread below this share of a unit's largest value is rounding, not variation


def deviations(sides: Sides) -> Ruler:
    """Return the standard deviation over the texts of both sides taken together, by site and unit."""
    ruler = {}
    for site in next(iter(sides.values())):
        both = torch.cat([pooled[site] for pooled in sides.values()]).double()
        spread = both.std(0, correction=0)
        ruler[site] = spread.masked_fill(spread <= _CONSTANT * both.abs().amax(0), torch.nan)
    return ruler


class Untouched:
    """The values of one kind of texts in the unedited model: what every edited run is held against.

    Samples are in standard deviations of the `ruler`, units that hardly vary left out (`varying`: by the ruler, so the
    same before and after an edit and for all kinds of texts), with every case of the jackknife.
    """

    def __init__(self, group: TextGroup, sides: Sides, ruler: Ruler) -> None:
        self.sides, self.ruler = sides, ruler
        self.counted = {site: torch.from_numpy(varying(sd.numpy())) for site, sd in ruler.items()}
        self.blocks = group.blocks
        self.kept = dict(zip(group.blocks, leave_groups_out(*group.blocks.values()), strict=True))
        self._wasserstein: dict[Site, Tensor] = {}
        self._distance: dict[tuple[Site, ...], Float[np.ndarray, " case"]] = {}

    def sample(self, values: Mapping[Site, Tensor], sites: Sequence[Site], side: str) -> Sample:
        """Return values of one side's texts at several sites as one sample."""
        columns = []
        for site in sites:
            columns.append((values[site].double() / self.ruler[site])[:, self.counted[site]].numpy())
        return Sample(np.concatenate(columns, axis=1), self.blocks[side], self.kept[side])

    def effects(self, edited: Sides, sites: Sequence[Site], side: str) -> Sample:
        """Return what the edit adds to every text of a side."""
        unedited = self.sides[side]
        return self.sample({site: edited[side][site].double() - unedited[site] for site in sites}, sites, side)

    def measures(
        self, edited: Sides, sites: Sequence[Site], *, confidence: float
    ) -> dict[str, Float[np.ndarray, " case"]]:
        """Return the measures of a `DownstreamShift` at the sites of one layer, case by case."""
        effects = self.effects(edited, sites, "source")
        units = max(1, effects.values.shape[1])
        measures = {"moved": np.sqrt(np.maximum(0, squared_size(effects) / units))}
        if "target" not in edited:
            return {**measures, "collateral": _mean_move(effects)}
        source, target = (self.sample(self.sides[side], sites, side) for side in ("source", "target"))
        place = tuple(sites)
        if place not in self._distance:
            self._distance[place] = energy_distance(source, target)
        before = self._distance[place]
        after = energy_distance(self.sample(edited["source"], sites, "source"), target)
        return {
            **measures,
            "apart": before / units,
            "removed": 1 - ratio_of_shown(after, before, confidence=confidence),
            "arrived": ratio_of_shown(
                along_gap(effects, source, target), squared_gap(source, target), confidence=confidence
            ),
            "collateral": _mean_move(self.effects(edited, sites, "target")),
        }

    def units(self, edited: Sides, site: Site) -> dict[str, Shaped[Tensor, " unit"]]:
        """Return the columns of a `DownstreamShift` at one site."""
        source, moved_source = self.sides["source"][site], edited["source"][site]
        gap = before = torch.zeros(site.width, dtype=torch.float64)
        bystander = "target" if "target" in edited else "source"
        if "target" in edited:
            target = self.sides["target"][site]
            gap = target.double().mean(0) - source.double().mean(0)
            if site not in self._wasserstein:
                self._wasserstein[site] = wasserstein(source, target)
            before, after = self._wasserstein[site], wasserstein(moved_source, target)
        else:
            after = wasserstein(moved_source, source)
        return {
            "wasserstein_before": before,
            "wasserstein_after": after,
            "gap": gap,
            "moved": moved_source.double().mean(0) - source.double().mean(0),
            "collateral": (edited[bystander][site].double() - self.sides[bystander][site]).abs().mean(0),
            "sd": self.ruler[site],
            "counted": self.counted[site],
        }


def _mean_move(effects: Sample) -> Float[np.ndarray, " case"]:
    """How far a text moves, the mean over units and texts: 0 where nothing moves, at any number of texts."""
    return effects.mean(np.abs(effects.values).mean(1)) if effects.values.shape[1] else np.zeros(len(effects.kept))
