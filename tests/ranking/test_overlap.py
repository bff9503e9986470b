"""Overlap of experts: one of the same concept, chance of unrelated ones, and what is refused."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
import pytest

from lens_steer.errors import SettingError
from lens_steer.ranking.overlap import expert_overlap


def ranked(**auroc: np.ndarray) -> pd.DataFrame:
    """Make the frame of a ranking by these values, best first."""
    parts = [pd.DataFrame({"concept": c, "site": "s", "unit": range(len(a)), "auroc": a}) for c, a in auroc.items()]
    return pd.concat([part.sort_values("auroc", ascending=False) for part in parts])


def test_a_concept_shares_all_with_itself_and_nothing_with_its_opposite() -> None:
    area = np.linspace(0, 1, 50)
    table = expert_overlap(ranked(a=area, b=area, c=1 - area), 10).set_index(["concept", "other"])
    assert table.loc[("a", "b"), ["shared", "jaccard"]].tolist() == [10, 1.0]
    assert table.loc[("a", "b"), "p_value"] == pytest.approx(1 / comb(50, 10))
    assert table.loc[("a", "b"), "rank_correlation"] == pytest.approx(1)
    assert table.loc[("a", "c"), ["shared", "jaccard", "p_value"]].tolist() == [0, 0.0, 1.0]
    assert table.loc[("a", "c"), "rank_correlation"] == pytest.approx(-1)


def test_chance_is_the_mean_over_all_choices_and_unrelated_concepts_read_it() -> None:
    every = [set(choice) for choice in combinations(range(6), 2)]
    expected = np.mean([len(one & other) / len(one | other) for one in every for other in every])
    area = np.arange(6.0)
    assert expert_overlap(ranked(a=area, b=area), 2).chance[0] == pytest.approx(expected)
    rng = np.random.default_rng(0)
    tables = [expert_overlap(ranked(a=rng.random(60), b=rng.random(60)), 20) for _ in range(60)]
    table = pd.concat(tables)
    assert table.jaccard.mean() == pytest.approx(table.chance.iloc[0], abs=0.03)
    assert (table.p_value < 0.05).mean() < 0.15
    assert abs(table.rank_correlation.mean()) < 0.06


def test_what_has_no_overlap_is_refused() -> None:
    area = np.arange(5.0)
    with pytest.raises(SettingError, match="two concepts or more"):
        expert_overlap(ranked(a=area), 2)
    with pytest.raises(SettingError, match="1 to the 5 that are ranked, not 6"):
        expert_overlap(ranked(a=area, b=area), 6)
    with pytest.raises(SettingError, match="not 0"):
        expert_overlap(ranked(a=area, b=area), 0)


@pytest.mark.parametrize("k", [1, 5])
def test_the_smallest_and_the_largest_choice(k: int) -> None:
    """One unit of five is shared by chance in a fifth; all five always are."""
    row = expert_overlap(ranked(a=np.arange(5.0), b=np.arange(5.0)), k).iloc[0]
    assert (row.k, row.shared, row.jaccard) == (k, k, 1.0)
    assert row.chance == row.p_value == pytest.approx(k / 5)
