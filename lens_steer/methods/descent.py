"""Proximal descent with safeguards: go back after overshooting, return the best iterate, survive Ctrl-C."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lens_steer.errors import LensSteerWarning
from lens_steer.methods.sparse_group_lasso import SparseGroupLasso
from lens_steer.progress import progress_bar

Optimizer = Literal["sgd", "adam"]
Rows = tuple[list[int], list[int]] | None
"""Source and target rows of one step; None for all."""

_FLOOR = 0.001  # the cosine schedule ends at this share of the learning rate
_PATIENCE = 10  # steps above the start before the step size is judged too large
_BACKOFF = 4.0


@runtime_checkable
class Loss(Protocol):
    """A loss of a parameter vector over some rows or all."""

    def __call__(self, parameters: Tensor) -> float:
        """Return the loss over all rows."""
        ...

    def with_gradient(
        self, parameters: Tensor, source: list[int] | None = None, target: list[int] | None = None
    ) -> tuple[float, Float[Tensor, " parameter"]]:
        """Return loss and gradient over some rows or all."""
        ...


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Settings of a proximal descent from `start` on loss + gamma penalty.

    Attributes
    ----------
    steps, lr, optimizer:
        The learning rate falls along a cosine to a thousandth. Adam's proximal step is taken in Adam's own metric, in
        which the threshold keeps its meaning.
    gamma, penalty:
        Weight of the penalty, and the penalty; without one gamma says nothing.
    evaluate_every:
        Steps between evaluations on all rows (with minibatches) and on held-out texts.
    patience:
        Evaluations without a better held-out loss before the descent stops.

    """

    steps: int
    lr: float
    optimizer: Optimizer
    gamma: float = 0.0
    penalty: SparseGroupLasso | None = None
    evaluate_every: int
    patience: int


@dataclass
class Outcome:
    """The best parameters found, their losses, and the record of every step."""

    parameters: Tensor
    loss: float
    objective: float
    heldout_loss: float
    interrupted: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)


def descend(
    loss: Loss,
    settings: Descent,
    *,
    name: str,
    start: Tensor,
    batches: Iterator[Rows],
    support: Callable[[Tensor], int],
    heldout: Callable[[Tensor], float] | None = None,
    progress: bool = True,
) -> Outcome:
    """Minimise loss + gamma penalty and return the best iterate, never one worse than the identity (all zeros).

    `name` is that of the method, for progress bar and warning; `support` counts, for the record, what a point edits. A
    loss that is not finite, or stays above that of the identity for ten steps, sends the descent back to the best point
    with a quarter of the learning rate; the history says so. With held-out texts the best iterate is the one with the
    smallest held-out loss. Ctrl-C ends it early and returns the best so far, with a warning.
    """
    run = _Run(loss, settings, start, support, heldout)
    bar = progress_bar(range(settings.steps), desc=name, unit="step", show=progress)
    try:
        for step in bar:
            run.step(step, next(batches))
            bar.set_postfix(loss=f"{run.last_loss:.4g}", support=support(run.parameters), refresh=False)
            if run.stopped_improving:
                break
        run.consider(run.parameters)
    except KeyboardInterrupt:
        run.best.interrupted = True
        done = f"{len(run.best.history)} of {settings.steps} steps"
        message = f"{name} was interrupted after {done}: this is the best map so far"
        warnings.warn(message, LensSteerWarning, 3)
    return run.best


