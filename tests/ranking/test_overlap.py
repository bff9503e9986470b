"""Overlap of experts: one of the same concept, chance of unrelated ones, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from math import comb

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import hypergeom, spearmanr

from lens_steer.activations.activations import Activations
from lens_steer.errors import SettingError
from lens_steer.ranking.experts import rank_experts
from lens_steer.ranking.halves import halves
from lens_steer.ranking.label_test import design_of
from lens_steer.ranking.overlap import expert_overlap
from lens_steer.statistics.relabelled import relabelled_auroc
from lens_steer.statistics.scores import auroc

SITE = "blocks.0.mlp.hook_post"


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
    inside = (table.jaccard >= table.chance_low) & (table.jaccard <= table.chance_high)
    assert inside.mean() >= 0.9
    assert table.chance.between(table.chance_low, table.chance_high).all()


def labelled(values: torch.Tensor, *labels: torch.Tensor) -> Activations:
    """Make activations of one table of texts with a column of labels per concept."""
    one = Activations.from_arrays(source={SITE: values[:1]}, target={SITE: values[1:]})
    names = tuple("abcdef"[: len(labels)])
    return replace(one, labels=torch.stack(labels, dim=1).to(torch.int8), concepts=names)


def test_shuffled_labels_know_units_that_copy_each_other() -> None:
    """Ten units, each twenty times: two unrelated concepts share whole crowds, and the hypergeometric p believes it."""
    few = 0
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        values = torch.randn(80, 10, generator=generator).repeat(1, 20)
        values += 0.01 * torch.randn(80, 200, generator=generator)
        a, b = ((torch.rand(80, generator=generator) < 0.5).long() for _ in range(2))
        table = rank_experts(labelled(values, a, b), holdout=None).overlap(40, permutations=99)
        few += int(table.shuffled_p[0] <= 0.05) + int(table.correlation_p[0] <= 0.05)
        assert 0 <= table.shuffled_jaccard[0] < 0.6
    assert few <= 3


def test_shuffled_labels_never_reach_what_two_equal_concepts_share() -> None:
    values = torch.randn(60, 100, generator=torch.Generator().manual_seed(1))
    label = (torch.arange(60) % 2).long()
    values[label == 1, :10] += 2
    ranking = rank_experts(labelled(values, label, label, 1 - label), holdout=0.5)
    table = ranking.overlap(10, permutations=49).set_index(["concept", "other"])
    same, opposite = table.loc[("a", "b")], table.loc[("a", "c")]
    assert (same.jaccard, same.shuffled_p, same.correlation_p) == (1.0, 1 / 50, 1 / 50)
    assert (opposite.jaccard, opposite.shuffled_p, opposite.correlation_p) == (0.0, 1.0, 1 / 50)
    pd.testing.assert_frame_equal(ranking.overlap(10, permutations=49), ranking.overlap(10, permutations=49))
    with pytest.raises(SettingError, match="permutations must be 1 or more"):
        ranking.overlap(10, permutations=-1)


def test_the_ends_of_chance_are_quantiles_of_the_hypergeometric_law() -> None:
    area = np.arange(60.0)
    for confidence in (0.95, 0.8):
        row = expert_overlap(ranked(b=area, a=area), 20, confidence=confidence).iloc[0]
        assert (row.concept, row.other) == ("b", "a")  # in their own order
        ends = hypergeom(60, 20, 20).ppf([0.5 - confidence / 2, 0.5 + confidence / 2])
        assert [row.chance_low, row.chance_high] == pytest.approx([shared / (40 - shared) for shared in ends])


def test_every_shuffled_column_is_that_of_rankings_of_shuffled_labels() -> None:
    """Two sites, half the texts held out: against one ranking for every labelling."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(40, 12, generator=generator)
    label, other = (
        (torch.rand(40, generator=generator) < 0.5).long(),
        (torch.rand(40, generator=generator) < 0.5).long(),
    )
    values[:, ::2] += label[:, None] + 0.7 * other[:, None]
    sites = {SITE: values[:, :5], "blocks.1.mlp.hook_post": values[:, 5:]}
    one = Activations.from_arrays(
        source={site: part[:1] for site, part in sites.items()}, target={site: part[1:] for site, part in sites.items()}
    )
    acts = replace(one, labels=torch.stack([label, other], dim=1).to(torch.int8), concepts=("a", "b"))
    ranking = rank_experts(acts, holdout=0.5)
    row = ranking.overlap(4, permutations=9, seed=5).iloc[0]
    best = set(map(str, ranking.concept("a").units(4)))
    area = ranking.concept("a").frame.set_index(["site", "unit"])["auroc"].sort_index()
    chose = halves(acts.concept("b"), 0.5, 0)[0]
    shared, correlation = [], []
    for part in (acts.concept("b"), acts.concept("b").rows(chose)):
        for labels in design_of(part).relabelled(9, 6):  # the seed, and the place of the concept
            shuffled = replace(part, labels=torch.tensor(labels)[:, None].to(torch.int8))
            again = rank_experts(shuffled, holdout=None)
            if len(part.labels) == 40:
                values_again = again.frame.set_index(["site", "unit"])["auroc"].sort_index()
                correlation.append(spearmanr(area, values_again).statistic)
            else:
                shared.append(len(best & set(map(str, again.units(4)))))
    counts = np.array(shared)
    assert row.shuffled_jaccard == pytest.approx((counts / (8 - counts)).mean())
    assert row.shuffled_p == pytest.approx((1 + (counts >= row.shared).sum()) / 10)
    reached = np.abs(correlation) >= abs(row.rank_correlation)
    assert row.correlation_p == pytest.approx((1 + reached.sum()) / 10)
    assert 0 < row.shared < 4


