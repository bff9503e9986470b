"""Contrastive attribution: the mean difference between clean and corrupted prompts, times the mean gradient.

Contrastive neuron attribution (CNA, arXiv 2605.12290) ranks MLP units by the difference of their mean activation at
the last token between two sets of prompts, without a gradient: that is the column `difference` of every result at level
unit. Here it is multiplied by the mean gradient, which puts it into the metric's unit: what the *same* shift, by the
mean difference, does in all corrupted prompts, to first order. Attribution patching takes the mean of the products
instead: the two differ by how difference and gradient vary together over pairs, and with one pair they are the same.
"""

from __future__ import annotations

from dataclasses import replace

from lens_steer.effects.attribution.pairs import PairBatch
from lens_steer.effects.attribution.runs import corrupted_gradients, read_clean
from lens_steer.effects.attribution.task import BatchEffects, Task, differences, linear_effects


def cna(task: Task, batch: PairBatch) -> BatchEffects:
    """Return both factors of every pair, to be averaged before they are multiplied: two forwards, one backward."""
    clean = read_clean(task.model, batch, task.sites, task.metric)
    corrupted, gradients = corrupted_gradients(task.model, batch, task.sites, task.metric, clean)
    moved = differences(clean, corrupted)
    factors = {site: (moved[site], gradients[site]) for site in task.sites}
    effects = linear_effects(task, batch, (clean, corrupted), gradients)
    return replace(effects, factors=factors, passes=(clean, corrupted, gradients))
