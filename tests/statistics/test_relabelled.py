"""AUROC of many labellings against one at a time, and statistics of 100,000 texts that hold few values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lens_steer.statistics.comparison import compare_sides
from lens_steer.statistics.relabelled import relabelled_auroc, relabelled_distance
from lens_steer.statistics.scores import auroc
from lens_steer.statistics.significance import interval_of_variance, mann_whitney_p


@pytest.mark.parametrize("decimals", [0, 6])
def test_every_labelling_has_the_auroc_of_its_sides(decimals: int) -> None:
    rng = np.random.default_rng(0)
    values = torch.tensor(rng.standard_normal((30, 12)).round(decimals))
    labels = rng.random((20, 30)) < 0.4
    got = relabelled_auroc(values, labels)
    for row, label in zip(got, labels, strict=True):
        np.testing.assert_allclose(row, auroc(values[label], values[~label]), atol=1e-12)


def test_every_labelling_has_the_distance_of_its_sides() -> None:
    """Also far from 0, of a unit that is constant, and of one that tells the sides without varying within them."""
    rng = np.random.default_rng(1)
    values = torch.tensor(rng.standard_normal((30, 4)) + 1e4, dtype=torch.float32)
    values[:, 2] = 0.1
    labels = np.stack([rng.permutation(np.arange(30) < 12) for _ in range(9)])
    values[:, 3] = torch.from_numpy(labels[0]) * 2.0
    got = relabelled_distance(values, labels)
    for row, label in zip(got, labels, strict=True):
        np.testing.assert_allclose(row[:3], compare_sides(values, label.astype(int)).distance[:3], rtol=1e-6)
    assert got[0, 3] > 1e6
    assert (got[1:, 3] < 10).all()


def test_a_hundred_thousand_texts_of_one_token() -> None:
    """A unit takes one value per token: with one token all tie, with two the closed form is known."""
    n, m = 60_000, 40_000
    label = np.repeat([1, 0], [n, m])
    ones = {"source": 30_000, "target": 10_000}
    values = torch.zeros(n + m, 3)
    values[: ones["source"], 1] = 1
    values[n : n + ones["target"], 1] = 1
    values[:n, 2] = 1
    got = compare_sides(values, label)
    p, q = ones["source"] / n, ones["target"] / m
    assert got.auroc.tolist() == [0.5, 0.5 + (p - q) / 2, 1.0]
    variance = (p * (1 - p) / (n - 1) + q * (1 - q) / (m - 1)) / 4
    assert got.variance.tolist() == pytest.approx([0, variance, 0], rel=1e-12)
    assert got.wasserstein.tolist() == pytest.approx([0, p - q, 1])
    ends = interval_of_variance(got.auroc, got.variance, (n, m), confidence=0.95)
    assert ends.degenerate.tolist() == [True, False, True]
    assert ends.low[0] < 0.5 < ends.high[0]
    assert mann_whitney_p(values[:n], values[n:])[0] == 1
