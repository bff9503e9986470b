"""Blocks: which rows belong together, and a splitter that never parts them and depends on nothing but the texts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.model_selection import GroupShuffleSplit

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.errors import ContrastError, SettingError
from lens_steer.ranking.halves import block_folds, halves
from lens_steer.texts.blocks import block_draws, blocks_of, row_hashes, split_blocks
from lens_steer.texts.contrast import ContrastSet, LabelledTexts
from tests.families import sentences


def test_what_belongs_together() -> None:
    rows = [("p", "a"), ("p", "b"), ("", "c"), ("", "c"), ("", "d"), ("q", "e"), ("r", "e")]
    assert blocks_of(rows).tolist() == [0, 0, 1, 1, 2, 3, 4]
    assert blocks_of(rows, [None] * 4 + ["g", None, "g"]).tolist() == [0, 0, 1, 1, 2, 3, 2]
    # A group, then a pair: one chain.
    assert blocks_of(["a", "b", "c", "d"], ["g", "g", None, None], [None, 1, 1, 2]).tolist() == [0, 0, 0, 1]
    assert blocks_of([]).tolist() == []


def test_hashes_are_those_of_sha256_and_a_row_without_prompt_is_its_text() -> None:
    assert row_hashes(["a"]).tolist() == [-3848465438864589366]
    assert row_hashes([("", "a"), "a"]).tolist() == row_hashes(["a", "a"]).tolist()
    assert len(set(row_hashes([("a", "b"), ("ab", "c"), "ab", ("", "b")]).tolist())) == 4


@given(st.lists(st.integers(0, 9), min_size=4, max_size=40), st.data(), st.sampled_from([0.25, 0.5]), st.integers(0, 9))
def test_no_block_is_parted_and_order_does_not_matter(blocks: list[int], data: Any, share: float, seed: int) -> None:
    sides = np.array([data.draw(st.sampled_from([1, 0, -1])) for _ in blocks])
    numbers, hashes = np.array(blocks), row_hashes([f"text {place}" for place in range(len(blocks))])
    try:
        held = split_blocks(numbers, sides, share, seed, hashes=hashes)
    except ContrastError:
        return
    assert not held[sides < 0].any()
    part = sides >= 0
    assert not set(numbers[held]) & set(numbers[part & ~held])
    order = np.array(data.draw(st.permutations(range(len(blocks)))))
    again = split_blocks(numbers[order], sides[order], share, seed, hashes=hashes[order])
    np.testing.assert_array_equal(again, held[order])


def test_the_share_is_met_as_well_as_the_blocks_allow() -> None:
    """Of many small blocks exactly; of blocks of three, within one of them, as scikit-learn's group split does."""
    sides = np.repeat([1, 0], 60)
    for share in (0.2, 0.5):
        assert split_blocks(np.arange(120), sides, share, 0)[:60].sum() == 60 * share
        blocks = np.arange(120) // 3
        held = split_blocks(blocks, sides, share, 0)
        _, expected = next(GroupShuffleSplit(1, test_size=share, random_state=0).split(blocks, groups=blocks))
        assert held.sum() == pytest.approx(len(expected), abs=6)
        assert held[:60].sum() == pytest.approx(60 * share, abs=2)
    # Two blocks of both sides that no half can hold exactly.
    mixed = np.repeat([0, 1, 0, 1], [6, 4, 4, 6])
    assert 0 < split_blocks(mixed, np.repeat([1, 0], 10), 0.5, 0).sum() < 20


def test_the_refusal_counts_blocks_and_names_the_remedy() -> None:
    sides = np.repeat([1, 0], 6)
    with pytest.raises(ContrastError, match=r"50% of 6 target texts in 1 blocks leaves 6 and 0.*groups"):
        split_blocks(np.array([*range(6), *[9] * 6]), sides, 0.5, 0)
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(SettingError, match="between 0 and 1"):
            split_blocks(np.arange(12), sides, share, 0)
    with pytest.raises(SettingError, match="seed must be 0 or more"):
        block_draws(np.arange(3), -1, "split")


def groups_of(contrast: ContrastSet) -> set[str]:
    return {*(contrast.source_groups or ()), *(contrast.target_groups or ())}


def test_contrasts_keep_groups_prompts_and_pairs_whole() -> None:
    texts, topics = [f"text {place}" for place in range(40)], [f"topic {place // 4}" for place in range(40)]
    grouped = ContrastSet(texts[:20], texts[20:], source_groups=topics[:20], target_groups=topics[20:])
    for seed in range(5):
        parts = grouped.split(0.5, seed)
        assert not groups_of(parts[0]) & groups_of(parts[1])
        assert len(parts[1].source) == len(parts[1].target) == 8  # of five topics two, and no fraction of a third
        assert len(groups_of(grouped.subsample(8, seed))) == 4
    prompts = [(f"prompt {place % 10}", f" answer {place}") for place in range(40)]
    parts = ContrastSet(prompts[:20], prompts[20:]).split(0.5)
    asked = [{row[0] for row in part.source + part.target} for part in parts]
    assert not asked[0] & asked[1]
    # A block that is larger than the sample cannot stay whole, and is not drawn alone.
    dialects = ContrastSet(texts[:20], texts[20:], source_groups=["x", "y"] * 10, target_groups=["x", "y"] * 10)
    assert groups_of(dialects.subsample(8)) == {"x", "y"}


