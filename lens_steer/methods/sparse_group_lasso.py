"""The sparse group lasso: its value, its proximal step in any diagonal metric, and the weight at which nothing moves.

Parameters are one flat vector x of deviations from the identity map; `group` says which group each belongs to. The
penalty is gamma [ l1 |x|_1 + group_weight sum_g sqrt(d_g) |x_g|_2 ] (arXiv 2503.10679; Simon et al. 2013).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_steer.errors import SettingError

_ROOT_STEPS = 60  # halvings of a bracket: to the last bit of a float64; Newton's steps are fewer
_TINY = 1e-300
_LAST_BIT = 2e-16


@dataclass(frozen=True)
class SparseGroupLasso:
    """Weights of the penalty and the group of every parameter.

    group:
        [parameter] group index, 0 .. groups - 1.
    l1, group_weight:
        Weight of the absolute values and of the groups' norms.
    """

    group: Int[Tensor, " parameter"]
    l1: float
    group_weight: float

    @cached_property
    def roots(self) -> Float[Tensor, " group"]:
        """Square root of each group's size."""
        return torch.bincount(self.group).float().sqrt()

    @cached_property
    def _members(self) -> Int[Tensor, "group member"]:
        """Parameters of each group; small groups are filled up with a number past the last parameter."""
        order = self.group.argsort(stable=True)
        parts = torch.split(order, torch.bincount(self.group).tolist())
        return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=len(self.group))

    def _by_group(self, x: Float[Tensor, " parameter"]) -> Float[Tensor, "group member"]:
        return torch.cat([x, x.new_zeros(1)])[self._members]

    def _norms(self, x: Float[Tensor, " parameter"]) -> Float[Tensor, " group"]:
        return self._sums(x.square()).sqrt()

    def _sums(self, x: Float[Tensor, " parameter"]) -> Float[Tensor, " group"]:
        # In one order, on every device: a sum at the threshold must not decide differently from call to call.
        return self._by_group(x).sum(1)

    def value(self, x: Float[Tensor, " parameter"]) -> float:
        """Return the penalty at x, for gamma 1."""
        groups = (self.roots.to(x) * self._norms(x)).sum()
        return float(self.l1 * x.abs().sum() + self.group_weight * groups)

    def step(
        self, x: Float[Tensor, " parameter"], gamma: float, size: float | Float[Tensor, " parameter"]
    ) -> Float[Tensor, " parameter"]:
        """Return argmin_y sum_j (y_j - x_j)^2 / (2 size_j) + gamma penalty(y).

        With one size r this soft-thresholds by r gamma l1 and then shrinks each group's norm by
        r gamma group_weight sqrt(d). With a size per parameter (Adam's metric) the shrinking has no closed form: the
        group's norm v is the root of sum_j (u_j / (v + size_j c))^2 = 1, where u is thresholded x.
        """
        if gamma == 0:
            return x
        sizes = torch.as_tensor(size, dtype=x.dtype, device=x.device)
        soft = torch.sign(x) * (x.abs() - sizes * gamma * self.l1).clamp_min(0)
        if self.group_weight == 0:
            return soft
        cost = gamma * self.group_weight * self.roots.to(x)
        if sizes.ndim == 0:
            norms = self._norms(soft)
            shrink = (1 - sizes * cost / norms.clamp_min(1e-30)).clamp_min(0)
            return soft * shrink[self.group]
        return self._shrink_in_metric(soft, cost, sizes)

    def _shrink_in_metric(self, soft: Tensor, cost: Tensor, sizes: Tensor) -> Tensor:
        soft64, cost64, sizes64 = soft.double(), cost.double(), sizes.double()
        alive = self._sums((soft64 / sizes64).square()).sqrt() > cost64
        members, steps = self._by_group(soft64), self._by_group(sizes64) * cost64[:, None]
        # The norm v solves h(v) = (sum_j (u_j / (v + size_j c))^2)^(-1/2) = 1. h is increasing and concave, so that
        # Newton's steps from 0 rise to the root and never pass it (More and Sorensen 1983).
        norm = torch.zeros_like(cost64)
        for _ in range(_ROOT_STEPS):
            shares = members / (norm[:, None] + steps).clamp_min(_TINY)
            squares = shares.square().sum(1).clamp_min(_TINY)
            slope = (shares.square() / (norm[:, None] + steps).clamp_min(_TINY)).sum(1)
            rise = torch.where(alive, squares * (squares.sqrt() - 1) / slope.clamp_min(_TINY), 0.0)
            norm = norm + rise.clamp_min(0)
            if bool((rise <= _LAST_BIT * norm).all()):
                break
        spread = norm[self.group]
        kept = soft64 * spread / (spread + sizes64 * cost64[self.group]).clamp_min(_TINY)
        return torch.where(alive[self.group], kept, torch.zeros_like(kept)).to(soft.dtype)

    def gamma_max(self, gradient: Float[Tensor, " parameter"]) -> float:
        """Return the smallest gamma at which x = 0 is a fixed point, given the loss's gradient there.

        Per group it is the root of |soft(g, gamma l1)|_2 = gamma group_weight sqrt(d); the largest over groups counts.
        SettingError where both weights are 0.
        """
        if self.l1 == self.group_weight == 0:
            raise SettingError("l1 and group are both 0: the penalty is 0 whatever gamma is, and no gamma holds a unit")
        g = gradient.abs().double()
        low = torch.zeros(len(self.roots), dtype=torch.float64, device=g.device)
        roots = self.roots.to(g)
        # At gamma = |g|_2 / (group_weight sqrt(d)) and at max|g| / l1 the left side is not above the right any more.
        bounds = []
        if self.group_weight > 0:
            bounds.append(self._norms(g) / (self.group_weight * roots))
        if self.l1 > 0:
            bounds.append(self._by_group(g).amax(1) / self.l1)
        high = torch.stack(bounds).amin(0)
        for _ in range(_ROOT_STEPS):
            middle = (low + high) / 2
            left = self._norms((g - middle[self.group] * self.l1).clamp_min(0))
            above = left > middle * self.group_weight * roots
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        return float(high.max())
