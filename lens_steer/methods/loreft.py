"""LoReFT: a low-rank affine map per site, trained through the model on the target texts (arXiv 2404.03592)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.errors import SettingError
from lens_steer.host.adapter import host_of
from lens_steer.host.guards import check_edit_sites
from lens_steer.host.scope import Scope, ScopeName, as_scope
from lens_steer.host.sites import Site, SitePattern, find_sites
from lens_steer.host.tokens import tokenize
from lens_steer.host.trunk import frozen
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.low_rank import LowRankAffine, move_along
from lens_steer.methods.descent import descend, draw_rows, require_gradients
from lens_steer.methods.descent_run import Descent, Optimizer
from lens_steer.methods.fitting import method_provenance
from lens_steer.methods.micro_batches import texts_in_memory
from lens_steer.methods.text_loss import EditOf, TextLoss
from lens_steer.settings import require_settings
from lens_steer.texts.contrast import ContrastSet, require_contrast


@dataclass(frozen=True, kw_only=True)
class LoReFT:
    """Learn h -> h + R^T (W h + b - R h) at every site so that the target texts become likely.

    The loss is the mean next-token negative log-likelihood of the target texts; of (prompt, completion) pairs, of the
    completions. The source texts are not looked at: this is fine-tuning on the target. R has orthonormal rows and is
    learned with W and b. Starts at the identity (W = R, b = 0; the paper draws W at random) and never returns maps
    whose training loss is above the identity's.

    Attributes
    ----------
    rank:
        Directions per site along which the map acts, at most the site's width.
    sites:
        Pattern for `find_sites`.
    layers:
        Keep only these layers of it; negative numbers count from the last. None keeps all.
    scope:
        Which tokens are edited, in training and in the intervention: a `Scope` or its name. The paper edits the first
        and the last few tokens of a prompt; "prompt" needs pairs, because a plain text has none (see `Scope`).
    steps, lr, optimizer:
        Adam with a rate that falls along a cosine. At the sites of large activations use a smaller one.
    batch_size:
        Target texts per step, drawn without replacement; None takes all of them at every step.
    micro_batch:
        Texts whose graphs are in memory at once; the gradient is that of the whole step. None: as many as
        have graphs of about 4 GiB together.
    evaluate_every:
        With `batch_size`, steps between looks at the loss of all texts.
    seed:
        Of the rotation at the start and the draws of texts.
    progress:
        Whether to show a progress bar.

    """

    rank: int = 4
    sites: SitePattern = "hook_resid_post"
    layers: tuple[int, ...] | None = None
    scope: Scope | ScopeName = "all"
    steps: int = 200
    lr: float = 0.01
    optimizer: Optimizer = "adam"
    batch_size: int | None = None
    micro_batch: int | None = None
    evaluate_every: int = 25
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        require_settings(type(self), vars(self))
        names = ("rank", "steps", "evaluate_every", "batch_size", "micro_batch")
        wrong = [name for name in names if (count := getattr(self, name)) is not None and count < 1]
        wrong += [] if 0 < self.lr < math.inf else ["lr"]
        if wrong:
            raise SettingError(f"LoReFT: {wrong[0]}={getattr(self, wrong[0])} is out of range")
        as_scope(self.scope)

    @property
    def most_gradients(self) -> int:
        """How many gradients a fit takes, of the target texts."""
        return self.steps

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Learn the maps and return them as an intervention; its `.history` has loss and rate of every step.

        `activations` are not looked at. The provenance says under `loss` what the maps and the identity reach on the
        training texts, in nats per token.

        Raises
        ------
        SettingError
            The rank is larger than a site is wide; or no token of the target texts is both in the scope and in front
            of one that the loss is of.
        SiteError, TokenError, ModelError
            A site cannot be edited; a text is one token long; the model is in training mode, or gradients are ruled out
            by `torch.inference_mode()`.

        """
        require_gradients("LoReFT")
        sites = find_sites(model, self.sites, layers=self.layers)
        narrow = [site for site in sites if site.width < self.rank]
        if narrow:
            raise SettingError(f"LoReFT: rank={self.rank} is more than the {narrow[0].width} units of {narrow[0]}")
        check_edit_sites(model, sites)
        require_contrast(contrast)
        count = len(contrast.target)
        scope = as_scope(self.scope)
        maps = _LowRankMaps(sites, self.rank, self.seed, host_of(model).device)
        tokens = tokenize(model, contrast.target, chat=contrast.chat)
        descent = Descent(
            steps=self.steps, lr=self.lr, optimizer=self.optimizer, evaluate_every=self.evaluate_every, patience=1
        )
        with frozen(model):
            loss = TextLoss(
                model,
                contrast.target,
                maps.edits,
                scope=scope,
                micro_batch=self.micro_batch or texts_in_memory(model, tokens, logits=True),
                chat=contrast.chat,
            )
            outcome = descend(
                loss,
                descent,
                name="LoReFT",
                start=maps.identity,
                batches=draw_rows((count, count), self.batch_size, self.seed),
                support=maps.support,
                progress=self.progress,
            )
            about: dict[str, Any] = method_provenance(self, contrast)
            about["loss"] = {"training": outcome.loss, "identity": loss(maps.identity)}
        outcome.warn_if_nothing_moved("LoReFT", descent)
        edits = [Edit(site, of_site, scope) for site, of_site in maps.at(outcome.parameters).items()]
        return Intervention.fitted(model, edits, **outcome.course, **about)


