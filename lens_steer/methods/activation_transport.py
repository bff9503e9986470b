"""Activation transport: carry each unit's source distribution onto its target's by an affine map (arXiv 2410.23054)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.pooling import Pool
from lens_steer.errors import SettingError
from lens_steer.host.sites import SitePattern, find_sites
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.methods.causal import Moves, fit_causally
from lens_steer.methods.fitting import activations_for, method_provenance
from lens_steer.methods.transport_maps import (
    ScaleAndShift,
    gaussian_transport,
    linear_transport,
    mean_transport,
    unit_quantiles,
)
from lens_steer.settings import require_settings
from lens_steer.texts.contrast import ContrastSet, require_contrast

Support = Literal["observed", "unbounded"] | tuple[float, float]
"""Where a map acts: inside the range observed on source texts, everywhere, or between two quantiles of that range."""


@dataclass(frozen=True, kw_only=True)
class ActivationTransport(ABC):
    """What the three transport maps share: their settings and how they are fitted to a model.

    A unit without spread in the source stays as it is. Below two texts on a side the fit is refused.

    Attributes
    ----------
    sites:
        Pattern for `find_sites`; the paper's own are `paper:act`.
    layers:
        Keep only these layers of it; negative numbers count from the last. None keeps all.
    pool:
        How a text's tokens become one value; the paper takes the mean.
    support:
        "observed" maps a token only where its value lies strictly inside the range of the source texts' *pooled*
        values. Tokens spread wider than their means, so this leaves many as they are. A pair such as (0.1, 0.9) takes
        quantiles in place of the extremes. "unbounded" maps every token; the paper uses it to induce a concept.
    causal:
        True fits each site to texts that have passed the maps of all earlier sites, in one pass; False fits all sites
        to the unedited model.
    moves:
        Which side passes the earlier maps of a causal fit: "both", as in the paper, or the "source" alone, so that
        every site aims at the unedited target. Without causal there is nothing to pass.
    batch_size:
        Texts per batch. A causal fit holds the activations of all texts at one site whatever it is.

    """

    sites: SitePattern = "hook_resid_post"
    layers: tuple[int, ...] | None = None
    pool: Pool = "mean"
    support: Support = "observed"
    causal: bool = True
    moves: Moves = "both"
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        name = type(self).__name__
        require_settings(type(self), vars(self))
        if self.batch_size is not None and self.batch_size < 1:
            raise SettingError(f"{name}: batch_size={self.batch_size} is out of range")
        if self.support not in ("observed", "unbounded"):
            _require_quantiles(name, self.support)

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Fit one diagonal map per site.

        `activations` saves the pass over the texts where `causal=False`. A causal fit reads edited activations, which
        they cannot hold: there they are only checked.

        Raises
        ------
        ContrastError
            Fewer than two texts on a side.
        ActivationError
            `activations` are of other sites, another pool or other texts; or a site is not finite.
        SiteError, ModelError
            A site cannot be edited; the model is in training mode.

        """
        require_contrast(contrast)
        contrast.require(2, type(self).__name__)
        given: Activations | None = None
        if self.causal:
            if activations is not None:
                activations_for(model, contrast, self, activations)
            sites = find_sites(model, self.sites, layers=self.layers)
            maps = fit_causally(
                model, contrast, sites, self.map_between, pool=self.pool, moves=self.moves, batch_size=self.batch_size
            )
        else:
            given = activations_for(model, contrast, self, activations)
            maps = {site: self.map_between(given.source[site], given.target[site]) for site in given.sites}
        edits = [Edit(site, of_site) for site, of_site in maps.items()]
        return Intervention.fitted(model, edits, **method_provenance(self, contrast, given))

    def map_between(self, source: Float[Tensor, "n unit"], target: Float[Tensor, "m unit"]) -> DiagonalAffine:
        """Return the map of one site from its pooled activations."""
        scale, shift = self._transport(source, target)
        if self.support == "unbounded":
            return DiagonalAffine(scale, shift)
        shares = (0.0, 1.0) if self.support == "observed" else self.support
        low, high = (unit_quantiles(source, share) for share in shares)
        return DiagonalAffine(scale, shift, low=low, high=high)

    @staticmethod
    @abstractmethod
    def _transport(source: Tensor, target: Tensor) -> ScaleAndShift:
        """Return scale and shift of every unit."""


@dataclass(frozen=True, kw_only=True)
class MeanAcT(ActivationTransport):
    """Move each unit by the difference of its means: scale 1, shift mean(target) - mean(source).

    Simultaneous and unbounded it is CAA with the same pool, except at units without spread in the source.
    Settings are those of `ActivationTransport`.
    """

    @staticmethod
    def _transport(source: Tensor, target: Tensor) -> ScaleAndShift:
        return mean_transport(source, target)


@dataclass(frozen=True, kw_only=True)
class GaussianAcT(ActivationTransport):
    """Carry mean and standard deviation over, as the best transport between two Gaussians does.

    Settings are those of `ActivationTransport`.
    """

    @staticmethod
    def _transport(source: Tensor, target: Tensor) -> ScaleAndShift:
        return gaussian_transport(source, target)


@dataclass(frozen=True, kw_only=True)
class LinearAcT(ActivationTransport):
    """Carry the sorted source onto the sorted target by least squares, unit by unit.

    Unequal counts are compared through their quantile functions. Settings are those of `ActivationTransport`.
    """

    @staticmethod
    def _transport(source: Tensor, target: Tensor) -> ScaleAndShift:
        return linear_transport(source, target)


def _require_quantiles(name: str, support: object) -> None:
    if isinstance(support, tuple) and len(support) == 2 and 0 <= support[0] < support[1] <= 1:
        return
    raise SettingError(
        f"{name}: support is 'observed', 'unbounded' or two rising quantiles from 0 to 1 such as (0.1, 0.9), "
        f"not {support!r}"
    )
