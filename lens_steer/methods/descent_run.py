"""A descent on its way: the settings it follows, the loss it lowers, the best point so far, and the record of it."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lens_steer.errors import LensSteerWarning
from lens_steer.methods.sparse_group_lasso import SparseGroupLasso

Optimizer = Literal["sgd", "adam"]
Rows = tuple[list[int], list[int]] | None
"""Source and target rows of one step; None for all."""


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
    steps:
        Gradients that are taken, at most.
    optimizer, lr:
        "quasi-newton" takes all rows at every step and no rate; "sgd" and "adam" have one, which falls along a cosine
        to a thousandth. Adam's proximal step is taken in Adam's own metric, in which the threshold keeps its meaning.
    gamma, penalty:
        Weight of the penalty, and the penalty; without one gamma says nothing.
    metric:
        For "quasi-newton": gives [parameter], positive, about the diagonal of the loss's second derivative; None for
        ones. It is asked when the descent begins, not where an earlier call's outcome is taken over.
    tolerance:
        For "quasi-newton": the share of the objective that a step must still promise for the descent to go on.
    evaluate_every:
        Steps between evaluations on all rows (with minibatches) and on held-out texts.
    patience:
        Evaluations without a better held-out loss before the descent stops; that of the start is none of them.
    fits:
        How many descents of this length the call makes in all, for the warning that it takes long.

    """

    steps: int
    lr: float | None = None
    optimizer: Optimizer | Literal["quasi-newton"]
    gamma: float = 0.0
    penalty: SparseGroupLasso | None = None
    metric: Callable[[], Float[Tensor, " parameter"]] | None = None
    tolerance: float = 1e-7
    evaluate_every: int
    patience: int
    fits: int = 1


@dataclass
class Outcome:
    """The best parameters, their losses, how often the descent went back, why it stopped, and the record of steps."""

    parameters: Tensor
    loss: float
    objective: float
    heldout_loss: float
    back_offs: int = 0
    interrupted: bool = False
    stopped: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def losses(self) -> dict[str, float | None]:
        """The training loss and the held-out loss, None where there is none."""
        return {"training": self.loss, "heldout": finite_or_none(self.heldout_loss)}

    @property
    def course(self) -> dict[str, Any]:
        """What an artifact says of the descent: after how many steps it ended, why, and all steps."""
        steps = {"steps_done": len(self.history), "stopped": self.stopped, "back_offs": self.back_offs}
        return {"interrupted": self.interrupted, **steps, "history": self.history}

    def warn_if_nothing_moved(self, name: str, settings: Descent) -> None:
        """Warn (LensSteerWarning) where no step was better than the identity, with what to change."""
        if bool(self.parameters.any()):
            return
        if settings.gamma > 0 and not self.back_offs:
            why = f"gamma={settings.gamma:g} lets nothing move (gamma_max says from where on): lower it"
        elif self.back_offs and settings.lr is not None:
            why = f"{self.back_offs} of {len(self.history)} steps overshot: lower lr={settings.lr:g}"
        else:
            why = "no step came below the loss of the identity"
        warnings.warn(f"{name} moved nothing, the intervention is the identity: {why}", LensSteerWarning, 3)


class Run(ABC):
    """The state of one descent: where it is, and the best point so far, which is never worse than the identity."""

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
        self.parameters = start.clone()
        self.last_loss = self.of_identity = loss(identity)
        nan = float("nan")
        self.best = Outcome(identity, self.of_identity, self.of_identity, heldout(identity) if heldout else nan)
        self._heldout_now = self.best.heldout_loss  # the held-out loss measured since the last record
        self._stale = 0
        if bool(start.any()):
            self.consider(start)
            self._stale = 0  # the start is no evaluation that did not improve
        self._prepare()

    @abstractmethod
    def _prepare(self) -> None:
        """Set the rule's own state, for a descent from `parameters`."""

    @abstractmethod
    def step(self, step: int, rows: Rows) -> str:
        """Take one step and record it; return why the descent ends here, empty if it goes on."""

    @property
    def stopped_improving(self) -> bool:
        """Whether the held-out loss has not become smaller for `patience` evaluations."""
        return self._heldout is not None and self._stale >= self._settings.patience

    def consider(self, parameters: Tensor) -> None:
        """Evaluate a point on all rows, and on held-out texts where there are any, and keep it if it is best."""
        self._judge(parameters, self._loss(parameters))

    def _judge(self, parameters: Tensor, value: float) -> None:
        """Keep a point of known loss on all rows if it is best: by its held-out loss, where there are such texts."""
        if self._heldout is None:
            self._keep_if_best(parameters, value)
            return
        self._heldout_now = self._heldout(parameters)
        if self._heldout_now < self.best.heldout_loss and value <= self.of_identity:
            self._keep(parameters, value, self._heldout_now)
            self._stale = 0
        else:
            self._stale += 1

    def _evaluates(self, step: int) -> bool:
        """Whether an evaluation is due; at the start one has been made."""
        return step > 0 and step % self._settings.evaluate_every == 0

    def _record(self, step: int, value: float, objective: float, size: float, event: str) -> None:
        losses = {"loss": finite_or_none(value), "objective": finite_or_none(objective)}
        about = {"step": step, **losses, "support": self._support(self.parameters), "lr": size}
        self.best.history.append({**about, "event": event, "heldout_loss": finite_or_none(self._heldout_now)})
        self._heldout_now = float("nan")

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

    def _proximal(self, parameters: Tensor, sizes: float | Tensor) -> Tensor:
        penalty = self._settings.penalty
        return parameters if penalty is None else penalty.step(parameters, self._settings.gamma, sizes)


def finite_or_none(value: float) -> float | None:
    """Return a number as it is written in a record: None where it is not finite."""
    return value if math.isfinite(value) else None
