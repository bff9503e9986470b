"""The test of "labels mean nothing": which one the texts' blocks and pairs ask for."""

from __future__ import annotations

import torch
from torch import Tensor

from lens_steer.activations.activations import Activations
from lens_steer.statistics.design import Design
from lens_steer.statistics.significance import design_p, mann_whitney_is_exact, normal_p, signed_rank_p


def design_of(one: Activations) -> Design:
    """Return what the null hypothesis may exchange among the texts of one concept."""
    copies = None if one.hashes is None else one.hashes[:, 0].numpy()
    return Design.of(one.labels[:, 0].numpy() == 1, one.blocks.numpy(), copies)


def label_test(one: Activations, values: Tensor, deviation: Tensor, design: Design) -> tuple[str, Tensor]:
    """Return the name of the test that the design asks for, and its two-sided p-values.

    `values` [text, unit] are of the texts of `one`, a single concept; `deviation` is Mann and Whitney's of all texts.
    """
    label = one.labels[:, 0]
    pairs = None if one.pairs is None else one.pairs[:, 0]
    if pairs is None or bool((pairs < 0).any()):
        if design.simple and not mann_whitney_is_exact(int((label == 1).sum()), int((label == 0).sum())):
            return "mann_whitney", normal_p(deviation)
        name = "mann_whitney" if design.simple or len(design.strata) == 1 else "van_elteren"
        return name, design_p(values, design)
    source, target = ((label == side).nonzero()[:, 0] for side in (1, 0))
    source, target = source[pairs[source].argsort()], target[pairs[target].argsort()]
    _, block = torch.unique(one.blocks[source], return_inverse=True)
    moved = torch.zeros(int(block.max()) + 1, values.shape[1], dtype=torch.float64)
    moved.index_add_(0, block, values[source].double() - values[target].double())
    return "signed_rank", signed_rank_p(moved / torch.bincount(block)[:, None])
