"""Intervals over several levels, such as texts and fits, of what drawing texts again with replacement would bias."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

import lens_steer as ls

Cases = Float[np.ndarray, "fit case"]
"""A statistic of every fit: on all texts, then without each group of them."""


def over_levels(
    estimate: Float[np.ndarray, " value"], *left_out: Float[np.ndarray, " _"], confidence: float = 0.95
) -> ls.Interval:
    """Return the interval of a statistic whose cases vary on several levels, such as pairs of texts and units.

    `left_out` has, per level, the statistic without each group of it: the variances of their jackknives add. Student's
    quantile has the degrees of freedom of the smallest level. A level without groups is held fixed; nan ends where
    none has two groups, or where a value is missing.
    """
    value, levels = float(estimate[0]), [level for level in left_out if len(level)]
    if not levels or min(map(len, levels)) < 2 or not np.isfinite([value, *np.concatenate(levels)]).all():
        return ls.Interval(value, math.nan, math.nan, confidence)
    variance = sum(float((len(level) - 1) * level.var()) for level in levels)
    half = float(stats.t.ppf((1 + confidence) / 2, min(map(len, levels)) - 1)) * math.sqrt(variance)
    return ls.Interval(value, value - half, value + half, confidence)


def over_fits(cases: Cases, *, confidence: float = 0.95) -> ls.Interval:
    """Return the mean over fits with its interval, which knows how texts vary and how fits vary.

    Over texts: the delete-a-group jackknife of the mean over fits. Over fits, each from texts of its own: the variance
    of their mean. Student's quantile has the degrees of freedom of the smaller level. With a single fit the interval is
    over texts alone; nan ends where a value is missing.
    """
    estimate = float(cases[:, 0].mean())
    if cases.shape[1] < 3 or not np.isfinite(cases).all():
        return ls.Interval(estimate, math.nan, math.nan, confidence)
    half = _quantile(cases, confidence) * math.sqrt(_covariance(cases, cases))
    return ls.Interval(estimate, estimate - half, estimate + half, confidence)


def _covariance(one: Cases, other: Cases) -> float:
    """Return the covariance of the means over fits of two statistics of the same fits and texts, of both levels."""
    (fits, cases), (first, second) = one.shape, (values[:, 1:].mean(0) for values in (one, other))
    factor: float = (cases - 2) / (cases - 1)
    of_texts = factor * float((first - first.mean()) @ (second - second.mean()))
    of_fits = float(np.cov(one[:, 0], other[:, 0])[0, 1]) / fits if fits > 1 else 0.0
    return of_texts + of_fits


def _quantile(cases: Cases, confidence: float) -> float:
    """Return Student's quantile at the degrees of freedom of the smaller level."""
    fits, groups = cases.shape[0], cases.shape[1] - 1
    return float(stats.t.ppf((1 + confidence) / 2, min(groups, fits if fits > 1 else groups) - 1))


def ratio_over_fits(part: Cases, whole: Cases, *, confidence: float = 0.95) -> ls.Interval:
    """Return the mean of `part` over the mean of `whole`, of the same fits and texts, with Fieller's interval (1954).

    The interval holds the ratios r at which part - r whole is not shown to differ from 0. nan ends where the whole
    itself is not: nothing is known of a share of what may be nothing.
    """
    parts, wholes = float(part[:, 0].mean()), float(whole[:, 0].mean())
    unknown = ls.Interval(parts / wholes if wholes else math.nan, math.nan, math.nan, confidence)
    if part.shape[1] < 3 or not (np.isfinite(part).all() and np.isfinite(whole).all()):
        return unknown
    squared = _quantile(whole, confidence) ** 2
    a = wholes**2 - squared * _covariance(whole, whole)
    if a <= 0:
        return unknown
    b = parts * wholes - squared * _covariance(part, whole)
    c = parts**2 - squared * _covariance(part, part)
    root = math.sqrt(max(b**2 - a * c, 0.0))
    return ls.Interval(unknown.estimate, (b - root) / a, (b + root) / a, confidence)


def change_over_fits(before: Cases, after: Cases, *, confidence: float = 0.95) -> dict[str, Any]:
    """Return before, after, change, low, high and confidence of two edits that were fitted on the same texts."""
    change = over_fits(after - before, confidence=confidence)
    values = {"before": float(before[:, 0].mean()), "after": float(after[:, 0].mean()), "change": change.estimate}
    return {**values, "low": change.low, "high": change.high, "confidence": confidence}


def value_over_fits(cases: Cases, *, confidence: float = 0.95) -> dict[str, float]:
    """Return value, low, high and confidence."""
    interval = over_fits(cases, confidence=confidence)
    return {"value": interval.estimate, "low": interval.low, "high": interval.high, "confidence": confidence}


def removed_in_all(estimates: Mapping[Any, Mapping[Any, Any]]) -> dict[Any, Float[np.ndarray, " case"]]:
    """Return what each edit removes of the held-out distance, added up over layers.

    `estimates` are those of `downstream_shift` for each of several edits on the same texts. A layer that comes before
    an edit loses nothing to it; layers where source and target are not shown to differ are left out for all.
    """
    apart: dict[int, Any] = {}
    removed: dict[Any, dict[int, Any]] = {key: {} for key in estimates}
    for key, values in estimates.items():
        for (texts, edited, layer, measure), cases in values.items():
            if texts == "heldout" and edited == "all" and measure in ("apart", "removed"):
                (apart if measure == "apart" else removed[key])[layer] = cases
    judged = [
        layer
        for layer in apart
        if all(np.isfinite(layers.get(layer, np.zeros(1))).all() for layers in removed.values())
    ]
    cases = len(next(iter(apart.values())))
    if not judged:
        return dict.fromkeys(estimates, np.full(cases, np.nan))
    total = sum(apart[layer] for layer in judged)
    return {
        key: sum(apart[layer] * layers.get(layer, np.zeros(cases)) for layer in judged) / total
        for key, layers in removed.items()
    }
