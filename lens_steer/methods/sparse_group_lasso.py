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

_ROOT_STEPS = 60  # halvings of a bracket: to the last bit of a float64


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
        cost = gamma * self.group_weight * self.roots.to(x)
        if sizes.ndim == 0:
            norms = self._norms(soft)
            shrink = (1 - sizes * cost / norms.clamp_min(1e-30)).clamp_min(0)
            return soft * shrink[self.group]
        return self._shrink_in_metric(soft, cost, sizes)

    def _shrink_in_metric(self, soft: Tensor, cost: Tensor, sizes: Tensor) -> Tensor:
        soft64, cost64, sizes64 = soft.double(), cost.double(), sizes.double()
        alive = self._sums((soft64 / sizes64).square()).sqrt() > cost64
        low, high = torch.zeros_like(cost64), self._norms(soft64)
        for _ in range(_ROOT_STEPS):
            middle = (low + high) / 2
            ratio = soft64 / (middle[self.group] + sizes64 * cost64[self.group]).clamp_min(1e-300)
            too_small = self._sums(ratio.square()) > 1
            low, high = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
        norm = high[self.group]
        kept = soft64 * norm / (norm + sizes64 * cost64[self.group]).clamp_min(1e-300)
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
