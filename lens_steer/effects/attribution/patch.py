"""Exact activation patching: run the corrupted prompt with one part as it is in the clean run, and see what changes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_steer.effects.attribution.metrics import Rows
from lens_steer.effects.attribution.pairs import PairBatch
from lens_steer.effects.attribution.parts import Parts
from lens_steer.effects.attribution.runs import Readings, logits_from, read_clean, read_corrupted, visiting
from lens_steer.effects.attribution.task import BatchEffects, Task, differences, pairs_and_parts


def patch(task: Task, batch: PairBatch) -> BatchEffects:
    """Measure every part of every pair in a row of its own, run from the part's layer on.

    A part that is the same in both runs is not run: its effect is 0.
    """
    clean = read_clean(task.model, batch, task.sites, task.metric)
    corrupted = read_corrupted(task.model, batch, task.sites, task.metric, clean)
    moved = differences(clean, corrupted)
    effects = {}
    for parts in task.parts:
        effects[parts.site] = torch.zeros(len(batch.pairs), len(parts), device=batch.pairs.device)
        pair, part = pairs_and_parts(task, parts, batch, moved[parts.site])
        most = task.most_rows(batch)
        for start in range(0, len(pair), most):
            some, own = pair[start : start + most], part[start : start + most]
            patched = _patched(task, batch, parts, (clean, corrupted), some, own)
            effects[parts.site][some, own] = patched - corrupted.metric[some]
    moves = {parts.site: parts.moves(moved[parts.site], batch.counted) for parts in task.parts}
    return BatchEffects(effects, moves, clean.metric, corrupted.metric)


def _patched(
    task: Task,
    batch: PairBatch,
    parts: Parts,
    runs: tuple[Readings, Readings],
    pair: Int[Tensor, " row"],
    part: Int[Tensor, " row"],
) -> Float[Tensor, " row"]:
    """Return the metric of rows of which each has one part of one pair as in the clean run."""
    clean, corrupted = runs
    every = torch.arange(batch.corrupted_at.shape[1], device=pair.device).expand(len(pair), -1)
    order = parts.places_of(part, every)[:, :, None]
    places, units = batch.corrupted_at[pair[:, None, None], order], parts.units_of(part)[:, None, :]
    values = clean.values[parts.site][pair[:, None, None], order, units]
    rows = torch.arange(len(pair), device=pair.device)[:, None, None]

    def write(activation: Tensor) -> Tensor:
        return activation.index_put((rows, places, units), values.to(activation.dtype))

    with torch.no_grad(), visiting(task.model, {parts.site: write}):
        logits = logits_from(task.model, batch, parts.site.layer, corrupted.blocks, pair)
        return task.metric(logits, Rows(batch.pairs[pair], clean.logits[pair]))
