"""Specificity: a unit of one concept, a unit of two, labels that mean nothing."""

from __future__ import annotations

import pytest
import torch

from lens_steer.errors import SettingError
from lens_steer.ranking.experts import ExpertRanking, rank_experts
from lens_steer.statistics.scores import auroc
from lens_steer.statistics.significance import auroc_interval
from tests.ranking.test_overlap import SITE, labelled

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


def test_every_column_is_what_it_says() -> None:
    """Two units of three concepts make 18 looks at once; the other concept is the one that is told best either way."""
    values, (a, b, c) = draws(3, units=8)
    values[:, 2] += 4 * a - 1.2 * b + 0.5 * c
    first, second = (labelled(values[rows], a[rows], b[rows], c[rows]) for rows in (slice(200), slice(200, 400)))
    ranking = rank_experts(first, holdout=second.rows(torch.arange(200).repeat(2)))  # copies are one block
    table = ranking.specificity(2, confidence=0.9)
    assert len(table) == 6
    for name in "abc":
        of_concept = table[table["concept"] == name]
        assert of_concept["unit"].tolist() == ranking.concept(name).frame["unit"][:2].tolist()
    measured = {name: second.concept(name) for name in "abc"}
    for row in table.itertuples():
        areas = {}
        for name, texts in measured.items():
            sides = texts.source[SITE][:, [row.unit]], texts.target[SITE][:, [row.unit]]
            area = auroc(*sides)
            ends = auroc_interval(*sides, area, confidence=1 - 0.1 / 18)
            areas[name] = area.item(), ends.low.item(), ends.high.item()
        assert (row.site, row.layer) == (SITE, 0)
        assert (row.auroc, row.low, row.high) == pytest.approx(areas.pop(row.concept))
        best = max(areas, key=lambda name: abs(areas[name][0] - 0.5))
        assert row.other == best
        assert (row.other_auroc, row.other_low, row.other_high) == pytest.approx(areas[best])
        away = max(max(high, 1 - low) for _, low, high in areas.values())
        assert row.specific == (row.low > max(away, 0.5))
    assert table["specific"].any()
    assert not table["specific"].all()


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
