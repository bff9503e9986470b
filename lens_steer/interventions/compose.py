"""Composition: several interventions as one, with a policy for the units that more than one of them edits."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any, Literal

import torch

from lens_steer.errors import LensSteerWarning, MapError, SettingError
from lens_steer.host.units import Unit
from lens_steer.interventions.collisions import colliding, require_equal_widths
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention, require_interventions
from lens_steer.settings import require_settings

Policy = Literal["sequential", "first", "error"]
"""What happens where two interventions edit the same unit: both in turn, the first alone, or nothing at all."""

_NAMED = 6  # units that an error lists


def compose(*interventions: Intervention, policy: Policy = "sequential", tol: float = 1e-5) -> Intervention:
    """Return several interventions as one, in the order given.

    Two edits collide at the units that both move by more than `tol`, if there may be a token for which both act. Where
    one of the maps mixes units or decides by them (`ProjectOut`, `Gated`), they collide at the site as a whole.

    Parameters
    ----------
    interventions:
        Two or more. Sites are told apart by name.
    policy:
        sequential: later maps see what earlier ones wrote, as with `then`; diagonal maps of one site become one, in
        closed form. first: where two collide, the earlier edit stays and the later is dropped there, unit by unit or
        (see above) at the whole site; the provenance lists under "dropped" how many units of which sites. error: a
        collision is refused.
    tol:
        As for `Intervention.support`.

    Warns
    -----
    LensSteerWarning
        Policy "first" leaves nothing of an intervention.

    Raises
    ------
    MapError
        Policy "error" and a collision (sites and units are named), or a site's width differs.
    SettingError
        Fewer than two interventions, or an unknown policy.

    """
    require_settings(compose, locals())
    if len(interventions) < 2:
        raise SettingError(f"two or more interventions make a composition, not {len(interventions)}")
    require_interventions(*interventions)
    whole, *rest = interventions
    dropped: list[dict[str, Any]] = []
    for place, later in enumerate(rest, start=2):
        require_equal_widths(whole, later)
        if policy == "error":
            _refuse_collisions(whole, later, place, tol)
        edits = later.edits
        if policy == "first":
            edits, lost = _beside(whole, later, tol)
            dropped += [{"intervention": place, **loss} for loss in lost]
        if edits:
            whole = whole.then(replace(later, edits=edits))
        else:
            _warn_that_nothing_is_left(later, place)
    parts = [dict(intervention.provenance) for intervention in interventions]
    about = {**whole.provenance, "method": "compose", "policy": policy, "parts": parts, "dropped": dropped}
    return replace(whole, provenance=about)


def _beside(first: Intervention, later: Intervention, tol: float) -> tuple[tuple[Edit, ...], list[dict[str, Any]]]:
    """Return the edits of `later` without what collides with `first`, and how many units of which sites went."""
    keep = [torch.ones(edit.site.width, dtype=torch.bool) for edit in later.edits]
    for old, place, units in colliding(first, later, tol):
        alone = old.map.unit_by_unit and later.edits[place].map.unit_by_unit
        keep[place] &= ~units if alone else torch.tensor(False)
    edits, lost = [], []
    for edit, kept in zip(later.edits, keep, strict=True):
        if bool(kept.all()):
            edits.append(edit)
            continue
        lost.append({"site": edit.site.name, "units": int((edit.map.moved(tol) & ~kept).sum())})
        if bool((edit.map.moved(0.0) & kept).any()):
            edits.append(replace(edit, map=edit.map.restrict(kept)))
    return tuple(edits), lost


def _warn_that_nothing_is_left(later: Intervention, place: int) -> None:
    warnings.warn(
        f'with policy "first" nothing is left of intervention {place} '
        f"({later.provenance.get('method', 'intervention')}): those before it edit all of its units, at "
        f'{", ".join(site.name for site in later.sites[:_NAMED])}; policy="sequential" would apply both',
        LensSteerWarning,
        stacklevel=3,
    )


def _refuse_collisions(first: Intervention, later: Intervention, place: int, tol: float) -> None:
    shared: dict[Unit, None] = {}
    for edit, _, units in colliding(first, later, tol):
        shared |= dict.fromkeys(Unit(edit.site, index) for index in units.nonzero()[:, 0].tolist())
    if not shared:
        return
    sites = list(dict.fromkeys(unit.site.name for unit in shared))
    more = f" and {len(shared) - _NAMED} more" if len(shared) > _NAMED else ""
    raise MapError(
        f"intervention {place} collides with those before it at {len(shared)} units of {len(sites)} sites "
        f"({', '.join(sites[:_NAMED])}{', ...' if len(sites) > _NAMED else ''}): "
        f'{", ".join(str(unit) for unit in list(shared)[:_NAMED])}{more}. policy="sequential" applies them in turn, '
        'policy="first" keeps the earlier edit of every unit; collisions(a, b) says how much the order matters'
    )