def test_shuffled_labels_move_whole_blocks() -> None:
    texts = [f"text {place // 2}" for place in range(40)]
    for seed in range(5):
        null = ContrastSet(texts[:20], texts[20:]).shuffled(seed)
        assert not set(null.source) & set(null.target)
        assert len(null.source) == 20


def test_shuffled_activations_move_whole_blocks_of_every_concept() -> None:
    """Ten topics of four texts, each on one side; pairs of one prompt exchange inside the pair."""
    values = {"blocks.0.mlp.hook_post": np.arange(80.0).reshape(40, 2)}
    sides = {key: (part[:20], part[20:]) for key, part in values.items()}
    given = {name: {key: both[place] for key, both in sides.items()} for place, name in enumerate(("source", "target"))}
    topics, pairs = np.repeat(np.arange(10), 4), np.tile(np.arange(20), 2)
    moved = 0
    for seed in range(8):
        null = Activations.from_arrays(**given, blocks=topics).shuffled(seed).labels[:, 0].numpy()
        assert {int(null[topics == topic].sum()) for topic in range(10)} == {0, 4}
        assert null.sum() == 20
        moved += bool((null[:20] == 0).any())
        paired = Activations.from_arrays(**given, blocks=pairs).shuffled(seed).labels[:, 0].numpy()
        assert (paired[:20] + paired[20:] == 1).all()
        assert 0 < paired[:20].sum() < 20
    assert moved >= 7
    # A text without part keeps none, and concepts are shuffled apart.
    one = Activations.from_arrays(**given)
    labels = torch.cat([one.labels, one.labels], dim=1)
    labels[:5, 1] = -1
    both = replace(one, labels=labels, concepts=("a", "b")).shuffled(3)
    assert (both.labels[:5, 1] == -1).all()
    assert int((both.labels[:, 1] == 1).sum()) == 15
    assert not torch.equal(both.labels[5:, 0], both.labels[5:, 1])
    assert torch.equal(both.values["blocks.0.mlp.hook_post"], one.values["blocks.0.mlp.hook_post"])


def test_a_contrast_and_its_ranking_hold_out_the_same_texts(tiny: Any) -> None:
    """Also as a column of a table, in another order and beside other concepts."""
    sad = ContrastSet(
        [*sentences(12, seed=1, must="sad"), *sentences(3, seed=1, must="sad")],
        sentences(14, seed=2, must="happy"),
        control=sentences(5, seed=3, must="dog"),
        name="sad",
    )
    dog = ContrastSet(sentences(9, seed=5, must="dog"), sentences(9, seed=6, must="cat"), name="dog")
    for seed in range(3):
        _, second = sad.split(0.4, seed)
        for table in (sad.labelled, LabelledTexts.of([dog, sad]), LabelledTexts.of([sad, dog])):
            one = collect(tiny, table, progress=False).concept("sad")
            held = halves(one, 0.4, seed)[1].numpy()
            rows = [table.texts[place] for place in np.flatnonzero(table.labels[:, table.concepts.index("sad")] >= 0)]
            assert sorted(np.array(rows)[held]) == sorted(second.source + second.target)


def test_a_table_keeps_groups_and_pairs() -> None:
    paired = ContrastSet(["a", "b"], ["c", "d"], paired=True, name="paired")
    grouped = ContrastSet(["a", "e"], ["f", "c"], source_groups=["g", "h"], target_groups=["h", "g"], name="grouped")
    table = LabelledTexts.of([paired, grouped])
    assert table.groups == ("g", None, "g", None, "h", "h")
    assert table.blocks == (0, 1, 0, 1, 2, 2)
    assert table.contrast("paired").paired
    assert table.contrast("paired").source_groups is None
    assert table.contrast("grouped").source_groups == ("g", "h")
    assert paired.labelled.contrast("paired") == paired


def test_folds_keep_blocks_whole() -> None:
    first, blocks = np.arange(40) < 16, np.arange(40) // 2
    folds = list(block_folds(first, blocks, 5, 0, what="x"))
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(40))
    assert all(not set(blocks[train]) & set(blocks[test]) for train, test in folds)
    with pytest.raises(ContrastError, match="x: cross-validation needs two blocks on each side, there are 1 and 12"):
        list(block_folds(first, np.where(first, 99, blocks), 5, 0, what="x"))
