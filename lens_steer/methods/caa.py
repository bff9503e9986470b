"""CAA, contrastive activation addition: add the difference of the sides' means (arXiv 2312.06681)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from lens_steer.activations.activations import Activations
from lens_steer.errors import SettingError
from lens_steer.host.sites import SitePattern
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.methods.choices import require_choices
from lens_steer.methods.fitting import activations_for, method_provenance
from lens_steer.texts.contrast import ContrastSet


@dataclass(frozen=True, kw_only=True)
class CAA:
    """Add multiplier * (mean over target texts - mean over source texts) to every token.

    On a paired contrast this is the mean of the pairs' differences, the same number. The paper edits the residual
    stream of one layer; several are added to as if each were the only one.

    Attributes
    ----------
    sites:
        Pattern for `find_sites`.
    layers:
        Keep only these layers of it; negative numbers count from the last. None keeps all.
    pool:
        The value of a text: at its last token, where the paper's answer letter stands (of a pair, the last token of
        the completion), or the mean over its tokens.
    multiplier:
        How far to go; negative moves towards the source.
    batch_size:
        Texts per batch of `collect`.

    """

    sites: SitePattern = "hook_resid_post"
    layers: tuple[int, ...] | None = None
    pool: Literal["last", "mean"] = "last"
    multiplier: float = 1.0
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        require_choices(self)
        if not math.isfinite(self.multiplier):
            raise SettingError(f"CAA: the multiplier is a finite number, not {self.multiplier}")

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Return one shift per site.

        `activations` saves the pass over the texts; ActivationError if they are of other sites, pool or texts.
        """
        given = activations_for(model, contrast, self, activations)
        edits = []
        for site in given.sites:
            difference = given.target[site].double().mean(0) - given.source[site].double().mean(0)
            edits.append(Edit(site, DiagonalAffine(torch.ones(site.width), self.multiplier * difference)))
        return Intervention.fitted(model, edits, **method_provenance(self, contrast, given))
