"""Halves and folds of activations: texts that choose or train, and texts that measure. Blocks are never parted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lens_steer.activations.activations import Activations
from lens_steer.errors import ContrastError
from lens_steer.texts.blocks import split_blocks

_FEWEST_TEXTS = 2  # per side and half: below, an AUROC says nothing

Mask = Bool[Tensor, " text"]


def halves(
    activations: Activations,
    share: float,
    seed: int,
    *,
    what: str = "these activations",
    remedy: str = "give more texts or groups, or hold out none",
) -> tuple[Mask, Mask]:
    """Return which texts of one concept are kept, and which are held out: about `share` of each side, blocks whole.

    They are the texts that `contrast.split(share, seed)` puts in its first and second part. Texts that take no part are
    in neither. SettingError for a share outside 0..1; ContrastError where a half would have fewer than two texts of a
    side.
    """
    label = activations.labels[:, 0]
    hashes = None if activations.hashes is None else activations.hashes[:, 0].numpy()
    held = torch.from_numpy(
        split_blocks(
            activations.blocks.numpy(),
            label.numpy(),
            share,
            seed,
            hashes=hashes,
            fewest=_FEWEST_TEXTS,
            what=what,
            remedy=remedy,
        )
    )
    return (label >= 0) & ~held, held


def block_folds(
    is_first: Bool[np.ndarray, " text"], blocks: Int[np.ndarray, " text"], most: int, seed: int, *, what: str
) -> Iterator[tuple[Int[np.ndarray, " train"], Int[np.ndarray, " test"]]]:
    """Yield the texts that train and those that are left out, `most` times or as often as there are blocks of a side.

    Folds keep the sides' shares as far as the blocks allow; one whose training texts lack a side is passed over.
    ContrastError in the name of `what` where a side has fewer than two blocks.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    counts = [len(np.unique(blocks[side])) for side in (is_first, ~is_first)]
    folds = min(most, *counts)
    if folds < 2:
        raise ContrastError(
            f"{what}: cross-validation needs two blocks on each side, there are {counts[0]} and {counts[1]}; copies of "
            "a text, one prompt, a group and a pair are one block: give more texts or groups"
        )
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for train, test in splitter.split(np.zeros(len(blocks)), is_first, blocks):
        if len(test) and len(np.unique(is_first[train])) == 2:
            yield train, test
