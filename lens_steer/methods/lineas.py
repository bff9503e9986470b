"""LinEAS: one affine map per unit, all sites learned together through the model (arXiv 2503.10679)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.pooling import Pool
from lens_steer.activations.whole_texts import Pooled, pool_texts
from lens_steer.errors import SettingError
from lens_steer.host.adapter import host_of
from lens_steer.host.guards import check_edit_sites, require_eval
from lens_steer.host.sites import Site, SitePattern, find_sites
from lens_steer.host.tokens import Tokens, tokenize
from lens_steer.host.trunk import frozen
from lens_steer.host.units import UnitsLike
from lens_steer.interventions.intervention import Intervention
from lens_steer.methods.descent import require_gradients
from lens_steer.methods.end_to_end import EndToEndLoss, inverse_variances
from lens_steer.methods.fitting import matching
from lens_steer.methods.lineas_path import LinEASPath, default_shares, path_of, require_one_way
from lens_steer.methods.lineas_problem import Problem, require_reach, spreads_of
from lens_steer.methods.lineas_solver import HELD_OUT, Solver, most_gradients, most_steps_on_path
from lens_steer.methods.micro_batches import texts_in_memory
from lens_steer.methods.refit import LossOnUnits, deviations, free_parameters
from lens_steer.settings import require_settings
from lens_steer.texts.contrast import ContrastSet, Row, require_contrast

if TYPE_CHECKING:
    import pandas as pd

LossName = Literal["wasserstein", "normalised"]
ShiftsIn = Literal["spread", "activation"]
_FEWEST_TEXTS = 4


@dataclass(frozen=True, kw_only=True)
class LinEAS:
    """Learn h -> scale * h + shift at every edited site so that pooled source activations become the target's.

    The source texts run through the current maps, the target texts once through the untouched model. The loss is the
    squared Wasserstein-2 distance per unit between the pooled activations of both, summed over units and averaged over
    loss sites; unequal counts are compared through their quantile functions. A sparse group lasso around the identity
    keeps few units and few sites. Starts at the identity and never returns a map whose training loss is above its.

    How sparse the edit is, is said by one of `gamma_share`, `gamma` and `units`. With none of them a quarter of the
    texts is held out (whole blocks) and the maps are learned on the others along falling shares of `gamma_max`. The
    sparsest share whose held-out loss is within one standard error of the smallest, and that keeps half of its gain
    over no edit, chooses the units, on all texts; at the share of the smallest held-out loss, which shrinks them less,
    their maps are learned once more. Where the held-out texts do not show that any share is better than no edit, or
    with fewer than 16 texts a side, a share near 0.1 is taken, with a warning.

    The paper's own descent is `LinEAS.paper()`: numbers from one and the other are not on one scale.

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
    gamma_share:
        Weight of the penalty in shares of `gamma_max`, at which nothing is edited: 0 is dense, 1 the identity.
    gamma:
        The same weight itself, which has no scale of its own.
    units:
        How many units are edited, at most: gamma is searched along the path until it keeps as many or a few more, and
        the maps of those that are moved furthest are learned once more, less shrunk (see `relax`).
    relax:
        Whether the units that the penalty keeps are learned once more at 0.3 of it, or, where the share is chosen, at
        the share of the smallest held-out loss: the penalty that is needed to leave the others out shrinks these too
        far (the relaxed lasso, Meinshausen 2007). None: where `units` is set or the share is chosen.
    l1, group:
        Weight, inside the penalty, of absolute values and of the norms of groups: a site's scales, and its shifts.
    shifts:
        In what the penalty measures a shift. "spread": in the unit's standard deviation over the pooled source texts,
        so that the chosen units do not depend on the scale of the activations. "activation": the paper's.
    scale_weight:
        A change of scale by 1 counts in the penalty like a shift by so many of these; 1 is the paper's. 4 left less of
        the loss of held-out texts on a small model, more on SmolLM2, and did less to what a third writes.
    optimizer:
        "quasi-newton": proximal quasi-Newton steps (Lee, Sun and Saunders 2014) that begin in the metric of the loss's
        Gauss-Newton diagonal, without a rate. "sgd" is the paper's; "adam" is for minibatches.
    steps:
        Gradients of one descent, at most; on a path, for each gamma at most 15. None: 60 for "quasi-newton", which
        stops when the proximal gradient is as good as zero, 200 for "adam", 1000 for "sgd".
    lr:
        Rate of "sgd" and "adam". None: 0.1 for both; with shifts="activation" Adam needs a smaller one, such as 0.01.
    batch_size:
        Texts a side per step, drawn without replacement, for "sgd" and "adam"; None takes all of them at every step.
    micro_batch:
        Texts whose graphs are in memory at once; the gradient is that of the whole step. None: as many as
        have graphs of about 4 GiB together.
    holdout:
        A contrast on which to watch the loss. The share is chosen on it, with no quarter held out; or, at a given gamma
        or share, the map with the smallest held-out loss is returned, and the fit stops after `patience` evaluations,
        one every `evaluate_every` steps, without a smaller one.
    seed:
        Of what is held out, and of the draws of minibatches.
    progress:
        Whether to show a progress bar.

    """

    sites: SitePattern = "hook_resid_post"
    layers: tuple[int, ...] | None = None
    loss_sites: SitePattern | None = None
    loss: LossName = "wasserstein"
    pool: Pool = "mean"
    gamma_share: float | None = None
    gamma: float | None = None
    units: int | None = None
    relax: bool | None = None
    l1: float = 1.0
    group: float = 1.0
    shifts: ShiftsIn = "spread"
    scale_weight: float = 1.0
    optimizer: Literal["quasi-newton", "adam", "sgd"] = "quasi-newton"
    steps: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    micro_batch: int | None = 32
    holdout: ContrastSet | None = None
    evaluate_every: int = 5
    patience: int = 5
    seed: int = 0
    progress: bool = True

    @classmethod
    def paper(cls, **changes: Any) -> LinEAS:
        """Return the paper's settings: 1,000 steps of SGD with rate 0.1, no penalty, shifts in their own scale.

        `changes` are settings that differ from these, such as `gamma` or `sites`. The rate is in units of
        1 / activation squared, so that it does not suit every model.
        """
        settings: dict[str, Any] = {"optimizer": "sgd", "lr": 0.1, "steps": 1000, "shifts": "activation"}
        if not {"gamma", "gamma_share", "units"} & set(changes):
            settings["gamma"] = 0.0
        return cls(**{**settings, "evaluate_every": 25, **changes})

    def __post_init__(self) -> None:
        require_settings(type(self), vars(self))
        limits = dict.fromkeys(("gamma", "l1", "group", "gamma_share"), 0.0)
        limits |= dict.fromkeys(("steps", "batch_size", "micro_batch", "units", "evaluate_every", "patience"), 1)
        for name, lowest in limits.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value < math.inf:
                raise SettingError(f"LinEAS: {name}={value} is out of range")
        for name in ("lr", "scale_weight"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SettingError(f"LinEAS: {name}={value} is out of range")
        given = [name for name in ("gamma", "gamma_share", "units") if getattr(self, name) is not None]
        if len(given) > 1:
            raise SettingError(f"LinEAS: {' and '.join(given)} say the same in two ways: set one of them")
        if self.l1 == self.group == 0 and given != [] and getattr(self, given[0]) > 0:
            raise SettingError(f"LinEAS: {given[0]} > 0 penalises nothing while l1 and group are both 0")
        if self.optimizer == "quasi-newton":
            for name, why in (("lr", "it has no rate"), ("batch_size", "it needs all texts at every step")):
                if getattr(self, name) is not None:
                    raise SettingError(
                        f'LinEAS: {name}={getattr(self, name)} is not for optimizer="quasi-newton", {why}: leave it '
                        'out or set optimizer="adam"'
                    )

    @property
    def most_gradients(self) -> int:
        """How many gradients a fit takes at most, of the source texts; most descents end sooner."""
        return most_gradients(self)

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Learn the maps and return them as an intervention; its `.history` has loss, support and rate of every step.

        The provenance says why the descent `stopped`, at which share of gamma_max the maps were learned in the end
        (`final_gamma_share`), and under `choice` what was tried where the share was chosen. `activations` may bring the
        target's pooled values at the loss sites; where a quarter is held out, those of the choice are read anew. Ctrl-C
        does what `on_interrupt` says. Warns (LensSteerWarning) where one unit has most of the loss, where all steps
        will take long, and where nothing was moved in the end.

        Raises
        ------
        ContrastError
            Fewer than four texts on a side.
        SiteError, SettingError, ModelError
            A site cannot be edited, or has no loss site at or after it; there are fewer than `units` units, or the path
            gives fewer; the model is in training mode; gradients are ruled out by `torch.inference_mode()`.

        """
        require_settings(LinEAS.fit, locals())
        require_gradients("LinEAS")
        with self._problem(model, contrast, activations) as problem:
            problem.warn_if_about_one_unit("LinEAS")
            solver = Solver(self, problem)
            outcome, gamma, about = solver.solve(partial(self._quarter, model, contrast))
            outcome.warn_if_nothing_moved("LinEAS", solver.descent(gamma))
            return problem.intervention(self, outcome, gamma, **about)

    def refit(
        self,
        model: nn.Module,
        contrast: ContrastSet,
        chosen: Intervention | UnitsLike,
        *,
        gamma_share: float = 0.0,
        activations: Activations | None = None,
    ) -> Intervention:
        """Learn the maps of chosen units alone, and leave the identity everywhere else.

        A sparse fit shrinks what it keeps; this takes the shrinking away and keeps the choice. Without a penalty a few
        dozen texts are learned by heart, and the loss of others may rise: `gamma_share` sets one, in shares of the
        gamma at which none of these units is edited. A control beside a sparse edit is fitted as that was:
        `gamma_share=edit.provenance["final_gamma_share"]`.

        `chosen` is an intervention, of whose support the maps are learned, starting from its own where they are
        diagonal without an interval; or units, an ExpertRanking or a table of them, starting from the identity. The
        training loss, with a penalty the objective, is not above the start's nor the identity's (with `holdout`, the
        held-out loss is not).

        Raises
        ------
        UnitError
            There is no unit, or one lies at a site that `sites` does not hold.
        SettingError
            `chosen` is an intervention with edits of some tokens or rows only; `gamma_share` is negative or not finite,
            or is not 0 while l1 and group are.
        ContrastError, SiteError, SettingError, ModelError
            As `fit`.

        """
        require_settings(LinEAS.refit, locals())
        require_gradients("LinEAS")
        if not 0 <= gamma_share < math.inf:
            raise SettingError(f"LinEAS.refit: gamma_share={gamma_share} is out of range: give 0 or more")
        with self._problem(model, contrast, activations) as problem:
            free = free_parameters(chosen, problem.layout).to(problem.identity.device)
            start = deviations(chosen, problem.layout).to(free.device) * free
            gamma = gamma_share * problem.gamma_max_of(free) if gamma_share else 0.0
            solver = Solver(self, problem)
            outcome = solver.descend(start, gamma, LossOnUnits(problem.loss, free))
            outcome.warn_if_nothing_moved("LinEAS", solver.descent(gamma))
            about = {"refitted": int(free.sum()) // 2, "final_gamma_share": gamma_share}
            return problem.intervention(self, outcome, gamma, **about)

    def gamma_max(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> float:
        """Return the smallest gamma at which nothing is edited: at or above it the identity is a fixed point.

        SettingError where l1 and group are both 0: no gamma holds a unit then.
        """
        require_gradients("LinEAS")
        with self._problem(model, contrast, activations) as problem:
            return problem.gamma_max

    def sensitivity(
        self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None
    ) -> pd.DataFrame:
        """Return the gradient of the loss at the identity, one row per unit: what a first step would move.

        Columns: site, layer, unit, width, scale and shift (d loss / d scale, d loss / d shift, the shift measured as
        `shifts` says), norm (of both).
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
        shares: Sequence[float] | None = None,
        gammas: Sequence[float] | None = None,
        units: Sequence[int] | None = None,
        activations: Activations | None = None,
    ) -> LinEASPath:
        """Fit one intervention per gamma, from the largest down, each started where the last one ended.

        `shares` are in units of `gamma_max`; by default eight, geometrically from 1 down to 0.01. `gammas` gives the
        weights themselves instead. `units` gives numbers of units, fewest first: one walk along falling gamma comes to
        all of them, and each is learned as `LinEAS(units=)` does. What the settings say of one gamma is not looked at.
        With a holdout `path.best()` chooses. Ctrl-C ends the whole path; where `on_interrupt` keeps, what is done is
        returned, if any is, with a warning.

        Raises
        ------
        SettingError
            Two of `shares`, `gammas` and `units` are given, or none of one; there are fewer units, or the path gives
            fewer.
        ContrastError, SiteError, ModelError
            As `fit`.

        """
        require_settings(LinEAS.path, locals())
        require_gradients("LinEAS")
        require_one_way(shares=shares, gammas=gammas, units=units)
        with self._problem(model, contrast, activations) as problem:
            problem.warn_if_about_one_unit("LinEAS.path")
            solver, ceiling = Solver(self, problem), problem.gamma_max
            if units is not None:
                counts = sorted({int(count) for count in units})
                fits, most, total = solver.with_units(counts), None, f"{len(counts)} numbers of units"
            else:
                relative = [share * ceiling for share in (default_shares() if shares is None else shares)]
                wanted = sorted(set(relative if gammas is None else gammas), reverse=True)
                fits, most = solver.along(wanted), len(wanted) * most_steps_on_path(self)
                total = f"{len(wanted)} gammas"
            with solver.one_bar(most):
                return path_of(fits, problem, self, total=total)

    def _quarter(self, model: nn.Module, contrast: ContrastSet) -> AbstractContextManager[Problem]:
        train, held = contrast.split(HELD_OUT, self.seed)
        return replace(self, holdout=held)._problem(model, train, None)

    @contextmanager
    def _problem(self, model: nn.Module, contrast: ContrastSet, activations: Activations | None) -> Iterator[Problem]:
        require_contrast(contrast)
        contrast.require(_FEWEST_TEXTS, "LinEAS")
        require_eval(model)
        edit_sites = find_sites(model, self.sites, layers=self.layers)
        loss_sites = edit_sites if self.loss_sites is None else find_sites(model, self.loss_sites)
        check_edit_sites(model, edit_sites)
        require_reach(model, edit_sites, loss_sites)
        with frozen(model):
            loss = self._loss(model, contrast, edit_sites, loss_sites, activations)
            heldout = None
            if self.holdout is not None:  # on the same scale
                scale = (loss.unit_weights, loss.spreads)
                heldout = self.holdout, self._loss(model, self.holdout, edit_sites, loss_sites, None, scale)
            yield Problem(model, contrast, loss, heldout=heldout, l1=self.l1, group=self.group)

    def _loss(
        self,
        model: nn.Module,
        contrast: ContrastSet,
        edit_sites: tuple[Site, ...],
        loss_sites: tuple[Site, ...],
        activations: Activations | None,
        scale: tuple[Mapping[Site, Tensor] | None, Mapping[Site, Tensor] | None] | None = None,
    ) -> EndToEndLoss:
        """Build the loss on a contrast; `scale` brings unit weights and spreads of another."""
        source, target = (self._tokens(model, side, contrast) for side in (contrast.source, contrast.target))
        if activations is None:
            pooled: Pooled = pool_texts(model, target, loss_sites, self.pool, None)
        else:
            given = matching(activations, model, contrast, loss_sites, self.pool)
            pooled = {site: given.target[site].to(host_of(model).device) for site in loss_sites}
        weights, spreads = scale or self._scale(model, source, pooled, edit_sites, loss_sites)
        return EndToEndLoss(
            model,
            source,
            pooled,
            edit_sites=edit_sites,
            loss_sites=loss_sites,
            pool=self.pool,
            micro_batch=self.micro_batch or texts_in_memory(model, source),
            unit_weights=weights,
            spreads=spreads,
        )

    def _scale(
        self, model: nn.Module, source: Tokens, target: Pooled, edit_sites: Sequence[Site], loss_sites: Sequence[Site]
    ) -> tuple[Mapping[Site, Tensor] | None, Mapping[Site, Tensor] | None]:
        """Return what a unit weighs in the loss and what a shift is measured in; None where the settings ask for 1."""
        read = (*loss_sites,) if self.loss == "normalised" else ()
        read += (*edit_sites,) if self.shifts == "spread" else ()
        pooled = pool_texts(model, source, tuple(dict.fromkeys(read)), self.pool, self.micro_batch) if read else {}
        weights = spreads = None
        if self.loss == "normalised":
            weights = inverse_variances({site: pooled[site] for site in loss_sites}, target)
        if self.shifts == "spread":
            spreads = spreads_of(pooled, edit_sites)
        if self.scale_weight != 1:
            ones = {site: torch.ones(site.width, device=host_of(model).device) for site in edit_sites}
            spreads = {site: self.scale_weight * spread for site, spread in (spreads or ones).items()}
        return weights, spreads

    @staticmethod
    def _tokens(model: nn.Module, rows: Sequence[Row], contrast: ContrastSet) -> Tokens:
        return tokenize(model, rows, chat=contrast.chat)
