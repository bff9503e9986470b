"""Nucleus sampling keeps the tokens that transformers keeps, however many they are."""

from __future__ import annotations

import pytest
import torch
from transformers import TopPLogitsWarper

from lens_steer.host.nucleus import Nucleus

NONE = torch.zeros(0, dtype=torch.long)


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 4.0, 40.0])
@pytest.mark.parametrize("p", [1e-6, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("vocabulary", [2, 63, 64, 65, 1000])
def test_the_tokens_are_those_of_transformers(spread: float, p: float, vocabulary: int) -> None:
    """From one token to all, beyond the first that are looked at; near a tie the two may differ by rounding."""
    generator = torch.Generator().manual_seed(vocabulary)
    scores = spread * torch.randn(8, vocabulary, generator=generator, dtype=torch.double)
    kept = Nucleus(p)(NONE, scores)
    if spread:
        assert torch.equal(kept, TopPLogitsWarper(p)(NONE, scores))
    else:
        assert torch.equal(kept, scores)  # all tie


def test_the_nucleus_is_the_smallest_that_reaches_p() -> None:
    scores = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    for p, count in ((0.4, 1), (0.49, 1), (0.51, 2), (0.74, 2), (0.76, 4), (1.0, 4)):
        kept = Nucleus(p)(NONE, scores)
        assert int(kept.isfinite().sum()) == count, p  # the last two tie
        assert torch.equal(kept[kept.isfinite()], scores[kept.isfinite()])


def test_what_an_earlier_rule_forbade_stays_forbidden() -> None:
    scores = torch.full((1, 1000), -torch.inf)
    scores[0, 100:170] = torch.linspace(0, 0.1, 70)
    assert torch.equal(Nucleus(0.9999999)(NONE, scores), scores)


def test_rows_are_judged_alone() -> None:
    """A row with a wide nucleus makes the call look at more tokens, and changes nothing in its neighbours."""
    sharp, wide = torch.randn(1, 2000) * 9, torch.randn(1, 2000) * 0.1
    both = Nucleus(0.9)(NONE, torch.cat([sharp, wide]))
    assert torch.equal(both[:1], Nucleus(0.9)(NONE, sharp))
    assert torch.equal(both[1:], Nucleus(0.9)(NONE, wide))
