"""The columns of a ranking at one site: AUROC with its intervals, the test, and what describes the sides."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from lens_steer.activations.activations import Activations
from lens_steer.host.sites import Site
from lens_steer.ranking.halves import Mask
from lens_steer.ranking.label_test import label_test
from lens_steer.statistics.comparison import compare_sides
from lens_steer.statistics.design import Design
from lens_steer.statistics.significance import AurocInterval, auroc_interval, interval_of_variance


def site_columns(
    site: Site, one: Activations, heldout: Activations | Mask | None, confidence: float, design: Design
) -> dict[str, Any]:
    """Return the columns of one site; `heldout` is a part of the texts, or other activations."""
    values = one.values[site]
    part = heldout if isinstance(heldout, Tensor) else None
    sides = compare_sides(values, one.labels[:, 0].numpy(), None if part is None else part.numpy())
    interval = _interval(sides.auroc, sides.variance, values, one, confidence)
    if part is not None:
        held, held_variance, measured = sides.heldout_auroc, sides.heldout_variance, values[part]
        held_interval = _interval(held, held_variance, measured, one.rows(part), confidence)
    elif isinstance(heldout, Activations):
        others = compare_sides(heldout.values[site], heldout.labels[:, 0].numpy())
        held = others.auroc
        held_interval = _interval(held, others.variance, heldout.values[site], heldout, confidence)
    else:
        held, held_interval = sides.heldout_auroc, None
    test, p_value = label_test(one, values, sides.deviation, design)
    columns = {
        "auroc": sides.auroc,
        "auroc_low": interval.low,
        "auroc_high": interval.high,
        "hanley_mcneil": interval.degenerate,
        "selection_auroc": sides.auroc if isinstance(heldout, Activations) else sides.selection_auroc,
        "heldout_auroc": held,
        "heldout_low": held if held_interval is None else held_interval.low,
        "heldout_high": held if held_interval is None else held_interval.high,
        "average_precision": sides.average_precision,
        "p_value": p_value,
        "wasserstein": sides.wasserstein,
        "source_mean": sides.source_mean,
        "target_mean": sides.target_mean,
        "distance": sides.distance,
    }
    about = {"site": site.name, "layer": site.layer, "kind": site.kind, "unit": range(site.width), "width": site.width}
    return {**about, **{name: value.numpy() for name, value in columns.items()}, "test": test}


def _interval(
    area: Tensor, variance: Tensor, values: Tensor, activations: Activations, confidence: float
) -> AurocInterval:
    """Return the interval around the AUROC of a concept's texts: between blocks where texts come in blocks."""
    blocks, label = activations.blocks.numpy(), activations.labels[:, 0].numpy()
    source, target = label == 1, label == 0
    if len(np.unique(blocks)) < len(blocks):
        clusters = blocks[source], blocks[target]
        return auroc_interval(values[source], values[target], area, confidence=confidence, clusters=clusters)
    return interval_of_variance(area, variance, (int(source.sum()), int(target.sum())), confidence=confidence)
