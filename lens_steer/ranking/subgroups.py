"""Subgroups: does a unit tell the concept in every author, template or dialect, or in some alone?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool

from lens_steer.activations.activations import Activations
from lens_steer.errors import ActivationError
from lens_steer.host.units import Unit
from lens_steer.statistics.intervals import confidence_of_each
from lens_steer.statistics.scores import auroc
from lens_steer.statistics.significance import auroc_interval

if TYPE_CHECKING:
    import pandas as pd


def subgroup_auroc(
    activations: Activations,
    units: Sequence[Unit],
    *,
    chose: Bool[np.ndarray, " text"] | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Return the AUROC of units of one concept inside every subgroup that holds both sides, with intervals.

    Columns: site, unit, group, source_texts, target_texts, auroc, low, high (for all subgroups of a unit at once; of
    other texts of that subgroup: copies of a text count once), chose: whether texts of the subgroup chose the units,
    whose AUROC is then flattered. A subgroup is never parted, so one that did not choose is held out as a whole.
    `chose` says which texts chose. ActivationError where no text names a subgroup, or none holds both sides.
    """
    import pandas as pd

    groups = np.array([name or "" for name in activations.groups or ()])
    label = activations.labels[:, 0].numpy()
    names = [name for name in dict.fromkeys(groups.tolist()) if name and len(set(label[groups == name])) == 2]
    if not names:
        named = "no subgroup holds texts of both sides" if groups.any() else "the texts name no subgroup: give groups="
        raise ActivationError(named)
    values = torch.stack([activations.values[unit.site][:, unit.index] for unit in units], dim=1)
    copies = np.arange(len(label)) if activations.hashes is None else activations.hashes[:, 0].numpy()
    of_each = confidence_of_each(confidence, len(names))
    parts = []
    for name in names:
        source, target = (np.flatnonzero((groups == name) & (label == side)) for side in (1, 0))
        area = auroc(values[source], values[target])
        clusters = copies[source], copies[target]
        between = auroc_interval(values[source], values[target], area, confidence=of_each, clusters=clusters)
        about = {"site": [unit.site.name for unit in units], "unit": [unit.index for unit in units], "group": name}
        counts = {"source_texts": len(source), "target_texts": len(target)}
        ends = {"auroc": area.numpy(), "low": between.low.numpy(), "high": between.high.numpy()}
        by = chose is None or bool(chose[np.concatenate([source, target])].any())
        parts.append(pd.DataFrame({**about, **counts, **ends, "chose": by}))
    return pd.concat(parts, ignore_index=True)
