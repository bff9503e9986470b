"""Means over pairs of what parts do, with every case of the jackknife."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_steer.effects.attribution.parts import Parts
from lens_steer.effects.attribution.task import BatchEffects
from lens_steer.host.sites import Site
from lens_steer.statistics.jackknife import leave_groups_out

Cases = Float[np.ndarray, "case part"]
"""A mean over all pairs, then over all but one group of them each time."""


class PairMeans:
    """Means over pairs, and over pairs without each group of their blocks."""

    def __init__(self, blocks: Int[Tensor, " pair"]) -> None:
        (kept,) = leave_groups_out(blocks.numpy())
        self._shares = kept / kept.sum(1, keepdims=True) if len(kept) > 2 else kept[:1] / kept[:1].sum()

    def of(self, values: Float[Tensor, "pair _"]) -> Float[np.ndarray, "case _"]:
        """Return the mean of a column in every case; the first is that of all pairs."""
        return np.asarray(self._shares @ values.double().cpu().numpy())

    def of_product(
        self, parts: Parts, difference: Float[Tensor, "pair place unit"], coefficient: Float[Tensor, "pair place unit"]
    ) -> Cases:
        """Return, case by case, the product of two means, summed over every part."""
        shape = (len(self._shares), *difference.shape[1:])
        means = [torch.from_numpy(self.of(factor.flatten(1))).reshape(shape) for factor in (difference, coefficient)]
        counted = torch.ones(shape[:2], dtype=torch.bool)
        columns = Parts(parts.site, parts.level, parts.columns.cpu(), parts.names)
        return columns.total(means[0] * means[1], counted).numpy()


def in_order(batches: Sequence[tuple[Tensor, Tensor]], pairs: int) -> Tensor:
    """Return values that came batch by batch, each with the numbers of its pairs, in the order of the pairs."""
    first = batches[0][1]
    whole = first.new_zeros((pairs, *first.shape[1:]))
    for numbers, values in batches:
        whole[numbers] = values
    return whole


def gathered(
    estimates: Sequence[tuple[Tensor, BatchEffects]], read: Callable[[BatchEffects], Mapping[Site, Tensor]], pairs: int
) -> dict[Site, Tensor]:
    """Return one kind of values of all batches, by site."""
    return {
        site: in_order([(numbers, read(effects)[site]) for numbers, effects in estimates], pairs)
        for site in read(estimates[0][1])
    }
