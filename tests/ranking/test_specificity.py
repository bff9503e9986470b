"""Specificity: a unit of one concept, a unit of two, labels that mean nothing."""

from __future__ import annotations

import pytest
import torch

from lens_steer.errors import SettingError
from lens_steer.ranking.experts import ExpertRanking, rank_experts
from tests.ranking.test_overlap import labelled

TEXTS = 400


def ranking_of(values: torch.Tensor, *labels: torch.Tensor) -> ExpertRanking:
    return rank_experts(labelled(values, *labels), holdout=0.5)


def draws(seed: int, units: int = 30) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    labels = [(torch.rand(TEXTS, generator=generator) < 0.5).long() for _ in range(3)]
    return torch.randn(TEXTS, units, generator=generator), labels


def test_a_unit_of_one_concept_is_specific_and_one_of_two_is_not() -> None:
    values, (a, b, c) = draws(0)
    values[:, 3] += 4 * a
    values[:, 4] += 4 * b
    values[:, 5] += 3 * a - 3 * c  # tells c as well, the other way round
    table = ranking_of(values, a, b, c).specificity(2).set_index(["concept", "unit"])
    assert table.loc[("a", 3), "specific"]
    assert table.loc[("b", 4), "specific"]
    both = table.loc[("a", 5)]
    assert not both.specific
    assert both.other == "c"
    assert both.other_auroc < 0.5
    assert table.loc[("a", 3), "auroc"] > 0.99
    assert (table.low <= table.auroc).all()
    assert (table.auroc <= table.high).all()


def test_a_concept_and_its_opposite_have_nothing_specific() -> None:
    values, (a, *_) = draws(1)
    values[:, :5] += 4 * a[:, None]
    table = ranking_of(values, a, 1 - a).specificity(5)
    assert not table["specific"].any()
    assert (table["other_auroc"] < 0.5)[table["concept"] == "a"].all()


def test_for_labels_that_mean_nothing_nothing_is_specific() -> None:
    told = 0
    for seed in range(8):
        values, labels = draws(seed, units=60)
        told += bool(ranking_of(values, *labels).specificity(10)["specific"].any())
    assert told <= 2


def test_it_needs_held_out_texts_and_a_second_concept() -> None:
    values, (a, b, _) = draws(2)
    with pytest.raises(SettingError, match="chose no unit: rank with holdout"):
        rank_experts(labelled(values, a, b), holdout=None).specificity()
    with pytest.raises(SettingError, match="rank two or more"):
        ranking_of(values, a).specificity()
    first, second = labelled(values[:200], a[:200], b[:200]), labelled(values[200:], a[200:], b[200:])
    given = rank_experts(first, holdout=second).specificity(3)
    assert given["auroc"].between(0, 1).all()
