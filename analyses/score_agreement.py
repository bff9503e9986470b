"""How well the scores of units agree with what was measured of them: rank correlations, precision, and their nulls.

The units that are measured are drawn at random, but all of them on the same pairs of texts: what the pairs have in
common moves all effects at once, so units are not as many independent cases. Intervals have two levels: pairs, a group
of which is left out of all effects at once, and the units drawn from all of the model's. They take the scores as given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from analyses.causal_scores import CHEAP, EXACT, SHUFFLED, SIGNED, signed_name
from analyses.causal_scores import LINEAS as LINEAS_WEIGHT
from analyses.levels import over_levels

SCORES = (*CHEAP, *SHUFFLED.values(), EXACT)
CAUSE, STEER = "effect", "steered"
_SHUFFLES = 500
_PRECISION_AT = 50
_UNIT_GROUPS = 20
_UNIT = ["site", "unit"]


@dataclass(frozen=True, eq=False)
class Measured:
    """What was measured of the units drawn, on all pairs and then without a group of them each.

    `cases` are [case, unit]; `layers` and `groups` [unit] say where each unit lies, and with which others it is left
    out, spread over all layers.
    """

    cases: Any
    layers: Any
    groups: Any

    @classmethod
    def of(cls, drawn: Any, cases: Any) -> Measured:
        """Take the drawn rows of the table of scores, and what was measured of them: [case, unit]."""
        return cls(
            np.atleast_2d(cases), drawn["layer"].to_numpy(), np.arange(len(drawn)) % min(_UNIT_GROUPS, len(drawn))
        )

    def correlations(self, score: Any, placed: Callable[[Any], Any]) -> list[Any]:
        """Return the rank correlation with a score: [1], then without each group of units, without each of pairs."""
        truth = placed(self.cases[0])
        without = [self.groups != group for group in np.unique(self.groups)]
        return [
            np.array([float(rank_correlation(score, truth, -1))]),
            np.array([float(rank_correlation(score[kept], truth[kept], -1)) for kept in without]),
            np.array([float(rank_correlation(score, placed(case), -1)) for case in self.cases[1:]]),
        ]

    def shuffled(self, score: Any, placed: Callable[[Any], Any], seed: int) -> float:
        """Return the size of a correlation that one in twenty shuffles of a score within its layers exceeds."""
        random, shuffled = np.random.default_rng(seed), np.tile(score, (_SHUFFLES, 1))
        for layer in np.unique(self.layers):
            here = self.layers == layer
            shuffled[:, here] = random.permuted(shuffled[:, here], axis=1)
        truth = np.broadcast_to(placed(self.cases[0]), shuffled.shape)
        return float(np.quantile(np.abs(rank_correlation(shuffled, truth, -1)), 0.95))


def tables(scores: Any, effect_cases: Any, *, seed: int) -> dict[str, pd.DataFrame]:
    """Return what scores and effects say: correlations, signed, differences, by_layer, precision and steering.

    `effect_cases` has columns case, site, unit and effect: 0 on all pairs, then without a group of them each.
    """
    drawn = scores[scores["drawn"]]
    by_case = effect_cases.pivot(index="case", columns=_UNIT, values=CAUSE)
    known = by_case[pd.MultiIndex.from_frame(drawn[_UNIT])].to_numpy()
    effects = Measured.of(drawn, known)
    correlations = correlated(drawn, effects, seed=seed)
    return {
        "correlations": correlations,
        "signed": signed_correlations(drawn, effects, seed=seed),
        "differences": differences(drawn, effects, correlations),
        "by_layer": by_layer(drawn),
        "precision": precisions(drawn),
        "steering": correlated(drawn, Measured.of(drawn, drawn[STEER]), seed=seed, also=(CAUSE,)),
    }


def sizes(column: Any) -> Any:
    """Return the place of every value's size among the different ones, from 0: what `rank_correlation` takes."""
    return places(np.abs(np.asarray(column, dtype=float)))


def places(column: Any) -> Any:
    """Return the same of values with their signs."""
    return np.unique(np.asarray(column, dtype=float), return_inverse=True)[1].astype(float)


def rank_correlation(one: Any, other: Any, axis: Any) -> Any:
    """Return Spearman's correlation of `sizes` or `places` along the last axis, `axis`; nan where a column is constant.

    Ranks are counted anew in every resample, which is faster than sorting it.
    """
    first, second = (_midranks(scores) for scores in (one, other))
    first, second = first - first.mean(-1, keepdims=True), second - second.mean(-1, keepdims=True)
    spread = np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
    return (first * second).sum(-1) / np.where(spread == 0, np.nan, spread)


