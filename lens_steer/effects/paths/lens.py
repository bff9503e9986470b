"""The logit lens of a concept's words, layer by layer, before and after an edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.activations.pooling import Pool, TokenPool
from lens_steer.host.attach import attach
from lens_steer.host.logit_lens import LogitLens
from lens_steer.host.sites import Site, find_sites
from lens_steer.host.tokens import TokenBatch, Tokens
from lens_steer.host.trunk import Visit, run_texts
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.touched import Touched
from lens_steer.interventions.writes import writes_of


@dataclass(frozen=True, eq=False)
class WordReadings:
    """Probability of some words together if the model stopped at a layer, pooled over each text's tokens."""

    sites: tuple[Site, ...]
    before: Float[np.ndarray, "text layer"]
    after: Float[np.ndarray, "text layer"]


def read_words(
    model: nn.Module,
    edits: Intervention,
    strength: float,
    tokens: Tokens,
    words: Sequence[int],
    *,
    pool: Pool,
    batch_size: int | None,
) -> WordReadings:
    """Read the words off the stream behind every layer, of the model as it stands and edited: two passes."""
    sites = find_sites(model, "hook_resid_post")
    lens = LogitLens(model)

    def run() -> Float[np.ndarray, "text layer"]:
        probabilities = torch.full((len(tokens), len(sites)), torch.nan)

        def reader(column: int) -> Visit:
            def read(stream: Tensor, batch: TokenBatch) -> None:
                pools = TokenPool(batch.pooled.to(stream.device))
                chances = torch.zeros(stream.shape[:2], device=stream.device)
                chances[pools.mask] = lens.probability(stream[pools.mask], words).to(stream.device)
                probabilities[list(batch.rows), column] = pools(chances[..., None], pool)[:, 0].cpu()

            return read

        run_texts(model, tokens, {site: reader(column) for column, site in enumerate(sites)}, batch_size)
        return probabilities.double().numpy()

    before = run()
    with attach(model, writes_of(edits.edits, strength, Touched(edits.edits))):
        return WordReadings(sites, before, run())
