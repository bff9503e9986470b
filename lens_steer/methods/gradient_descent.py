"""SGD and Adam with a proximal step: back to the best point, with a smaller rate, after overshooting."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lens_steer.errors import SettingError
from lens_steer.methods.descent_run import Descent, Loss, Rows, Run

_FLOOR = 0.001  # the cosine schedule ends at this share of the learning rate
_PATIENCE = 10  # steps above the identity before the step size is judged too large
_FAR = 10.0  # times the identity's loss: one step is enough
_BACKOFF = 4.0


class GradientRun(Run):
    """A descent by SGD or Adam.

    A loss that is not finite, is ten times that of the identity on the same rows, or stays above it for ten steps,
    sends the descent back to the best point with a quarter of the learning rate; the history says so.
    """

    def _prepare(self) -> None:
        self._safeguard = _Safeguard(self._loss, torch.zeros_like(self.parameters), self.of_identity)
        self._stepper = _Stepper(self._settings, self.parameters, self._proximal)

    def step(self, step: int, rows: Rows) -> str:
        """Take one step and record it."""
        value, gradient = self._loss.with_gradient(self.parameters, *(rows or (None, None)))
        self.last_loss = value
        objective = self._objective(self.parameters, value)
        lr = self._stepper.rate(step)
        event = self._safeguard.objection(value, gradient, rows)
        if event:
            self.parameters = self.best.parameters.clone()
            self._stepper.back_off(self.parameters)
            self.best.back_offs += 1
        else:
            if rows is None:
                self._keep_if_best(self.parameters, value)
            if self._evaluates(step) and (rows is not None or self._heldout is not None):
                self.consider(self.parameters)
            self.parameters = self._stepper(self.parameters, gradient, lr)
        self._record(step, value, objective, lr, event)
        return ""


class _Safeguard:
    """Judges the losses on the way: those of a minibatch by the identity's on the same texts, never on others.

    A distance between two small samples is larger than between two large ones, so that every minibatch would lie above
    the identity's loss over all texts.
    """

    def __init__(self, loss: Loss, identity: Tensor, of_identity: float) -> None:
        self._loss, self._identity, self._of_identity = loss, identity, of_identity
        self._above = 0

    def objection(self, value: float, gradient: Tensor, rows: Rows) -> str:
        """Return why the descent must go back; empty if it need not."""
        if not (math.isfinite(value) and bool(torch.isfinite(gradient).all())):
            return self._objected("loss not finite")
        of_identity = self._of_identity if rows is None else self._loss(self._identity, *rows)
        if value > _FAR * of_identity:
            return self._objected("loss far above its start")
        self._above = self._above + 1 if value > of_identity else 0
        return self._objected("loss stayed above its start") if self._above >= _PATIENCE else ""

    def _objected(self, why: str) -> str:
        self._above = 0
        return f"{why}: back to the best point, learning rate / {_BACKOFF:g}"


class _Stepper:
    """A gradient step and a proximal step of the same size, with the optimizer's moments and the falling rate."""

    def __init__(self, settings: Descent, like: Tensor, proximal: Callable[[Tensor, float | Tensor], Tensor]) -> None:
        if settings.lr is None:
            raise SettingError(f"optimizer={settings.optimizer!r} needs a learning rate: set lr=")
        self._settings, self._lr, self._proximal = settings, settings.lr, proximal
        self._lr_share = 1.0
        self._forget(like)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        cosine = (1 + math.cos(math.pi * step / self._settings.steps)) / 2
        return self._lr_share * self._lr * (_FLOOR + (1 - _FLOOR) * cosine)

    def back_off(self, parameters: Tensor) -> None:
        """Quarter the rate, for a descent that starts again at `parameters`."""
        self._lr_share /= _BACKOFF
        self._forget(parameters)

    def __call__(self, parameters: Tensor, gradient: Tensor, lr: float) -> Tensor:
        """Return the parameters after one step."""
        if self._settings.optimizer == "sgd":
            return self._proximal(parameters - lr * gradient, lr)
        self._updates += 1
        self._first.lerp_(gradient, 0.1)
        self._second.lerp_(gradient.square(), 0.001)
        first = self._first / (1 - 0.9**self._updates)
        sizes = lr / ((self._second / (1 - 0.999**self._updates)).sqrt() + 1e-8)
        return self._proximal(parameters - sizes * first, sizes)

    def _forget(self, like: Tensor) -> None:
        self._first, self._second, self._updates = torch.zeros_like(like), torch.zeros_like(like), 0