def _midranks(column: Any) -> Any:
    rows = column.reshape(-1, column.shape[-1]).astype(np.int64)
    different = int(rows.max()) + 1
    flat = rows + different * np.arange(len(rows))[:, None]
    counts = np.bincount(flat.ravel(), minlength=different * len(rows)).reshape(len(rows), different)
    ranks = counts.cumsum(1) - (counts - 1) / 2
    return np.take_along_axis(ranks, rows, axis=1).reshape(column.shape)


def correlated(drawn: Any, measured: Measured, *, seed: int, also: Sequence[str] = ()) -> pd.DataFrame:
    """Return score, value, low, high, shuffled and units: rank correlations of sizes.

    `shuffled` is the size that one in twenty shuffles of the score within its layers exceeds: what knows the layers
    alone reads as that much.
    """
    return _correlations({name: sizes(drawn[name]) for name in (*SCORES, *also)}, measured, sizes, seed)


def signed_correlations(drawn: Any, measured: Measured, *, seed: int) -> pd.DataFrame:
    """Return the same of the scores that have a direction, with their signs, and the effect with its own."""
    return _correlations({name: places(drawn[signed_name(name)]) for name in SIGNED}, measured, places, seed)


def _correlations(
    columns: Mapping[str, Any], measured: Measured, placed: Callable[[Any], Any], seed: int
) -> pd.DataFrame:
    rows = []
    for name, score in columns.items():
        interval = over_levels(*measured.correlations(score, placed))
        about = {"value": interval.estimate, "low": max(interval.low, -1.0), "high": min(interval.high, 1.0)}
        null = measured.shuffled(score, placed, seed)
        rows.append({"score": name, **about, "shuffled": null, "units": len(score)})
    return pd.DataFrame(rows)


def by_layer(drawn: Any) -> pd.DataFrame:
    """Return score, layer, value and units: rank correlations of sizes within every layer."""
    rows = [
        (name, layer, float(rank_correlation(sizes(part[name]), sizes(part[CAUSE]), -1)), len(part))
        for layer, part in drawn.groupby("layer")
        for name in SCORES
    ]
    return pd.DataFrame(rows, columns=["score", "layer", "value", "units"])


def differences(drawn: Any, measured: Measured, correlations: Any) -> pd.DataFrame:
    """Hold every other score (after) against the cheap one of the largest correlation (before), over the same units.

    Intervals hold at once; that the best was chosen by the same units, they do not know. `best_low` and `best_high`
    bound the correlation of the best one, at the level at which they would bound that of every cheap score.
    """
    columns = ["best", "best_low", "best_high", "score", "before", "after", "change", "low", "high", "confidence"]
    cheap = correlations[correlations["score"].isin(CHEAP)].dropna(subset=["value"])
    if cheap.empty:
        return pd.DataFrame(columns=columns)
    best = str(cheap.sort_values("value", ascending=False)["score"].iloc[0])
    reference = measured.correlations(sizes(drawn[best]), sizes)
    alone = over_levels(*reference, confidence=1 - 0.05 / len(CHEAP))
    others = [name for name in (*CHEAP, EXACT, *SHUFFLED.values()) if name != best]
    confidence, rows = 1 - 0.05 / len(others), []
    for name in others:
        score = measured.correlations(sizes(drawn[name]), sizes)
        apart = [after - before for before, after in zip(reference, score, strict=True)]
        change = over_levels(*apart, confidence=confidence)
        values = (float(reference[0][0]), float(score[0][0]), change.estimate, change.low, change.high, confidence)
        rows.append((best, alone.low, alone.high, name, *values))
    return pd.DataFrame(rows, columns=columns)


def precisions(drawn: Any) -> pd.DataFrame:
    """Return score, at, k, value, chance and p: the share of a score's top k that are in the effect's top k.

    k is 50, a quarter of the units drawn at most, and as many as LinEAS keeps of them. p: of as many random units in
    common or more (hypergeometric), one-sided. Without k units above 0, a score has no top k: nan.
    """
    kept = int((drawn[LINEAS_WEIGHT] > 0).sum())
    n, rows = len(drawn), []
    for at, k in ((f"{_PRECISION_AT}", min(_PRECISION_AT, max(1, n // 4))), ("LinEAS's support", kept)):
        if not 0 < k < n:
            continue
        caused = set(drawn[CAUSE].abs().sort_values(ascending=False, kind="stable").index[:k])
        for name in SCORES:
            order = drawn[name].sort_values(ascending=False, kind="stable")
            common = len(caused & set(order.index[:k]))
            known = int((order > 0).sum()) >= k
            p = float(stats.hypergeom.sf(common - 1, n, k, k))
            value = common / k if known else np.nan
            about = {"at": at, "k": k, "value": value, "chance": k / n, "p": p if known else np.nan}
            rows.append({"score": name, **about, "units": n})
    return pd.DataFrame(rows, columns=["score", "at", "k", "value", "chance", "p", "units"])
