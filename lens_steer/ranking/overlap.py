"""Overlap of concepts: do two concepts share their expert units, more than two random choices would?"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import hypergeom, spearmanr

from lens_steer.errors import SettingError

if TYPE_CHECKING:
    import pandas as pd


def expert_overlap(frame: pd.DataFrame, k: int) -> pd.DataFrame:
    """Compare the k best units of every pair of concepts of a ranking's frame.

    Columns: concept, other; shared (units among the k best of both), jaccard (shared / units in either), chance (the
    mean Jaccard of two random choices of k units), p_value (of as many shared or more by chance, hypergeometric: it
    takes units for exchangeable, and neighbours that copy each other are not), rank_correlation (Spearman's, of auroc
    over all units). SettingError for one concept alone, or k outside 1 to the number of units.
    """
    import pandas as pd

    of = dict(list(frame.groupby("concept", sort=False)))
    if len(of) < 2:
        raise SettingError("an overlap needs two concepts or more: rank LabelledTexts, or LabelledTexts.of(contrasts)")
    units = len(next(iter(of.values())))
    if not 1 <= k <= units:
        raise SettingError(f"k is a number of units, 1 to the {units} that are ranked, not {k}")
    possible = np.arange(k + 1)
    law = hypergeom(units, k, k)
    chance = float((law.pmf(possible) * possible / (2 * k - possible)).sum())
    best = {name: set(zip(part["site"][:k], part["unit"][:k], strict=True)) for name, part in of.items()}
    area = {name: part.set_index(["site", "unit"])["auroc"].sort_index() for name, part in of.items()}
    rows = []
    for one, other in combinations(of, 2):
        shared = len(best[one] & best[other])
        rows.append(
            {
                "concept": one,
                "other": other,
                "k": k,
                "shared": shared,
                "jaccard": shared / (2 * k - shared),
                "chance": chance,
                "p_value": float(law.sf(shared - 1)),
                "rank_correlation": float(spearmanr(area[one], area[other]).statistic),
            }
        )
    return pd.DataFrame(rows)
