"""AurA: damp each unit in proportion to how well it detects the source concept (arXiv 2407.12824)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.pooling import Pool
from lens_steer.host.sites import SitePattern
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.methods.fitting import activations_for, method_provenance
from lens_steer.settings import require_settings
from lens_steer.statistics.scores import auroc
from lens_steer.texts.contrast import ContrastSet


@dataclass(frozen=True, kw_only=True)
class AurA:
    """Scale every expert unit of the source concept by 1 - 2 (AUROC - 1/2).

    Units that do not favour the source (AUROC <= 1/2) are left alone. There is no hyper-parameter. Damping shrinks a
    unit towards zero, so it fits sites where zero is neutral; the paper's own sites are `paper:aura`.

    Attributes
    ----------
    sites:
        Pattern for `find_sites`.
    layers:
        Keep only these layers of it; negative numbers count from the last. None keeps all.
    pool:
        How a text's tokens become one value; the paper takes the maximum.
    batch_size:
        Texts per batch of `collect`.

    """

    sites: SitePattern = "mlp.hook_post"
    layers: tuple[int, ...] | None = None
    pool: Pool = "max"
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        require_settings(type(self), vars(self))

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Rank the units of `contrast` and return one diagonal map per site.

        `activations` saves the pass over the texts where they were collected before; ActivationError if they are of
        other sites, another pool or other texts.
        """
        given = activations_for(model, contrast, self, activations)
        edits = []
        for site in given.sites:
            scale = aura_scale(given.source[site], given.target[site])
            edits.append(Edit(site, DiagonalAffine(scale, torch.zeros_like(scale))))
        return Intervention.fitted(model, edits, **method_provenance(self, contrast, given))


def aura_scale(source: Float[Tensor, "n unit"], target: Float[Tensor, "m unit"]) -> Float[Tensor, " unit"]:
    """Return AurA's scale of every unit, from pooled activations: 1 at AUROC <= 1/2, 0 at AUROC 1."""
    return (1 - 2 * (auroc(source, target) - 0.5).clamp_min(0)).float()
