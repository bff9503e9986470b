"""The quadratic model against dense matrices: the textbook's updates, its inverse, and its minimum with a penalty."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lens_steer.methods.quadratic_model import QuadraticModel
from lens_steer.methods.sparse_group_lasso import SparseGroupLasso

N = 12
GROUP = torch.arange(N) // 4


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return a positive metric, a positive definite matrix, and a gradient."""
    draw = torch.Generator().manual_seed(seed)
    metric = 10 ** (2 * torch.rand(N, generator=draw) - 1)
    root = torch.randn(N, N, generator=draw)
    return metric, root @ root.T + 0.1 * torch.eye(N), torch.randn(N, generator=draw)


def learned(metric: Tensor, matrix: Tensor, steps: int, *, seed: int = 1, depth: int = 20) -> QuadraticModel:
    draw = torch.Generator().manual_seed(seed)
    model = QuadraticModel.of(metric, 1.0)
    for _ in range(steps):
        step = torch.randn(N, generator=draw)
        model = model.after(step, matrix @ step, depth)
    return model


def dense(model: QuadraticModel) -> Tensor:
    """Return the matrix, from its products with unit vectors (polarisation)."""
    unit = torch.eye(N)
    diagonal = [model.curvature(row) for row in unit]
    rows = [[(model.curvature(unit[i] + unit[j]) - diagonal[i] - diagonal[j]) / 2 for j in range(N)] for i in range(N)]
    return torch.tensor(rows, dtype=torch.float64)


def updated(metric: Tensor, matrix: Tensor, steps: int, *, seed: int = 1) -> Tensor:
    """Return the BFGS matrix, one rank-two update after the other, from the newest scale times the metric."""
    draw = torch.Generator().manual_seed(seed)
    pairs = [(step, matrix @ step) for step in (torch.randn(N, generator=draw) for _ in range(steps))]
    step, change = pairs[-1]
    scale = ((change.square() / metric).sum() / (metric * step.square()).sum()).sqrt()
    current = torch.diag(scale * metric).double()
    for step, change in pairs:
        step, change = step.double(), change.double()
        along = current @ step
        current = current - torch.outer(along, along) / (step @ along) + torch.outer(change, change) / (change @ step)
    return current


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_it_is_the_matrix_of_successive_bfgs_updates(steps: int) -> None:
    metric, matrix, _ = problem()
    torch.testing.assert_close(
        dense(learned(metric, matrix, steps)), updated(metric, matrix, steps), rtol=1e-4, atol=1e-4
    )


def test_the_newest_change_is_reproduced_and_old_steps_are_forgotten() -> None:
    metric, matrix, _ = problem()
    model = learned(metric, matrix, 9, depth=3)
    assert len(model.steps) == 3
    step = (model.steps[-1] / metric.double().sqrt()).float()
    assert model.curvature(step) == pytest.approx(float(step @ matrix @ step), rel=1e-4)


@pytest.mark.parametrize("damping", [0.0, 3.0])
def test_without_a_penalty_the_minimum_solves_the_linear_system(damping: float) -> None:
    metric, matrix, gradient = problem()
    model = replace(learned(metric, matrix, 6), damping=damping)
    point = torch.ones(N)
    expected = point - torch.linalg.solve(dense(model), gradient.double()).float()
    torch.testing.assert_close(model.minimum(point, gradient, None), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("share", [0.3, 0.95])
def test_with_a_penalty_the_minimum_is_a_fixed_point_of_the_models_proximal_steps(share: float) -> None:
    metric, matrix, gradient = problem()
    model, penalty = learned(metric, matrix, 6), SparseGroupLasso(GROUP, 1.0, 1.0)
    point, gamma = torch.zeros(N), share * penalty.gamma_max(gradient)
    there = model.minimum(point, gradient, lambda x, sizes: penalty.step(x, gamma, sizes))
    whole = dense(model).float()
    sizes = 0.5 / torch.linalg.eigvalsh(whole).max() * torch.ones(N)
    again = penalty.step(there - sizes * (gradient + whole @ (there - point)), gamma, sizes)
    torch.testing.assert_close(again, there, rtol=1e-2, atol=2e-3)
    assert bool(there.any())
    assert bool((there == 0).any()) == (share > 0.9)


def test_a_step_against_the_curvature_teaches_nothing() -> None:
    metric, matrix, _ = problem()
    model = learned(metric, matrix, 2)
    step = torch.randn(N, generator=torch.Generator().manual_seed(5))
    for change in (-matrix @ step, torch.zeros(N)):
        assert model.after(step, change, 20) is model
    assert model.after(torch.zeros(N), torch.zeros(N), 20) is model


def test_the_same_step_again_and_again_leaves_a_sound_model() -> None:
    metric, matrix, _ = problem()
    model, step = QuadraticModel.of(metric, 1.0), torch.ones(N)
    for time in range(30):
        model = model.after(step * (1 + 1e-7 * time), matrix @ step, 20)
        assert model.is_sound
    assert model.curvature(step) == pytest.approx(float(step @ matrix @ step), rel=1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_units_of_parameters_change_nothing(scale: float) -> None:
    """In y = x / scale: gradients times scale, matrix and metric times its square."""
    metric, matrix, gradient = problem()
    plain = learned(metric, matrix, 5)
    scaled = QuadraticModel.of(metric * scale**2, 1.0)
    draw = torch.Generator().manual_seed(1)
    for _ in range(5):
        step = torch.randn(N, generator=draw)
        scaled = scaled.after(step / scale, scale * (matrix @ step), 20)
    point = torch.zeros(N)
    expected = plain.minimum(point, gradient, None)
    torch.testing.assert_close(scaled.minimum(point, scale * gradient, None) * scale, expected, rtol=1e-3, atol=1e-4)


def test_the_steepest_step_promises_nothing_at_a_minimum() -> None:
    metric, _, gradient = problem()
    model, penalty = QuadraticModel.of(metric, 2.0), SparseGroupLasso(GROUP, 1.0, 1.0)
    ceiling = penalty.gamma_max(gradient)

    def promised(share: float) -> float:
        return model.steepest(torch.zeros(N), gradient, lambda x, sizes: penalty.step(x, share * ceiling, sizes))

    assert promised(1.001) == 0
    assert 0 < promised(0.5) < model.steepest(torch.zeros(N), gradient, None)
    assert model.steepest(torch.zeros(N), gradient, None) == pytest.approx(
        float((gradient.square() / metric).sum()) / 2
    )
