"""Attribution patching: the first-order estimate of a patch, gradient times difference, for all parts in one pass.

Nanda, Attribution Patching (2023); Syed, Rager and Conmy, arXiv 2310.10348. Exact where everything between a part and
the metric is affine.
"""

from __future__ import annotations

from dataclasses import replace

from lens_steer.effects.attribution.pairs import PairBatch
from lens_steer.effects.attribution.runs import corrupted_gradients, read_clean
from lens_steer.effects.attribution.task import BatchEffects, Task, linear_effects


def attribution(task: Task, batch: PairBatch) -> BatchEffects:
    """Multiply clean less corrupted by the metric's gradient in the corrupted run: two forwards, one backward."""
    clean = read_clean(task.model, batch, task.sites, task.metric)
    corrupted, gradients = corrupted_gradients(task.model, batch, task.sites, task.metric, clean)
    effects = linear_effects(task, batch, (clean, corrupted), gradients)
    return replace(effects, passes=(clean, corrupted, gradients))
