"""LinEAS: one affine map per unit, all sites learned together through the model (arXiv 2503.10679)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.pooling import Pool
from lens_steer.activations.whole_texts import Pooled, pool_texts
from lens_steer.errors import LensSteerWarning, SettingError
from lens_steer.host.adapter import host_of
from lens_steer.host.guards import check_edit_sites, require_eval
from lens_steer.host.sites import Site, SitePattern, find_sites
from lens_steer.host.tokens import Tokens, tokenize
from lens_steer.host.trunk import frozen
from lens_steer.host.units import UnitsLike
from lens_steer.interruption import keeps_on_interrupt, on_interrupt
from lens_steer.interventions.intervention import Intervention
from lens_steer.methods.choices import require_choices
from lens_steer.methods.descent import descend, draw_rows, require_gradients
from lens_steer.methods.descent_run import Descent, Loss, Outcome
from lens_steer.methods.end_to_end import EndToEndLoss, inverse_variances
from lens_steer.methods.fitting import matching
from lens_steer.methods.lineas_choice import (
    SHARES,
    Choice,
    chosen_by_heldout,
    nearest_above,
    walk,
    walk_to_units,
)
from lens_steer.methods.lineas_path import LinEASPath, PathStep, default_shares
from lens_steer.methods.lineas_problem import Problem, require_reach, spreads_of
from lens_steer.methods.micro_batches import texts_in_memory
from lens_steer.methods.refit import LossOnUnits, deviations, free_parameters
from lens_steer.progress import one_bar
from lens_steer.texts.contrast import ContrastSet, Row

if TYPE_CHECKING:
    import pandas as pd

Solved = tuple[Outcome, float, dict[str, Any]]
"""A fit, its gamma, and what the provenance says of how that was chosen."""
LossName = Literal["wasserstein", "normalised"]
ShiftsIn = Literal["spread", "activation"]
_FEWEST_TEXTS = 4
_FEWEST_TO_HOLD_OUT = 16  # texts a side of which a quarter can be held out
_HELD_OUT = 0.25
_SHARE_OF_FEW = 0.1  # gamma_share where there are too few texts to choose it
_STEPS_ON_PATH, _TOLERANCE_ON_PATH = 15, 1e-5
_STEPS = {"spectral": 60, "adam": 200, "sgd": 1000}
_RATES = {"adam": 0.1, "sgd": 0.1}


@dataclass(frozen=True, kw_only=True)
class LinEAS:
    """Learn h -> scale * h + shift at every edited site so that pooled source activations become the target's.

    The source texts run through the current maps, the target texts once through the untouched model. The loss is the
    squared Wasserstein-2 distance per unit between the pooled activations of both, summed over units and averaged over
    loss sites; unequal counts are compared through their quantile functions. A sparse group lasso around the identity
    keeps few units and few sites. Starts at the identity and never returns a map whose training loss is above its.

    How sparse the edit is, is said by one of `gamma_share`, `gamma` and `units`. With none of them a quarter of the
    texts is held out (whole blocks) and the maps are learned on the others along falling shares of `gamma_max`. The
    sparsest share whose held-out loss is within one standard error of the smallest chooses the units, on all texts; at
    the share of the smallest held-out loss, which shrinks them less, their maps are learned once more. Below 16 texts a
    side the share is 0.1.

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
        How many units are edited: gamma is searched along the path until it keeps as many or a few more, and the
        maps of those that are moved furthest are learned once more without a penalty (see `relax`).
    relax:
        Whether the units that the penalty keeps are learned once more without it, or, where the share is chosen, at the
        share of the smallest held-out loss: the penalty that is needed to leave the others out shrinks these too far
        (Meinshausen 2007). None: where `units` is set or the share is chosen.
    l1, group:
        Weight, inside the penalty, of absolute values and of the norms of groups: a site's scales, and its shifts.
    shifts:
        In what the penalty measures a shift. "spread": in the unit's standard deviation over the pooled source texts,
        so that the chosen units do not depend on the scale of the activations. "activation": the paper's.
    optimizer:
        "spectral": proximal Barzilai-Borwein steps in the metric of the loss's Gauss-Newton diagonal, without a rate.
        "sgd" is the paper's; "adam" is for minibatches.
    steps:
        Gradients of one descent, at most; on a path, for each gamma at most 15. None: 60 for "spectral", which stops
        when the proximal gradient is as good as zero, 200 for "adam", 1000 for "sgd".
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
    optimizer: Literal["spectral", "adam", "sgd"] = "spectral"
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
        require_choices(self)
        limits = dict.fromkeys(("gamma", "l1", "group", "gamma_share"), 0.0)
        limits |= dict.fromkeys(("steps", "batch_size", "micro_batch", "units", "evaluate_every", "patience"), 1)
        for name, lowest in limits.items():
            value = getattr(self, name)
            if value is not None and not lowest <= value < math.inf:
                raise SettingError(f"LinEAS: {name}={value} is out of range")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise SettingError(f"LinEAS: lr={self.lr} is out of range")
        given = [name for name in ("gamma", "gamma_share", "units") if getattr(self, name) is not None]
        if len(given) > 1:
            raise SettingError(f"LinEAS: {' and '.join(given)} say the same in two ways: set one of them")
        if self.l1 == self.group == 0 and given != [] and getattr(self, given[0]) > 0:
            raise SettingError(f"LinEAS: {given[0]} > 0 penalises nothing while l1 and group are both 0")
        if self.optimizer == "spectral":
            for name, why in (("lr", "it has no rate"), ("batch_size", "it needs all texts at every step")):
                if getattr(self, name) is not None:
                    raise SettingError(
                        f'LinEAS: {name}={getattr(self, name)} is not for optimizer="spectral", {why}: leave it out or '
                        'set optimizer="adam"'
                    )

    def fit(self, model: nn.Module, contrast: ContrastSet, *, activations: Activations | None = None) -> Intervention:
        """Learn the maps and return them as an intervention; its `.history` has loss, support and rate of every step.

        The provenance says why the descent `stopped`, and under `choice` what was tried where the share of gamma_max
        was chosen. `activations` may bring the target's pooled values at the loss sites; where a quarter is held out,
        those of the choice are read anew. Ctrl-C does what `on_interrupt` says. Warns (LensSteerWarning) where all
        steps will take long, and where nothing was moved in the end.

        Raises
        ------
        ContrastError
            Fewer than four texts on a side.
        SiteError, SettingError, ModelError
            A site cannot be edited, or has no loss site at or after it; there are fewer than `units` units, or the path
            gives fewer; the model is in training mode; gradients are ruled out by `torch.inference_mode()`.

        """
        require_gradients("LinEAS")
        with self._problem(model, contrast, activations) as problem:
            outcome, gamma, about = self._solved(problem, model, contrast)
            outcome.warn_if_nothing_moved("LinEAS", self._descent(problem, gamma))
            return problem.intervention(self, outcome, gamma, **about)

    def _solved(self, problem: Problem, model: nn.Module, contrast: ContrastSet) -> Solved:
        """Return the fit as sparse as the settings ask, its gamma, and what was tried to find it."""
        if self._gamma_known:
            gamma = self._given_gamma(problem)
            outcome = self._descend(problem, problem.identity, gamma)
            return self._relaxed(problem, outcome, gamma, 0.0, {}) if self.relax else (outcome, gamma, {})
        if self.units is not None:
            with self._one_bar(None):
                return self._with_units(problem, self.units)
        with self._one_bar((len(SHARES) + 1) * self._steps_on_path + (0 if self.relax is False else self._most_steps)):
            return self._chosen(problem, model, contrast)

    @property
    def _gamma_known(self) -> bool:
        return self.gamma is not None or self.gamma_share is not None

    def _given_gamma(self, problem: Problem) -> float:
        if self.gamma is not None:
            return self.gamma
        return self.gamma_share * problem.gamma_max if self.gamma_share else 0.0

    def _chosen(self, problem: Problem, model: nn.Module, contrast: ContrastSet) -> Solved:
        """Choose the share on the holdout, or with a quarter of the texts held out, and fit at it on all texts."""
        start = problem.identity
        if self.holdout is not None:
            choice = self._followed(problem)
        elif min(problem.counts) >= _FEWEST_TO_HOLD_OUT:
            train, held = contrast.split(_HELD_OUT, self.seed)
            with replace(self, holdout=held)._problem(model, train, None) as part:
                choice = self._followed(part)
                start = problem.layout.vector(part.layout.maps(choice.sparsest.outcome.parameters))
        else:
            warnings.warn(
                f"LinEAS: {contrast!r} has too few texts to hold a quarter out for the choice of the penalty: "
                f"gamma_share={_SHARE_OF_FEW} is taken",
                LensSteerWarning,
                4,
            )
            gamma = _SHARE_OF_FEW * problem.gamma_max
            outcome = self._descend_on_path(problem, start, gamma)
            return self._relaxed(problem, outcome, gamma, gamma, {})
        gamma, about = choice.sparsest.gamma_share * problem.gamma_max, choice.about()
        if choice.interrupted:
            outcome = self._run(problem, replace(self._descent(problem, gamma), steps=0), start, problem.loss)
            outcome.interrupted, outcome.stopped = True, "interrupted"
            return outcome, gamma, about
        outcome = self._descend_on_path(problem, start, gamma)
        if self.relax is False:
            return outcome, gamma, about
        return self._relaxed(problem, outcome, gamma, choice.best.gamma_share * problem.gamma_max, about)

    def _followed(self, problem: Problem) -> Choice:
        stops = list(walk(problem, SHARES, partial(self._descend_on_path, problem, fits=len(SHARES))))
        return chosen_by_heldout(stops)

    def _relaxed(
        self, problem: Problem, outcome: Outcome, gamma: float, relaxed: float, about: dict[str, Any]
    ) -> Solved:
        """Learn the units that `gamma` kept once more at a smaller one."""
        if relaxed >= gamma or outcome.interrupted or not bool(outcome.parameters.any()):
            return outcome, gamma, about
        loss = LossOnUnits(problem.loss, problem.layout.edited(outcome.parameters))
        refitted = self._run(problem, self._descent(problem, relaxed), outcome.parameters, loss)
        return refitted, gamma, {**about, "relaxed_gamma": relaxed}

    def _with_units(self, problem: Problem, units: int) -> Solved:
        total = len(problem.layout) // 2
        if units > total:
            raise SettingError(f"LinEAS: units={units}, and the edited sites have {total} units in all")
        stops = walk_to_units(problem, units, partial(self._descend_on_path, problem))
        near = nearest_above(stops, units)
        gamma, about = near.gamma_share * problem.gamma_max, Choice(stops, near, near).about()
        kept = problem.layout.furthest(near.outcome.parameters, units)
        settings = self._descent(problem, gamma if self.relax is False else 0.0)
        if near.outcome.interrupted:
            settings = replace(settings, steps=0)
        outcome = self._run(problem, settings, near.outcome.parameters * kept, LossOnUnits(problem.loss, kept))
        outcome.interrupted |= near.outcome.interrupted
        return outcome, gamma, about

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
        with self._problem(model, contrast, activations) as problem:
            free = free_parameters(chosen, problem.layout).to(problem.identity.device)
            start = deviations(chosen, problem.layout).to(free.device) * free
            outcome = self._descend(problem, start, 0.0, LossOnUnits(problem.loss, free))
            outcome.warn_if_nothing_moved("LinEAS", self._descent(problem, 0.0))
            return problem.intervention(self, outcome, 0.0, refitted=int(free.sum()) // 2)

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
        activations: Activations | None = None,
    ) -> LinEASPath:
        """Fit one intervention per gamma, from the largest down, each started where the last one ended.

        `shares` are in units of `gamma_max`; by default eight, geometrically from 1 down to 0.01. `gammas` gives the
        weights themselves instead. What the settings say of one gamma is not looked at. With a holdout `path.best()`
        chooses. Ctrl-C ends the whole path; where `on_interrupt` keeps, what is done is returned, if any is, with a
        warning.
        """
        require_gradients("LinEAS")
        if shares is not None and gammas is not None:
            raise SettingError("LinEAS.path: shares and gammas say the same in two ways: give one of them")
        keeps = keeps_on_interrupt()
        with self._problem(model, contrast, activations) as problem:
            ceiling = problem.gamma_max
            relative = [share * ceiling for share in (default_shares() if shares is None else shares)]
            wanted = sorted(set(relative if gammas is None else gammas), reverse=True)
            steps: list[PathStep] = []
            parameters, interrupted = problem.identity, False
            try:
                with on_interrupt("raise"), self._one_bar(len(wanted) * self._steps_on_path):
                    for gamma in wanted:
                        outcome = self._descend_on_path(problem, parameters, gamma, fits=len(wanted))
                        parameters = outcome.parameters
                        edit = problem.intervention(self, outcome, gamma)
                        steps.append(PathStep(gamma, outcome.loss, problem.heldout_cases(parameters), edit))
            except KeyboardInterrupt:
                if not (keeps and steps):
                    raise
                interrupted = True
                message = f"the path was interrupted after {len(steps)} of {len(wanted)} gammas: these are done"
                warnings.warn(message, LensSteerWarning, 2)
            identity_loss = problem.loss(problem.identity)
        return LinEASPath.of(steps, gamma_max=ceiling, identity_loss=identity_loss, interrupted=interrupted)

    @property
    def _most_steps(self) -> int:
        return self.steps or _STEPS[self.optimizer]

    @property
    def _steps_on_path(self) -> int:
        return min(self._most_steps, _STEPS_ON_PATH) if self.optimizer == "spectral" else self._most_steps

    def _one_bar(self, steps: int | None) -> AbstractContextManager[None]:
        return one_bar(steps, desc="LinEAS", unit="step", show=self.progress)

    def _descent(self, problem: Problem, gamma: float, fits: int = 1) -> Descent:
        return Descent(
            steps=self._most_steps,
            lr=_RATES.get(self.optimizer) if self.lr is None else self.lr,
            optimizer=self.optimizer,
            gamma=gamma,
            penalty=problem.penalty,
            metric=problem.metric if self.optimizer == "spectral" else None,
            evaluate_every=self.evaluate_every,
            patience=self.patience,
            fits=fits,
        )

    def _descend_on_path(self, problem: Problem, start: Tensor, gamma: float, fits: int = 1) -> Outcome:
        """Descend from where the last gamma ended, which takes few steps, to the smallest training loss."""
        settings = self._descent(problem, gamma, fits)
        if self.optimizer == "spectral":
            settings = replace(settings, steps=self._steps_on_path, tolerance=_TOLERANCE_ON_PATH)
        return self._run(problem, settings, start, problem.loss)

    def _descend(self, problem: Problem, start: Tensor, gamma: float, loss: Loss | None = None) -> Outcome:
        heldout = None if self.holdout is None else problem.heldout_loss
        return self._run(problem, self._descent(problem, gamma), start, loss or problem.loss, heldout)

    def _run(
        self,
        problem: Problem,
        settings: Descent,
        start: Tensor,
        loss: Loss,
        heldout: Callable[[Tensor], float] | None = None,
    ) -> Outcome:
        return descend(
            loss,
            settings,
            name="LinEAS",
            start=start,
            batches=draw_rows(problem.counts, self.batch_size, self.seed),
            support=problem.layout.support,
            heldout=heldout,
            progress=self.progress,
        )

    @contextmanager
    def _problem(self, model: nn.Module, contrast: ContrastSet, activations: Activations | None) -> Iterator[Problem]:
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
        return weights, spreads

    @staticmethod
    def _tokens(model: nn.Module, rows: Sequence[Row], contrast: ContrastSet) -> Tokens:
        return tokenize(model, rows, chat=contrast.chat)
