"""Matched units: random controls for a choice of units, alike in site, scale and spread."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lens_steer.activations.activations import Activations, require_activations
from lens_steer.errors import ActivationError, LensSteerWarning, SettingError, UnitError
from lens_steer.host.sites import Site
from lens_steer.host.units import Unit, UnitsLike, as_units
from lens_steer.settings import require_settings

_NEAREST = 8  # units among which one is drawn
_FLOOR = 0.1  # of a site's median: what is smaller counts as equally small
_UNLIKE = 2.0  # a typical ratio of scales beyond which a draw is no match


def matched_units(units: UnitsLike, activations: Activations, *, draws: int, seed: int = 0) -> list[tuple[Unit, ...]]:
    """Draw random units in place of chosen ones, each at the same site and of like scale: controls of that choice.

    A unit set to a constant, or scaled, moves its model the more the larger it is and the wider it spreads; so a
    control of other sites or scales would differ from the choice in more than what the choice was made for. Unit i of a
    draw stands for unit i of the choice: one of the eight units nearest to it (more where many draws of few units are
    asked for) in the logarithms of |mean| and standard deviation over tokens. No draw holds a unit of the choice, or a
    unit twice.

    Parameters
    ----------
    units:
        The choice: whatever `ablate` takes.
    activations:
        From `collect`, at the sites of the choice. Their token means and spreads are used, whatever the pool.
    draws:
        How many controls to draw; 20 or more can carry a level of 5 %.
    seed:
        Of the draws.

    Warns
    -----
    LensSteerWarning
        A site has no units of like scale, so that the typical drawn unit has less than half or more than twice the
        spread of the one it stands for.

    Raises
    ------
    UnitError
        A site has fewer units outside the choice than in it, or a unit cannot be read.
    ActivationError
        The activations lack a site of the choice.
    SettingError
        `draws` is below 1.

    """
    require_settings(matched_units, locals())
    require_activations(activations)
    if draws < 1:
        raise SettingError(f"matched_units: draws is 1 or more, not {draws}")
    chosen = as_units(units, sites=activations.sites)
    at: dict[Site, list[int]] = {}
    for place, unit in enumerate(chosen):
        at.setdefault(unit.site, []).append(place)
    pool = max(_NEAREST, math.ceil(draws / len(chosen)))
    drawn: list[list[Unit]] = [list(chosen) for _ in range(draws)]
    for number, (site, places) in enumerate(at.items()):
        indices = [chosen[place].index for place in places]
        scales = _scales(site, activations)
        distances = _distances(site, indices, scales)
        generators = [torch.Generator().manual_seed(hash((seed, number, draw))) for draw in range(draws)]
        of_site = [_one_draw(distances, pool, generator) for generator in generators]
        for draw, mine in zip(drawn, of_site, strict=True):
            for place, index in zip(places, mine, strict=True):
                draw[place] = Unit(site, index)
        _warn_if_unlike(site, scales[indices, 1], scales[torch.tensor(of_site), 1])
    return [tuple(draw) for draw in drawn]


def _scales(site: Site, activations: Activations) -> Float[Tensor, "unit 2"]:
    """Return the logarithms of every unit's |token mean| and token spread."""
    if site not in activations.sites:
        raise ActivationError(f"the activations lack {site.name}, where chosen units lie: collect it too")
    mean = activations.token_mean(site, "all").abs()
    sides = [activations.token_std(site, side) for side in ("source", "target")]
    spread = (torch.stack(sides).square().mean(0)).sqrt()
    columns = [values.double().cpu() for values in (mean, spread)]
    return torch.stack([(values + _FLOOR * values.median() + 1e-12).log() for values in columns], dim=1)


def _distances(site: Site, indices: Sequence[int], scales: Float[Tensor, "unit 2"]) -> Float[Tensor, "chosen unit"]:
    """Return how unlike every unit is to each chosen one; infinite for the chosen ones themselves."""
    if len(set(indices)) < len(indices):
        raise UnitError(f"a unit of {site.name} is listed more than once")
    others = len(scales) - len(indices)
    if len(indices) > others:
        raise UnitError(
            f"{site.name} has {len(scales)} units, of which {len(indices)} are chosen: the {others} others are too few "
            "to stand for them, choose fewer units there"
        )
    distances = torch.cdist(scales[list(indices)], scales)
    distances[:, list(indices)] = torch.inf
    return distances


def _one_draw(distances: Float[Tensor, "chosen unit"], pool: int, generator: torch.Generator) -> list[int]:
    """Return for every chosen unit one of the `pool` nearest that are still free; who draws first is random too."""
    free = distances.clone()
    drawn = [0] * len(distances)
    for place in torch.randperm(len(distances), generator=generator).tolist():
        left = int(torch.isfinite(free[place]).sum())
        nearest = free[place].topk(min(pool, left), largest=False).indices
        index = int(nearest[int(torch.randint(len(nearest), (1,), generator=generator))])
        drawn[place] = index
        free[:, index] = torch.inf
    return drawn


def _warn_if_unlike(site: Site, chosen: Float[Tensor, " chosen"], drawn: Float[Tensor, "draw chosen"]) -> None:
    ratio = float((drawn - chosen).median().exp())
    if not 1 / _UNLIKE <= ratio <= _UNLIKE:
        warnings.warn(
            f"{site.name} has no units of the scale of the chosen ones: the typical unit drawn in their place has "
            f"{ratio:.2g} times their spread, and a control of it is weaker or stronger for that alone",
            LensSteerWarning,
            3,
        )
