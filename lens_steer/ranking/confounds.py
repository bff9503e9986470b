"""Confounds: an expert of a concept may be an expert of what goes with it, such as a dialect or a text's length."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from lens_steer.activations.activations import Activations
from lens_steer.errors import ActivationError
from lens_steer.host.units import Unit
from lens_steer.statistics.scores import auroc


def confounds(activations: Activations, units: Sequence[Unit]) -> pd.DataFrame:
    """Return, for units of one concept, their AUROC inside every subgroup and for length.

    Columns: site, unit, auroc (all texts); `auroc in GROUP`: source against target among the texts of that subgroup
    (nan where one side is missing); `auroc for length`: texts longer than the median against the others, among target
    texts alone, so that the concept itself plays no part. ActivationError where lengths are not known.
    """
    if activations.lengths is None:
        raise ActivationError("these activations do not know the texts' lengths: use lens_steer.collect")
    label, length = activations.labels[:, 0], torch.tensor(activations.lengths)
    values = torch.stack([activations.values[unit.site][:, unit.index] for unit in units], dim=1)
    frame = pd.DataFrame({"site": [unit.site.name for unit in units], "unit": [unit.index for unit in units]})
    frame["auroc"] = _area(values, label == 1, label == 0)
    for group in sorted({name for name in activations.groups or () if name is not None}):
        inside = torch.tensor([member == group for member in activations.groups or ()])
        frame[f"auroc in {group}"] = _area(values, inside & (label == 1), inside & (label == 0))
    target = label == 0
    longer = length > length[target].median()
    frame["auroc for length"] = _area(values, target & longer, target & ~longer)
    return frame


def _area(values: Tensor, source: Tensor, target: Tensor) -> list[float]:
    if not bool(source.any() and target.any()):
        return [float("nan")] * values.shape[1]
    area: list[float] = auroc(values[source], values[target]).tolist()
    return area
