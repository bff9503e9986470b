"""The promise of q-values and family-wise p-values, for units that depend on each other, over 200 random labellings."""

from __future__ import annotations

import torch
from scipy.stats import binom

from lens_steer.activations.activations import Activations
from lens_steer.ranking.experts import rank_experts
from lens_steer.statistics.significance import benjamini_hochberg, mann_whitney_p

SITE = "blocks.0.mlp.hook_post"
LEVEL, REPETITIONS = 0.1, 200


def activations(seed: int, *, experts: int) -> Activations:
    """Forty texts a side, forty units in crowds of four; the first `experts` tell the sides."""
    generator = torch.Generator().manual_seed(seed)
    crowd = torch.randn(80, 10, generator=generator).repeat_interleave(4, dim=1)
    values = crowd + torch.randn(80, 40, generator=generator)
    values[:40, :experts] += 1.5
    return Activations.from_arrays(source={SITE: values[:40]}, target={SITE: values[40:]})


def test_random_labels_give_no_discovery_beyond_the_rate() -> None:
    """Where nothing is to be found every discovery is false: there are any in at most a share `LEVEL` of the cases."""
    texts = activations(0, experts=8)
    found, family = 0, 0
    for seed in range(REPETITIONS):
        frame = rank_experts(texts.shuffled(seed), holdout=None, permutations=39, seed=seed).frame
        found += bool((frame["q_value"] <= LEVEL).any())
        family += bool((frame["family_wise_p"] <= LEVEL).any())
    most = binom.ppf(0.999, REPETITIONS, LEVEL)
    assert found <= most
    assert family <= most
    assert family > binom.ppf(0.001, REPETITIONS, LEVEL)  # exact, not idle


def test_among_real_experts_the_share_of_false_discoveries_holds() -> None:
    parts = [activations(seed, experts=8).values[SITE] for seed in range(REPETITIONS)]
    together = torch.cat(parts, dim=1)  # units are tested one by one, so all repetitions are tested at once
    q = [benjamini_hochberg(p) for p in mann_whitney_p(together[:40], together[40:]).view(REPETITIONS, -1)]
    found = torch.stack(q) <= LEVEL
    shares = (found[:, 8:].sum(1) / found.sum(1).clamp(min=1)).double()
    assert shares.mean() <= LEVEL + 3 * shares.std() / REPETITIONS**0.5
    assert found[:, :8].double().mean() > 0.8
