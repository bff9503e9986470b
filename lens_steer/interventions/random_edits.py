"""Random edits: controls of an edit, alike in sites, scopes, gates and number of units, with nothing to say."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_steer.activations.activations import Activations
from lens_steer.errors import LensSteerWarning, SettingError
from lens_steer.host.sites import Site
from lens_steer.host.units import Unit
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.interventions.matched_units import matched_units

_TOL = 1e-5
_FLOOR = 0.1  # of a site's median spread: a unit that hardly varies is not scaled by its own


def random_edits(
    intervention: Intervention, activations: Activations, *, draws: int, seed: int = 0
) -> list[Intervention]:
    """Draw random edits in place of an edit: what an edit of this form does that knows nothing of the contrast.

    A diagonal map keeps what it does, in standard deviations of a unit about its mean, and does it to other units: of
    like scale (`matched_units`) where fewer than half of the site's are moved, else to as many of all; the sign of
    every shift is drawn. Any other map becomes a constant vector in a random direction. How far the edits write is for
    the caller to bring to one norm (`Intervention.scaled`).

    Parameters
    ----------
    intervention:
        The edit that is stood for.
    activations:
        From `collect`, at its sites; their token means and spreads are used, whatever the pool.
    draws, seed:
        How many to draw, and from which seed.

    Raises
    ------
    SettingError
        `draws` is below 1.
    ActivationError
        The activations lack a site, or hold no token means.

    """
    if draws < 1:
        raise SettingError(f"random_edits: draws is 1 or more, not {draws}")
    parts = [list(_draws(edit, activations, draws, seed + place)) for place, edit in enumerate(intervention.edits)]
    about = {"method": f"random edit like {intervention.provenance.get('method', 'intervention')}", "seed": seed}
    return [
        Intervention(tuple(part[draw] for part in parts), {**about, "draw": draw}, intervention.fingerprint)
        for draw in range(draws)
    ]


def _draws(edit: Edit, activations: Activations, draws: int, seed: int) -> Iterator[Edit]:
    generator = torch.Generator().manual_seed(seed)
    if not isinstance(edit.map, DiagonalAffine):
        for _ in range(draws):
            direction = torch.randn(edit.site.width, generator=generator)
            yield replace(edit, map=DiagonalAffine(torch.ones(edit.site.width), direction / direction.norm()))
        return
    own = edit.map.moved(_TOL).nonzero()[:, 0]
    mean, spread = activations.token_mean(edit.site, "all").float().cpu(), _spread(edit.site, activations)
    for places in _places(edit.site, own, activations, draws, seed):
        signs = torch.randint(2, (len(own),), generator=generator).float() * 2 - 1
        yield replace(edit, map=_moved(edit.map, own, places, mean, spread, signs))


def _places(
    site: Site, own: Int[Tensor, " moved"], activations: Activations, draws: int, seed: int
) -> Iterator[Int[Tensor, " moved"]]:
    """Yield, draw by draw, the unit that stands for each unit that is moved."""
    if not len(own) or 2 * len(own) >= site.width:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(draws):
            yield torch.randperm(site.width, generator=generator)[: len(own)]
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LensSteerWarning)  # of unlike spreads: moves are in standard deviations
        alike = matched_units([Unit(site, index) for index in own.tolist()], activations, draws=draws, seed=seed)
    for units in alike:
        yield torch.tensor([unit.index for unit in units])


def _spread(site: Site, activations: Activations) -> Float[Tensor, " unit"]:
    sides = torch.stack([activations.token_std(site, side) for side in ("source", "target")])
    spread = sides.float().square().mean(0).sqrt().cpu()
    return spread.clamp_min(_FLOOR * float(spread.median()) + 1e-12)


def _moved(
    given: DiagonalAffine,
    own: Int[Tensor, " moved"],
    places: Int[Tensor, " moved"],
    mean: Float[Tensor, " unit"],
    spread: Float[Tensor, " unit"],
    signs: Float[Tensor, " moved"],
) -> DiagonalAffine:
    """Do at `places` what the map does to its `own` units, in their standard deviations; shifts with these signs."""
    scale, shift = torch.ones(given.width), torch.zeros(given.width)
    scale[places] = given.scale[own].cpu()
    change = scale[places] - 1
    # What the map adds where a unit is at its mean.
    at_mean = (change * mean[own] + given.shift[own].cpu()) / spread[own]
    shift[places] = signs * at_mean * spread[places] - change * mean[places]
    if given.low is None or given.high is None:
        return DiagonalAffine(scale, shift)
    low, high = torch.full_like(scale, -torch.inf), torch.full_like(scale, torch.inf)
    for bound, old in ((low, given.low.cpu()), (high, given.high.cpu())):
        bound[places] = mean[places] + (old[own] - mean[own]) / spread[own] * spread[places]
    return DiagonalAffine(scale, shift, low=low, high=high)
