"""Universal units: those that are among their site's largest whatever the text, so that they are experts of nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from lens_steer.activations.activations import Activations
from lens_steer.errors import ActivationError
from lens_steer.ranking.measured import require_finite

if TYPE_CHECKING:
    import pandas as pd

_TOP = 0.001  # of a site's units
_OFTEN = 0.5  # of the unrelated texts
_LEVEL = 0.05


def universal_units(unrelated: Activations) -> pd.DataFrame:
    """Say of every unit how often it is among the largest 0.1 % of its site's, on texts that have to do with nothing.

    Parameters
    ----------
    unrelated:
        Of unrelated texts, from `collect`; who is source and target does not matter.

    Returns
    -------
    DataFrame
        One row per unit: site, layer, unit; top_share: share of the texts in which the absolute value of its pooled
        activation is among the site's largest 0.1 % (at least one unit); chance: the share that units which are all
        alike have; universal: whether it is shown (exact binomial test, 5 %) that it is so in more than half of such
        texts, for which it takes five texts at least. Of random data no unit is.

    Raises
    ------
    ActivationError
        A value is not a finite number, or there is no text.

    """
    import pandas as pd

    require_finite(unrelated)
    if not len(unrelated.labels):
        raise ActivationError("there are no unrelated texts to find universal units on")
    frames = []
    for site in unrelated.sites:
        size = unrelated.values[site].abs()
        most = max(1, round(_TOP * site.width))
        inside = size >= size.topk(most, dim=1).values[:, -1:]
        inside &= inside.sum(1, keepdim=True) <= 2 * most  # where more units tie, none of them stands out
        counts, texts, chance = inside.sum(0).numpy(), len(inside), most / site.width
        often = stats.binom.sf(counts - 1, texts, max(_OFTEN, chance)) < _LEVEL
        frames.append(
            pd.DataFrame(
                {
                    "site": site.name,
                    "layer": site.layer,
                    "unit": np.arange(site.width),
                    "top_share": counts / texts,
                    "chance": chance,
                    "universal": often,
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def with_universal(frame: pd.DataFrame, ranked: Activations, unrelated: Activations) -> pd.DataFrame:
    """Return a ranking's frame with the columns top_share and universal; ActivationError for other sites or pools."""
    widths = {site.name: site.width for site in unrelated.sites}
    for site in ranked.sites:
        if widths.get(site.name) != site.width:
            raise ActivationError(
                f"the unrelated activations lack {site.name} with {site.width} units: collect the sites that are ranked"
            )
    if unrelated.pool != ranked.pool:
        raise ActivationError(
            f"the unrelated activations are pooled by {unrelated.pool}, the ranked ones by {ranked.pool}: "
            "collect both alike"
        )
    units = universal_units(unrelated.at(ranked.sites))[["site", "unit", "top_share", "universal"]]
    return frame.merge(units, on=["site", "unit"], how="left", validate="many_to_one")
