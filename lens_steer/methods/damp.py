"""Det0 and Damp: the best detectors of the source concept, silenced or turned down (arXiv 2407.12824)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.pooling import Pool
from lens_steer.errors import SettingError
from lens_steer.host.sites import SitePattern
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.methods.best_units import best_units, require_count
from lens_steer.methods.fitting import activations_for, method_provenance
from lens_steer.settings import require_settings
from lens_steer.statistics.scores import auroc
from lens_steer.texts.contrast import ContrastSet


@dataclass(frozen=True, kw_only=True)
class Damp:
    """Multiply the k units that detect the source best by a constant.

    Units are ranked by AUROC over all sites together, so a site may keep all of its units: then it is not edited.
    Damping shrinks towards zero and fits sites where zero is neutral; the paper's own sites are `paper:aura`.

    Attributes
    ----------
    k:
        Number of units; refused below 1 and above the number of units of the sites.
    factor:
        What they are multiplied by, from 0 (silence, as in Det0) to 1 (no change).
    sites:
        Pattern for `find_sites`.
    layers:
        Keep only these layers of it; negative numbers count from the last. None keeps all.
    pool:
        How a text's tokens become one value; the paper takes the maximum.
    batch_size:
        Texts per batch of `collect`.

    """

    k: int
    factor: float = 0.5
    sites: SitePattern = "mlp.hook_post"
    layers: tuple[int, ...] | None = None
    pool: Pool = "max"
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        require_settings(type(self), vars(self))
        require_count(self.k)
        if not 0 <= self.factor <= 1:
            raise SettingError(f"Damp: factor is between 0 (silence) and 1 (no change), not {self.factor}")

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Rank the units of `contrast` and return one diagonal map per site that holds any of the k best.

        `activations` saves the pass over the texts; ActivationError if they are of other sites, pool or texts.
        """
        return _damped(self, self.factor, model, contrast, activations)


@dataclass(frozen=True, kw_only=True)
class Det0:
    """Silence the k units that detect the source best: `Damp` with factor 0, or `ablate` of the k best.

    Attributes are those of `Damp`.
    """

    k: int
    sites: SitePattern = "mlp.hook_post"
    layers: tuple[int, ...] | None = None
    pool: Pool = "max"
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        require_settings(type(self), vars(self))
        require_count(self.k)

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Rank the units of `contrast` and return one diagonal map per site that holds any of the k best.

        `activations` saves the pass over the texts; ActivationError if they are of other sites, pool or texts.
        """
        return _damped(self, 0.0, model, contrast, activations)


def _damped(
    method: Damp | Det0, factor: float, model: nn.Module, contrast: ContrastSet, activations: Activations | None
) -> Intervention:
    given = activations_for(model, contrast, method, activations)
    scores = {site: auroc(given.source[site], given.target[site]) for site in given.sites}
    edits = []
    for site, best in best_units(scores, method.k).items():
        scale = torch.where(best, factor, 1.0)
        edits.append(Edit(site, DiagonalAffine(scale, torch.zeros_like(scale))))
    about: dict[str, Any] = method_provenance(method, contrast, given)
    return Intervention.fitted(model, edits, **about)
