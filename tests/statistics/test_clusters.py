"""The variance of an AUROC between clusters, where it has a closed form."""

from __future__ import annotations

import numpy as np
import pytest

from lens_steer.statistics.clusters import clustered_delong_variance


def placements(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for every text of each side the share of the other that it is told from, ties as a half."""
    above = np.sign(source[:, None] - target[None]) / 2 + 0.5
    return above.mean(1), above.mean(0)


@pytest.mark.parametrize("pairs", [2, 12])
def test_of_pairs_it_is_the_variance_of_a_mean_over_pairs(pairs: int) -> None:
    """A pair moves the AUROC by both its placements together; clusters may have any numbers, in any order."""
    rng = np.random.default_rng(pairs)
    shared = rng.normal(size=(3, pairs))
    source, target = ((shared + rng.normal(size=(3, pairs))).round(1).astype(np.float32) for _ in range(2))
    order = rng.permutation(pairs)
    number = 10 * np.arange(pairs)
    got = clustered_delong_variance(source, target[:, order], number, number[order])
    for unit in range(3):
        both = np.add(*placements(source[unit], target[unit]))
        assert got[unit] == pytest.approx(both.var(ddof=1) / pairs)


def test_clusters_of_a_side_vary_by_their_sums() -> None:
    """Two sources to a cluster, targets alone: the closed form side by side."""
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(1, 10)).astype(np.float32), rng.normal(size=(1, 7)).astype(np.float32)
    above, told = placements(source[0], target[0])
    got = clustered_delong_variance(source, target, np.arange(10) // 2, 50 + np.arange(7))
    assert got[0] == pytest.approx(above.reshape(5, 2).mean(1).var(ddof=1) / 5 + told.var(ddof=1) / 7)


def test_sides_are_treated_alike() -> None:
    """Clusters of both sides and of one, more of them on the target's: turned round, the variance is the same."""
    rng = np.random.default_rng(3)
    source, target = rng.normal(size=(4, 6)).astype(np.float32), rng.normal(size=(4, 15)).astype(np.float32)
    clusters = np.repeat(np.arange(3), 2), np.arange(15) // 2
    one, other = (
        clustered_delong_variance(source, target, *clusters),
        clustered_delong_variance(target, source, *clusters[::-1]),
    )
    np.testing.assert_allclose(one, other, rtol=1e-12)


def test_one_cluster_has_no_spread() -> None:
    sides = np.random.default_rng(1).normal(size=(2, 1, 6)).astype(np.float32)
    assert clustered_delong_variance(*sides, np.zeros(6, int), np.zeros(6, int))[0] == pytest.approx(0, abs=1e-15)
