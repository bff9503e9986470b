"""How well the scores of units agree with what was measured of them: rank correlations, precision, and their nulls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

import lens_steer as ls
from analyses.causal_scores import CHEAP, EXACT, SHUFFLED, SIGNED, signed_name
from analyses.causal_scores import LINEAS as LINEAS_WEIGHT

SCORES = (*CHEAP, *SHUFFLED.values(), EXACT)
CAUSE, STEER = "effect", "steered"
_SHUFFLES = 500
_PRECISION_AT = 50


def tables(scores: Any, *, seed: int) -> dict[str, pd.DataFrame]:
    """Return what the table of scores says: correlations, signed, differences, by_layer, precision and steering."""
    drawn = scores[scores["drawn"]]
    correlations = correlated(drawn, CAUSE, seed=seed)
    layers = [correlated(part, CAUSE, seed=seed).assign(layer=layer) for layer, part in drawn.groupby("layer")]
    return {
        "correlations": correlations,
        "signed": signed_correlations(drawn, seed=seed),
        "differences": differences(drawn, correlations, seed=seed),
        "by_layer": pd.concat(layers, ignore_index=True),
        "precision": precisions(drawn),
        "steering": correlated(drawn, STEER, seed=seed, also=(CAUSE,)),
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
    first, second = (_midranks(each) for each in (one, other))
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


def correlated(drawn: Any, against: str, *, seed: int, also: Sequence[str] = ()) -> pd.DataFrame:
    """Return score, value, low, high, shuffled and units: rank correlations of sizes, intervals over units.

    `shuffled` is the size that one in twenty shuffles of the score exceeds; nothing reads as less.
    """
    columns = {name: sizes(drawn[name]) for name in (*SCORES, *also)}
    return _correlations(columns, sizes(drawn[against]), seed)


def signed_correlations(drawn: Any, *, seed: int) -> pd.DataFrame:
    """Return the same of the scores that have a direction, with their signs, and the effect with its own."""
    columns = {name: places(drawn[signed_name(name)]) for name in SIGNED}
    return _correlations(columns, places(drawn[CAUSE]), seed)


def _correlations(columns: Mapping[str, Any], truth: Any, seed: int) -> pd.DataFrame:
    rows = []
    for name, score in columns.items():
        value = float(rank_correlation(score, truth, -1))
        low, high = ls.change_interval(rank_correlation, score, truth, confidence=0.95, seed=seed)
        about = {"value": value, "low": max(low, -1.0), "high": min(high, 1.0)}
        rows.append({"score": name, **about, "shuffled": shuffled_size(score, truth, seed), "units": len(truth)})
    return pd.DataFrame(rows)


def shuffled_size(score: Any, truth: Any, seed: int) -> float:
    """Return the size of a rank correlation that one in twenty shuffles of a score's `sizes` exceeds."""
    shuffled = np.random.default_rng(seed).permuted(np.tile(score, (_SHUFFLES, 1)), axis=1)
    return float(np.quantile(np.abs(rank_correlation(shuffled, np.broadcast_to(truth, shuffled.shape), -1)), 0.95))


def differences(drawn: Any, correlations: Any, *, seed: int) -> pd.DataFrame:
    """Hold every other score (after) against the cheap one of the largest correlation (before), over the same units.

    Intervals hold at once; that the best was chosen by the same units, they do not know. `best_low` and `best_high`
    bound the correlation of the best one, at the level at which they would bound that of every cheap score.
    """
    cheap = correlations[correlations["score"].isin(CHEAP)].dropna(subset=["value"])
    if cheap.empty:
        return pd.DataFrame(
            columns=["best", "best_low", "best_high", "score", "before", "after", "change", "low", "high", "confidence"]
        )
    best = str(cheap.sort_values("value", ascending=False)["score"].iloc[0])
    values = correlations.set_index("score")["value"]
    truth, reference = (sizes(drawn[name]) for name in (CAUSE, best))
    alone = ls.change_interval(rank_correlation, reference, truth, confidence=1 - 0.05 / len(CHEAP), seed=seed)
    bounds = dict(zip(("best_low", "best_high"), alone, strict=True))
    others = [name for name in (*CHEAP, EXACT, *SHUFFLED.values()) if name != best]
    confidence = 1 - 0.05 / len(others)

    def change(one: Any, other: Any, effect: Any, axis: Any) -> Any:
        return rank_correlation(other, effect, axis) - rank_correlation(one, effect, axis)

    rows = []
    for name in others:
        score = sizes(drawn[name])
        low, high = ls.change_interval(change, reference, score, truth, confidence=confidence, seed=seed)
        about = {"before": values[best], "after": values[name], "change": values[name] - values[best]}
        rows.append(
            {"best": best, **bounds, "score": name, **about, "low": low, "high": high, "confidence": confidence}
        )
    return pd.DataFrame(rows)


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