class _Run:
    """The state of one descent."""

    def __init__(
        self,
        loss: Loss,
        settings: Descent,
        start: Tensor,
        support: Callable[[Tensor], int],
        heldout: Callable[[Tensor], float] | None,
    ) -> None:
        self._loss, self._settings, self._support, self._heldout = loss, settings, support, heldout
        identity = torch.zeros_like(start)
        self._identity_loss = loss(identity)
        self.parameters = start.clone()
        self.last_loss = self._identity_loss
        nan = float("nan")
        self.best = Outcome(identity, self._identity_loss, self._identity_loss, heldout(identity) if heldout else nan)
        self._lr_share = 1.0
        self._above = 0
        self._stale = 0
        self._heldout_now = nan  # the held-out loss measured since the last record
        self._reset_moments()
        if bool(start.any()):
            self.consider(start)

    @property
    def stopped_improving(self) -> bool:
        """Whether the held-out loss has not become smaller for `patience` evaluations."""
        return self._heldout is not None and self._stale >= self._settings.patience

    def step(self, step: int, rows: Rows) -> None:
        """Take one step and record it."""
        settings = self._settings
        source, target = rows if rows is not None else (None, None)
        value, gradient = self._loss.with_gradient(self.parameters, source, target)
        self.last_loss = value
        finite = math.isfinite(value) and bool(torch.isfinite(gradient).all())
        event = ""
        lr = self._learning_rate(step)
        if not finite or self._stays_above(value):
            event = "loss not finite" if not finite else "loss stayed above its start"
            event += f": back to the best point, learning rate / {_BACKOFF:g}"
            self._go_back()
        else:
            if rows is None:
                self._keep_if_best(self.parameters, value)
            if step % settings.evaluate_every == 0 and (rows is not None or self._heldout is not None):
                self.consider(self.parameters)
            self.parameters = self._update(gradient, lr)
        record = {"step": step, "loss": value, "support": self._support(self.parameters), "lr": lr, "event": event}
        self.best.history.append({**record, "heldout_loss": self._heldout_now})
        self._heldout_now = float("nan")

    def consider(self, parameters: Tensor) -> None:
        """Evaluate a point on all rows, and on held-out texts where there are any, and keep it if it is best."""
        value = self._loss(parameters)
        if self._heldout is None:
            self._keep_if_best(parameters, value)
            return
        self._heldout_now = self._heldout(parameters)
        if self._heldout_now < self.best.heldout_loss and value <= self._identity_loss:
            self._keep(parameters, value, self._heldout_now)
            self._stale = 0
        else:
            self._stale += 1

    def _keep_if_best(self, parameters: Tensor, value: float) -> None:
        if self._heldout is None and self._objective(parameters, value) < self.best.objective:
            self._keep(parameters, value, float("nan"))

    def _keep(self, parameters: Tensor, value: float, heldout: float) -> None:
        self.best.parameters = parameters.clone()
        self.best.loss, self.best.heldout_loss = value, heldout
        self.best.objective = self._objective(parameters, value)

    def _objective(self, parameters: Tensor, value: float) -> float:
        penalty = self._settings.penalty
        return value if penalty is None else value + self._settings.gamma * penalty.value(parameters)

    def _learning_rate(self, step: int) -> float:
        cosine = (1 + math.cos(math.pi * step / self._settings.steps)) / 2
        return self._lr_share * self._settings.lr * (_FLOOR + (1 - _FLOOR) * cosine)

    def _stays_above(self, value: float) -> bool:
        self._above = self._above + 1 if value > self._identity_loss else 0
        return self._above >= _PATIENCE

    def _go_back(self) -> None:
        self.parameters = self.best.parameters.clone()
        self._lr_share /= _BACKOFF
        self._above = 0
        self._reset_moments()

    def _reset_moments(self) -> None:
        self._first = torch.zeros_like(self.parameters)
        self._second = torch.zeros_like(self.parameters)
        self._updates = 0

    def _update(self, gradient: Tensor, lr: float) -> Tensor:
        """Return the parameters after one gradient step and one proximal step of the same size."""
        if self._settings.optimizer == "sgd":
            return self._proximal(self.parameters - lr * gradient, lr)
        self._updates += 1
        self._first.lerp_(gradient, 0.1)
        self._second.lerp_(gradient.square(), 0.001)
        first = self._first / (1 - 0.9**self._updates)
        sizes = lr / ((self._second / (1 - 0.999**self._updates)).sqrt() + 1e-8)
        return self._proximal(self.parameters - sizes * first, sizes)

    def _proximal(self, parameters: Tensor, sizes: float | Tensor) -> Tensor:
        penalty = self._settings.penalty
        return parameters if penalty is None else penalty.step(parameters, self._settings.gamma, sizes)


def draw_rows(counts: tuple[int, int], batch_size: int | None, seed: int) -> Iterator[Rows]:
    """Yield the rows of each step: all, or of source and target texts the next ones of a fresh shuffle."""
    if batch_size is None or batch_size >= max(counts):
        while True:
            yield None
    generator = torch.Generator().manual_seed(seed)
    sides = [_shuffled(count, min(batch_size, count), generator) for count in counts]
    while True:
        source, target = (next(side) for side in sides)
        yield source, target


def _shuffled(count: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    while True:
        order = torch.randperm(count, generator=generator).tolist()
        yield from (order[start : start + size] for start in range(0, count - size + 1, size))
