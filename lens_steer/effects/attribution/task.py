"""What every method of attribution is given, and what it returns for a batch of pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lens_steer.effects.attribution.metrics import BoundMetric
from lens_steer.effects.attribution.pairs import PairBatch
from lens_steer.effects.attribution.parts import Parts
from lens_steer.effects.attribution.runs import Readings, Values
from lens_steer.host.relevance import RELEVANCE_RULES, RelevanceRule
from lens_steer.host.sites import Site

ByPart = Mapping[Site, Float[Tensor, "pair part"]]
GradientPasses = tuple[Readings, Readings, Values]
"""The clean and the corrupted run, and the metric's gradients in the latter."""


@dataclass(frozen=True)
class Task:
    """The parts to judge, the metric, how many steps a path has, how many rows one pass may have, and RelP's rules."""

    model: nn.Module
    parts: tuple[Parts, ...]
    metric: BoundMetric
    steps: int
    most_rows: Callable[[PairBatch], int]
    rules: tuple[RelevanceRule, ...] = RELEVANCE_RULES
    only: Mapping[Site, Bool[Tensor, " part"]] | None = None

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites of the parts, in the order of a forward pass."""
        return tuple(parts.site for parts in self.parts)


@dataclass(frozen=True)
class BatchEffects:
    """What a batch's parts do, by site, in the metric's unit; how far they differ; the metric in both runs.

    `factors` are the difference and the coefficient of every unit and place, where a method multiplies their means;
    `passes` what a method of plain gradients ran; `orders` the first two terms of every part, where asked for.
    """

    effects: ByPart
    moves: ByPart
    clean: Float[Tensor, " pair"]
    corrupted: Float[Tensor, " pair"]
    factors: Mapping[Site, tuple[Tensor, Tensor]] | None = None
    passes: GradientPasses | None = None
    orders: Mapping[Site, tuple[Tensor, Tensor]] | None = None


Method = Callable[[Task, PairBatch], BatchEffects]


def differences(clean: Readings, corrupted: Readings) -> Values:
    """Return clean less corrupted at every site and compared place."""
    return {site: clean.values[site] - value for site, value in corrupted.values.items()}


def linear_effects(task: Task, batch: PairBatch, runs: tuple[Readings, Readings], coefficients: Values) -> BatchEffects:
    """Return difference times coefficient, summed over each part."""
    clean, corrupted = runs
    moved = differences(clean, corrupted)
    return BatchEffects(
        {part.site: part.total(moved[part.site] * coefficients[part.site], batch.counted) for part in task.parts},
        {part.site: part.moves(moved[part.site], batch.counted) for part in task.parts},
        clean.metric,
        corrupted.metric,
    )


def pairs_and_parts(
    task: Task, parts: Parts, batch: PairBatch, moved: Float[Tensor, "pair place unit"]
) -> tuple[Tensor, Tensor]:
    """Return (pair, part) of all that differ between the runs and are asked for: elsewhere a patch changes nothing."""
    wanted = parts.total((moved != 0).float(), batch.counted) > 0
    if task.only is not None:
        wanted = wanted & task.only[parts.site]
    pair, part = torch.nonzero(wanted, as_tuple=True)
    return pair, part
