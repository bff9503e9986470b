"""How far a first-order estimate can be trusted: its second-order term beside it (arXiv 2606.09899)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lens_steer.effects.attribution.pairs import PairBatch
from lens_steer.effects.attribution.runs import corrupted_gradients, gradients_between, read_clean
from lens_steer.effects.attribution.task import GradientPasses, Task, differences
from lens_steer.host.sites import Site


def orders(task: Task, batch: PairBatch, passes: GradientPasses | None) -> Mapping[Site, tuple[Tensor, Tensor]]:
    """Return the first-order and the second-order term of every part's patch, by site, each [pair, part].

    First order: g d, with g the metric's gradient in the corrupted run and d clean less corrupted. Second order:
    (g' - g) d, with g' the gradient once the *whole site* has gone half the way. To leading order that is
    d_j (H d)_j / 2, of unit j beside all that its site moves with it: exactly so for a quadratic function, and for a
    whole site the Taylor term d'Hd / 2 of its own patch. One more forward and backward pass from each site's layer on,
    and the passes of a gradient where the estimate has not run them.
    """
    if passes is None:
        clean = read_clean(task.model, batch, task.sites, task.metric)
        passes = (clean, *corrupted_gradients(task.model, batch, task.sites, task.metric, clean))
    clean, corrupted, gradients = passes
    moved = differences(clean, corrupted)
    terms = {}
    for parts in task.parts:
        site, most = parts.site, task.most_rows(batch)
        halfway = gradients_between(task.model, batch, site, task.metric, (clean, corrupted), [0.5], most)
        terms[site] = (
            parts.total(gradients[site] * moved[site], batch.counted),
            parts.total((halfway - gradients[site]) * moved[site], batch.counted),
        )
    return terms
