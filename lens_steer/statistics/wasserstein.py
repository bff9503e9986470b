"""The Wasserstein distance between source and target activations, unit by unit, exact for unequal numbers of texts.

In one dimension the best transport pairs equal quantiles: the sorted sides are matched from the smallest value up, and
with unequal counts a text's mass is cut where the other side's quantile function steps (Villani, Topics in Optimal
Transportation, theorem 2.18).
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_steer.errors import ActivationError, SettingError
from lens_steer.statistics.ties import TieGroups
from lens_steer.statistics.unit_chunks import check_sides, map_units


def wasserstein(
    source: Float[Tensor, "n unit"], target: Float[Tensor, "m unit"], *, order: Literal[1, 2] = 1
) -> Float[Tensor, "unit"]:
    """Return each unit's Wasserstein distance between its source and target activations, in the unit's own scale.

    Order 1 is the mean distance moved; order 2 its root mean square, not squared. Float64 on the CPU, without gradient:
    a loss is built from `quantile_coupling`. Refuses an empty side and sides with different units; NaN is the caller's
    to find.
    """
    if order not in (1, 2):
        raise SettingError(f"Wasserstein distances are offered at order 1 and 2, not {order!r}.")
    check_sides(source, target)
    i, j, weights = (part.numpy() for part in quantile_coupling(source.shape[0], target.shape[0]))

    def distance(
        from_values: Float[np.ndarray, "unit n"], to_values: Float[np.ndarray, "unit m"]
    ) -> Float[np.ndarray, "unit"]:
        begins, ends = np.sort(from_values, axis=1)[:, i], np.sort(to_values, axis=1)[:, j]
        moved = np.abs(np.subtract(begins, ends, dtype=np.float64))
        return np.asarray(moved @ weights if order == 1 else np.sqrt(moved**2 @ weights))

    return torch.from_numpy(map_units(distance, source, target))


def group_wasserstein(groups: TieGroups, values: Float[np.ndarray, " group"]) -> Float[np.ndarray, " unit"]:
    """Return the distance of order 1 where the joint sort is there: the area between both distribution functions."""
    n, m = groups.texts
    area = groups.hits * m
    area -= groups.false_hits * n
    np.abs(area, out=area)  # the height: 0 at a unit's last group, so that the next unit's value below does no harm
    area[:-1] *= values[:-1] - values[1:]
    return groups.total(area) / (float(n) * m)


def quantile_coupling(n: int, m: int) -> tuple[Int[Tensor, "pair"], Int[Tensor, "pair"], Float[Tensor, "pair"]]:
    """Return which sorted source text i goes with which sorted target text j, and the share of mass of each pair.

    The optimal plan between n and m equally weighted texts: n + m - gcd(n, m) pairs in ascending order, int64 indices
    and float64 weights that sum to 1. Equal counts give the diagonal. `weights @ (sorted_source[i] - sorted_target[j])
    ** 2` is the squared distance of order 2, and differentiable. Refuses a count below 1.
    """
    if n < 1 or m < 1:
        raise ActivationError(f"A coupling needs at least one text on each side, not {n} and {m}.")
    # In units of 1 / (n m) both quantile functions step at whole numbers: no rounding merges or splits a pair.
    steps = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n])
    ends = torch.unique(steps)
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    return begins // m, begins // n, (ends - begins).double() / (n * m)
