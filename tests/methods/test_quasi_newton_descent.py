"""The quasi-Newton descent on problems whose solution is known."""

from __future__ import annotations

import math
from itertools import repeat
from typing import Any

import pytest
import torch
from torch import Tensor

from lens_steer.methods.descent import descend
from lens_steer.methods.descent_run import Descent, Outcome
from lens_steer.methods.sparse_group_lasso import SparseGroupLasso

POINT = torch.tensor([3.0, -2.0, 0.5, 0.0, 1.0, -4.0])
CURVATURE = torch.tensor([1.0, 100.0, 1e4, 1.0, 10.0, 0.01])
GROUP = torch.tensor([0, 0, 0, 1, 1, 1])


class Quadratic:
    """(1/2) sum_j c_j (x_j - p_j)^2, in parameters y = x / unit; and how many gradients were taken."""

    def __init__(self, unit: Tensor | float = 1.0) -> None:
        self.unit, self.gradients = torch.as_tensor(unit), 0

    def __call__(self, parameters: Tensor, *_: Any) -> float:
        return float((CURVATURE * (self.unit * parameters - POINT).square()).sum() / 2)

    def with_gradient(self, parameters: Tensor, *_: Any) -> tuple[float, Tensor]:
        self.gradients += 1
        return self(parameters), self.unit * CURVATURE * (self.unit * parameters - POINT)


def minimise(loss: Any, *, start: Tensor | None = None, metric: Tensor | None = None, **settings: Any) -> Outcome:
    settings["metric"] = None if metric is None else lambda: metric
    descent = Descent(**{"steps": 60, "optimizer": "quasi-newton", "evaluate_every": 5, "patience": 5, **settings})
    return descend(
        loss,
        descent,
        name="test",
        start=torch.zeros(6) if start is None else start,
        batches=repeat(None),
        support=lambda x: int((x != 0).sum()),
        progress=False,
    )


def test_one_step_where_the_metric_is_the_curvature() -> None:
    outcome = minimise(Quadratic(), metric=CURVATURE)
    torch.testing.assert_close(outcome.parameters, POINT)
    assert len(outcome.history) == 2
    assert outcome.stopped.startswith("converged")


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_units_of_parameters_change_nothing(scale: float) -> None:
    """The same function of y = x / scale, with its metric scaled alike, is walked through the same points."""
    rough = CURVATURE * torch.tensor([0.3, 2.0, 1.0, 5.0, 0.7, 1.0])  # an estimate, as any metric is
    plain, scaled = minimise(Quadratic(), metric=rough), minimise(Quadratic(scale), metric=rough * scale**2)
    torch.testing.assert_close(scaled.parameters * scale, plain.parameters, rtol=1e-2, atol=1e-2)
    first = [[row["loss"] for row in outcome.history[:8]] for outcome in (scaled, plain)]
    assert first[0] == pytest.approx(first[1], rel=1e-3)


@pytest.mark.parametrize("gamma", [0.1, 1.0, 30.0])
def test_the_optimum_with_a_penalty_satisfies_its_condition(gamma: float) -> None:
    """A fixed point of the proximal step at any size is a minimum of loss + penalty."""
    penalty, loss = SparseGroupLasso(GROUP, 1.0, 1.0), Quadratic()
    settings = {"metric": CURVATURE * 1.5, "gamma": gamma, "penalty": penalty, "tolerance": 1e-12, "steps": 400}
    point = minimise(loss, **settings).parameters
    sizes = 0.1 / CURVATURE
    again = penalty.step(point - sizes * loss.with_gradient(point)[1], gamma, sizes)
    torch.testing.assert_close(again, point, rtol=1e-3, atol=1e-3)
    assert bool((point == 0).any())  # exact zeros, not small numbers


def test_a_start_at_the_optimum_costs_one_gradient() -> None:
    loss = Quadratic()
    outcome = minimise(loss, start=POINT.clone(), metric=CURVATURE)
    assert loss.gradients == 1
    torch.testing.assert_close(outcome.parameters, POINT)


def test_without_a_metric_it_converges_too_only_later() -> None:
    with_metric, without = minimise(Quadratic(), metric=CURVATURE), minimise(Quadratic(), steps=2000)
    assert len(without.history) > 2 * len(with_metric.history)
    assert without.loss < 1e-3 * Quadratic()(torch.zeros(6))


def test_it_learns_how_parameters_act_together() -> None:
    """Of curvatures from 1 to 10,000 in directions that mix all parameters the diagonal, all alike, says nothing."""
    draw = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(30, 30, generator=draw)).Q
    matrix = (directions * torch.logspace(0, 4, 30)) @ directions.T
    point = torch.randn(30, generator=draw)

    class Mixed:
        def __call__(self, parameters: Tensor, *_: Any) -> float:
            return float((parameters - point) @ matrix @ (parameters - point)) / 2

        def with_gradient(self, parameters: Tensor, *_: Any) -> tuple[float, Tensor]:
            return self(parameters), matrix @ (parameters - point)

    start = torch.zeros(30)
    outcome = minimise(Mixed(), start=start, metric=matrix.diagonal().clone())
    assert outcome.loss < 1e-4 * Mixed()(start)


class TestSafeguards:
    def test_a_step_too_long_is_taken_back(self) -> None:
        outcome = minimise(Quadratic(), metric=CURVATURE / 1000)
        assert outcome.back_offs > 0
        assert "overshot: back, damped by 4" in [row["event"] for row in outcome.history]
        assert outcome.loss < 0.01 * Quadratic()(torch.zeros(6))

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_loss_that_breaks_off_somewhere_is_left(self, bad: float) -> None:
        class Cliff(Quadratic):
            def __call__(self, parameters: Tensor, *_: Any) -> float:
                return bad if float(parameters.abs().max()) > 3.5 else super().__call__(parameters)

        outcome = minimise(Cliff(), metric=CURVATURE)
        assert math.isfinite(outcome.loss)
        assert float(outcome.parameters.abs().max()) <= 3.5
        assert outcome.loss < Quadratic()(torch.zeros(6))

    def test_nothing_finite_at_the_start(self) -> None:
        class Nowhere(Quadratic):
            def with_gradient(self, parameters: Tensor, *_: Any) -> tuple[float, Tensor]:
                return math.nan, torch.full((6,), math.nan)

        outcome = minimise(Nowhere(), metric=CURVATURE)
        assert not outcome.parameters.any()
        assert outcome.stopped == "the loss is not finite where the descent starts"

    def test_rounding_ends_it(self) -> None:
        """A loss of few digits promises more than any step keeps: the descent ends and does not halve for ever."""

        class Rounded(Quadratic):
            def __call__(self, parameters: Tensor, *_: Any) -> float:
                return float(torch.tensor(super().__call__(parameters)).bfloat16())

        loss = Rounded()
        outcome = minimise(loss, metric=CURVATURE * 0.3, tolerance=0.0, steps=500)
        assert loss.gradients < 200
        assert outcome.loss < 0.05 * Quadratic()(torch.zeros(6))

    def test_steps_that_are_damped_until_they_promise_nothing_are_not_called_convergence(self) -> None:
        class Uphill(Quadratic):
            def with_gradient(self, parameters: Tensor, *_: Any) -> tuple[float, Tensor]:
                value, gradient = super().with_gradient(parameters)
                return value, -gradient

        outcome = minimise(Uphill(), metric=CURVATURE, tolerance=1e-2)
        assert not outcome.parameters.any()
        assert outcome.stopped == "no shorter step lowers the objective any more"
