"""Nucleus sampling (arXiv 1904.09751) without a sort of the vocabulary, which costs more than a small model's pass."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_FIRST, _GROWTH = 64, 8


class Nucleus:
    """Leaves the fewest most likely tokens whose probability reaches p, and those that tie with the last of them.

    The tokens of transformers' TopPLogitsWarper, summed from the most likely down in double precision.
    """

    def __init__(self, p: float) -> None:
        self._p = p

    def __call__(self, input_ids: Tensor, scores: Float[Tensor, "text vocab"]) -> Float[Tensor, "text vocab"]:
        """Return the scores, -inf outside of each row's nucleus."""
        vocabulary, most = scores.shape[1], _FIRST
        normalizer = scores.logsumexp(1, keepdim=True)
        while True:
            most = min(most, vocabulary)
            top = scores.topk(most, 1).values
            reached = (top - normalizer).double().exp().cumsum(1)
            if most == vocabulary or bool((reached[:, -1] >= self._p).all()):
                break
            most *= _GROWTH
        last = (reached < self._p).sum(1, keepdim=True).clamp(max=most - 1)
        return scores.masked_fill(scores < top.gather(1, last), -torch.inf)
