"""ITI, inference-time intervention: shift the attention heads that tell the sides apart best (arXiv 2306.03341)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
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
from lens_steer.ranking.halves import block_folds, halves
from lens_steer.settings import require_settings
from lens_steer.statistics.logistic import logistic_probes
from lens_steer.texts.contrast import ContrastSet

_FOLDS = 5
Fold = tuple[Int[np.ndarray, "_"], Int[np.ndarray, "_"]]


@dataclass(frozen=True, kw_only=True)
class ITI:
    """Add alpha * sigma * theta at the k heads whose probe tells the sides apart best on held-out texts.

    Per head theta is a unit direction from source to target and sigma the standard deviation, over the texts of both
    sides, of what lies along it. A head is chosen by the cross-validated accuracy of a logistic probe on it, both sides
    counting equally; of equals the earlier. How well the chosen heads do is measured on texts that chose nothing. (The
    paper chooses and reports on the same fifth of the texts.) The paper edits the token that predicts the next one:
    `.scoped("last")`.

    Attributes
    ----------
    k:
        Number of heads, over all sites together; the paper takes 48 of the 1024 of LLaMA-7B.
    alpha:
        How far to go, in standard deviations along theta; negative moves towards the source. None goes, at every head,
        as far as from the source's mean to the target's, which leaves the head within what it does by itself; the
        paper's 15 is far beyond that.
    direction:
        theta from the difference of the sides' means over all texts ("mass_mean", the paper's best), or from the
        weights of the head's probe, which has seen the texts that are not held out ("probe").
    holdout:
        Share of each side's texts that choose no head and that the accuracy is measured on, in whole blocks (copies,
        one prompt, a group, a pair). The paper's is a fifth.
    sites:
        Pattern for `find_sites`, of sites with heads. At queries and values a head is one of theirs; keys are refused.
    layers:
        Keep only these layers of it; negative numbers count from the last. None keeps all.
    pool:
        The value of a text; the paper takes its last token.
    seed:
        Of the draw of the held-out texts.
    batch_size:
        Texts per batch of `collect`.

    """

    k: int
    alpha: float | None = None
    direction: Literal["mass_mean", "probe"] = "mass_mean"
    holdout: float = 0.2
    sites: SitePattern = "attn.hook_z"
    layers: tuple[int, ...] | None = None
    pool: Pool = "last"
    seed: int = 0
    batch_size: int | None = None

    @classmethod
    def paper(cls, **changes: Any) -> ITI:
        """Return the paper's settings, with `changes`: 48 heads, 15 standard deviations."""
        return cls(**{"k": 48, "alpha": 15.0, **changes})

    def __post_init__(self) -> None:
        require_settings(type(self), vars(self))
        if self.k < 1:
            raise SettingError(f"ITI: k is the number of heads to edit, 1 or more, not {self.k}")
        if self.alpha is not None and not math.isfinite(self.alpha):
            raise SettingError(f"ITI: alpha is a finite number, not {self.alpha}")
        if not 0 < self.holdout < 1:
            raise SettingError(f"ITI: holdout is a share between 0 and 1, not {self.holdout}")

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Return one shift per site that holds any of the k heads.

        The provenance lists them under `heads`, best first: `choosing_accuracy` (cross-validated on the other texts,
        which made it one of the best), `accuracy` (on the held-out texts), sigma, and alpha. `activations` saves the
        pass over the texts.

        Raises
        ------
        SiteError
            A site has no heads, holds keys, or cannot be edited.
        SettingError
            There are fewer than k heads.
        ContrastError
            A side has too few texts or blocks to hold out two texts and keep two.
        ActivationError
            `activations` are of other sites, another pool or other texts.

        """
        _require_heads(find_sites(model, self.sites, layers=self.layers), self.k)
        given = activations_for(model, contrast, self, activations)
        remedy = "give more texts or groups, or set holdout nearer to a half"
        kept, held = (given.rows(half) for half in halves(given, self.holdout, self.seed, what="ITI", remedy=remedy))
        folds = list(block_folds(_is_target(kept), kept.blocks.numpy(), _FOLDS, self.seed, what="ITI"))
        probes = {site: _probes(site, kept, held, folds) for site in given.sites}
        chosen = best_units({site: of_site.choosing_accuracy for site, of_site in probes.items()}, self.k)
        edits, heads = [], list[dict[str, Any]]()
        for site, mask in chosen.items():
            source, target = (_by_head(side[site], site) for side in (given.source, given.target))
            along = probes[site].weight if self.direction == "probe" else target.mean(0) - source.mean(0)
            theta = F.normalize(along, dim=1)  # of a head that is constant: zero
            sigma = (torch.cat([source, target]) * theta).sum(2).std(0, correction=0)
            along_theta = ((target.mean(0) - source.mean(0)) * theta).sum(1)
            distance = along_theta if self.alpha is None else self.alpha * sigma
            shift = distance[:, None] * theta * mask[:, None]
            edits.append(Edit(site, DiagonalAffine(torch.ones(site.width), rearrange(shift, "head dim -> (head dim)"))))
            for head in mask.nonzero()[:, 0].tolist():
                went = float(distance[head] / sigma[head]) if bool(sigma[head]) else 0.0
                about = {**probes[site].row(head), "sigma": float(sigma[head]), "alpha": went}
                heads.append({"head": f"{site.name}[{head}]", **about})
        heads.sort(key=lambda row: -row["choosing_accuracy"])
        return Intervention.fitted(model, edits, **method_provenance(self, contrast, given), heads=heads)


@dataclass(frozen=True)
class _HeadProbes:
    """Of every head of a site: its probe's accuracy, cross-validated and held out, and weights towards the target."""

    choosing_accuracy: Float[Tensor, " head"]
    accuracy: Float[Tensor, " head"]
    weight: Float[Tensor, "head dim"]

    def row(self, head: int) -> dict[str, float]:
        """Return both accuracies of a head."""
        return {name: float(getattr(self, name)[head]) for name in ("choosing_accuracy", "accuracy")}


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


def _is_target(activations: Activations) -> Bool[np.ndarray, " text"]:
    target: Bool[np.ndarray, " text"] = activations.labels[:, 0].numpy() == 0
    return target


def _probes(site: Site, kept: Activations, held: Activations, folds: Sequence[Fold]) -> _HeadProbes:
    """Fit a logistic probe per head on the kept texts: accurate there by cross-validation, and on the held-out ones."""
    values, others = (_by_head(part.values[site], site) for part in (kept, held))
    is_target, others_are = (torch.from_numpy(_is_target(part)) for part in (kept, held))
    predicted = [logistic_probes(values[train], is_target[train]).decide(values[test]) for train, test in folds]
    truth = torch.cat([is_target[test] for _, test in folds])
    probes = logistic_probes(values, is_target)
    return _HeadProbes(
        choosing_accuracy=_balanced_accuracy(torch.cat(predicted), truth),
        accuracy=_balanced_accuracy(probes.decide(others), others_are),
        weight=probes.weight,
    )


def _balanced_accuracy(predicted: Bool[Tensor, "text head"], truth: Bool[Tensor, " text"]) -> Float[Tensor, " head"]:
    """Return the mean over the sides of the share of a side's texts that is told right."""
    right = (predicted == truth[:, None]).double()
    return torch.stack([right[truth].mean(0), right[~truth].mean(0)]).nanmean(0)  # of a side without texts: nan
