"""Logistic regressions of many probes at once, by Newton's method.

Each probe has the same texts and few dimensions of its own (an attention head). One step solves the normal equations of
all probes together; a dozen steps reach the optimum to the last digits, which a solver that stops at a loose tolerance
only comes near.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from lens_steer.errors import ActivationError

_MOST_STEPS = 100
_MOST_HALVINGS = 30
_DONE = 1e-12  # of the Newton decrement squared: convergence is quadratic, the step that is taken last squares this
_ARMIJO = 1e-4
_ROUNDING = 1e-12  # share of the loss that a step may seem to raise it by


@dataclass(frozen=True)
class LogisticProbes:
    """Of every probe the weights towards the first class, and the bias."""

    weight: Float[Tensor, "probe dim"]
    bias: Float[Tensor, " probe"]

    def decide(self, values: Float[Tensor, "text probe dim"]) -> Bool[Tensor, "text probe"]:
        """Return for which texts each probe says the first class."""
        return einsum(values.to(self.weight), self.weight, "text probe dim, probe dim -> text probe") + self.bias > 0


def logistic_probes(values: Float[Tensor, "text probe dim"], is_first: Bool[Tensor, " text"]) -> LogisticProbes:
    """Fit one logistic regression per probe, in float64, both classes counting equally.

    The least of half the squared weights plus the balanced loss, which counts a text n / (2 texts of its class): what
    scikit-learn's `LogisticRegression(class_weight="balanced")` converges to. The bias is not penalised.

    Raises
    ------
    ActivationError
        A class has no text, or a value is not finite.

    """
    counts = torch.stack([is_first.sum(), (~is_first).sum()])
    if not counts.all():
        raise ActivationError(f"a probe needs texts of two classes, there are {counts.tolist()}")
    if not torch.isfinite(values).all():
        raise ActivationError("a probe needs finite activations: run the model in float32, or leave the texts out")
    texts = len(is_first)
    rows = F.pad(values.double(), (0, 1), value=1.0).transpose(0, 1)  # probe text (dim and bias)
    sign = torch.where(is_first, 1.0, -1.0).double()
    share = torch.where(is_first, texts / (2 * counts[0]), texts / (2 * counts[1])).double()
    return _newton(rows, sign, share)


def _newton(
    rows: Float[Tensor, "probe text dims"], sign: Float[Tensor, " text"], share: Float[Tensor, " text"]
) -> LogisticProbes:
    coefficients = rows.new_zeros(rows.shape[0], rows.shape[2])
    ridge = torch.ones_like(coefficients[0])
    ridge[-1] = 0.0

    def loss_of(place: Float[Tensor, "probe dims"]) -> Float[Tensor, " probe"]:
        margin = sign * (rows @ place[..., None])[..., 0]
        return F.softplus(-margin) @ share + (ridge * place**2).sum(1) / 2

    loss = loss_of(coefficients)
    for _ in range(_MOST_STEPS):
        wrong = torch.sigmoid(-sign * (rows @ coefficients[..., None])[..., 0])  # probe text
        gradient = ridge * coefficients - einsum(
            rows, wrong, sign * share, "probe text dims, probe text, text -> probe dims"
        )
        curvature = (share * wrong * (1 - wrong))[..., None] * rows
        hessian = rows.mT @ curvature + torch.diag(ridge)
        # Where every text is told with certainty the bias has no curvature left that float64 could hold.
        hessian[:, -1, -1] += torch.finfo(rows.dtype).tiny ** 0.5
        step = torch.linalg.solve(hessian, gradient)
        decrement = (gradient * step).sum(1)
        length = torch.ones_like(loss)
        for _ in range(_MOST_HALVINGS):
            tried = loss_of(coefficients - length[:, None] * step)
            falls = tried <= loss - _ARMIJO * length * decrement + _ROUNDING * loss
            if falls.all():
                break
            length = torch.where(falls, length, length / 2)
        coefficients, loss = coefficients - length[:, None] * step, tried
        if bool((decrement < _DONE).all()):
            break
    return LogisticProbes(coefficients[:, :-1], coefficients[:, -1])
