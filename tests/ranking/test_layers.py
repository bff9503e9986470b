"""Layer profile: chance where units are placed at random, and the layer that holds all experts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from lens_steer.errors import SettingError
from lens_steer.ranking.layers import layer_profile


def ranked(order: np.ndarray, *, per_site: int, concept: str = "a") -> pd.DataFrame:
    """Make the frame of a ranking: unit numbers over all sites, best first."""
    layer = order // per_site
    return pd.DataFrame({"concept": concept, "site": [f"blocks.{n}" for n in layer], "layer": layer, "unit": order})


def test_experts_of_one_layer_lie_there_and_nowhere_else() -> None:
    table = layer_profile(ranked(np.arange(400), per_site=100), 60)
    assert table.experts.tolist() == [60, 0, 0, 0]
    assert table.verdict.tolist() == ["higher", "lower", "lower", "lower"]
    assert table.chance.tolist() == [0.25] * 4
    exact = binomtest(60, 60).proportion_ci(1 - 0.05 / 4, method="exact")
    assert (table.low[0], table.high[0]) == pytest.approx((exact.low, 1.0))


def test_random_places_are_told_from_chance_as_rarely_as_promised() -> None:
    rng = np.random.default_rng(0)
    told = [
        (layer_profile(ranked(rng.permutation(200), per_site=50), 40)["verdict"] != "not shown").any()
        for _ in range(40)
    ]
    assert np.mean(told) <= 0.15


def test_every_row_is_clopper_and_pearsons_for_all_sites_at_once() -> None:
    """Twelve layers of unequal sites, in the order of their numbers and not of their names."""
    layers = np.random.default_rng(2).permutation(np.repeat(np.arange(12), np.arange(12) + 1))
    frame = pd.DataFrame({"concept": "a", "site": [f"blocks.{n}" for n in layers], "layer": layers, "unit": 0})
    table = layer_profile(frame, 30, confidence=0.8)
    assert table.layer.tolist() == list(range(12))
    assert table.k.eq(30).all()
    for row in table.itertuples():
        assert row.site == f"blocks.{row.layer}"
        assert row.experts == (layers[:30] == row.layer).sum()
        assert row.share == pytest.approx(row.experts / 30)
        assert row.chance == pytest.approx((row.layer + 1) / 78)
        exact = binomtest(row.experts, 30).proportion_ci(1 - 0.2 / 12, method="exact")
        assert (row.low, row.high) == pytest.approx((exact.low, exact.high))


def test_shares_add_up_per_concept_and_k_is_checked() -> None:
    rng = np.random.default_rng(1)
    frame = pd.concat([ranked(rng.permutation(60), per_site=20, concept=name) for name in "ba"])
    table = layer_profile(frame, 30)
    assert table["concept"].drop_duplicates().tolist() == ["b", "a"]  # in their own order
    assert table.groupby("concept")["share"].sum().tolist() == pytest.approx([1, 1])
    for k in (61, 0):
        with pytest.raises(SettingError, match=f"1 to the 60 that are ranked, not {k}"):
            layer_profile(frame, k)
    assert layer_profile(frame, 60)["share"].eq(1 / 3).all()
    assert layer_profile(frame, 1)["experts"].sum() == 2
