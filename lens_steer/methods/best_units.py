"""The k best units of all sites together, for the methods that edit few units."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lens_steer.errors import SettingError
from lens_steer.host.sites import Site


def require_count(k: int) -> None:
    """Refuse a number of units that no model has."""
    if k < 1:
        raise SettingError(f"k is the number of units to edit, 1 or more, not {k}")


def best_units(scores: Mapping[Site, Tensor], k: int) -> dict[Site, Tensor]:
    """Return, of each site that holds any of the k highest scores, the mask of those units.

    Sites stay in their order. Of units with equal scores the earlier one is taken.
    SettingError if there are fewer than k units.
    """
    widths = [len(score) for score in scores.values()]
    if k > sum(widths):
        raise SettingError(f"k={k} units are more than the {sum(widths)} of the chosen sites: lower k, or add sites")
    best = torch.cat(list(scores.values())).sort(descending=True, stable=True).indices[:k]
    chosen = torch.zeros(sum(widths), dtype=torch.bool)
    chosen[best] = True
    parts = zip(scores, torch.split(chosen, widths), strict=True)
    return {site: mask for site, mask in parts if bool(mask.any())}
