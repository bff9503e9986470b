"""Spectral proximal gradient descent: no learning rate, and steps in a metric that makes all parameters alike.

Each step minimises the loss's linear model plus the penalty plus |d|^2 / (2 size) in a diagonal metric; `size` is the
Barzilai-Borwein quotient of the last step (SpaRSA: Wright, Nowak and Figueiredo 2009), and a step stands if the
objective falls below the worst of the last few (Grippo, Lampariello and Lucidi 1986). With the Gauss-Newton diagonal as
metric the steps do not depend on the units in which the parameters are measured.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lens_steer.methods.descent_run import Rows, Run

_MEMORY = 5  # objectives of which a step must be below the worst
_DECREASE = 1e-4  # share of the promised decrease that a step must keep
_BACKOFF = 4.0
_REJECTIONS = 8  # in a row: nothing is gained any more beyond rounding
_LARGEST = 1e6  # step size where the loss does not curve upwards


class SpectralRun(Run):
    """A descent by proximal Barzilai-Borwein steps; every step costs one gradient of all rows."""

    def _prepare(self) -> None:
        metric = self._settings.metric
        self._metric = torch.ones_like(self.parameters) if metric is None else metric
        self._size, self._rejections = 1.0, 0
        self._here: tuple[Tensor, Tensor] | None = None  # point and gradient from which steps are tried
        self._objectives: list[float] = []

    def step(self, step: int, rows: Rows) -> str:
        """Look at the point that the last step proposed, go there or take a shorter step, and propose the next one."""
        value, gradient = self._loss.with_gradient(self.parameters, *(rows or (None, None)))
        self.last_loss = value
        objective = self._objective(self.parameters, value)
        size, event = self._size, ""
        if self._stands(objective, gradient):
            self._keep_if_best(self.parameters, value)
            if self._heldout is not None and self._evaluates(step):
                self._judge(self.parameters, value)
            self._arrive(objective, gradient)
        else:
            self._size /= _BACKOFF
            self._rejections += 1
            self.best.back_offs += 1
            event = f"overshot: back, step / {_BACKOFF:g}"
        ends = self._propose()
        self._record(step, value, objective, size, ends or event)
        return ends

    def _stands(self, objective: float, gradient: Tensor) -> bool:
        if not (math.isfinite(objective) and bool(torch.isfinite(gradient).all())):
            return False
        if self._here is None:
            return True
        promised = self._squared(self.parameters - self._here[0]) / (2 * self._size)
        return objective <= max(self._objectives[-_MEMORY:]) - _DECREASE * promised

    def _arrive(self, objective: float, gradient: Tensor) -> None:
        """Make the proposed point the one from which steps are tried, and measure the curvature on the way."""
        if self._here is not None:
            moved, change = self.parameters - self._here[0], gradient - self._here[1]
            curvature = float(moved @ change)
            longest = min(self._size * _BACKOFF, _LARGEST)
            self._size = self._squared(moved) / curvature if curvature > 0 else longest
        self._here, self._rejections = (self.parameters, gradient), 0
        self._objectives.append(objective)

    def _propose(self) -> str:
        """Set `parameters` to where the next step leads; return why there is none."""
        if self._here is None:
            return "the loss is not finite where the descent starts"
        point, gradient = self._here
        sizes = self._size / self._metric
        self.parameters = self._proximal(point - sizes * gradient, sizes)
        promised = self._squared(self.parameters - point) / self._size
        if promised <= self._settings.tolerance * abs(self._objectives[-1]):
            return "converged: the proximal gradient is as good as zero"
        return "no shorter step lowers the objective any more" if self._rejections >= _REJECTIONS else ""

    def _squared(self, step: Tensor) -> float:
        return float((self._metric * step.square()).sum())
