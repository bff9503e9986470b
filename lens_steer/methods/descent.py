"""Proximal descent with safeguards: go back after overshooting, return the best iterate, say when it takes long."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lens_steer.errors import LensSteerWarning, ModelError
from lens_steer.interruption import keeps_on_interrupt
from lens_steer.methods.sparse_group_lasso import SparseGroupLasso
from lens_steer.progress import progress_bar

Optimizer = Literal["sgd", "adam"]
Rows = tuple[list[int], list[int]] | None
"""Source and target rows of one step; None for all."""

_FLOOR = 0.001  # the cosine schedule ends at this share of the learning rate
_PATIENCE = 10  # steps above the identity before the step size is judged too large
_FAR = 10.0  # times the identity's loss: one step is enough
_BACKOFF = 4.0
_LONG = 600.0  # seconds


@runtime_checkable
class Loss(Protocol):
    """A loss of a parameter vector over some rows or all."""

    def __call__(self, parameters: Tensor, source: list[int] | None = None, target: list[int] | None = None) -> float:
        """Return the loss over some rows or all."""
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
        Evaluations without a better held-out loss before the descent stops; that of the start is none of them.
    fits:
        How many descents of this length the call makes in all, for the warning that it takes long.

    """

    steps: int
    lr: float
    optimizer: Optimizer
    gamma: float = 0.0
    penalty: SparseGroupLasso | None = None
    evaluate_every: int
    patience: int
    fits: int = 1


@dataclass
class Outcome:
    """The best parameters, their losses, how often the descent went back, and the record of every step."""

    parameters: Tensor
    loss: float
    objective: float
    heldout_loss: float
    back_offs: int = 0
    interrupted: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def losses(self) -> dict[str, float | None]:
        """The training loss and the held-out loss, None where there is none."""
        return {"training": self.loss, "heldout": _finite(self.heldout_loss)}

    @property
    def course(self) -> dict[str, Any]:
        """What an artifact says of the descent: whether and after how many steps it was interrupted, and all steps."""
        return {"interrupted": self.interrupted, "steps_done": len(self.history), "history": self.history}

    def warn_if_nothing_moved(self, name: str, settings: Descent) -> None:
        """Warn (LensSteerWarning) where no step was better than the identity, with what to change."""
        if bool(self.parameters.any()):
            return
        if self.back_offs:
            why = f"{self.back_offs} of {len(self.history)} steps overshot: lower lr={settings.lr:g}"
            why += "" if settings.optimizer == "adam" else ', or set optimizer="adam" and lr=0.01'
        elif settings.gamma > 0:
            why = f"gamma={settings.gamma:g} lets nothing move (gamma_max says from where on): lower it"
        else:
            why = "no step came below the loss of the identity"
        warnings.warn(f"{name} moved nothing, the intervention is the identity: {why}", LensSteerWarning, 3)


