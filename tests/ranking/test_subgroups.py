"""Subgroups: a unit that works in one of them alone, chance, and which subgroups chose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lens_steer.activations.activations import Activations
from lens_steer.errors import ActivationError
from lens_steer.ranking.experts import rank_experts
from lens_steer.ranking.subgroups import subgroup_auroc
from lens_steer.statistics.scores import auroc
from lens_steer.statistics.significance import auroc_interval
from tests.ranking.test_overlap import SITE, labelled


def of_groups(seed: int = 0, *, effect: float = 3.0) -> Activations:
    """Six authors with 20 texts a side each; unit 0 tells the sides for the first author alone, unit 1 for all."""
    generator = torch.Generator().manual_seed(seed)
    values, label = torch.randn(240, 8, generator=generator), torch.arange(240) % 2
    author = torch.arange(240) // 40
    values[:, 0] += effect * ((author == 0) & (label == 1))
    values[:, 1] += effect * label
    groups = tuple(f"author {number}" for number in author.tolist())
    return replace(labelled(values, label), groups=groups, blocks=author)


def test_every_subgroup_has_its_auroc_and_says_whether_it_chose() -> None:
    acts = of_groups()
    ranking = rank_experts(acts, holdout=0.5)
    table = ranking.subgroups(8)
    assert len(table) == 6 * 8
    values, label = acts.values[SITE].numpy(), acts.labels[:, 0].numpy()
    for row in table.to_dict("records"):
        inside = np.array(acts.groups) == row["group"]
        assert row["auroc"] == pytest.approx(roc_auc_score(label[inside], values[inside, row["unit"]]))
        assert row["low"] <= row["auroc"] <= row["high"]
        assert (row["source_texts"], row["target_texts"]) == (20, 20)
    assert table.groupby("group")["chose"].first().sum() == 3  # authors are never parted
    shown = table.assign(told=table["low"] > 0.5).groupby("unit")["told"].sum()
    assert (shown[0], shown[1]) == (1, 6)
    assert rank_experts(acts, holdout=None).subgroups(1)["chose"].all()
    single = labelled(acts.values[SITE][:, 1:2], acts.labels[:, 0])
    alone = rank_experts(replace(single, groups=acts.groups, blocks=acts.blocks), holdout=None).subgroups()
    np.testing.assert_array_equal(alone["auroc"], table[table["unit"] == 1]["auroc"])


@pytest.mark.parametrize("times", [1, 3])
def test_the_interval_is_that_of_the_texts_of_a_subgroup_once_each(times: int) -> None:
    """Two authors are two looks at once, texts without a name none; three copies of every text change nothing."""
    acts = of_groups(3).rows(torch.arange(120))
    groups = tuple(name if name != "author 2" else None for name in acts.groups or ())
    once = replace(acts, groups=groups, blocks=torch.arange(120), hashes=torch.arange(120)[:, None])
    many = once.rows(torch.arange(120).repeat(times))
    table = rank_experts(many, holdout=None).subgroups(3, confidence=0.9)
    assert table["group"].drop_duplicates().tolist() == ["author 0", "author 1"]
    for row in table.itertuples():
        inside = np.array([name == row.group for name in groups])
        side = once.labels[:, 0].numpy()
        source, target = (once.values[SITE][inside & (side == label)][:, [row.unit]] for label in (1, 0))
        ends = auroc_interval(source, target, auroc(source, target), confidence=0.95)
        assert (row.low, row.high) == pytest.approx((ends.low.item(), ends.high.item()))
        assert (row.site, row.source_texts, row.target_texts) == (SITE, 20 * times, 20 * times)


def test_a_subgroup_chose_where_one_of_its_texts_did() -> None:
    acts = of_groups()
    units = rank_experts(acts, holdout=None).units(1)
    chose = np.zeros(240, dtype=bool)
    chose[[0, 41, 200]] = True
    assert subgroup_auroc(acts, units, chose=chose)["chose"].tolist() == [True, True, False, False, False, True]


def test_noise_is_told_in_no_subgroup() -> None:
    table = rank_experts(of_groups(4, effect=0.0), holdout=None).subgroups(8)
    assert ((table["low"] > 0.5) | (table["high"] < 0.5)).sum() <= 2


def test_texts_without_subgroups_are_refused() -> None:
    acts = of_groups()
    with pytest.raises(ActivationError, match="name no subgroup: give groups="):
        rank_experts(replace(acts, groups=None)).subgroups()
    one_side = tuple("source" if label else "target" for label in acts.labels[:, 0].tolist())
    with pytest.raises(ActivationError, match="no subgroup holds texts of both sides"):
        rank_experts(replace(acts, groups=one_side)).subgroups()
