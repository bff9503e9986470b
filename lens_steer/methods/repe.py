"""RepE, representation engineering: the main direction in which pairs differ, added or taken out (arXiv 2310.01405)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.pooling import Pool
from lens_steer.errors import ActivationError, ContrastError, SettingError
from lens_steer.host.sites import Site, SitePattern
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import ActivationMap, DiagonalAffine
from lens_steer.interventions.project_out import ProjectOut
from lens_steer.methods.fitting import activations_for, method_provenance
from lens_steer.methods.layer_choice import Layers, at_chosen_layer
from lens_steer.settings import require_settings
from lens_steer.texts.contrast import ContrastSet, require_contrast


@dataclass(frozen=True, kw_only=True)
class RepE:
    """Add, or project out, the first principal component of the differences between the texts of pairs.

    Each difference enters in both orders, so the centre of all is zero: what the paper gets on average by drawing the
    order in each pair. The sign is that of the labels: the mean of target - source points along the component.

    Attributes
    ----------
    mode:
        "add" shifts every token by multiplier times the part of the mean difference that lies along the component, so
        that 1 carries the source's mean along it to the target's (the paper adds a multiple of the unit vector).
        "project_out" takes multiplier times what lies along the component out of every token, on whichever side it
        lies: both sides become alike, and neither moves towards the other.
    pairing:
        "contrast" takes the pairs of a paired contrast and refuses another; "random" draws pairs by the seed, as
        many as the smaller side has texts.
    sites:
        Pattern for `find_sites`.
    layers:
        Which layers of it; negative numbers count from the last. None takes the one where held-out texts of the two
        sides lie furthest apart along the direction (the provenance says under `layer_choice` how far at each, and
        their AUROC), "all" every one, as the paper does.
    pool:
        The value of a text; the paper takes its last token.
    multiplier:
        How far to go; in mode "add", negative moves towards the source.
    seed:
        Of random pairs, and of the folds in which the layer is chosen.
    batch_size:
        Texts per batch of `collect`.

    """

    mode: Literal["add", "project_out"] = "add"
    pairing: Literal["contrast", "random"] = "contrast"
    sites: SitePattern = "hook_resid_post"
    layers: Layers = None
    pool: Pool = "last"
    multiplier: float = 1.0
    seed: int = 0
    batch_size: int | None = None

    @classmethod
    def paper(cls, **changes: Any) -> RepE:
        """Return the paper's settings, with `changes`: all layers."""
        return cls(**{"layers": "all", **changes})

    def __post_init__(self) -> None:
        require_settings(type(self), vars(self))
        if not math.isfinite(self.multiplier):
            raise SettingError(f"RepE: the multiplier is a finite number, not {self.multiplier}")

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Return one map per site.

        The provenance says under `directions` how much of the differences lies along the component and in which share
        of the pairs the target lies further along it. `activations` saves the pass over the texts.

        Raises
        ------
        ContrastError
            The contrast is not paired and `pairing` is not "random".
        ActivationError
            `activations` are of other sites, another pool or other texts; or the pairs do not differ at a site.

        """
        require_contrast(contrast)
        if self.pairing == "contrast" and not contrast.paired:
            raise ContrastError(
                f'RepE needs pairs, and {contrast!r} has none: make it with paired=True, or set pairing="random"'
            )
        given = activations_for(model, contrast, self, activations)
        about: dict[str, Any] = {}
        if self.layers is None:
            pairs = _with_pairs_together(given) if self.pairing == "contrast" else given
            chosen, about = at_chosen_layer(pairs, self._direction, seed=self.seed, what="RepE")
            given = given.at(chosen.sites)
        edits, directions = [], []
        for site in given.sites:
            differences = self._differences(given.source[site].double(), given.target[site].double())
            if not bool(differences.any()):
                raise ActivationError(f"no pair differs at {site.name}: leave the site out, or set another pool")
            along = first_component(differences)
            parts = differences @ along
            edits.append(Edit(site, self._map(along, parts.mean())))
            share = float(parts.square().sum() / differences.square().sum())
            in_order = float((parts > 0).double().mean())
            directions.append({"site": site.name, "share_of_differences": share, "pairs_in_order": in_order})
        about |= method_provenance(self, contrast, given)
        return Intervention.fitted(model, edits, **about, directions=directions)

    def _direction(self, given: Activations, site: Site) -> Float[Tensor, " unit"]:
        differences = self._differences(given.source[site].double(), given.target[site].double())
        return first_component(differences) if bool(differences.any()) else differences[0]

    def _differences(self, source: Tensor, target: Tensor) -> Float[Tensor, "pair unit"]:
        if self.pairing == "random":
            generator = torch.Generator().manual_seed(self.seed)
            count = min(len(source), len(target))
            source, target = (side[torch.randperm(len(side), generator=generator)[:count]] for side in (source, target))
        if len(source) != len(target):
            raise ActivationError(
                f"{len(source)} source and {len(target)} target texts make no pairs: collect them anew"
            )
        return target - source

    def _map(self, along: Tensor, distance: Tensor) -> ActivationMap:
        if self.mode == "project_out":
            return ProjectOut(along, self.multiplier)
        return DiagonalAffine(torch.ones(len(along)), self.multiplier * distance * along)


def first_component(differences: Float[Tensor, "pair unit"]) -> Float[Tensor, " unit"]:
    """Return the unit direction with the largest mean square of `differences` along it; their mean points along it.

    Through the products of the pairs with each other: a matrix of pair x pair, never of unit x unit.
    """
    products = differences @ differences.T
    along: Tensor = differences.T @ torch.linalg.eigh(products).eigenvectors[:, -1]
    along = along / along.norm()
    return -along if bool((differences @ along).mean() < 0) else along


def _with_pairs_together(given: Activations) -> Activations:
    """Return activations of pairs in order, of which the two of a pair are of one block; those of arrays are not."""
    is_source = given.labels[:, 0] == 1
    if torch.equal(given.blocks[is_source], given.blocks[~is_source]) or 2 * int(is_source.sum()) != len(is_source):
        return given
    blocks = torch.empty_like(given.blocks)
    blocks[is_source] = blocks[~is_source] = torch.arange(int(is_source.sum()))
    return replace(given, blocks=blocks)
