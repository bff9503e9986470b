"""How LinEAS walks along its gamma path, and which fit of it is taken: by held-out loss, or by a number of units."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from lens_steer.errors import LensSteerWarning, SettingError
from lens_steer.interruption import keeps_on_interrupt
from lens_steer.methods.descent_run import Outcome
from lens_steer.methods.heldout_losses import HeldoutLosses
from lens_steer.methods.lineas_path import nearest_to_usual
from lens_steer.methods.lineas_problem import Problem

SHARES = (0.5, 0.25, 0.12, 0.06, 0.03, 0.015)
"""The shares of gamma_max among which the held-out loss chooses."""

_FEWER = 0.7  # share of the last gamma at which the walk towards a number of units looks next
_SMALLEST = 1e-3  # share of gamma_max at which that walk ends
_HALVINGS = 6
_CLOSE = 1.25  # times the wanted units: near enough, since the furthest moved of them are taken

LONGEST_WALK = math.floor(math.log(_SMALLEST, _FEWER)) + _HALVINGS
"""How many fits the walk towards one number of units makes at most."""

DescendAt = Callable[[Tensor, float], Outcome]
"""Descends from some parameters at some gamma."""


@dataclass(frozen=True)
class Stop:
    """The fit at one share of gamma_max, and its held-out loss (see `Problem.heldout_cases`)."""

    gamma_share: float
    outcome: Outcome
    support: int
    heldout_cases: Float[np.ndarray, " case"]

    def row(self) -> dict[str, Any]:
        """Return what the provenance says of it."""
        cases = self.heldout_cases
        heldout = {"heldout_loss": float(cases[0])} if len(cases) else {}
        return {"gamma_share": self.gamma_share, "support": self.support, "loss": self.outcome.loss, **heldout}


def walk(problem: Problem, shares: Sequence[float], descend_at: DescendAt) -> Iterator[Stop]:
    """Fit at one share of gamma_max after the other, each started where the last one ended; end after an interrupt."""
    parameters = problem.identity
    for share in shares:
        outcome = descend_at(parameters, share * problem.gamma_max)
        parameters = outcome.parameters
        yield stop_of(problem, share, outcome)
        if outcome.interrupted:
            return


def stop_of(problem: Problem, share: float, outcome: Outcome) -> Stop:
    """Return the fit at a share with its support and held-out loss."""
    support = problem.layout.support(outcome.parameters)
    return Stop(share, outcome, support, problem.heldout_cases(outcome.parameters))


@dataclass(frozen=True)
class Choice:
    """The fits that were made, the one whose units are taken, and the one whose penalty they are learned at.

    `shown` is False where the held-out texts did not show that any fit is better than no edit.
    """

    stops: Sequence[Stop]
    sparsest: Stop
    best: Stop
    shown: bool = True

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the walk."""
        return self.stops[-1].outcome.interrupted

    def about(self) -> dict[str, Any]:
        """Return what the provenance says of it."""
        shares = {"gamma_share": self.sparsest.gamma_share, "best_gamma_share": self.best.gamma_share}
        return {"choice": {**shares, "shown": self.shown, "path": [stop.row() for stop in self.stops]}}


def chosen_by_heldout(stops: Sequence[Stop], identity: Float[np.ndarray, " case"]) -> Choice:
    """Return the fit with the smallest held-out loss, and the sparsest that the texts cannot tell from it.

    See `HeldoutLosses.chosen`; `identity` holds the held-out losses without an edit. Where they choose none, the fit
    at the usual share is both.
    """
    heldout = HeldoutLosses.of([stop.heldout_cases for stop in stops], identity)
    chosen = heldout.chosen()
    if chosen is None:
        usual = stops[nearest_to_usual([stop.gamma_share for stop in stops])]
        return Choice(stops, usual, usual, shown=False)
    return Choice(stops, stops[chosen], stops[heldout.best])


def walk_to_units(problem: Problem, counts: Sequence[int], descend_at: DescendAt) -> Iterator[Stop]:
    """Fit at falling gamma until the largest of `counts` or more units are edited, then between two fits.

    For every count that ends where at most a quarter more are edited. SettingError where the path does not come to as
    many.
    """
    nothing = Outcome(problem.identity, loss=math.nan, objective=math.nan, heldout_loss=math.nan)
    stops = [Stop(1.0, nothing, 0, np.zeros(0))]
    while stops[-1].support < max(counts):
        share = _FEWER * stops[-1].gamma_share
        if share < _SMALLEST:
            most = max(stop.support for stop in stops)
            raise SettingError(
                f"LinEAS: units={max(counts)} is more than the path gives ({most} at "
                f"gamma_share={stops[-1].gamma_share:.2g}): lower units, set more sites, or gamma_share=0 for a dense "
                "edit"
            )
        stops.append(stop_of(problem, share, descend_at(stops[-1].outcome.parameters, share * problem.gamma_max)))
        yield stops[-1]
        if stops[-1].outcome.interrupted:
            return
    for units, _ in product(sorted(counts), range(_HALVINGS)):
        place = next(place for place, stop in enumerate(stops) if stop.support >= units)
        below, above = stops[place - 1], stops[place]
        if above.support <= _CLOSE * units:
            continue
        share = (below.gamma_share * above.gamma_share) ** 0.5
        middle = stop_of(problem, share, descend_at(below.outcome.parameters, share * problem.gamma_max))
        stops.insert(place, middle)
        yield middle
        if middle.outcome.interrupted:
            return


def followed(stops: Iterator[Stop]) -> list[Stop]:
    """Return the fits of a walk; Ctrl-C ends it and, where `on_interrupt` keeps, leaves those that are done."""
    done: list[Stop] = []
    try:
        for stop in stops:
            done.append(stop)
    except KeyboardInterrupt:
        if not (done and keeps_on_interrupt()):
            raise
        done[-1].outcome.interrupted = True
        warnings.warn(
            f"LinEAS was interrupted after {len(done)} fits of its path: it ends with these", LensSteerWarning, 2
        )
    return done


def nearest_above(stops: Sequence[Stop], units: int) -> Stop:
    """Return the fit with the smallest support of at least `units`; without one, as after an interrupt, the largest."""
    enough = [stop for stop in stops if stop.support >= units]
    return min(enough, key=lambda stop: stop.support) if enough else max(stops, key=lambda stop: stop.support)
