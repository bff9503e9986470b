"""Layer profile: in which layers a concept's experts lie, against where as many units would lie by chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scipy.stats import binomtest

from lens_steer.errors import SettingError
from lens_steer.statistics.intervals import confidence_of_each
from lens_steer.statistics.verdict import verdict_of

if TYPE_CHECKING:
    import pandas as pd


def layer_profile(frame: pd.DataFrame, k: int, *, confidence: float = 0.95) -> pd.DataFrame:
    """Count, for every concept and site of a ranking's frame, how many of the k best units lie there.

    Columns: concept, site, layer, k, experts, share (of the k) with low and high (Clopper and Pearson's, for all sites
    of a concept at once), chance (the site's share of all units), verdict (of share against chance). The interval takes
    the k units for independent draws; neighbours that copy each other are not, and make it too narrow. SettingError for
    k outside 1 to the number of units.
    """
    import pandas as pd

    rows = []
    for concept, part in frame.groupby("concept", sort=False):
        if not 1 <= k <= len(part):
            raise SettingError(f"k is a number of units, 1 to the {len(part)} that are ranked, not {k}")
        sites = part.groupby("site").agg(layer=("layer", "first"), units=("unit", "size"))
        experts = part["site"][:k].value_counts()
        of_each = confidence_of_each(confidence, len(sites))
        for site, about in sites.sort_values("layer", kind="stable").iterrows():
            count, chance = int(experts.get(site, 0)), about["units"] / len(part)
            ends = binomtest(count, k).proportion_ci(of_each, method="exact")
            verdict = verdict_of(ends.low, ends.high, reference=chance)
            rows.append([concept, site, about["layer"], k, count, count / k, ends.low, ends.high, chance, str(verdict)])
    columns = ["concept", "site", "layer", "k", "experts", "share", "low", "high", "chance", "verdict"]
    return pd.DataFrame(rows, columns=columns)
