"""The position clock: which absolute position, and which side of the prompt's end, each token of a forward pass has.

A hook sees a tensor and nothing else. The clock listens where a forward pass begins and turns ids, mask and cache
length into positions, so that "prompt", "generated" or "from position k" mean the same with and without a cache, padded
or not.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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


_ROWS: ContextVar[tuple[int, ...] | None] = ContextVar("rows", default=None)


@contextmanager
def numbered(rows: Sequence[int]) -> Iterator[None]:
    """Say which texts of a call the rows of the passes inside are: what is drawn or set per row then follows its text.

    It holds for this thread. Without it, and for no rows, a row's number is its place in the batch.
    """
    before = _ROWS.set(tuple(rows) or None)
    try:
        yield
    finally:
        _ROWS.reset(before)


class ForwardPass:
    """One forward pass as a hook may know it; what costs anything is worked out when it is first asked for.

    `begins` says whether it begins a new prompt, so that all its tokens are a prompt's and none was generated;
    otherwise it goes on with `prompt`, the pass that began (of a pass that begins: itself). `fresh` is how many of its
    last positions no pass before it had: all, except where a generation without a cache runs its prompt again. `rows`
    are the numbers of its texts in the call that they are of, where lens_steer runs them (see `numbered`).

    `memo` is a place for what edits work out once per pass or, at `prompt`, hold for as long as its continuation takes.
    """

    def __init__(
        self, ids: Tensor, mask: Tensor | None, cached: int, prompt: ForwardPass | None, *, again: bool
    ) -> None:
        self.ids = ids
        self.cached = cached
        self.begins = prompt is None
        self.prompt = self if prompt is None else prompt
        self.fresh = 1 if again else ids.shape[1]
        self.rows = _ROWS.get()
        self.memo: dict[Any, Any] = {}
        self._mask = mask

    @cached_property
    def positions(self) -> TokenPositions:
        """Where its tokens stand."""
        rows, length = self.ids.shape
        if len(self.prompt.ids) != rows:
            raise ModelError(
                f"this pass of {rows} rows goes on with a cache, and the last prompt had {len(self.prompt.ids)}: run "
                "the prompt inside the context, with the same rows"
            )
        position = (self._full.long().cumsum(1) - 1)[:, -length:]
        return TokenPositions(position, self.prompt.prompt_length, self._full[:, -length:], self.ids)

    @cached_property
    def prompt_length(self) -> Int[Tensor, " text"]:
        """Number of real tokens of each row, if it begins a prompt."""
        return self._full.sum(1)

    @cached_property
    def fresh_tokens(self) -> int | Tensor:
        """How many real tokens no pass before it had; a number, or a tensor that need not be waited for."""
        return self.ids.shape[0] * self.fresh if self._mask is None else self._mask[:, -self.fresh :].bool().sum()

    @cached_property
    def _full(self) -> Bool[Tensor, "text all"]:
        """Which tokens are real, those in the cache included."""
        if self._mask is not None:
            return self._mask.bool()
        rows, length = self.ids.shape
        return torch.ones(rows, self.cached + length, dtype=torch.bool, device=self.ids.device)


class _Thread(threading.local):
    """The pass under way; each thread knows its own, because passes of several may halt and take turns."""

    now: ForwardPass | None = None
    last: ForwardPass | None = None  # the last one that had ids


class PositionClock:
    """Follows the forward passes of one model from the moment it is started.

    A pass with an empty cache begins a new prompt, except that without a cache a pass whose ids extend the last one's
    by one token is the next step of the same generation. A pass on a filled cache continues the prompt before it.
    """

    def __init__(self, model: nn.Module) -> None:
        self._host = host_of(model)
        self._thread = _Thread()
        self._handles = self._host.on_forward(self._announce)

    @property
    def now(self) -> ForwardPass | None:
        """The forward pass under way; None where it has no token ids."""
        return self._thread.now

    def stop(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()

    def _announce(self, ids: Tensor | None, mask: Tensor | None, cached: int) -> None:
        if self._host.probing:
            return
        here = self._thread
        if ids is None:
            here.now = None
            return
        again = cached == 0 and self._continues(ids)
        prompt = here.last.prompt if here.last is not None and (cached > 0 or again) else None
        whole = mask if mask is not None and mask.ndim == 2 else None
        here.now = here.last = ForwardPass(ids, whole, cached, prompt, again=again)

    def _continues(self, ids: Tensor) -> bool:
        last = self._thread.last
        return (
            not self._host.whole_texts
            and last is not None
            and not last.cached
            and ids.shape == (last.ids.shape[0], last.ids.shape[1] + 1)
            and torch.equal(ids[:, :-1], last.ids)
        )


def positions_of(forward: ForwardPass | None) -> TokenPositions:
    """Return a pass's positions; ModelError where they are unknown."""
    if forward is None:
        raise ModelError(
            "the model ran without ids or a mask, so positions are unknown: pass token ids, not embeddings"
        )
    return forward.positions


@contextmanager
def whole_texts(model: nn.Module) -> Iterator[None]:
    """Tell every clock that the passes inside run whole texts, none of them a step of a generation."""
    host = host_of(model)
    before, host.whole_texts = host.whole_texts, True
    try:
        yield
    finally:
        host.whole_texts = before
