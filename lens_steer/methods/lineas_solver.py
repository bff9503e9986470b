"""How LinEAS solves one problem: at a given gamma, along the path, at the share that is chosen, with so many units."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lens_steer.errors import LensSteerWarning, SettingError
from lens_steer.methods.descent import descend, draw_rows
from lens_steer.methods.descent_run import Descent, Loss, Outcome
from lens_steer.methods.lineas_choice import (
    LONGEST_WALK,
    SHARES,
    Choice,
    Stop,
    chosen_by_heldout,
    followed,
    nearest_above,
    walk,
    walk_to_units,
)
from lens_steer.methods.lineas_path import USUAL_SHARE
from lens_steer.methods.lineas_problem import Problem
from lens_steer.methods.refit import LossOnUnits
from lens_steer.progress import one_bar

HELD_OUT = 0.25  # of the texts, for the choice of the share
_FEWEST_TO_HOLD_OUT = 16  # texts a side of which as many can be held out
_RELAXED = 0.3  # of the penalty that kept the units: without any, a few hundred units learn 32 texts by heart
_STEPS_ON_PATH, _TOLERANCE_ON_PATH = 15, 1e-5
_STEPS = {"quasi-newton": 60, "adam": 200, "sgd": 1000}
_RATES = {"adam": 0.1, "sgd": 0.1}

Solved = tuple[Outcome, float, dict[str, Any]]
"""A fit, its gamma, and what the provenance says of how that was chosen."""
Quarter = Callable[[], AbstractContextManager[Problem]]
"""Opens the problem on three quarters of the texts, with the last one held out."""


def most_steps(settings: Any) -> int:
    """Return how many gradients one descent takes at most."""
    return int(settings.steps or _STEPS[settings.optimizer])


def most_steps_on_path(settings: Any) -> int:
    """Return how many gradients one gamma of a path takes at most."""
    steps = most_steps(settings)
    return min(steps, _STEPS_ON_PATH) if settings.optimizer == "quasi-newton" else steps


def most_gradients(settings: Any) -> int:
    """Return how many gradients a whole fit takes at most, its path and what is learned once more included."""
    chosen = settings.gamma is None and settings.gamma_share is None
    stops = 0 if not chosen else len(SHARES) + 1 if settings.units is None else LONGEST_WALK
    relaxed = settings.relax is not False if chosen else settings.relax is True
    again = most_steps(settings) if relaxed or settings.units is not None else 0
    return stops * most_steps_on_path(settings) + again + (0 if chosen else most_steps(settings))


@dataclass(frozen=True)
class Solver:
    """Descends on a problem as a `LinEAS` says in its settings."""

    settings: Any
    problem: Problem

    def solve(self, quarter: Quarter) -> Solved:
        """Return the fit as sparse as the settings ask, its gamma, and what was tried to find it."""
        asked = self.settings
        if asked.units is not None:
            with self.one_bar(None):
                return next(self.with_units([asked.units]))
        if asked.gamma is None and asked.gamma_share is None:
            with self.one_bar(most_gradients(asked)):
                return self._chosen(quarter)
        gamma = asked.gamma
        if gamma is None:
            gamma = asked.gamma_share * self.problem.gamma_max if asked.gamma_share else 0.0
        outcome = self.descend(self.problem.identity, gamma)
        return self._relaxed(outcome, gamma, _RELAXED * gamma, {}) if asked.relax else (outcome, gamma, {})

    def _chosen(self, quarter: Quarter) -> Solved:
        """Choose the share on the holdout, or with a quarter of the texts held out, and fit at it on all texts."""
        ceiling, start = self.problem.gamma_max, self.problem.identity
        if self.settings.holdout is not None:
            choice = self._followed()
        elif min(self.problem.counts) >= _FEWEST_TO_HOLD_OUT:
            with quarter() as part:
                choice = replace(self, problem=part)._followed()
                start = self.problem.layout.vector(part.layout.maps(choice.sparsest.outcome.parameters))
        else:
            source, target = self.problem.counts
            warnings.warn(
                f"LinEAS: {source} source and {target} target texts are too few to hold a quarter out for the choice "
                f"of the penalty: gamma_share={USUAL_SHARE} is taken",
                LensSteerWarning,
                5,
            )
            return self.descend_on_path(start, USUAL_SHARE * ceiling), USUAL_SHARE * ceiling, {}
        share = choice.sparsest.gamma_share
        gamma, about = share * ceiling, choice.about()
        if choice.interrupted:
            outcome = self._run(replace(self.descent(gamma), steps=0), start, self.problem.loss)
            outcome.interrupted, outcome.stopped = True, "interrupted"
            return outcome, gamma, about
        if not choice.shown:
            warnings.warn(
                "LinEAS: the held-out texts do not show that any penalty's fit is better than no edit: "
                f"gamma_share={share} is taken; give more texts, or set gamma_share or units",
                LensSteerWarning,
                5,
            )
        outcome = self.descend_on_path(start, gamma)
        if self.settings.relax is False:
            return outcome, gamma, about
        return self._relaxed(outcome, gamma, choice.best.gamma_share * ceiling, about)

    def _followed(self) -> Choice:
        def descend_at(start: Tensor, gamma: float) -> Outcome:
            return self.descend_on_path(start, gamma, fits=len(SHARES))

        identity = self.problem.heldout_cases(self.problem.identity)
        return chosen_by_heldout(followed(walk(self.problem, SHARES, descend_at)), identity)

    def _relaxed(self, outcome: Outcome, gamma: float, relaxed: float, about: dict[str, Any]) -> Solved:
        """Learn the units that `gamma` kept once more at a smaller one."""
        if relaxed >= gamma or outcome.interrupted or not bool(outcome.parameters.any()):
            return outcome, gamma, about
        loss = LossOnUnits(self.problem.loss, self.problem.layout.edited(outcome.parameters))
        refitted = self._run(self.descent(relaxed), outcome.parameters, loss)
        return refitted, gamma, {**about, "relaxed_gamma": relaxed}

    def along(self, gammas: Sequence[float]) -> Iterator[Solved]:
        """Yield the fit at every gamma, each started where the last one ended."""
        parameters = self.problem.identity
        for gamma in gammas:
            outcome = self.descend_on_path(parameters, gamma, fits=len(gammas))
            parameters = outcome.parameters
            yield outcome, gamma, {}

    def with_units(self, counts: Sequence[int]) -> Iterator[Solved]:
        """Yield the fit with every number of units; one walk along the path comes to all of them."""
        total = len(self.problem.layout) // 2
        if max(counts) > total:
            raise SettingError(f"LinEAS: units={max(counts)}, and the edited sites have {total} units in all")
        stops = followed(walk_to_units(self.problem, counts, self.descend_on_path))
        for units in counts:
            yield self._furthest(units, stops)

    def _furthest(self, units: int, stops: Sequence[Stop]) -> Solved:
        """Keep so many of the units that a walk came to, and learn them once more."""
        near = nearest_above(stops, units)
        gamma, about = near.gamma_share * self.problem.gamma_max, Choice(stops, near, near).about()
        kept = self.problem.layout.furthest(near.outcome.parameters, units)
        relaxed = gamma if self.settings.relax is False else _RELAXED * gamma
        settings = self.descent(relaxed)
        if stops[-1].outcome.interrupted:
            settings = replace(settings, steps=0)
        outcome = self._run(settings, near.outcome.parameters * kept, LossOnUnits(self.problem.loss, kept))
        outcome.interrupted |= stops[-1].outcome.interrupted
        return outcome, gamma, {**about, "relaxed_gamma": relaxed} if relaxed < gamma else about

    def descend(self, start: Tensor, gamma: float, loss: Loss | None = None) -> Outcome:
        """Descend to the smallest loss: that of the held-out texts, where the settings bring some."""
        heldout = None if self.settings.holdout is None else self.problem.heldout_loss
        return self._run(self.descent(gamma), start, loss or self.problem.loss, heldout)

    def descend_on_path(self, start: Tensor, gamma: float, fits: int = 1) -> Outcome:
        """Descend from where the last gamma ended, which takes few steps, to the smallest training loss."""
        settings = self.descent(gamma, fits)
        if self.settings.optimizer == "quasi-newton":
            settings = replace(settings, steps=most_steps_on_path(self.settings), tolerance=_TOLERANCE_ON_PATH)
        return self._run(settings, start, self.problem.loss)

    def descent(self, gamma: float, fits: int = 1) -> Descent:
        """Return the settings of one descent, of `fits` that the call makes."""
        asked = self.settings
        return Descent(
            steps=most_steps(asked),
            lr=_RATES.get(asked.optimizer) if asked.lr is None else asked.lr,
            optimizer=asked.optimizer,
            gamma=gamma,
            penalty=self.problem.penalty,
            metric=(lambda: self.problem.metric) if asked.optimizer == "quasi-newton" else None,
            evaluate_every=asked.evaluate_every,
            patience=asked.patience,
            fits=fits,
        )

    def one_bar(self, steps: int | None) -> AbstractContextManager[None]:
        """Show the descents inside as one bar, of `steps` steps at most."""
        return one_bar(steps, desc="LinEAS", unit="step", show=self.settings.progress)

    def _run(
        self, settings: Descent, start: Tensor, loss: Loss, heldout: Callable[[Tensor], float] | None = None
    ) -> Outcome:
        return descend(
            loss,
            settings,
            name="LinEAS",
            start=start,
            batches=draw_rows(self.problem.counts, self.settings.batch_size, self.settings.seed),
            support=self.problem.layout.support,
            heldout=heldout,
            progress=self.settings.progress,
        )
