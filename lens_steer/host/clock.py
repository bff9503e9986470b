"""The position clock: which absolute position, and which side of the prompt's end, each token of a forward pass has.

A hook sees a tensor and nothing else. The clock listens where a forward pass begins and turns ids, mask and cache
length into positions, so that "prompt", "generated" or "from position k" mean the same with and without a cache, padded
or not.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from lens_steer.errors import ModelError
from lens_steer.host.adapter import host_of


@dataclass(frozen=True)
class TokenPositions:
    """Where the tokens of one forward pass stand.

    `position` counts a row's real tokens from 0; `prompt_length` is the number of real tokens in each row's prompt; a
    token at or after it was generated. `real` is False on pads. `ids` is None where the model was given embeddings.
    """

    position: Int[Tensor, "text pos"]
    prompt_length: Int[Tensor, " text"]
    real: Bool[Tensor, "text pos"]
    ids: Int[Tensor, "text pos"] | None


class _Pass(threading.local):
    """The pass under way; each thread knows its own, because passes of several may halt and take turns."""

    prompt_length: Tensor | None = None
    last_ids: Tensor | None = None
    now: TokenPositions | None = None


class PositionClock:
    """Follows the forward passes of one model from the moment it is started.

    A pass with an empty cache begins a new prompt, except that without a cache a pass whose ids extend the last one's
    by one token is the next step of the same generation. A pass on a filled cache continues the prompt before it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._host = host_of(model)
        self._pass = _Pass()
        self._handles = self._host.on_forward(self._announce)

    @property
    def now(self) -> TokenPositions:
        """The positions of the forward pass under way."""
        if self._pass.now is None:
            raise ModelError(
                "the model ran without ids or a mask, so positions are unknown: pass token ids, not embeddings"
            )
        return self._pass.now

    def stop(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()

    def _announce(self, ids: Tensor | None, mask: Tensor | None, cached: int) -> None:
        if self._host.probing:
            return
        if ids is None:
            self._pass.now, self._pass.last_ids = None, None
            return
        rows, length = ids.shape
        if mask is None or mask.ndim != 2:
            full = torch.ones(rows, cached + length, dtype=torch.bool, device=ids.device)
        else:
            full = mask.bool()
        if self._pass.prompt_length is None or (cached == 0 and not self._continues(ids)):
            self._pass.prompt_length = full.sum(1)
        self._pass.last_ids = ids if cached == 0 else None
        position = (full.long().cumsum(1) - 1)[:, -length:]
        self._pass.now = TokenPositions(position, self._pass.prompt_length, full[:, -length:], ids)

    def _continues(self, ids: Tensor) -> bool:
        last = self._pass.last_ids
        return (
            not self._host.whole_texts
            and last is not None
            and ids.shape == (last.shape[0], last.shape[1] + 1)
            and torch.equal(ids[:, :-1], last)
        )


@contextmanager
def whole_texts(model: nn.Module) -> Iterator[None]:
    """Tell every clock that the passes inside run whole texts, none of them a step of a generation."""
    host = host_of(model)
    before, host.whole_texts = host.whole_texts, True
    try:
        yield
    finally:
        host.whole_texts = before