class _LowRankMaps:
    """One low-rank map per site, as a function of one flat vector that is 0 at the identity.

    Per site: what is added to the matrix [rank, unit] whose orthonormalised rows are R, to W, and to b, which start at
    a random matrix, at its R, and at 0.
    """

    def __init__(self, sites: tuple[Site, ...], rank: int, seed: int, device: torch.device) -> None:
        self._sites, self._rank = sites, rank
        self._sizes = [size for site in sites for size in (rank * site.width, rank * site.width, rank)]
        self.identity = torch.zeros(sum(self._sizes), device=device)
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(rank, site.width, generator=generator) for site in sites]
        self._start = [_orthonormal_rows(matrix.to(device)) for matrix in drawn]

    def parts(self, parameters: Tensor) -> dict[Site, tuple[Tensor, Tensor, Tensor]]:
        """Return R, W - R and b of every site, differentiable."""
        split = torch.split(parameters, self._sizes)
        parts = {}
        for place, site in enumerate(self._sites):
            start = self._start[place]
            of_rotation, of_weight, bias = split[3 * place : 3 * place + 3]
            rotation = _orthonormal_rows(start + of_rotation.reshape(start.shape))
            # The same function of the same matrix, so that at the identity the difference is 0 to the bit.
            weight = _orthonormal_rows(start).detach() + of_weight.reshape(start.shape)
            parts[site] = (rotation, weight - rotation, bias)
        return parts

    def edits(self, parameters: Tensor) -> Mapping[Site, EditOf]:
        """Return what the parameters do at every site."""

        def edit_of(rotation: Tensor, difference: Tensor, bias: Tensor) -> EditOf:
            return lambda h: move_along(h, rotation, difference, bias)

        return {site: edit_of(*parts) for site, parts in self.parts(parameters).items()}

    def at(self, parameters: Tensor) -> dict[Site, LowRankAffine]:
        """Return the maps of one point."""
        with torch.no_grad():
            parts_of_site = {site: [part.cpu() for part in parts] for site, parts in self.parts(parameters).items()}
        return {
            site: LowRankAffine(rotation, rotation + difference, bias)
            for site, (rotation, difference, bias) in parts_of_site.items()
        }

    def support(self, parameters: Tensor) -> int:
        """Return how many units lie at sites that a point edits."""
        parts = torch.split(parameters, self._sizes)
        edited = (
            any(bool(part.any()) for part in parts[3 * place : 3 * place + 3]) for place in range(len(parts) // 3)
        )
        return sum(site.width for site, moves in zip(self._sites, edited, strict=True) if moves)


def _orthonormal_rows(matrix: Float[Tensor, "rank unit"]) -> Float[Tensor, "rank unit"]:
    """Return the rows orthonormalised one after another (Gram-Schmidt), each turned to the side it points to."""
    columns, triangle = torch.linalg.qr(matrix.T)
    rows: Tensor = (columns * torch.sign(triangle.diagonal())).T
    return rows
