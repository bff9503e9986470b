"""The choice of a layer: where held-out texts of the two sides lie furthest apart along the method's direction."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lens_steer.activations.activations import Activations
from lens_steer.errors import ContrastError, LensSteerWarning
from lens_steer.host.sites import Site
from lens_steer.methods.descent_run import finite_or_none
from lens_steer.ranking.halves import block_folds
from lens_steer.statistics.scores import auroc

_FOLDS = 5

Layers = tuple[int, ...] | Literal["all"] | None
"""Layers to edit: these, all, or (None) the one that held-out texts choose."""

DirectionOf = Callable[[Activations, Site], Float[Tensor, " unit"]]
"""Finds the direction from source to target at a site, on some of the texts."""


def at_chosen_layer(
    given: Activations, direction_of: DirectionOf, *, seed: int, what: str
) -> tuple[Activations, dict[str, Any]]:
    """Return the activations of one layer, and what the provenance says of its choice.

    In five folds that keep blocks whole, or fewer, a direction is drawn from the other texts at every site, and the
    texts of the fold are projected on it. Taken is the layer where the target's projections lie furthest above the
    source's: in standard deviations within the sides, which still tells layers apart where all AUROCs are 1. With too
    few texts for that, the middle layer, with a warning (LensSteerWarning). Of a single layer there is no choice.
    """
    layers = list(dict.fromkeys(site.layer for site in given.sites))
    if len(layers) < 2:
        return given, {}
    apart: dict[Site, float] = {}
    areas: dict[Site, float] = {}
    try:
        for site in given.sites:
            apart[site], areas[site] = _apart(given, site, direction_of, seed, what)
    except ContrastError as error:
        chosen = layers[len(layers) // 2]
        warnings.warn(
            f"{what}: too few texts to choose a layer on held-out ones, layer {chosen} in the middle is taken: set "
            f"layers= ({error})",
            LensSteerWarning,
            4,
        )
        return _at(given, chosen), {"layer_choice": {"chosen": chosen, "sites": []}}

    def mean_apart(layer: int | None) -> float:
        known = [apart[site] for site in given.sites if site.layer == layer and not math.isnan(apart[site])]
        return sum(known) / len(known) if known else -math.inf

    chosen = max(layers, key=mean_apart)
    rows = [
        {"site": site.name, "apart": finite_or_none(apart[site]), "heldout_auroc": areas[site]} for site in given.sites
    ]
    return _at(given, chosen), {"layer_choice": {"chosen": chosen, "sites": rows}}


def _at(given: Activations, layer: int | None) -> Activations:
    return given.at(tuple(site for site in given.sites if site.layer == layer))


def _apart(given: Activations, site: Site, direction_of: DirectionOf, seed: int, what: str) -> tuple[float, float]:
    """Return how far held-out projections of the sides lie apart at a site, in standard deviations, and their AUROC."""
    values, is_source = given.values[site].double(), given.labels[:, 0] == 1
    projected = torch.full((len(values),), torch.nan, dtype=torch.float64)
    for train, test in block_folds(is_source.numpy(), given.blocks.numpy(), _FOLDS, seed, what=what):
        part = given.rows(torch.from_numpy(train))
        along = F.normalize(direction_of(part, site).double(), dim=0)
        middle = (part.source[site].double().mean(0) + part.target[site].double().mean(0)) / 2
        projected[test] = (values[test] - middle) @ along  # around the middle, so that folds can be laid together
    tested = ~projected.isnan()
    source, target = projected[is_source & tested], projected[~is_source & tested]
    spread = math.sqrt(float(source.var(correction=0) + target.var(correction=0)) / 2)
    gap = float(target.mean() - source.mean())
    apart = gap / spread if spread > 0 else math.copysign(math.inf, gap) if gap else math.nan
    return apart, float(auroc(target[:, None].float(), source[:, None].float())[0])
