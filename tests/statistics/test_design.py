"""What is one observation, what may be exchanged: against permutation by hand, scipy, and data without its copies."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu, norm, rankdata, wilcoxon

from lens_steer.statistics.design import Design
from lens_steer.statistics.scores import auroc
from lens_steer.statistics.significance import (
    auroc_interval,
    design_p,
    family_wise_p,
    mann_whitney_p,
    permutation_null,
    signed_rank_p,
)


def noise(texts: int, units: int, seed: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).standard_normal((texts, units)), dtype=torch.float32)


def test_observations_and_strata() -> None:
    is_source = np.array([1, 1, 1, 0, 0, 0, 1, 0], dtype=bool)
    blocks = np.array([0, 0, 1, 2, 2, 3, 3, 3])
    design = Design.of(is_source, blocks, np.array([5, 6, 7, 8, 9, 4, 3, 4]))
    # Blocks 0, 1, 2 are of one side; in block 3 two copies face another text.
    groups = [np.flatnonzero(design.observation == number).tolist() for number in range(len(design.stratum))]
    assert sorted(groups) == [[0, 1], [2], [3, 4], [5, 7], [6]]
    assert sorted(sorted(design.is_source[rows].tolist()) for rows in design.strata) == [
        [False, True],
        [False, True, True],
    ]
    assert Design.of(is_source).simple
    assert not design.simple


def test_relabelling_keeps_blocks_and_reaches_every_labelling_alike() -> None:
    is_source, blocks = np.array([1, 1, 0, 0, 1, 0], dtype=bool), np.array([0, 0, 1, 2, 3, 3])
    drawn = Design.of(is_source, blocks).relabelled(6000, 0)
    assert (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, 4] != drawn[:, 5]).all()
    assert (drawn[:, [0, 2, 3]].sum(1) == 1).all()
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == 3 * 2
    assert np.abs(counts / 6000 - 1 / 6).max() < 4 * (1 / 6 * 5 / 6 / 6000) ** 0.5


def test_a_text_on_both_sides_is_never_relabelled() -> None:
    is_source = np.array([1, 0, 1, 0], dtype=bool)
    drawn = Design.of(is_source, np.zeros(4, dtype=int), np.array([7, 7, 8, 9])).relabelled(50, 0)
    assert (drawn[:, :2] == is_source[:2]).all()
    assert drawn[:, 2].any()
    assert not drawn[:, 2].all()


def test_copies_change_nothing() -> None:
    """Every text five times is every text once: p-values, intervals and the permutation null."""
    once, is_source = noise(18, 60, 1), np.arange(18) < 8
    many, blocks = once.repeat_interleave(5, 0), np.arange(18).repeat(5)
    design = Design.of(is_source.repeat(5), blocks)
    masks = [torch.from_numpy(side) for side in (is_source, is_source.repeat(5))]
    sides = [(values[mask], values[~mask]) for values, mask in zip((once, many), masks, strict=True)]
    torch.testing.assert_close(design_p(many, design), mann_whitney_p(*sides[0]), rtol=0, atol=0)
    area = auroc(*sides[0])
    torch.testing.assert_close(auroc(*sides[1]), area)
    one = auroc_interval(*sides[0], area, confidence=0.95)
    clusters = (blocks[is_source.repeat(5)], blocks[~is_source.repeat(5)])
    five = auroc_interval(*sides[1], area, confidence=0.95, clusters=clusters)
    torch.testing.assert_close((five.low, five.high), (one.low, one.high))
    null = permutation_null(many, torch.from_numpy(is_source.repeat(5)), permutations=200, seed=0, design=design)
    plain = permutation_null(once, torch.from_numpy(is_source), permutations=2000, seed=1)
    assert float(null.mean()) == pytest.approx(float(plain.mean()), abs=0.01)


def test_clusters_of_one_text_give_delong() -> None:
    values = noise(50, 20, 2)
    area = auroc(values[:20], values[20:])
    plain = auroc_interval(values[:20], values[20:], area, confidence=0.9)
    single = auroc_interval(values[:20], values[20:], area, confidence=0.9, clusters=(np.arange(20), np.arange(20, 50)))
    torch.testing.assert_close((plain.low, plain.high), (single.low, single.high))


def test_intervals_of_clusters_cover() -> None:
    """Twelve topics a side, their texts alike: the interval of single texts misses 1/2 far too often."""
    rng = np.random.default_rng(0)
    topics = rng.standard_normal((24, 2000)).repeat(5, axis=0) + 0.3 * rng.standard_normal((120, 2000))
    source, target = torch.tensor(topics[:60]), torch.tensor(topics[60:])
    area, blocks = auroc(source, target), np.arange(24).repeat(5)
    covered = []
    for clusters in (None, (blocks[:60], blocks[60:])):
        got = auroc_interval(source, target, area, confidence=0.95, clusters=clusters)
        covered.append(((got.low <= 0.5) & (got.high >= 0.5)).double().mean().item())
    assert covered[0] < 0.75
    assert 0.925 < covered[1] < 0.975


def test_one_stratum_is_scipy_and_several_are_van_elteren() -> None:
    values, is_source = noise(40, 8, 3).round(decimals=1), np.arange(40) % 3 == 0
    p = design_p(values, Design.of(is_source, np.zeros(40, dtype=int)))
    expected = mannwhitneyu(values[is_source].numpy(), values[~is_source].numpy(), method="asymptotic").pvalue
    np.testing.assert_allclose(p, expected, rtol=1e-6)
    blocks = np.repeat([0, 1, 2], [10, 14, 16])
    p = design_p(values, Design.of(is_source, blocks))
    for unit in range(8):
        away = variance = 0.0
        for block in range(3):
            rows = blocks == block
            ranks, side, size = rankdata(values[rows, unit]), is_source[rows], int(rows.sum())
            n = side.sum()
            away += (ranks[side].sum() - n * (size + 1) / 2) / (size + 1)
            variance += n * (size - n) / size * ranks.var(ddof=1) / (size + 1) ** 2
        z = (abs(away) - 0.5 / 11) / variance**0.5
        assert p[unit].item() == pytest.approx(min(1, 2 * norm.sf(z)), rel=1e-9)


def test_pairs_are_tested_by_signed_rank() -> None:
    moved = noise(12, 9, 4)
    moved[:, 8] = 0.0
    moved[:3, 7] = 0.0
    p = signed_rank_p(moved)
    np.testing.assert_allclose(p[:7], wilcoxon(moved[:, :7].double().numpy(), axis=0, method="exact").pvalue)
    tied = wilcoxon(moved[:, 7].double().numpy(), method="asymptotic", correction=True).pvalue
    assert p[7].item() == pytest.approx(tied)
    assert p[8].item() == 1.0
    small = noise(6, 1, 5)
    sums = [np.dot(signs, rankdata(small.abs().numpy()[:, 0])) for signs in product([-1, 1], repeat=6)]
    observed = np.dot(np.sign(small.numpy()[:, 0]), rankdata(small.abs().numpy()[:, 0]))
    assert signed_rank_p(small).item() == pytest.approx(np.mean(np.abs(sums) >= abs(observed) - 1e-9))


@pytest.mark.parametrize("kind", ["copies", "topics", "prompts", "pairs"])
def test_noise_in_blocks_is_found_at_the_nominal_rate(kind: str) -> None:
    """Units that belong to blocks and not to labels; single texts as observations would be found far too often."""
    hits, tested, family, runs = 0.0, 0, 0, 60
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        size = {"copies": 5, "topics": 6, "prompts": 4, "pairs": 2}[kind]
        blocks = np.arange(16).repeat(size)
        spread = {"copies": 0.0, "topics": 0.3}.get(kind, 0.5)
        values = rng.standard_normal((16, 40)).repeat(size, axis=0) + spread * rng.standard_normal((16 * size, 40))
        is_source = (rng.permutation(16) < 8).repeat(size)
        if kind in ("prompts", "pairs"):
            is_source = np.arange(16 * size) % size < size // 2
        design, tensor = Design.of(is_source, blocks), torch.tensor(values, dtype=torch.float32)
        p = design_p(tensor, design)
        side = torch.from_numpy(is_source)
        null = permutation_null(tensor, side, permutations=99, seed=seed, design=design)
        hits, tested = hits + float((p < 0.05).sum()), tested + 40
        family += int(family_wise_p(auroc(tensor[side], tensor[~side]), null).min() <= 0.1)
    assert 0.02 < hits / tested < 0.07
    assert family <= 0.1 * runs + 3 * (runs * 0.09) ** 0.5


def test_labels_are_drawn_by_the_seed() -> None:
    design = Design.of(np.arange(30) < 15)
    one, again, other = (design.relabelled(8, seed) for seed in (0, 0, 1))
    assert one.dtype == np.bool_
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    assert (one[0] != one[1]).any()


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5), st.integers(0, 3)), min_size=2, max_size=24))
def test_whatever_the_blocks_no_label_leaves_its_stratum(rows: list[tuple[bool, int, int]]) -> None:
    """Blocks of both sides keep their sources; copies, and the texts of one-sided blocks, stay together."""
    is_source, blocks, copies = (np.array(column) for column in zip(*rows, strict=True))
    design = Design.of(is_source, blocks, copies)
    assert len(design.stratum) == len(design.is_source) == design.observation.max() + 1
    np.testing.assert_array_equal(design.is_source[design.observation], is_source)
    sides = {block: set(is_source[blocks == block].tolist()) for block in set(blocks.tolist())}
    for labels in design.relabelled(4, 7):
        for block, found in sides.items():
            rows_of = blocks == block
            if len(found) == 1:
                assert len(set(labels[rows_of].tolist())) == 1
                continue
            for copy in set(copies[rows_of].tolist()):
                same = rows_of & (copies == copy)
                if len(set(is_source[same].tolist())) == 2:
                    np.testing.assert_array_equal(labels[same], is_source[same])
                else:
                    assert len(set(labels[same].tolist())) == 1
            observations = np.unique(design.observation[rows_of])
            now = [bool(labels[design.observation == one][0]) for one in observations]
            assert sum(now) == design.is_source[observations].sum()
        whole = [block for block, found in sides.items() if len(found) == 1]
        counts = [(labels[blocks == block][0], is_source[blocks == block][0]) for block in whole]
        assert sum(now for now, _ in counts) == sum(before for _, before in counts)
