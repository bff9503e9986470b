"""RelP (relevance patching, arXiv 2508.21258): attribution patching with relevance coefficients for gradients."""

from __future__ import annotations

from dataclasses import replace

from lens_steer.effects.attribution.gradient import attribution
from lens_steer.effects.attribution.pairs import PairBatch
from lens_steer.effects.attribution.task import BatchEffects, Task
from lens_steer.errors import SiteError
from lens_steer.host.relevance import held_by_rules, relevance_rules


def relp(task: Task, batch: PairBatch) -> BatchEffects:
    """Multiply clean less corrupted by the coefficients of the corrupted run: two forwards, one backward.

    Both runs go under the rules, so that their rounding is the same. With the attention rule nothing is seen of what a
    part does to later attention patterns; SiteError for queries and keys, which it holds.
    """
    held = [site.name for site in task.sites if held_by_rules(task.model, site.name)]
    if held and "attention" in task.rules:
        raise SiteError(
            f"no relevance reaches {held[0]}: RelP holds attention patterns, so queries and keys have no share; leave "
            "them out, or use method='attribution', 'integrated' or 'patch'"
        )
    with relevance_rules(task.model, task.rules):
        return replace(attribution(task, batch), passes=None)  # coefficients are no gradients
