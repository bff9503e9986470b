"""Steerability: whether a contrast has one direction at all, before any effect; arrays in, arrays out."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from lens_steer.statistics.intervals import Interval
from lens_steer.statistics.jackknife import jackknife_interval


def mean_cosine(differences: Float[np.ndarray, "pair unit"]) -> float:
    """Return the mean cosine between differences of different pairs: 1 if all point one way, 0 on average if none do.

    nan for fewer than two pairs that differ at all.
    """
    size = np.linalg.norm(differences, axis=1, keepdims=True)
    ways = differences[size[:, 0] > 0] / size[size > 0][:, None]
    count = len(ways)
    if count < 2:
        return float("nan")
    return float((np.square(ways.sum(0)).sum() - count) / (count * (count - 1)))


def cosine_interval(differences: Float[np.ndarray, "pair unit"], *, confidence: float) -> Interval:
    """Return the mean cosine of differences with its jackknife interval over pairs."""
    left_out = [mean_cosine(np.delete(differences, place, axis=0)) for place in range(len(differences))]
    return jackknife_interval(mean_cosine(differences), np.array(left_out), confidence=confidence)


def cosine_null(
    source: Float[np.ndarray, "pair unit"],
    target: Float[np.ndarray, "pair unit"],
    *,
    paired: bool,
    confidence: float,
    draws: int = 200,
    seed: int = 0,
) -> float:
    """Return the value that the mean cosine exceeds with a probability of (1 - confidence) / 2 if sides mean nothing.

    Sides are exchanged within pairs, or among all texts where texts are paired at random.
    """
    rng, count = np.random.default_rng(seed), len(source)
    both = np.concatenate([source, target])
    nulls = []
    for _ in range(draws):
        if paired:
            nulls.append(mean_cosine((source - target) * rng.choice([-1.0, 1.0], size=(count, 1))))
        else:
            order = rng.permutation(2 * count)
            nulls.append(mean_cosine(both[order[:count]] - both[order[count:]]))
    return float(np.quantile(nulls, (1 + confidence) / 2))


def separation(
    source: Float[np.ndarray, "n unit"],
    target: Float[np.ndarray, "m unit"],
    *,
    blocks: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]],
    confidence: float,
) -> Interval:
    """Return d', the distance of the sides in their own standard deviations, on the way from one mean to the other.

    The way is that of the other half of the blocks, so that d' is 0 on average where there is nothing. The interval is
    a jackknife over blocks that holds the two ways.
    """
    numbers, place = np.unique(np.concatenate(blocks), return_inverse=True)
    half = (place % 2).astype(bool)
    sides = np.split(half, [len(source)])
    scores = [np.zeros(len(side)) for side in (source, target)]
    for of_half in (False, True):
        kept = [values[side != of_half] for values, side in zip((source, target), sides, strict=True)]
        if min(map(len, kept)) == 0:
            return Interval(float("nan"), float("nan"), float("nan"), confidence)
        means = [values.mean(0) for values in kept]
        way = means[0] - means[1]
        way = way / (np.linalg.norm(way) or 1.0)
        for score, values, side in zip(scores, (source, target), sides, strict=True):
            score[side == of_half] = (values[side == of_half] - (means[0] + means[1]) / 2) @ way
    block_of = np.split(place, [len(source)])
    left_out = [
        _apart(*(score[of != number] for score, of in zip(scores, block_of, strict=True)))
        for number in range(len(numbers))
    ]
    return jackknife_interval(_apart(*scores), np.array(left_out), confidence=confidence)


def _apart(source: Float[np.ndarray, " n"], target: Float[np.ndarray, " m"]) -> float:
    if min(len(source), len(target)) < 2:
        return float("nan")
    spread = np.sqrt((source.var(ddof=1) + target.var(ddof=1)) / 2)
    return float((source.mean() - target.mean()) / spread) if spread > 0 else float("nan")
