"""Controls of a choice of units, in draws: random ones, and those that shuffled labels choose.

Units that are matched to a choice are drawn by `ls.matched_units`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

import lens_steer as ls

Choice = tuple[ls.Unit, ...]


def random_choices(sites: Sequence[ls.Site], k: int, *, draws: int, seed: int) -> tuple[Choice, ...]:
    """Return draws of k random units, each in random order."""
    drawn = []
    for draw in range(draws):
        units = ls.random_units(tuple(sites), k, seed=seed + draw)
        order = np.random.default_rng([seed, draw]).permutation(k)
        drawn.append(tuple(units[place] for place in order))
    return tuple(drawn)


def shuffled_experts(
    texts: ls.ContrastSet, activations: ls.Activations, k: int, *, draws: int, seed: int
) -> tuple[Choice, ...]:
    """Return the k best units of a ranking by shuffled labels, per shuffle of the texts that were collected."""
    chosen = []
    for draw in range(draws):
        source = set(texts.shuffled(seed + draw).source)
        labels = torch.tensor([[int(row in source)] for row in (*texts.source, *texts.target)])
        shuffled = replace(activations, labels=labels.to(activations.labels.dtype), moments=None)
        chosen.append(ls.rank_experts(shuffled, holdout=None).units(k))
    return tuple(chosen)