@pytest.mark.parametrize("units", [10, 40, 300])
def test_a_labelling_like_the_given_one_is_as_extreme_as_it(units: int) -> None:
    """Of three texts a side every tenth labelling is the given one or its reverse: both p-values count them all."""
    values, label = torch.randn(6, units, generator=torch.Generator().manual_seed(2)), torch.tensor([1, 0, 1, 0, 1, 0])
    acts = labelled(values, label, label)
    row = rank_experts(acts, holdout=None).overlap(units // 4, permutations=400, seed=3).iloc[0]
    drawn = design_of(acts.concept("b")).relabelled(400, 4) == (label == 1).numpy()
    given, reverse = drawn.all(1).sum(), (~drawn).all(1).sum()
    assert given + reverse == pytest.approx(40, abs=20)
    assert row.correlation_p == pytest.approx((1 + given + reverse) / 401)
    assert row.shuffled_p == pytest.approx((1 + given) / 401)
    # Of two concepts too, whose correlation is no round number.
    acts = labelled(values, torch.tensor([1, 1, 1, 0, 0, 0]), label)
    row = rank_experts(acts, holdout=None).overlap(units // 4, permutations=100, seed=3).iloc[0]
    area = auroc(values[:3], values[3:])
    drawn = design_of(acts.concept("b")).relabelled(100, 4)
    sizes = [abs(spearmanr(area, shuffled).statistic) for shuffled in relabelled_auroc(acts.values[SITE], drawn)]
    assert row.correlation_p == pytest.approx((1 + sum(np.array(sizes) > abs(row.rank_correlation) - 1e-9)) / 101)


def test_one_permutation_is_one_labelling_beside_the_given_one() -> None:
    values, label = torch.randn(40, 12, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    table = rank_experts(labelled(values, label, 1 - label), holdout=None).overlap(3, permutations=1)
    assert set(table["shuffled_p"]) | set(table["correlation_p"]) <= {0.5, 1.0}
    assert (table["resolution"] == 0.5).all()


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
