"""Models of both hosts for tests that must hold on each, random edits, and generation that records its close calls."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from lens_steer.host import decode as decoding_room
from lens_steer.host.scope import ScopeName
from lens_steer.host.sites import find_sites
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from tests.families import make_tiny, make_tokenizer

HOSTS = ("bridge", "hooked", "hooked rotary")
# Two logits this close may change places by rounding: padding and batching change the order of sums.
CLOSE = 1e-4


def make_host(kind: str) -> Any:
    """Return a tiny random model: a bridge over GPT-2, or a HookedTransformer (skipped where there is none)."""
    if kind == "bridge":
        return make_tiny("gpt2")
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError:
        pytest.skip("transformer-lens 4 has no HookedTransformer")
    config = HookedTransformerConfig(
        n_layers=2,
        d_model=32,
        n_heads=4,
        d_head=8,
        d_mlp=64,
        n_ctx=64,
        d_vocab=64,
        act_fn="gelu_new",
        normalization_type="LN",
        positional_embedding_type="rotary" if kind == "hooked rotary" else "standard",
        rotary_dim=8 if kind == "hooked rotary" else None,
        device="cpu",
    )
    model = HookedTransformer(config, tokenizer=make_tokenizer()).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
        parameter.normal_(std=0.3, generator=generator)
    return model


def random_edit(model: Any, *, scope: ScopeName = "all", size: float = 0.3, seed: int = 0) -> Intervention:
    """Return random diagonal maps at every layer's output and MLP."""
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> Tensor:
        return size * torch.randn(width, generator=generator)

    sites = [*find_sites(model, "hook_resid_post"), *find_sites(model, "mlp.hook_post")]
    edits = [Edit(site, DiagonalAffine(1 + draw(site.width), draw(site.width))) for site in sites]
    return Intervention(tuple(edits)).scoped(scope)


class CloseCalls:
    """Records, per row, how close its two best scores ever came (while it is in place of decode's processors)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gaps: dict[int, float] = {}
        original = decoding_room._processors

        def recording(decoding: Any, rows: Sequence[int]) -> Any:
            def record(input_ids: Tensor, scores: Tensor) -> Tensor:
                best = scores.topk(2, dim=1).values
                for row, gap in zip(rows, (best[:, 0] - best[:, 1]).tolist(), strict=True):
                    self.gaps[row] = min(self.gaps.get(row, float("inf")), gap)
                return scores

            chain = original(decoding, rows)
            chain.append(record)
            return chain

        monkeypatch.setattr(decoding_room, "_processors", recording)

    def require_equal(self, batched: Sequence[Any], single: Sequence[Any]) -> None:
        """Rows are equal, close calls excepted; those must stay rare."""
        assert len(batched) == len(single)
        differing = [row for row, (one, other) in enumerate(zip(batched, single, strict=True)) if one != other]
        assert all(self.gaps[row] < CLOSE for row in differing), differing
        assert len(differing) <= 0.1 * len(single), f"{len(differing)} of {len(single)} rows were close calls"
