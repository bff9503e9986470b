"""How LinEAS walks along its gamma path, and which fit of it is taken: by held-out loss, or by a number of units."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from lens_steer.errors import SettingError
from lens_steer.methods.descent_run import Outcome
from lens_steer.methods.lineas_path import heldout_excess, within_one_error
from lens_steer.methods.lineas_problem import Problem

SHARES = (0.5, 0.25, 0.12, 0.06, 0.03, 0.015)
"""The shares of gamma_max among which the held-out loss chooses."""

_FEWER = 0.7  # share of the last gamma at which the walk towards a number of units looks next
_SMALLEST = 1e-3  # share of gamma_max at which that walk ends
_HALVINGS = 6
_CLOSE = 0.9  # share of the wanted units that is near enough

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
    """Fit at one share of gamma_max after the other, each started where the last one ended."""
    parameters = problem.identity
    for share in shares:
        outcome = descend_at(parameters, share * problem.gamma_max)
        parameters = outcome.parameters
        yield stop_of(problem, share, outcome)


def stop_of(problem: Problem, share: float, outcome: Outcome) -> Stop:
    """Return the fit at a share with its support and held-out loss."""
    support = problem.layout.support(outcome.parameters)
    return Stop(share, outcome, support, problem.heldout_cases(outcome.parameters))


def chosen_by_heldout(stops: Sequence[Stop]) -> Stop:
    """Return the sparsest fit whose held-out loss is within one standard error of the smallest."""
    return stops[within_one_error(*heldout_excess([stop.heldout_cases for stop in stops]))]


def walk_to_units(problem: Problem, units: int, descend_at: DescendAt) -> list[Stop]:
    """Fit at falling gamma until more than `units` are edited, then between the last two; return all fits made.

    SettingError where the path does not come to as many.
    """
    stops: list[Stop] = []
    share, start = 1.0, problem.identity
    while not stops or stops[-1].support < _CLOSE * units:
        share *= _FEWER
        if share < _SMALLEST:
            most = max(stop.support for stop in stops)
            raise SettingError(
                f"LinEAS: units={units} is more than the path gives ({most} at gamma_share={stops[-1].gamma_share:.2g})"
                ": lower units, set more sites, or gamma_share=0 for a dense edit"
            )
        outcome = descend_at(start, share * problem.gamma_max)
        stops.append(stop_of(problem, share, outcome))
        if stops[-1].support <= units:
            start = outcome.parameters
    if stops[-1].support <= units:
        return stops
    low, high = share, share / _FEWER
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        stops.append(stop_of(problem, middle, descend_at(start, middle * problem.gamma_max)))
        if stops[-1].support > units:
            low = middle
        elif stops[-1].support >= _CLOSE * units:
            break
        else:
            high, start = middle, stops[-1].outcome.parameters
    return stops


def nearest_below(stops: Sequence[Stop], units: int) -> Stop:
    """Return the fit with the largest support that is at most `units`."""
    return max((stop for stop in stops if stop.support <= units), key=lambda stop: stop.support)
