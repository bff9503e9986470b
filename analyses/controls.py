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


def matched(choice: str) -> str:
    """Return what units matched to a choice's are called."""
    return f"units matched to {choice}"


def require_sizes(ks: Sequence[int], total: int) -> None:
    """Raise LensSteerError unless there is room for a control beside every number of units of `total`."""
    if not ks or min(ks) < 1 or max(ks) > total // 2:
        raise ls.LensSteerError(f"ks={tuple(ks)}: numbers of units lie between 1 and half of the sites' {total}")


def require_matched_to(matched_to: Sequence[str], choices: Sequence[str]) -> None:
    """Raise LensSteerError where matched units are asked for a choice that there is not."""
    if unknown := sorted(set(matched_to) - set(choices)):
        raise ls.LensSteerError(f"matched_to names {unknown[0]!r}: choose from {', '.join(choices)}")


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