def require_gradients(name: str) -> None:
    """Raise ModelError where torch keeps no graphs whatever is asked of it."""
    if torch.is_inference_mode_enabled():
        raise ModelError(f"{name} needs gradients, which torch.inference_mode() rules out: leave it for the fit")


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

    `name` is that of the method, for progress bar and warnings; `support` counts, for the record, what a point edits. A
    loss that is not finite, is ten times that of the identity on the same rows, or stays above it for ten steps, sends
    the descent back to the best point with a quarter of the learning rate; the history says so. With held-out texts the
    best iterate is the one with the smallest held-out loss. Ctrl-C does what `on_interrupt` says. After two steps it
    warns (LensSteerWarning) if all of them will take more than ten minutes.
    """
    run = _Run(loss, settings, start, support, heldout)
    bar = progress_bar(range(settings.steps), desc=name, unit="step", show=progress)
    try:
        begun = time.perf_counter()
        for step in bar:
            run.step(step, next(batches))
            bar.set_postfix(loss=f"{run.last_loss:.4g}", support=support(run.parameters), refresh=False)
            if step == 0:
                begun = time.perf_counter()  # the first step pays for what is made once
            elif step == 1:
                _warn_if_long(name, time.perf_counter() - begun, settings)
            if run.stopped_improving:
                break
        run.consider(run.parameters)
    except KeyboardInterrupt:
        if not keeps_on_interrupt():
            raise
        run.best.interrupted = True
        done = f"{len(run.best.history)} of {settings.steps} steps"
        message = f"{name} was interrupted after {done}: this is the best map so far"
        warnings.warn(message, LensSteerWarning, 3)
    return run.best


def _warn_if_long(name: str, seconds: float, settings: Descent) -> None:
    expected = seconds * settings.steps * settings.fits
    if expected > _LONG:
        fits = f"{settings.fits} fits of " if settings.fits > 1 else ""
        warnings.warn(
            f"{name}: {fits}{settings.steps} steps of {seconds:.2g} s take about {_duration(expected)}: lower steps or "
            "set batch_size; in Jupyter, interrupting keeps the best map so far",
            LensSteerWarning,
            3,
        )


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds > 5400 else f"{seconds / 60:.0f} minutes"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class _Safeguard:
    """Judges the losses on the way: those of a minibatch by the identity's on the same texts, never on others.

    A distance between two small samples is larger than between two large ones, so that every minibatch would lie above
    the identity's loss over all texts.
    """

    def __init__(self, loss: Loss, identity: Tensor) -> None:
        self._loss, self._identity = loss, identity
        self.of_identity = loss(identity)
        self._above = 0

    def objection(self, value: float, gradient: Tensor, rows: Rows) -> str:
        """Return why the descent must go back; empty if it need not."""
        if not (math.isfinite(value) and bool(torch.isfinite(gradient).all())):
            return self._objected("loss not finite")
        of_identity = self.of_identity if rows is None else self._loss(self._identity, *rows)
        if value > _FAR * of_identity:
            return self._objected("loss far above its start")
        self._above = self._above + 1 if value > of_identity else 0
        return self._objected("loss stayed above its start") if self._above >= _PATIENCE else ""

    def _objected(self, why: str) -> str:
        self._above = 0
        return f"{why}: back to the best point, learning rate / {_BACKOFF:g}"


class _Stepper:
    """A gradient step and a proximal step of the same size, with the optimizer's moments and the falling rate."""

    def __init__(self, settings: Descent, like: Tensor) -> None:
        self._settings = settings
        self._lr_share = 1.0
        self._forget(like)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        cosine = (1 + math.cos(math.pi * step / self._settings.steps)) / 2
        return self._lr_share * self._settings.lr * (_FLOOR + (1 - _FLOOR) * cosine)

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

    def _proximal(self, parameters: Tensor, sizes: float | Tensor) -> Tensor:
        penalty = self._settings.penalty
        return parameters if penalty is None else penalty.step(parameters, self._settings.gamma, sizes)

    def _forget(self, like: Tensor) -> None:
        self._first, self._second, self._updates = torch.zeros_like(like), torch.zeros_like(like), 0


class _Run:
    """The state of one descent: where it is, and the best point so far."""

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
        self._safeguard, self._stepper = _Safeguard(loss, identity), _Stepper(settings, start)
        self.parameters = start.clone()
        self.last_loss = of_identity = self._safeguard.of_identity
        nan = float("nan")
        self.best = Outcome(identity, of_identity, of_identity, heldout(identity) if heldout else nan)
        self._heldout_now = self.best.heldout_loss  # the held-out loss measured since the last record
        self._stale = 0
        if bool(start.any()):
            self.consider(start)
            self._stale = 0  # the start is no evaluation that did not improve

    @property
    def stopped_improving(self) -> bool:
        """Whether the held-out loss has not become smaller for `patience` evaluations."""
        return self._heldout is not None and self._stale >= self._settings.patience

    def step(self, step: int, rows: Rows) -> None:
        """Take one step and record it."""
        value, gradient = self._loss.with_gradient(self.parameters, *(rows or (None, None)))
        self.last_loss = value
        lr = self._stepper.rate(step)
        event = self._safeguard.objection(value, gradient, rows)
        if event:
            self.parameters = self.best.parameters.clone()
            self._stepper.back_off(self.parameters)
            self.best.back_offs += 1
        else:
            if rows is None:
                self._keep_if_best(self.parameters, value)
            if self._evaluates(step, rows):
                self.consider(self.parameters)
            self.parameters = self._stepper(self.parameters, gradient, lr)
        record = {"step": step, "loss": _finite(value), "support": self._support(self.parameters), "lr": lr}
        self.best.history.append({**record, "event": event, "heldout_loss": _finite(self._heldout_now)})
        self._heldout_now = float("nan")

    def _evaluates(self, step: int, rows: Rows) -> bool:
        """Whether to look at all rows and held-out texts now; at the start that has been done."""
        due = step > 0 and step % self._settings.evaluate_every == 0
        return due and (rows is not None or self._heldout is not None)

    def consider(self, parameters: Tensor) -> None:
        """Evaluate a point on all rows, and on held-out texts where there are any, and keep it if it is best."""
        value = self._loss(parameters)
        if self._heldout is None:
            self._keep_if_best(parameters, value)
            return
        self._heldout_now = self._heldout(parameters)
        if self._heldout_now < self.best.heldout_loss and value <= self._safeguard.of_identity:
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
