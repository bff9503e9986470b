"""Halves and folds of activations: blocks whole, every text once, and a label test that knows pairs in blocks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon

from lens_steer.errors import ContrastError
from lens_steer.ranking.experts import rank_experts
from lens_steer.ranking.halves import block_folds, halves
from tests.ranking.test_overlap import SITE, labelled


def test_texts_that_take_no_part_are_in_neither_half() -> None:
    label = torch.tensor([1, 0, -1]).repeat(20)
    acts = replace(labelled(torch.randn(60, 3), label), blocks=torch.arange(60) // 6)
    kept, held = halves(acts, 0.3, 0)
    assert not (kept & held).any()
    assert torch.equal(kept | held, label >= 0)
    assert [int((held & (label == side)).sum()) for side in (1, 0)] == [6, 6]
    assert all(len(set(held[acts.blocks == block][:2].tolist())) == 1 for block in range(10))


@pytest.mark.parametrize("most", [2, 3, 9])
def test_every_text_is_left_out_once(most: int) -> None:
    """As often as is asked, or as there are blocks on the side that has fewer."""
    is_first, blocks = np.arange(40) < 12, np.arange(40) // 2
    folds = list(block_folds(is_first, blocks, most, 0, what="x"))
    assert len(folds) == min(most, 6)
    np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in folds])), np.arange(40))
    for train, test in folds:
        assert not set(blocks[train]) & set(blocks[test])
        assert len(train) + len(test) == 40
    other = list(block_folds(is_first, blocks, most, 1, what="x"))
    again = list(block_folds(is_first, blocks, most, 0, what="x"))
    assert all(np.array_equal(one[1], two[1]) for one, two in zip(folds, again, strict=True))
    assert not all(np.array_equal(one[1], two[1]) for one, two in zip(folds, other, strict=True))


def test_two_blocks_a_side_are_enough_and_one_is_not() -> None:
    is_first = np.array([True, True, False, False])
    assert len(list(block_folds(is_first, np.arange(4), 5, 0, what="x"))) == 2
    with pytest.raises(ContrastError, match="x: cross-validation needs two blocks on each side, there are 1 and 2"):
        list(block_folds(is_first, np.array([0, 0, 1, 2]), 5, 0, what="x"))


def test_pairs_of_one_block_are_averaged() -> None:
    """Blocks of one, two and three pairs: Wilcoxon's test on the mean difference of each."""
    rng = np.random.default_rng(0)
    source, target, block = (
        rng.normal(size=(24, 6)) + 0.5,
        rng.normal(size=(24, 6)),
        np.repeat(np.arange(12), [1, 2, 3] * 4),
    )
    values = torch.tensor(np.concatenate([source, target]), dtype=torch.float32)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    acts = labelled(values[order], (torch.arange(48) < 24).long()[order])
    pairs, blocks = torch.arange(24).repeat(2)[order], torch.tensor(np.tile(block, 2))[order]
    frame = rank_experts(replace(acts, blocks=blocks, pairs=pairs[:, None]), holdout=None).frame
    assert frame["test"].eq("signed_rank").all()
    assert frame["site"].eq(SITE).all()
    means = np.stack([(source - target)[block == number].mean(0) for number in range(12)])
    np.testing.assert_allclose(frame.sort_values("unit")["p_value"], wilcoxon(means, method="exact").pvalue, rtol=1e-6)
    # One block of both sides, or texts of their own, are one stratum: Mann and Whitney's test.
    for of_texts in (torch.zeros(48, dtype=torch.int64), torch.arange(48)):
        plain = rank_experts(replace(acts, blocks=of_texts), holdout=None).frame
        few = rank_experts(replace(acts, blocks=of_texts).rows(order[:20]), holdout=None).frame
        assert plain["test"].eq("mann_whitney").all()
        assert few["test"].eq("mann_whitney").all()
    # A text without its pair leaves no pairs to test.
    pairs[0] = -1
    loose = rank_experts(replace(acts, blocks=blocks, pairs=pairs[:, None]), holdout=None).frame
    assert loose["test"].eq("van_elteren").all()
