"""Ablation: chosen units set to a constant, as an intervention like any other."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.origin import require_of_model, require_one_origin
from lens_steer.errors import ActivationError, SettingError, UnitError
from lens_steer.host.sites import Site, all_sites
from lens_steer.host.units import Unit, UnitsLike, as_units
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.interventions.resample import Resample
from lens_steer.settings import require_settings
from lens_steer.texts.seen import pack, seen_forms

AblationMode = Literal["zero", "mean", "target_mean", "resample", "value"]


def ablate(
    units: UnitsLike,
    *,
    mode: AblationMode = "zero",
    value: float | None = None,
    activations: Activations | None = None,
    seed: int = 0,
    model: nn.Module | None = None,
) -> Intervention:
    """Return the intervention that holds units at a constant on every token.

    In mode "resample" the constant is another one for each row.

    Parameters
    ----------
    units:
        An ExpertRanking, a frame or csv with columns site and unit (and width), or a sequence of units, of printed
        units or of (site name, index) pairs.
    mode:
        zero; mean: the unit's mean over the tokens of source and target texts; target_mean: over those of the target
        texts (token means whatever the pool: a maximum is no typical value of a token); resample: for each row the
        mean over the tokens of one target text, drawn for the row, the same text at every site; value: the number
        `value`.
    value:
        The constant of mode "value".
    activations:
        From `collect`; needed by the means and, with `pool="mean"`, by resample. Their texts, and those that chose the
        order of a ranking, are recorded as seen: `evaluate` refuses to score them.
    seed:
        Of the draws of mode "resample", which depend on it and on a row's number alone (see `Resample`).
    model:
        Where widths of sites that are given by name are looked up. With the activations of a mean it must be the model
        that they come from, and the ablation is refused on others (as after a fit).

    Raises
    ------
    UnitError
        A unit does not exist, appears twice, or its site's width is unknown.
    SettingError
        There is no such mode; `value` or `activations` are missing, or a value is given where the mode has no use for
        it.
    ActivationError
        Mode "resample", and the activations are pooled otherwise than by the mean: no text's token means are in them.
        The activations are of another model, or of other edits, than `model`, or than those of the ranking.

    """
    require_settings(ablate, locals())
    if (mode == "value") != (value is not None):
        raise SettingError('value= goes with mode="value", and only with it')
    if mode in ("mean", "target_mean", "resample") and activations is None:
        raise SettingError(f'mode="{mode}" needs activations= from lens_steer.collect')
    if mode == "resample" and activations is not None and activations.pool != "mean":
        raise ActivationError(
            f'mode="resample" takes the mean over each text\'s tokens, and these activations are pooled by '
            f'{activations.pool}: collect them with pool="mean"'
        )
    chosen = as_units(units, sites=_known_sites(activations, model))
    if len(set(chosen)) < len(chosen):
        twice = next(unit for unit in chosen if chosen.count(unit) > 1)
        raise UnitError(f"{twice} is listed more than once")
    by_site: dict[Site, list[int]] = {}
    for unit in chosen:
        by_site.setdefault(unit.site, []).append(unit.index)
    used = activations if mode in ("mean", "target_mean", "resample") else None
    ranked = getattr(units, "activations", None)
    if used is not None and isinstance(ranked, Activations):
        require_one_origin(used, ranked, "the ranking")
    if used is not None and model is not None:
        require_of_model(used, model)
    edits = [
        _draw(site, indices, used, seed)
        if mode == "resample" and used is not None
        else _hold(site, indices, _constant(site, mode, value, activations))
        for site, indices in sorted(by_site.items(), key=_order)
    ]
    provenance: dict[str, Any] = {"method": f"ablate {mode}", "units": [str(unit) for unit in chosen], "value": value}
    if mode == "resample":
        provenance["seed"] = seed
    if activations is not None:
        provenance["activations"] = {k: v for k, v in activations.provenance.items() if k != "fingerprint"}
    seen = _seen(units, used)
    if seen.size:
        provenance["seen"] = pack(seen)
    if used is not None and model is not None:
        return Intervention.fitted(model, edits, **provenance)
    return Intervention(tuple(edits), provenance)


def _seen(units: UnitsLike, used: Activations | None) -> Int[np.ndarray, " hash"]:
    """The hashes of the texts that chose the units, and of those that the constants are means of."""
    chose = getattr(units, "seen", None)
    parts = [chose if isinstance(chose, np.ndarray) else np.empty(0, dtype=np.int64)]
    if used is not None and used.hashes is not None:
        parts.append(seen_forms(used.hashes.numpy()))
    return np.unique(np.concatenate(parts))


def _known_sites(activations: Activations | None, model: nn.Module | None) -> tuple[Site, ...]:
    if activations is not None:
        return activations.sites
    return () if model is None else all_sites(model)


def _order(item: tuple[Site, list[int]]) -> tuple[int, str]:
    return item[0].layer, item[0].name


def _constant(site: Site, mode: AblationMode, value: float | None, activations: Activations | None) -> Tensor:
    if mode == "zero" or activations is None:
        return torch.full((site.width,), value or 0.0)
    if mode == "target_mean":
        return activations.token_mean(site, "target")
    return activations.token_mean(site, "all")


def _hold(site: Site, indices: list[int], constant: Tensor) -> Edit:
    scale, shift = torch.ones(site.width), torch.zeros(site.width)
    scale[indices] = 0.0
    shift[indices] = constant[indices]
    return Edit(site, DiagonalAffine(scale, shift))


def _draw(site: Site, indices: list[int], activations: Activations, seed: int) -> Edit:
    values = activations.target[site][:, indices]
    return Edit(site, Resample(site.width, torch.tensor(indices), values, seed=seed))


def random_units(sites: tuple[Site, ...], k: int, *, seed: int) -> tuple[Unit, ...]:
    """Draw k units of these sites, each equally likely: the null control of a choice of k units."""
    require_settings(random_units, locals())
    if not all(isinstance(site, Site) for site in sites):
        raise SettingError(f"random_units: sites are what find_sites(model, pattern) gives, not {sites!r:.60}")
    total = sum(site.width for site in sites)
    if not 0 < k <= total:
        raise UnitError(f"the sites have {total} units: {k} of them cannot be drawn")
    drawn = torch.randperm(total, generator=torch.Generator().manual_seed(seed))[:k].sort().values.tolist()
    units, first = [], 0
    for site in sites:
        units += [Unit(site, index - first) for index in drawn if first <= index < first + site.width]
        first += site.width
    return tuple(units)
