"""Integrated gradients along the way of one site from its corrupted to its clean activation."""

from __future__ import annotations

from lens_steer.effects.attribution.pairs import PairBatch
from lens_steer.effects.attribution.runs import gradients_between, read_clean, read_corrupted
from lens_steer.effects.attribution.task import BatchEffects, Task, linear_effects


def integrated(task: Task, batch: PairBatch) -> BatchEffects:
    """Multiply clean less corrupted by the mean gradient along the way, at the middle of each of `steps` equal pieces.

    Every site is moved alone, at all compared places, with what comes before it corrupted. So the units of a site sum
    to the exact effect of patching it whole, up to the steps (Sundararajan et al., arXiv 1703.01365: completeness).
    """
    clean = read_clean(task.model, batch, task.sites, task.metric)
    corrupted = read_corrupted(task.model, batch, task.sites, task.metric, clean)
    shares = [(step + 0.5) / task.steps for step in range(task.steps)]
    most = task.most_rows(batch)
    gradients = {
        site: gradients_between(task.model, batch, site, task.metric, (clean, corrupted), shares, most)
        for site in task.sites
    }
    return linear_effects(task, batch, (clean, corrupted), gradients)
