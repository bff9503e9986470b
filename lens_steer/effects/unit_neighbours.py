"""Neighbours of a unit at its own site: units with weights like it, and units that are active in the same texts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from lens_steer.host.unit_weights import SiteWeights
from lens_steer.host.units import Unit

if TYPE_CHECKING:
    import pandas as pd

_LEVEL = 0.05


def unit_neighbours(unit: Unit, weights: SiteWeights, pooled: Float[Tensor, "text unit"], *, most: int) -> pd.DataFrame:
    """Return the nearest units by weights and by activations, nearest first.

    Columns: by ("weights", "activations"), rank, unit, cosine (of the weights, the mean over what the unit reads and
    writes with; nan without any), correlation (of the pooled activations over texts; nan where one is constant), and
    chance: the value of the column it is ranked by that the nearest of as many unrelated units passes in 5 % of cases
    (random directions; independent normal activations). By their absolute value for activations and weights alike.
    """
    import pandas as pd

    cosine, freedom = _cosines(weights, unit.index)
    correlation = _correlations(pooled, unit.index)
    others = max(1, unit.site.width - 1)
    score = float(stats.norm.isf(_LEVEL / (2 * others)))
    texts = len(pooled)
    limit = float(stats.t.isf(_LEVEL / (2 * others), texts - 2)) if texts > 2 else math.inf
    ranked = {
        "weights": (cosine, min(1.0, score / math.sqrt(freedom)) if freedom else math.nan),
        "activations": (correlation, 1 / math.sqrt(1 + (texts - 2) / limit**2)),
    }
    rows = []
    for by, (values, chance) in ranked.items():
        size = values.abs().nan_to_num(-1.0)
        size[unit.index] = -1.0
        order = size.topk(min(most, others)).indices.tolist()
        rows += [
            (by, rank, str(Unit(unit.site, other)), float(cosine[other]), float(correlation[other]), chance)
            for rank, other in enumerate(order)
            if float(size[other]) >= 0
        ]
    return pd.DataFrame(rows, columns=["by", "rank", "unit", "cosine", "correlation", "chance"])


def _cosines(weights: SiteWeights, index: int) -> tuple[Float[Tensor, " unit"], int]:
    """Return the mean cosine with every unit, and how many independent numbers a random one would be a mean of."""
    if not weights.matrices:
        return torch.full((weights.site.width,), torch.nan), 0
    cosines = [F.cosine_similarity(rows, rows[index][None], dim=1) for rows in weights.matrices]
    return torch.stack(cosines).mean(0), sum(rows.shape[1] for rows in weights.matrices)


def _correlations(pooled: Float[Tensor, "text unit"], index: int) -> Float[Tensor, " unit"]:
    centred = pooled.double() - pooled.double().mean(0)
    size = centred.norm(dim=0)
    constant = size <= 1e-9 * pooled.double().abs().amax(0).clamp_min(1e-30) * math.sqrt(len(pooled))
    correlations = (centred.T @ centred[:, index]) / (size * size[index])
    masked: Tensor = correlations.masked_fill(constant | constant[index], torch.nan)
    return masked.float()
