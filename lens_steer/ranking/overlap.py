"""Overlap of concepts: do two share their expert units, more than chance and than labels that mean nothing?"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import hypergeom, rankdata, spearmanr

from lens_steer.activations.activations import Activations
from lens_steer.errors import SettingError
from lens_steer.ranking.halves import Mask
from lens_steer.ranking.label_test import design_of
from lens_steer.ranking.measured import require_finite
from lens_steer.statistics.relabelled import relabelled_auroc, relabelled_distance

if TYPE_CHECKING:
    import pandas as pd


def expert_overlap(frame: pd.DataFrame, k: int, *, confidence: float = 0.95) -> pd.DataFrame:
    """Compare the k best units of every pair of concepts of a ranking's frame.

    Columns: concept, other; shared (units among the k best of both), jaccard (shared / units in either), chance (the
    mean Jaccard of two random choices of k units) with chance_low and chance_high (between which that many random
    choices lie), p_value (of as many shared or more by chance, hypergeometric: it takes units for exchangeable, and
    neighbours that copy each other are not), rank_correlation (Spearman's, of auroc over all units). SettingError for
    one concept alone, or k outside 1 to the number of units.
    """
    import pandas as pd

    of = dict(list(frame.groupby("concept", sort=False)))
    if len(of) < 2:
        raise SettingError("an overlap needs two concepts or more: rank LabelledTexts, or LabelledTexts.of(contrasts)")
    units = len(next(iter(of.values())))
    if not 1 <= k <= units:
        raise SettingError(f"k is a number of units, 1 to the {units} that are ranked, not {k}")
    law, possible = hypergeom(units, k, k), np.arange(k + 1)
    about = {"k": k, "chance": float((law.pmf(possible) * _jaccard(possible, k)).sum())}
    ends = law.ppf([(1 - confidence) / 2, (1 + confidence) / 2])
    about |= dict(zip(("chance_low", "chance_high"), map(float, _jaccard(ends, k)), strict=True))
    best = {name: set(zip(part["site"][:k], part["unit"][:k], strict=True)) for name, part in of.items()}
    area = {name: part.set_index(["site", "unit"])["auroc"].sort_index() for name, part in of.items()}
    rows = []
    for one, other in combinations(of, 2):
        shared = len(best[one] & best[other])
        rows.append(
            {
                "concept": one,
                "other": other,
                **about,
                "shared": shared,
                "jaccard": shared / (2 * k - shared),
                "p_value": float(law.sf(shared - 1)),
                "rank_correlation": float(spearmanr(area[one], area[other]).statistic),
            }
        )
    return pd.DataFrame(rows)


def overlap_of_shuffled(
    table: pd.DataFrame,
    frame: pd.DataFrame,
    activations: Activations,
    chose: Mapping[str, Mask],
    *,
    permutations: int,
    seed: int,
) -> pd.DataFrame:
    """Return `expert_overlap`'s table with what it reads when the labels of `other` are permuted among its texts.

    Units that copy each other, or that vary more than others, are so as before: this null knows them. Columns:
    shuffled_jaccard (mean), shuffled_p (how often as many units are shared, these labels counted as one),
    correlation_p (how often the rank correlation is as large, either way), resolution (the smallest p that so many
    permutations give). Permuted are what the ranking's test
    permutes (see `rank_experts`); the k best are those of the texts that `chose` them, concept by concept.
    ActivationError for a sketch.
    """
    if permutations < 1:
        raise SettingError(f"permutations must be 1 or more, not {permutations}; 200 resolve p-values down to 0.005")
    require_finite(activations)
    order = {name: place for place, name in enumerate(activations.concepts)}
    keys = [(site.name, unit) for site in activations.sites for unit in range(site.width)]
    place = {key: number for number, key in enumerate(keys)}
    k = int(table["k"].iloc[0])
    best, area, shuffled = {}, {}, {}
    for name, part in frame.groupby("concept", sort=False):
        numbers = [place[key] for key in zip(part["site"], part["unit"], strict=True)]
        best[name] = np.array(numbers[:k])
        area[name] = np.empty(len(keys))
        area[name][numbers] = part["auroc"]
        one = activations.concept(str(name))
        draw = seed + order[str(name)]
        chosen = one.rows(chose[str(name)])
        whole_labels, labels = (design_of(part).relabelled(permutations, draw) for part in (one, chosen))
        shuffled[name] = _areas(one, whole_labels), _best(chosen, labels, k)
    rows = []
    for row in table.to_dict("records"):
        one, (whole, top) = row["concept"], shuffled[row["other"]]
        shared = np.isin(top, best[one]).sum(1)
        ranks = rankdata(whole, axis=1)
        # A labelling like the given one counts as reached, whatever the rounding of its correlation.
        reached = np.abs(_correlations(ranks, rankdata(area[one]))) >= abs(row["rank_correlation"]) - 1e-12
        rows.append(
            {
                "shuffled_jaccard": float(_jaccard(shared, k).mean()),
                "shuffled_p": float(1 + (shared >= row["shared"]).sum()) / (1 + permutations),
                "correlation_p": float(1 + reached.sum()) / (1 + permutations),
                "resolution": 1 / (1 + permutations),
            }
        )
    return table.assign(**{column: [row[column] for row in rows] for column in rows[0]})


def _areas(one: Activations, labels: Bool[np.ndarray, "permutation text"]) -> Float[np.ndarray, "permutation unit"]:
    return np.concatenate([relabelled_auroc(one.values[site], labels) for site in one.sites], axis=1)


def _best(
    one: Activations, labels: Bool[np.ndarray, "permutation text"], k: int
) -> Int[np.ndarray, "permutation best"]:
    """Return the k best units in the order of a ranking: of those that tie, the ones whose sides lie farther apart."""
    distance = np.concatenate([relabelled_distance(one.values[site], labels) for site in one.sites], axis=1)
    return np.stack([np.lexsort(keys)[-k:] for keys in zip(distance, _areas(one, labels), strict=True)])


def _correlations(many: Float[np.ndarray, "row unit"], one: Float[np.ndarray, " unit"]) -> Float[np.ndarray, " row"]:
    centred, other = many - many.mean(1, keepdims=True), one - one.mean()
    with np.errstate(invalid="ignore", divide="ignore"):
        value = centred @ other / np.sqrt(np.square(centred).sum(1) * np.square(other).sum())
    return np.asarray(np.nan_to_num(value))


def _jaccard(shared: Any, k: int) -> Any:
    return shared / (2 * k - shared)
