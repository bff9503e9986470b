"""Controls of a choice of units, in draws: matched ones, random ones, and those that shuffled labels choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

import lens_steer as ls

Choice = tuple[ls.Unit, ...]
_NEAREST = 5  # a matched unit is drawn from so many nearest ones, so that draws differ


def matched_units(units: Choice, activations: ls.Activations, *, draws: int, seed: int) -> tuple[Choice, ...]:
    """Return draws of units like the chosen ones: for each, one of its site with near mean and spread over tokens.

    Units of the choice itself are left out; the order of the choice is kept.
    """
    places = {site: _standardised(site, activations) for site in activations.sites}
    drawn = []
    for draw in range(draws):
        random = np.random.default_rng([seed, draw, len(units)])
        taken = set(units)
        matched: dict[ls.Unit, ls.Unit] = {}
        # In random order: the first ones find the nearest units free.
        for place in random.permutation(len(units)):
            unit = units[place]
            free = [index for index in range(unit.site.width) if ls.Unit(unit.site, index) not in taken]
            if not free:
                raise ls.LensSteerError(
                    f"too many of {unit.site.name}'s {unit.site.width} units are chosen to match them by others: "
                    "choose fewer"
                )
            distance = (places[unit.site][free] - places[unit.site][unit.index]).norm(dim=1)
            near = distance.argsort()[:_NEAREST]
            matched[unit] = ls.Unit(unit.site, free[int(near[random.integers(len(near))])])
            taken.add(matched[unit])
        drawn.append(tuple(matched[unit] for unit in units))
    return tuple(drawn)


def _standardised(site: ls.Site, activations: ls.Activations) -> torch.Tensor:
    """Return every unit's mean and deviation over the target's tokens, each in deviations between units: [unit, 2]."""
    columns = [activations.token_mean(site, "target"), activations.token_std(site, "target")]
    return torch.stack([(column - column.mean()) / column.std().clamp_min(1e-12) for column in columns], dim=1)


def random_choices(sites: Sequence[ls.Site], k: int, *, draws: int, seed: int) -> tuple[Choice, ...]:
    """Return draws of k random units, each in random order."""
    drawn = []
    for draw in range(draws):
        units = ls.random_units(tuple(sites), k, seed=seed + draw)
        order = np.random.default_rng([seed, draw]).permutation(k)
        drawn.append(tuple(units[place] for place in order))
    return tuple(drawn)


def shuffled_experts(
    texts: ls.ContrastSet, activations: ls.Activations, k: int, *, draws: int, seed: int
) -> tuple[Choice, ...]:
    """Return the k best units of a ranking by shuffled labels, per shuffle of the texts that were collected."""
    chosen = []
    for draw in range(draws):
        source = set(texts.shuffled(seed + draw).source)
        labels = torch.tensor([[int(row in source)] for row in (*texts.source, *texts.target)])
        shuffled = replace(activations, labels=labels.to(activations.labels.dtype), moments=None)
        chosen.append(ls.rank_experts(shuffled, holdout=None).units(k))
    return tuple(chosen)
