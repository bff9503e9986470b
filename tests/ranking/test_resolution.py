"""How small p and q can become: the perfect unit, by every test, and the sentence that says so."""

from __future__ import annotations

import re
from dataclasses import replace
from math import comb, isnan

import pytest
import torch

from lens_steer.activations.activations import Activations
from lens_steer.ranking.experts import rank_experts
from lens_steer.ranking.resolution import resolution_sentence
from tests.ranking.test_streaming import SITE, of_arrays


def arrays(n: int, units: int = 40, *, tied: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, and a unit that tells the sides perfectly."""
    source, target = torch.randn(2, n, units, generator=torch.Generator().manual_seed(0))
    source[:, 0], target[:, 0] = (1.0, 0.0) if tied else (torch.arange(n) + 1.0 + n, torch.arange(n) * 1.0)
    return source, target


@pytest.mark.parametrize("n", [5, 30])
@pytest.mark.parametrize("tied", [False, True])
def test_no_p_value_is_smaller_and_a_perfect_unit_reaches_it(n: int, tied: bool) -> None:
    source, target = arrays(n, tied=tied)
    ranking = rank_experts(Activations.from_arrays(source={SITE: source}, target={SITE: target}), holdout=None)
    row = ranking.resolution().iloc[0]
    assert row.smallest_p <= ranking.frame.p_value.min() * (1 + 1e-9)
    if n == 5:
        assert row.smallest_p == pytest.approx(2 / comb(10, 5))
        assert row.smallest_q == pytest.approx(min(1, 80 / comb(10, 5)))
    if tied:
        assert row.smallest_p == pytest.approx(ranking.frame.p_value.min())
        assert row.smallest_q == pytest.approx(ranking.frame.q_value.min(), rel=1e-6)


def test_no_p_or_q_is_above_1() -> None:
    """Two texts a side: of six labellings two are as extreme, and many units make any of them likely."""
    source, target = arrays(2)
    row = rank_experts(Activations.from_arrays(source={SITE: source}, target={SITE: target}), holdout=None).resolution()
    assert (row.smallest_p[0], row.smallest_q[0]) == (pytest.approx(1 / 3), 1.0)


def test_pairs_blocks_and_sketches_have_their_own() -> None:
    source, target = arrays(8)
    acts = Activations.from_arrays(source={SITE: source}, target={SITE: target}, blocks=[*range(8), *range(8)])
    paired = replace(acts, pairs=torch.tensor([*range(8), *range(8)])[:, None])
    ranking = rank_experts(paired, holdout=None)
    row = ranking.resolution().iloc[0]
    assert row.test == "signed_rank"
    assert row.smallest_p == pytest.approx(ranking.frame.p_value.min())
    assert row.smallest_p <= 2 / 2**8
    four = Activations.from_arrays(source={SITE: source}, target={SITE: target}, blocks=[n // 2 for n in range(16)])
    assert rank_experts(four, holdout=None).resolution().smallest_p[0] == pytest.approx(2 / comb(8, 4))
    sketch = of_arrays(source, target)
    assert rank_experts(sketch, holdout=None).resolution().smallest_p[0] > 0
    in_blocks = rank_experts(replace(sketch, texts=four), holdout=None).resolution()
    assert isnan(in_blocks.smallest_p[0])
    assert "there are no p-values" in resolution_sentence(in_blocks)


def test_no_p_value_of_pairs_is_smaller_than_that_of_differences_without_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = torch.rand(30, 3, generator=generator) + 2, torch.rand(30, 3, generator=generator)
    acts = Activations.from_arrays(source={SITE: source}, target={SITE: target}, blocks=[*range(30), *range(30)])
    ranking = rank_experts(replace(acts, pairs=torch.arange(30).repeat(2)[:, None]), holdout=None)
    assert ranking.resolution().smallest_p.tolist() == pytest.approx([2 / 2**30])
    assert ranking.frame.p_value.tolist() == pytest.approx([2 / 2**30] * 3)


def test_the_sentence_says_what_cannot_be_shown_and_stands_on_the_page() -> None:
    source, target = arrays(5)
    acts = Activations.from_arrays(source={SITE: source}, target={SITE: target})
    ranking = rank_experts(acts, holdout=None, permutations=99)
    sentence = resolution_sentence(ranking.resolution())
    assert "With 40 units and 5 + 5 texts the smallest p_value is 7.9e-03" in sentence
    assert ranking.resolution().concept.tolist() == ["contrast"]
    assert "no single unit can be shown at q <= 0.05" in sentence
    assert "with 99 permutations the smallest family_wise_p is 1.0e-02" in sentence
    assert ranking.frame.family_wise_p.min() >= 0.01
    page = ranking._repr_html_()
    assert "smallest q_value" in page
    assert "40 ranked on 10 texts" in page
    assert re.findall(r"<th\b[^>]*>([^<]*)</th>", page) == ["AUROC", "unit", "q value"]
    assert page.count("<tr") == 11
