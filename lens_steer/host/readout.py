"""Reading the next token's logits at one position of every row: the unembedding sees no other."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lens_steer.host.adapter import host_of
from lens_steer.host.clock import announced_texts
from lens_steer.host.tokens import TokenBatch


def logits_at(model: nn.Module, batch: TokenBatch, places: Int[Tensor, " text"]) -> Float[Tensor, "text vocab"]:
    """Run a batch, on the model's device, and return each row's logits at its place.

    They are the model's own to float rounding, whatever it does behind the unembedding (a cap, a scale); edits know
    where the rows' prompts end.
    """
    host = host_of(model)
    rows = torch.arange(len(places), device=places.device)

    def keep_place(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][rows, places][:, None], *args[1:])

    handle = host.model.unembed.register_forward_pre_hook(keep_place)
    try:
        with announced_texts(batch.rows, batch.prompt_lengths):
            return host.logits(batch.ids, batch.mask)[:, 0]
    finally:
        handle.remove()
