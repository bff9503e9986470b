"""ITI, inference-time intervention: shift the attention heads that tell the sides apart best (arXiv 2306.03341)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from lens_steer.activations.activations import Activations
from lens_steer.activations.pooling import Pool
from lens_steer.errors import SettingError, SiteError
from lens_steer.host.sites import Site, SitePattern, find_sites
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.methods.best_units import best_units
from lens_steer.methods.fitting import activations_for, method_provenance
from lens_steer.ranking.halves import halves
from lens_steer.texts.contrast import ContrastSet


@dataclass(frozen=True, kw_only=True)
class ITI:
    """Add alpha * sigma * theta at the k heads whose probe tells the sides apart best on held-out texts.

    Per head theta is a unit direction from source to target and sigma the standard deviation, over the texts of both
    sides, of what lies along it. A head is chosen by the accuracy of a logistic probe on it, both sides counting
    equally; of equals the earlier. The paper edits the token that predicts the next one: `.scoped("last")`.

    Attributes
    ----------
    k:
        Number of heads, over all sites together; the paper takes 48 of the 1024 of LLaMA-7B.
    alpha:
        How far to go, in standard deviations along theta; 15 is the paper's. Negative moves towards the source.
    direction:
        theta from the difference of the sides' means over all texts ("mass_mean", the paper's best), or from the
        weights of the head's probe, which has seen the texts that are not held out ("probe").
    holdout:
        Share of each side's texts that the accuracy is measured on; of a paired contrast, whole pairs. The paper's is
        a fifth.
    sites:
        Pattern for `find_sites`, of sites with heads. At queries and values a head is one of theirs; keys are refused.
    pool:
        The value of a text; the paper takes its last token.
    seed:
        Of the draw of the held-out texts.
    batch_size:
        Texts per batch of `collect`.

    """

    k: int
    alpha: float = 15.0
    direction: Literal["mass_mean", "probe"] = "mass_mean"
    holdout: float = 0.2
    sites: SitePattern = "attn.hook_z"
    pool: Pool = "last"
    seed: int = 0
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise SettingError(f"ITI: k is the number of heads to edit, 1 or more, not {self.k}")
        if not math.isfinite(self.alpha):
            raise SettingError(f"ITI: alpha is a finite number, not {self.alpha}")
        if self.direction not in ("mass_mean", "probe"):
            raise SettingError(f"ITI: direction is 'mass_mean' or 'probe', not {self.direction!r}")
        if not 0 < self.holdout < 1:
            raise SettingError(f"ITI: holdout is a share between 0 and 1, not {self.holdout}")

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Return one shift per site that holds any of the k heads.

        The provenance lists them under `heads`, best first, each with its held-out accuracy and sigma. `activations`
        saves the pass over the texts.

        Raises
        ------
        SiteError
            A site has no heads, holds keys, or cannot be edited.
        SettingError
            There are fewer than k heads, or a side has too few texts to hold out two and keep two.
        ActivationError
            `activations` are of other sites, another pool or other texts.

        """
        _require_heads(find_sites(model, self.sites), self.k)
        given = activations_for(model, contrast, self, activations)
        kept, held = self._halves(contrast, given)
        probes = {site: _probes(site, given, kept, held) for site in given.sites}
        chosen = best_units({site: of_site.accuracy for site, of_site in probes.items()}, self.k)
        edits, heads = [], list[dict[str, Any]]()
        for site, mask in chosen.items():
            source, target = (_by_head(side[site], site) for side in (given.source, given.target))
            along = probes[site].weight if self.direction == "probe" else target.mean(0) - source.mean(0)
            theta = F.normalize(along, dim=1)  # of a head that is constant: zero
            sigma = (torch.cat([source, target]) * theta).sum(2).std(0, correction=0)
            shift = self.alpha * sigma[:, None] * theta * mask[:, None]
            edits.append(Edit(site, DiagonalAffine(torch.ones(site.width), rearrange(shift, "head dim -> (head dim)"))))
            for head in mask.nonzero()[:, 0].tolist():
                accuracy = float(probes[site].accuracy[head])
                heads.append({"head": f"{site.name}[{head}]", "accuracy": accuracy, "sigma": float(sigma[head])})
        heads.sort(key=lambda row: -row["accuracy"])
        return Intervention.fitted(model, edits, **method_provenance(self, contrast, given), heads=heads)

    def _halves(self, contrast: ContrastSet, given: Activations) -> tuple[Tensor, Tensor]:
        """Return the masks of texts kept and held out, source texts first."""
        label = given.labels[:, 0].sort(descending=True).values
        sizes = [int((label == side).sum()) for side in (1, 0)]
        held_out = [round(size * self.holdout) for size in sizes]
        if any(not 2 <= count <= size - 2 for size, count in zip(sizes, held_out, strict=True)):
            raise SettingError(
                f"ITI: of {sizes[0]} source and {sizes[1]} target texts, holdout={self.holdout} would hold out "
                f"{held_out[0]} and {held_out[1]}; it has to hold out two of each and keep two: give more texts, or "
                "set holdout nearer to a half"
            )
        kept, held = halves(given, self.holdout, self.seed)
        order = given.labels[:, 0].argsort(descending=True, stable=True)
        return kept[order], held[order]


@dataclass(frozen=True)
class _HeadProbes:
    """Of every head of a site: held-out accuracy of its probe, and the probe's weights, towards the target."""

    accuracy: Float[Tensor, " head"]
    weight: Float[Tensor, "head dim"]


def _require_heads(sites: Sequence[Site], k: int) -> None:
    for site in sites:
        part = site.kind.rsplit(".", 1)[-1]
        if site.heads == 1 and part != "hook_z":
            raise SiteError(f"ITI: heads are asked of {site.name}, which has none: use attn.hook_z")
        if part in ("hook_k", "hook_rot_k"):
            raise SiteError(
                f"ITI: {site.name} holds keys, and what all keys share leaves the attention as it is: use attn.hook_z"
            )
    heads = sum(site.heads for site in sites)
    if k > heads:
        raise SettingError(f"ITI: k={k} heads are more than the {heads} of the chosen sites: lower k, or add sites")


def _by_head(values: Float[Tensor, "text unit"], site: Site) -> Float[Tensor, "text head dim"]:
    return rearrange(values.double(), "text (head dim) -> text head dim", head=site.heads)


def _probes(site: Site, given: Activations, kept: Bool[Tensor, " text"], held: Bool[Tensor, " text"]) -> _HeadProbes:
    """Fit a logistic probe per head on the kept texts and measure it on the others."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    source, target = given.source[site], given.target[site]
    values = _by_head(torch.cat([source, target]), site)
    is_target = torch.arange(len(values)).numpy() >= len(source)
    accuracies, weights = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a fit that stops early is a slightly stronger penalty, nothing to act on
        for of_head in values.unbind(1):
            probe = LogisticRegression(class_weight="balanced", max_iter=1000)
            probe.fit(of_head[kept].numpy(), is_target[kept.numpy()])
            said = probe.predict(of_head[held].numpy())
            accuracies.append(float(balanced_accuracy_score(is_target[held.numpy()], said)))
            weights.append(torch.from_numpy(probe.coef_[0]))
    return _HeadProbes(torch.tensor(accuracies, dtype=torch.float64), torch.stack(weights))
