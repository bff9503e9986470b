"""Self-conditioning: hold the target's expert units at the value they have on target texts (arXiv 2110.02802)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.pooling import Pool
from lens_steer.errors import SettingError
from lens_steer.host.sites import Site, SitePattern
from lens_steer.host.tokens import TokenBatch, tokenize
from lens_steer.host.trunk import Visit, run_texts
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.methods.best_units import best_units, require_count
from lens_steer.methods.fitting import activations_for, method_provenance
from lens_steer.methods.transport_maps import unit_quantiles
from lens_steer.settings import require_settings
from lens_steer.statistics.scores import average_precision
from lens_steer.texts.contrast import ContrastSet

_QUANTILES = {"median": 0.5, "p90": 0.9}


@dataclass(frozen=True, kw_only=True)
class SelfCond:
    """Set the k units that detect the target best to a constant on every token.

    Units are ranked by average precision at finding the target texts, over all sites together.

    Attributes
    ----------
    k:
        Number of units, up to all of them.
    value:
        The constant: the target's median (the authors' code), mean (the paper), 90th percentile, or zero.
    statistic:
        What it is a statistic of: "max", the largest value of each text, as the authors have it; or "token", the value
        at each token. A maximum is no typical value of a token, and holding ten units there can break a small model.
    sites:
        Pattern for `find_sites`; the paper's own are `paper:selfcond`.
    layers:
        Keep only these layers of it; negative numbers count from the last. None keeps all.
    pool:
        How a text's tokens become the value that units are ranked by; the paper takes the maximum, and so must
        `statistic="max"`.
    batch_size:
        Texts per batch.

    """

    k: int
    value: Literal["median", "mean", "p90", "zero"] = "median"
    statistic: Literal["max", "token"] = "max"
    sites: SitePattern = "mlp.hook_post"
    layers: tuple[int, ...] | None = None
    pool: Pool = "max"
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        require_settings(type(self), vars(self))
        require_count(self.k)
        if self.statistic == "max" and self.pool != "max" and self.value != "zero":
            raise SettingError(
                f'SelfCond: statistic="max" needs the largest value of every text, not its {self.pool}: '
                'set pool="max", or statistic="token"'
            )

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Rank the units of `contrast` and return one diagonal map per site that holds any of the k best.

        `activations` saves the pass over the texts; ActivationError if they are of other sites, pool or texts. Medians
        and percentiles of token values need the tokens themselves: the target texts pass once more, and the values of
        the k units (tokens x k of them) are in memory.
        """
        given = activations_for(model, contrast, self, activations)
        scores = {site: average_precision(given.target[site], given.source[site]) for site in given.sites}
        best = best_units(scores, self.k)
        constants = self._constants(model, contrast, given, best)
        edits = []
        for site, mask in best.items():
            shift = torch.zeros(site.width)
            shift[mask] = constants[site].float()
            edits.append(Edit(site, DiagonalAffine(1 - mask.float(), shift)))
        return Intervention.fitted(model, edits, **method_provenance(self, contrast, given))

    def _constants(
        self, model: nn.Module, contrast: ContrastSet, given: Activations, best: Mapping[Site, Tensor]
    ) -> dict[Site, Tensor]:
        """Return the chosen units' constants, site by site."""
        if self.value == "zero":
            return {site: torch.zeros(int(mask.sum())) for site, mask in best.items()}
        if self.value == "mean" and self.statistic == "token":
            return {site: given.token_mean(site, "target")[mask] for site, mask in best.items()}
        if self.statistic == "token":
            values = _token_values(model, contrast, best, self.batch_size)
        else:
            values = {site: given.target[site][:, mask] for site, mask in best.items()}
        if self.value == "mean":
            return {site: of_site.double().mean(0) for site, of_site in values.items()}
        return {site: unit_quantiles(of_site, _QUANTILES[self.value]) for site, of_site in values.items()}


def _token_values(
    model: nn.Module, contrast: ContrastSet, chosen: Mapping[Site, Tensor], batch_size: int | None
) -> dict[Site, Tensor]:
    """Return [token, chosen unit] per site: the values at every pooled token of the target texts."""
    tokens = tokenize(model, contrast.target, chat=contrast.chat)
    parts: dict[Site, list[Tensor]] = {site: [] for site in chosen}

    def reader(site: Site) -> Visit:
        def read(activation: Tensor, batch: TokenBatch) -> None:
            parts[site].append(activation[batch.pooled].float().cpu()[:, chosen[site]])

        return read

    visits = {site: reader(site) for site in chosen}
    run_texts(model, tokens, visits, batch_size)
    return {site: torch.cat(of_site) for site, of_site in parts.items()}
