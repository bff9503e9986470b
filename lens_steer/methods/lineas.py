"""LinEAS: one affine map per unit, all sites learned together through the model (arXiv 2503.10679)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.pooling import Pool
from lens_steer.activations.whole_texts import Pooled, pool_texts
from lens_steer.errors import LensSteerWarning, SettingError, SiteError
from lens_steer.host.adapter import host_of
from lens_steer.host.guards import check_edit_sites, require_eval
from lens_steer.host.sites import Site, SitePattern, find_sites
from lens_steer.host.tokens import TOKEN_BUDGET, Tokens, tokenize
from lens_steer.host.trunk import frozen
from lens_steer.host.units import UnitsLike
from lens_steer.interruption import keeps_on_interrupt, on_interrupt
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.methods.choices import require_choices
from lens_steer.methods.descent import Descent, Loss, Optimizer, Outcome, descend, draw_rows, require_gradients
from lens_steer.methods.end_to_end import EndToEndLoss, inverse_variances
from lens_steer.methods.fitting import matching, method_provenance
from lens_steer.methods.lineas_path import LinEASPath, PathStep, default_gammas
from lens_steer.methods.micro_batches import texts_in_memory
from lens_steer.methods.refit import LossOnUnits, deviations, free_parameters
from lens_steer.methods.sparse_group_lasso import SparseGroupLasso
from lens_steer.texts.contrast import ContrastSet, Row

if TYPE_CHECKING:
    import pandas as pd

LossName = Literal["wasserstein", "normalised"]
_FEWEST_TEXTS = 4


@dataclass(frozen=True, kw_only=True)
class LinEAS:
    """Learn h -> scale * h + shift at every edited site so that pooled source activations become the target's.

    The source texts run through the current maps, the target texts once through the untouched model. The loss is the
    squared Wasserstein-2 distance per unit between the pooled activations of both, summed over units and averaged over
    loss sites; unequal counts are compared through their quantile functions. A sparse group lasso around the identity
    keeps few units and few sites. Starts at the identity and never returns a map whose training loss is above its.

    Attributes
    ----------
    sites, loss_sites:
        Where to edit, and where to compare (None: at the same sites).
    layers:
        Keep only these layers of `sites`; negative numbers count from the last. None keeps all.
    loss:
        "wasserstein", the paper's: a unit counts in its own scale, so the units of widest spread count most.
        "normalised", not the paper's: each unit's squared distance is divided by its variance over the texts of both
        sides in the untouched model, so that all count alike and rescaling a unit changes nothing; one without spread
        there does not count. The two losses, and a gamma for them, are not on one scale.
    pool:
        The paper compares means over tokens.
    gamma, l1, group:
        Weight of the penalty, and inside it of absolute values and of group norms. gamma has no scale of its own: see
        `gamma_max`.
    steps, lr, optimizer:
        The paper's settings are SGD with 0.1, 1000 steps. For "adam" use a smaller rate, such as 0.01.
    batch_size:
        Texts a side per step, drawn without replacement; None takes all of them at every step.
    micro_batch:
        Texts whose graphs are in memory at once; the gradient is that of the whole step. None: as many as
        have graphs of about 4 GiB together.
    holdout:
        A contrast on which to watch the loss: the map with the smallest held-out loss is returned, and the fit stops
        after `patience` evaluations, one every `evaluate_every` steps, without a smaller one.
    progress:
        Whether to show a progress bar.

    """

    sites: SitePattern = "hook_resid_post"
    layers: tuple[int, ...] | None = None
    loss_sites: SitePattern | None = None
    loss: LossName = "wasserstein"
    pool: Pool = "mean"
    gamma: float = 0.0
    l1: float = 1.0
    group: float = 1.0
    steps: int = 1000
    lr: float = 0.1
    optimizer: Optimizer = "sgd"
    batch_size: int | None = None
    micro_batch: int | None = None
    holdout: ContrastSet | None = None
    evaluate_every: int = 25
    patience: int = 5
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        wrong = [name for name in ("steps", "lr", "evaluate_every", "patience") if getattr(self, name) <= 0]
        wrong += [name for name in ("gamma", "l1", "group") if not 0 <= getattr(self, name) < math.inf]
        sizes = {name: getattr(self, name) for name in ("batch_size", "micro_batch")}
        wrong += [name for name, size in sizes.items() if size is not None and size < 1]
        if wrong:
            raise SettingError(f"LinEAS: {wrong[0]}={getattr(self, wrong[0])} is out of range")
        require_choices(self)
        if self.gamma > 0 and self.l1 == self.group == 0:
            raise SettingError("LinEAS: gamma > 0 penalises nothing while l1 and group are both 0")

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Learn the maps and return them as an intervention; its `.history` has loss, support and rate of every step.

        `activations` may bring the target's pooled values at the loss sites. Ctrl-C does what `on_interrupt` says.
        Warns (LensSteerWarning) where all steps will take long, and where nothing was moved in the end.

        Raises
        ------
        ContrastError
            Fewer than four texts on a side.
        SiteError, SettingError, ModelError
            A site cannot be edited, or has no loss site at or after it; the model is in training mode; gradients are
            ruled out by `torch.inference_mode()`.

        """
        require_gradients("LinEAS")
        with self._problem(model, contrast, activations) as problem:
            outcome = self._descend(problem, problem.identity)
            outcome.warn_if_nothing_moved("LinEAS", self._descent(problem))
            return problem.intervention(outcome)

    def refit(
        self,
        model: nn.Module,
        contrast: ContrastSet,
        chosen: Intervention | UnitsLike,
        *,
        activations: Activations | None = None,
    ) -> Intervention:
        """Learn the maps of chosen units alone, without a penalty: gamma = 0 there, the identity everywhere else.

        A sparse fit shrinks what it keeps; this takes the shrinking away and keeps the choice. `chosen` is an
        intervention, of whose support the maps are learned, starting from its own where they are diagonal without an
        interval; or units, an ExpertRanking or a table of them, starting from the identity. The training loss is not
        above the start's nor the identity's (with `holdout`, the held-out loss is not).

        Raises
        ------
        UnitError
            There is no unit, or one lies at a site that `sites` does not hold.
        SettingError
            `chosen` is an intervention with edits of some tokens or rows only.
        ContrastError, SiteError, SettingError, ModelError
            As `fit`.

        """
        require_gradients("LinEAS")
        dense = replace(self, gamma=0.0)
        with dense._problem(model, contrast, activations) as problem:
            free = free_parameters(chosen, problem.layout).to(problem.identity.device)
            start = deviations(chosen, problem.layout).to(free.device) * free
            outcome = dense._descend(problem, start, LossOnUnits(problem.loss, free))
            outcome.warn_if_nothing_moved("LinEAS", dense._descent(problem))
            return problem.intervention(outcome, refitted=int(free.sum()) // 2)

    def gamma_max(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> float:
        """Return the smallest gamma at which nothing is edited: at or above it the identity is a fixed point.

        SettingError where l1 and group are both 0: no gamma holds a unit then.
        """
        require_gradients("LinEAS")
        with self._problem(model, contrast, activations) as problem:
            return problem.gamma_max()

    def sensitivity(
        self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None
    ) -> pd.DataFrame:
        """Return the gradient of the loss at the identity, one row per unit: what a first step would move.

        Columns: site, layer, unit, width, scale and shift (d loss / d scale, d loss / d shift), norm (of both).
        """
        require_gradients("LinEAS")
        with self._problem(model, contrast, activations) as problem:
            return problem.sensitivity()

    def loss_of(self, model: nn.Module, contrast: ContrastSet, intervention: Intervention | None = None) -> float:
        """Return the loss of any intervention, or of none, on any texts: small where edited source meets target."""
        edited = nullcontext() if intervention is None else intervention.on(model)
        with self._problem(model, contrast, None) as problem, edited:
            return problem.loss(problem.identity)

    def path(
        self,
        model: nn.Module,
        contrast: ContrastSet,
        *,
        gammas: Sequence[float] | None = None,
        activations: Activations | None = None,
    ) -> LinEASPath:
        """Fit one intervention per gamma, from the largest down, each started where the last one ended.

        By default eight gammas, geometrically from `gamma_max` down to a hundredth of it. Ctrl-C ends the whole path;
        where `on_interrupt` keeps, what is done is returned, if any is, with a warning.
        """
        require_gradients("LinEAS")
        keeps = keeps_on_interrupt()
        with self._problem(model, contrast, activations) as problem:
            ceiling = problem.gamma_max()
            wanted = sorted(set(default_gammas(ceiling) if gammas is None else gammas), reverse=True)
            steps: list[PathStep] = []
            parameters, interrupted = problem.identity, False
            try:
                with on_interrupt("raise"):
                    for gamma in wanted:
                        outcome = replace(self, gamma=gamma)._descend(problem, parameters, fits=len(wanted))
                        parameters = outcome.parameters
                        edit = problem.intervention(outcome, gamma)
                        steps.append(PathStep(gamma, outcome.loss, problem.heldout_loss(parameters), edit))
            except KeyboardInterrupt:
                if not (keeps and steps):
                    raise
                interrupted = True
                message = f"the path was interrupted after {len(steps)} of {len(wanted)} gammas: these are done"
                warnings.warn(message, LensSteerWarning, 2)
            identity_loss = problem.loss(problem.identity)
        return LinEASPath.of(steps, gamma_max=ceiling, identity_loss=identity_loss, interrupted=interrupted)

    def _descent(self, problem: _Problem, fits: int = 1) -> Descent:
        return Descent(
            steps=self.steps,
            lr=self.lr,
            optimizer=self.optimizer,
            gamma=self.gamma,
            penalty=problem.penalty,
            evaluate_every=self.evaluate_every,
            patience=self.patience,
            fits=fits,
        )

    def _descend(self, problem: _Problem, start: Tensor, loss: Loss | None = None, *, fits: int = 1) -> Outcome:
        heldout = None if self.holdout is None else problem.heldout_loss
        return descend(
            loss or problem.loss,
            self._descent(problem, fits),
            name="LinEAS",
            start=start,
            batches=draw_rows(problem.counts, self.batch_size, self.seed),
            support=problem.layout.support,
            heldout=heldout,
            progress=self.progress,
        )

    @contextmanager
    def _problem(self, model: nn.Module, contrast: ContrastSet, activations: Activations | None) -> Iterator[_Problem]:
        contrast.require(_FEWEST_TEXTS, "LinEAS")
        require_eval(model)
        edit_sites = find_sites(model, self.sites, layers=self.layers)
        loss_sites = edit_sites if self.loss_sites is None else find_sites(model, self.loss_sites)
        check_edit_sites(model, edit_sites)
        _require_reach(model, edit_sites, loss_sites)
        with frozen(model):
            losses = [self._loss(model, contrast, edit_sites, loss_sites, activations)]
            if self.holdout is not None:
                weights = losses[0].unit_weights  # so that both losses are on one scale
                losses.append(self._loss(model, self.holdout, edit_sites, loss_sites, None, weights))
            yield _Problem(self, model, contrast, losses)

    def _loss(
        self,
        model: nn.Module,
        contrast: ContrastSet,
        edit_sites: tuple[Site, ...],
        loss_sites: tuple[Site, ...],
        activations: Activations | None,
        unit_weights: Mapping[Site, Tensor] | None = None,
    ) -> EndToEndLoss:
        source, target = (self._tokens(model, side, contrast) for side in (contrast.source, contrast.target))
        size = max(1, TOKEN_BUDGET // max(*source.lengths, *target.lengths))  # of passes that keep no graph
        if activations is None:
            pooled: Pooled = pool_texts(model, target, loss_sites, self.pool, size)
        else:
            given = matching(activations, model, contrast, loss_sites, self.pool)
            pooled = {site: given.target[site].to(host_of(model).device) for site in loss_sites}
        if self.loss == "normalised" and unit_weights is None:
            unit_weights = inverse_variances(pool_texts(model, source, loss_sites, self.pool, size), pooled)
        return EndToEndLoss(
            model,
            source,
            pooled,
            edit_sites=edit_sites,
            loss_sites=loss_sites,
            pool=self.pool,
            micro_batch=self.micro_batch or texts_in_memory(model, source),
            unit_weights=unit_weights,
        )

    @staticmethod
    def _tokens(model: nn.Module, rows: Sequence[Row], contrast: ContrastSet) -> Tokens:
        return tokenize(model, rows, chat=contrast.chat)


class _Problem:
    """One contrast on one model: the losses on it, the penalty, and how parameters become an intervention."""

    def __init__(
        self,
        method: LinEAS,
        model: nn.Module,
        contrast: ContrastSet,
        losses: list[EndToEndLoss],
    ) -> None:
        self._method, self._model, self._contrast = method, model, contrast
        self.loss, *self._heldout = losses
        self.layout = self.loss.layout
        self.counts = (len(contrast.source), len(contrast.target))
        device = host_of(model).device
        self.penalty = SparseGroupLasso(self.layout.group.to(device), method.l1, method.group)
        self.identity = torch.zeros(len(self.layout), device=device)

    def heldout_loss(self, parameters: Tensor) -> float:
        """Loss on the held-out contrast; nan where there is none."""
        return self._heldout[0](parameters) if self._heldout else float("nan")

    def gamma_max(self) -> float:
        """Return the penalty's weight at which the identity is a fixed point of this loss."""
        _, gradient = self.loss.with_gradient(self.identity)
        return self.penalty.gamma_max(gradient)

    def sensitivity(self) -> pd.DataFrame:
        """Return the gradient at the identity, by unit."""
        import pandas as pd

        _, gradient = self.loss.with_gradient(self.identity)
        frames = []
        for site, (scale, shift) in self.layout.parts(gradient.cpu()).items():
            about = {"site": site.name, "layer": site.layer, "unit": range(site.width), "width": site.width}
            values = {"scale": scale, "shift": shift, "norm": torch.hypot(scale, shift)}
            frames.append(pd.DataFrame({**about, **{name: value.numpy() for name, value in values.items()}}))
        return pd.concat(frames, ignore_index=True)

    def intervention(self, outcome: Outcome, gamma: float | None = None, **more: Any) -> Intervention:
        """Return the maps of an outcome with their provenance, to which `more` is added."""
        maps = self.layout.maps(outcome.parameters.cpu())
        edits = [Edit(site, DiagonalAffine(*pair)) for site, pair in maps.items()]
        about: dict[str, Any] = method_provenance(self._method, self._contrast)
        if gamma is not None:
            about["settings"]["gamma"] = gamma
        about["loss"] = {**outcome.losses, "identity": self.loss(self.identity)}
        return Intervention.fitted(self._model, edits, **outcome.course, **about, **more)


def _require_reach(model: nn.Module, edit_sites: Sequence[Site], loss_sites: Sequence[Site]) -> None:
    """Refuse edits behind the last loss site: nothing would ever teach them."""
    order = host_of(model).firing_order
    last = max(loss_sites, key=lambda site: order(site.name))
    blind = [site for site in edit_sites if order(site.name) > order(last.name)]
    if blind:
        raise SiteError(
            f"{blind[0]} lies behind the last loss site {last}, so no loss reaches it: add a later loss site"
        )
