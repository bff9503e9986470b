"""The variance of an AUROC whose texts come in clusters (Obuchowski, Biometrics 1997)."""

import numpy as np
from jaxtyping import Float, Int

from lens_steer.statistics.ties import doubled_midranks


def clustered_delong_variance(
    source: Float[np.ndarray, "unit n"],
    target: Float[np.ndarray, "unit m"],
    source_clusters: Int[np.ndarray, " n"],
    target_clusters: Int[np.ndarray, " m"],
) -> Float[np.ndarray, " unit"]:
    """Return, per unit, DeLong's variance with clusters in the place of texts.

    A text's placement is the share of the other side that it lies above. Placements vary between clusters by their
    sums, and a cluster of both sides counts with the product of its two sums. Clusters of one text give DeLong's
    variance, copies of every text that of the texts alone.
    """
    n, m = source.shape[1], target.shape[1]
    ranks = doubled_midranks(np.concatenate([source, target], axis=1))
    above = (ranks[:, :n] - doubled_midranks(source)) / (2 * m)
    below = (ranks[:, n:] - doubled_midranks(target)) / (2 * n)
    area = above.mean(1, keepdims=True)
    _, cluster = np.unique(np.concatenate([source_clusters, target_clusters]), return_inverse=True)
    count = int(cluster.max()) + 1
    sums = [
        _cluster_sums(deviation / deviation.shape[1], members, count)
        for deviation, members in ((above - area, cluster[:n]), (1 - below - area, cluster[n:]))
    ]
    sizes = [len(np.unique(clusters)) for clusters in (source_clusters, target_clusters)]
    weights = [size / max(size - 1, 1) for size in sizes]
    both = 2 * np.sqrt(weights[0] * weights[1]) * (sums[0] * sums[1]).sum(1)
    variance = weights[0] * (sums[0] ** 2).sum(1) + weights[1] * (sums[1] ** 2).sum(1) + both
    return np.asarray(np.maximum(variance, 0.0))


def _cluster_sums(
    values: Float[np.ndarray, "unit text"], members: Int[np.ndarray, " text"], count: int
) -> Float[np.ndarray, "unit cluster"]:
    order = np.argsort(members, kind="stable")
    present, first = np.unique(members[order], return_index=True)
    sums = np.zeros((len(values), count))
    sums[:, present] = np.add.reduceat(values[:, order], first, axis=1)
    return sums
