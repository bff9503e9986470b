"""Proximal quasi-Newton descent: no learning rate, and a model of the loss that learns how the parameters act together.

Each step minimises a quadratic model of the loss plus the penalty (Lee, Sun and Saunders 2014), and stands if the
objective falls below the worst of the last few (Grippo, Lampariello and Lucidi 1986); where it does not, the model is
damped. It begins as a diagonal metric, and learns from every step. With the Gauss-Newton diagonal as metric the steps
do not depend on the units in which the parameters are measured.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from lens_steer.methods.descent_run import Rows, Run
from lens_steer.methods.quadratic_model import QuadraticModel

_MEMORY = 5  # objectives of which a step must be below the worst
_DEPTH = 20  # steps from which the model learns
_DECREASE = 1e-4  # share of the promised decrease that a step must keep
_BACKOFF = 4.0
_REJECTIONS = 8  # in a row: nothing is gained any more beyond rounding


class QuasiNewtonRun(Run):
    """A descent by proximal quasi-Newton steps; every step costs one gradient of all rows."""

    def _prepare(self) -> None:
        metric = self._settings.metric
        self._model = QuadraticModel.of(torch.ones_like(self.parameters) if metric is None else metric(), 1.0)
        self._rejections = 0
        self._here: tuple[Tensor, Tensor] | None = None  # point and gradient from which steps are tried
        self._objectives: list[float] = []
        self._promised = 0.0  # by the step to `parameters`

    def step(self, step: int, rows: Rows) -> str:
        """Look at the point that the last step proposed, go there or take a shorter step, and propose the next one."""
        value, gradient = self._loss.with_gradient(self.parameters, *(rows or (None, None)))
        self.last_loss = value
        objective = self._objective(self.parameters, value)
        size, event = 1 / self._model.diagonal, ""
        if self._stands(objective, gradient):
            self._keep_if_best(self.parameters, value)
            if self._heldout is not None and self._evaluates(step):
                self._judge(self.parameters, value)
            self._arrive(objective, gradient)
        else:
            self._shorten()
            self._rejections += 1
            self.best.back_offs += 1
            event = f"overshot: back, damped by {_BACKOFF:g}"
        ends = self._propose()
        self._record(step, value, objective, size, ends or event)
        return ends

    def _stands(self, objective: float, gradient: Tensor) -> bool:
        if not (math.isfinite(objective) and bool(torch.isfinite(gradient).all())):
            return False
        return self._here is None or objective <= max(self._objectives[-_MEMORY:]) - _DECREASE * self._promised / 2

    def _arrive(self, objective: float, gradient: Tensor) -> None:
        """Make the proposed point the one from which steps are tried, and let the model learn from the way to it."""
        if self._here is not None:
            model = self._model.after(self.parameters - self._here[0], gradient - self._here[1], _DEPTH)
            calm = model.damping < model.scale / _BACKOFF**2
            self._model = replace(model, damping=0.0 if calm else model.damping / _BACKOFF)
        self._here, self._rejections = (self.parameters, gradient), 0
        self._objectives.append(objective)

    def _shorten(self) -> None:
        model = self._model
        if len(model.steps):
            self._model = replace(model, damping=max(_BACKOFF * model.damping, model.scale))
        else:
            self._model = replace(model, scale=_BACKOFF * model.scale)

    def _propose(self) -> str:
        """Set `parameters` to where the next step leads; return why there is none."""
        if self._here is None:
            return "the loss is not finite where the descent starts"
        point, gradient = self._here
        penalized = self._settings.penalty is not None and self._settings.gamma > 0
        about = (point, gradient, self._proximal if penalized else None)
        self.parameters = self._model.minimum(*about)
        self._promised = self._model.curvature(self.parameters - point)
        settled = self._model.steepest(*about) <= self._settings.tolerance * abs(self._objectives[-1])
        if settled and not self._rejections:
            return "converged: the proximal gradient is as good as zero"
        # What is damped promises little wherever it stands.
        return "no shorter step lowers the objective any more" if settled or self._rejections >= _REJECTIONS else ""
