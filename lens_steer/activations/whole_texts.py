"""Pooling whole texts that belong to no contrast: the target trace of a loss, neutral texts, an edited run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lens_steer.activations.pooling import Pool, TokenPool
from lens_steer.host.adapter import host_of
from lens_steer.host.sites import Site
from lens_steer.host.tokens import TokenBatch, Tokens
from lens_steer.host.trunk import Visit, run_texts

Pooled = Mapping[Site, Tensor]
"""Site -> pooled values, float32 [text, unit]."""


def pool_texts(model: nn.Module, tokens: Tokens, sites: Sequence[Site], pool: Pool, batch_size: int | None) -> Pooled:
    """Return the pooled values of all texts at some sites: no gradients, the model's device, the order of the texts."""
    device = host_of(model).device
    # Not a number until a text has run: a row that was left out cannot pass for a value.
    values = {site: torch.full((len(tokens), site.width), torch.nan, device=device) for site in sites}

    def reader(site: Site) -> Visit:
        def read(activation: Tensor, batch: TokenBatch) -> None:
            pooled = TokenPool(batch.pooled.to(activation.device))(activation, pool)
            values[site][list(batch.rows)] = pooled.to(device)

        return read

    run_texts(model, tokens, {site: reader(site) for site in sites}, batch_size)
    return values
