"""Confounds: an expert of a concept may be an expert of what goes with it, such as a dialect or a text's length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lens_steer.errors import ActivationError
from lens_steer.statistics.scores import auroc

if TYPE_CHECKING:
    import pandas as pd

    from lens_steer.ranking.experts import ExpertRanking


def confounds(ranking: ExpertRanking, k: int = 20) -> pd.DataFrame:
    """Return, for the k best units of one concept, their AUROC inside every subgroup and for length.

    Columns: site, unit, auroc; `auroc in GROUP`: source against target among the texts of that subgroup (nan where one
    side is missing); `auroc for length`: texts longer than the median against the others, among target texts alone, so
    that the concept itself plays no part.
    """
    activations = ranking.activations
    if activations.lengths is None:
        raise ActivationError("these activations do not know the texts' lengths: use lens_steer.collect")
    label, length = activations.labels[:, 0], torch.tensor(activations.lengths)
    units = ranking.units(k)
    values = torch.stack([activations.values[unit.site][:, unit.index] for unit in units], dim=1)
    frame = ranking.frame.head(len(units))[["site", "unit", "auroc"]].reset_index(drop=True)
    for group in sorted(set(activations.groups or ())):
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
