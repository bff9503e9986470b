"""CAA, contrastive activation addition: add the difference of the sides' means (arXiv 2312.06681)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.errors import SettingError
from lens_steer.host.sites import Site, SitePattern
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.methods.fitting import activations_for, method_provenance
from lens_steer.methods.layer_choice import Layers, at_chosen_layer
from lens_steer.settings import require_settings
from lens_steer.texts.contrast import ContrastSet


@dataclass(frozen=True, kw_only=True)
class CAA:
    """Add multiplier * (mean over target texts - mean over source texts) to every token.

    On a paired contrast this is the mean of the pairs' differences, the same number. One layer of the residual stream
    is edited, as in the paper; several are added to as if each were the only one, which breaks most models.

    Attributes
    ----------
    sites:
        Pattern for `find_sites`.
    layers:
        Which layers of it; negative numbers count from the last. None takes the one where held-out texts of the two
        sides lie furthest apart along the direction (the provenance says under `layer_choice` how far at each, and
        their AUROC; the paper tries all of them on its task), "all" every one.
    pool:
        The value of a text: at its last token, where the paper's answer letter stands (of a pair, the last token of
        the completion), or the mean over its tokens.
    multiplier:
        How far to go; negative moves towards the source.
    seed:
        Of the folds in which the layer is chosen.
    batch_size:
        Texts per batch of `collect`.

    """

    sites: SitePattern = "hook_resid_post"
    layers: Layers = None
    pool: Literal["last", "mean"] = "last"
    multiplier: float = 1.0
    seed: int = 0
    batch_size: int | None = None

    @classmethod
    def paper(cls, **changes: Any) -> CAA:
        """Return the paper's settings, with `changes`: one layer, found by trying all, which has to be given."""
        if changes.get("layers") is None:
            raise SettingError("CAA: the paper's layer is found by trying all on one's own task: set layers=")
        return cls(**changes)

    def __post_init__(self) -> None:
        require_settings(type(self), vars(self))
        if not math.isfinite(self.multiplier):
            raise SettingError(f"CAA: the multiplier is a finite number, not {self.multiplier}")

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Return one shift per site.

        With `layers` None and too few texts to choose one it warns (LensSteerWarning) and takes the middle layer.
        `activations` saves the pass over the texts; ActivationError if they are of other sites, pool or texts.
        """
        given = activations_for(model, contrast, self, activations)
        about: dict[str, Any] = {}
        if self.layers is None:
            given, about = at_chosen_layer(given, mean_difference, seed=self.seed, what="CAA")
        edits = []
        for site in given.sites:
            shift = self.multiplier * mean_difference(given, site)
            edits.append(Edit(site, DiagonalAffine(torch.ones(site.width), shift)))
        return Intervention.fitted(model, edits, **method_provenance(self, contrast, given), **about)


def mean_difference(given: Activations, site: Site) -> Float[Tensor, " unit"]:
    """Return the mean over target texts minus the mean over source texts, in float64."""
    difference: Tensor = given.target[site].double().mean(0) - given.source[site].double().mean(0)
    return difference
