"""A quadratic model of a loss from the gradients on the way: a diagonal and a correction of low rank (limited BFGS).

In coordinates in which the metric is the identity the model's matrix is c 1 - W N^-1 W^T (the compact form of Byrd,
Nocedal and Schnabel 1994), so that a product costs as much as the memory is deep, and its inverse is closed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

_STEPS = 200  # of the search for the minimum with a penalty: each costs no gradient
_SETTLED = 1e-6  # of the squared distance already moved: a step below it ends that search
_PARALLEL = 1e-4  # a pair with less curvature than this share of what it could have says nothing

Proximal = Callable[[Tensor, Tensor], Tensor]
"""Point and step sizes to argmin_y sum_j (y_j - point_j)^2 / (2 size_j) + penalty(y)."""


@dataclass(frozen=True)
class QuadraticModel:
    """The loss about a point, from the last steps and the changes of the gradient along them.

    Attributes
    ----------
    metric:
        [parameter] positive; the model's diagonal is a multiple of it.
    steps, changes:
        [pair parameter] steps, and the change of the gradient along each, in coordinates scaled by the metric's square
        root, each pair divided by the step's length; the last one is the newest.
    scale:
        Of the diagonal before the correction: that of the newest pair, the geometric mean of Barzilai and Borwein's two
        quotients.
    damping:
        Added to it (Levenberg): the larger, the shorter the step.

    """

    metric: Float[Tensor, " parameter"]
    steps: Float[Tensor, "pair parameter"]
    changes: Float[Tensor, "pair parameter"]
    scale: float
    damping: float = 0.0

    @classmethod
    def of(cls, metric: Float[Tensor, " parameter"], scale: float) -> QuadraticModel:
        """Return a multiple of the metric, without any steps."""
        none = metric.new_zeros((0, len(metric)), dtype=torch.float64)
        return cls(metric, none, none, scale)

    def after(
        self, step: Float[Tensor, " parameter"], change: Float[Tensor, " parameter"], depth: int
    ) -> QuadraticModel:
        """Return the model with one more pair, of `depth` at most; a pair without curvature changes nothing."""
        step, change = step.double() * self._root, change.double() / self._root
        length, slope = float(step.norm()), float(change.norm())
        if not float(step @ change) > _PARALLEL * length * slope > 0:
            return self
        steps = torch.cat([self.steps, step[None] / length])[-depth:]
        changes = torch.cat([self.changes, change[None] / length])[-depth:]
        model = QuadraticModel(self.metric, steps, changes, slope / length, self.damping)
        # Nearly parallel steps leave rounding where there should be curvature: the older ones go.
        return model if model.is_sound else QuadraticModel(self.metric, steps[-1:], changes[-1:], model.scale)

    @property
    def is_sound(self) -> bool:
        """Whether the matrix is positive definite in floating point too."""
        low, high = self._extremes
        return math.isfinite(high) and low > 0

    @property
    def diagonal(self) -> float:
        """The multiple of the metric, damping included."""
        return self.scale + self.damping

    def steepest(
        self, point: Float[Tensor, " parameter"], gradient: Float[Tensor, " parameter"], proximal: Proximal | None
    ) -> float:
        """Return what a step by the diagonal alone promises: 0 where the proximal gradient is."""
        sizes = (1 / (self.diagonal * self.metric.double())).to(point.dtype)
        there = point - sizes * gradient
        step = (there if proximal is None else proximal(there, sizes)) - point
        return self.diagonal * self._dot(step, step)

    def curvature(self, step: Float[Tensor, " parameter"]) -> float:
        """Return step^T B step."""
        scaled = step.double() * self._root
        return float(scaled @ self._times(scaled))

    def minimum(
        self, point: Float[Tensor, " parameter"], gradient: Float[Tensor, " parameter"], proximal: Proximal | None
    ) -> Float[Tensor, " parameter"]:
        """Return the minimum of the model plus a penalty, given by its proximal map; exact without one.

        With one it is found by accelerated proximal steps with restarts (Beck and Teboulle 2009; O'Donoghue and Candes
        2015), and closely enough for a step towards it.
        """
        slope = gradient.double() / self._root
        if proximal is None:
            return (point.double() - self._solved(slope) / self._root).to(point.dtype)
        top = max(self._extremes[1], self.scale) + self.damping
        sizes = (1 / (top * self.metric.double())).to(point.dtype)
        here = ahead = point
        momentum = 1.0
        for _ in range(_STEPS if len(self.steps) else 1):
            moved = (ahead - point).double() * self._root
            uphill = ((slope + self._times(moved)) * self._root).to(point.dtype)
            there = proximal(ahead - sizes * uphill, sizes)
            step = there - here
            if self._dot(ahead - there, step) > 0:
                momentum = 1.0
            later = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            ahead = there + (momentum - 1) / later * step
            here, momentum = there, later
            if self._dot(step, step) <= _SETTLED * self._dot(here - point, here - point):
                break
        return here

    @cached_property
    def _root(self) -> Tensor:
        return self.metric.double().sqrt()

    def _dot(self, one: Tensor, other: Tensor) -> float:
        return float((self.metric * one * other).sum())

    @cached_property
    def _factors(self) -> tuple[Tensor, Tensor]:
        """W [parameter, 2 pairs] and N [2 pairs, 2 pairs]."""
        products = self.steps @ self.changes.T
        lower = products.tril(-1)
        upper_row = torch.cat([self.scale * (self.steps @ self.steps.T), lower], 1)
        lower_row = torch.cat([lower.T, -torch.diag(products.diagonal())], 1)
        return torch.cat([self.scale * self.steps, self.changes]).T, torch.cat([upper_row, lower_row])

    @cached_property
    def _extremes(self) -> tuple[float, float]:
        """The smallest and the largest eigenvalue on what the pairs span, without damping."""
        if not len(self.steps):
            return self.scale, self.scale
        wide, small = self._factors
        triangle = torch.linalg.qr(wide).R
        inside = triangle @ torch.linalg.solve_ex(small, triangle.T).result
        if not bool(torch.isfinite(inside).all()):
            return math.nan, math.nan
        values = self.scale - torch.linalg.eigvalsh((inside + inside.T) / 2)
        return float(values.min()), float(values.max())

    def _times(self, scaled: Tensor) -> Tensor:
        """Return B times a vector, both in scaled coordinates."""
        product = self.diagonal * scaled
        if not len(self.steps):
            return product
        wide, small = self._factors
        coefficients: Tensor = torch.linalg.solve(small, wide.T @ scaled)
        return product - wide @ coefficients

    def _solved(self, scaled: Tensor) -> Tensor:
        """Return B^-1 times a vector (Woodbury), both in scaled coordinates."""
        if not len(self.steps):
            return scaled / self.diagonal
        wide, small = self._factors
        coefficients: Tensor = torch.linalg.solve(self.diagonal * small - wide.T @ wide, wide.T @ scaled)
        return (scaled + wide @ coefficients) / self.diagonal
