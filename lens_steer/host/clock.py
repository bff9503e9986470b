"""The position clock: which absolute position, and which side of the prompt's end, each token of a forward pass has.

A hook sees a tensor and nothing else. The clock listens where a forward pass begins and turns ids, mask and cache
length into positions, so that "prompt", "generated" or "from position k" mean the same on every route:

route                                         positions from       the prompt ends
--------------------------------------------  -------------------  ---------------------------------------------
a pass without a cache                        mask                 with the pass: all its tokens are prompt
texts that lens_steer runs (`announced_texts` mask                 where a pair's completion begins; a plain text
with prompts)                                                      counts as generated behind its first token
a host's own call that generates, with or     the call's mask or   with the ids that the call was given, what a
without a cache: steps, chunked prefill,      the pass's, cache    kept cache holds of them included; drafts of
assisted decoding, beams, static caches       length               assisted decoding count as generated
one token on a filled cache, in own code      mask, cache length   where it ended for the pass before: a step
several tokens on a filled cache, in own      mask, cache length   with the pass: a further chunk or turn of the
code                                                               prompt
as the two before, other rows or another      mask, cache length   unknown
cache than the pass before had
a 4-D or dict mask in own code, or in a call  unknown              unknown
that was given none; `cache_params` of
state-space models
embeddings in place of ids                    unknown              unknown

What is unknown is refused for every scope that asks for it, which is every one but `all`. A text that is one token
longer than the one before is a text like any other: only a host's own call makes it a step. Own loops over prefixes are
passes without a cache; own loops that decode use a cache. TransformerLens's `generate` is told from its first pass.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from lens_steer.errors import ModelError
from lens_steer.host.adapter import host_of
from lens_steer.host.generations import Generation, Listening, running


@dataclass(frozen=True)
class TokenPositions:
    """Where the tokens of one forward pass stand.

    position:
        Counts a row's real tokens from 0.
    prompt_length:
        Number of real tokens in each row's prompt; a token at or after it was generated. None where nothing tells.
    real:
        False on pads.
    ids:
        None where the model was given embeddings.
    plain:
        Whether a row is a text that has no prompt of its own, so that nothing may ask what its prompt is.
    """

    position: Int[Tensor, "text pos"]
    prompt_length: Int[Tensor, " text"] | None
    real: Bool[Tensor, "text pos"]
    ids: Int[Tensor, "text pos"] | None
    plain: bool = False

    @property
    def prompt_end(self) -> Int[Tensor, "text 1"]:
        """The prompt's length in each row, beside its positions; ModelError where it is unknown."""
        if self.prompt_length is None:
            raise ModelError(
                "this forward pass goes on with a cache, and where the prompt in it ends cannot be told: run the "
                "prompt inside the context, with the same rows, generate with the model's own generate, or use a "
                'scope that does not ask for it, such as "all"'
            )
        return self.prompt_length[:, None]


def text_positions(
    ids: Int[Tensor, "text pos"], real: Bool[Tensor, "text pos"], prompts: Sequence[int | None]
) -> TokenPositions:
    """Return where the tokens of whole texts stand, padded on the right.

    `prompts` are the lengths of their prompts, None for a text that is no (prompt, completion) pair. Such a text
    counts as generated behind its first token: what a model that is given nothing but BOS would have written.
    """
    lengths = torch.tensor([1 if length is None else length for length in prompts], device=ids.device)
    return TokenPositions(real.long().cumsum(1) - 1, lengths, real, ids, plain=None in prompts)


class _Texts(NamedTuple):
    """What the rows of a pass are, where lens_steer runs the texts of a call."""

    rows: tuple[int, ...] | None = None
    prompts: tuple[int | None, ...] | None = None


_NO_TEXTS = _Texts()
_TEXTS: ContextVar[_Texts] = ContextVar("texts", default=_NO_TEXTS)


@contextmanager
def announced_texts(rows: Sequence[int], prompts: Sequence[int | None] | None = None) -> Iterator[None]:
    """Say which texts of a call the rows of the passes inside are, and where the prompt of each ends.

    What is drawn or set per row follows the number of its text; no rows: it follows the place in the batch. Without
    `prompts` the passes are those of a generation, or prompts. It holds for this thread.
    """
    token = _TEXTS.set(_Texts(tuple(rows) or None, None if prompts is None else tuple(prompts)))
    try:
        yield
    finally:
        _TEXTS.reset(token)


class Prompt:
    """The prompt that a pass belongs to or goes on with; the passes of one generation share it.

    Attributes
    ----------
    width:
        Its columns, pads included; None where it is unknown.
    lengths:
        Its real tokens in each row, where whole texts are run (see `text_positions`).
    decisions:
        Number of a gate -> for which rows it opened; held for as long as the prompt is continued.
    seen:
        Columns that were run already.

    """

    def __init__(self, width: int | None, lengths: tuple[int | None, ...] | None = None) -> None:
        self.width, self.lengths = width, lengths
        self.decisions: dict[int, Bool[Tensor, " text"]] = {}
        self.seen = 0


class ForwardPass:
    """One forward pass as a hook may know it; what costs anything is worked out when it is first asked for.

    Attributes
    ----------
    ids:
        Token ids, pads included.
    start, end:
        The first of its columns, which is the number of tokens in the cache, and the one behind its last.
    prompt:
        The prompt that its tokens belong to or go on with.
    rows:
        The numbers of its texts in the call that they are of, where lens_steer runs them.
    fresh:
        How many of its last columns no pass of the same generation ran before.
    scope_masks:
        Which tokens are in a scope, for the scopes that were asked for.
    counted:
        Numbers of the edits that have counted this pass.

    """

    def __init__(
        self,
        ids: Int[Tensor, "text pos"],
        mask: Tensor | None,
        start: int,
        prompt: Prompt,
        *,
        rows: tuple[int, ...] | None = None,
        unknown: str = "",
    ) -> None:
        self.ids, self.start, self.end = ids, start, start + ids.shape[1]
        self.prompt, self.rows = prompt, rows
        self.fresh = self.end - min(max(start, prompt.seen), self.end)
        prompt.seen = max(prompt.seen, self.end)
        self.scope_masks: dict[Hashable, Bool[Tensor, "text pos"]] = {}
        self.counted: set[int] = set()
        self._mask, self._unknown = mask, unknown

    @property
    def holds_its_prompt(self) -> bool:
        """Whether the whole prompt stands in this pass, as a gate needs it that decides on one."""
        width = self.prompt.width
        return self.start == 0 and (self.prompt.lengths is not None or (width is not None and width <= self.end))

    @cached_property
    def positions(self) -> TokenPositions:
        """Where its tokens stand; ModelError where they are unknown."""
        if self._unknown:
            raise ModelError(
                f"the positions of this forward pass cannot be told: {self._unknown}; for edits with the scope "
                '"all" they are not needed'
            )
        real = self._columns[:, self.start :]
        lengths, width = self.prompt.lengths, self.prompt.width
        if lengths is not None:
            return text_positions(self.ids, real, lengths)
        position = (self._columns.long().cumsum(1) - 1)[:, self.start :]
        # What of a prompt is still to come, as in a chunk of it, is real: pads stand on its left.
        length = None if width is None else self._columns[:, :width].sum(1) + max(width - self.end, 0)
        return TokenPositions(position, length, real, self.ids)

    def fresh_tokens(
        self, inside: Bool[Tensor, "text pos"] | None = None, rows: Bool[Tensor, " text"] | None = None
    ) -> tuple[int | Tensor, int | Tensor]:
        """Count the real tokens that no pass before had, of the prompt and generated: numbers, or unread tensors.

        Only those `inside` (None: all) and in `rows` (None: all). Nothing is counted where positions are unknown.
        """
        if inside is None and rows is None:
            return self._all_fresh_tokens
        if self._unknown:
            return 0, 0
        tokens = self.positions.real if inside is None else inside
        tokens = tokens if rows is None else tokens & rows[:, None]
        return self._split(tokens[:, tokens.shape[1] - self.fresh :])

    @cached_property
    def _all_fresh_tokens(self) -> tuple[int | Tensor, int | Tensor]:
        if self._unknown:
            return 0, 0
        if self._mask is None and self._side is not None:  # numbers, for which no accelerator has to be waited
            count = self.ids.shape[0] * self.fresh
            return (count, 0) if self._side == "prompt" else (0, count)
        return self._split(self._columns[:, self.end - self.fresh :])

    def _split(self, tokens: Bool[Tensor, "text fresh"]) -> tuple[int | Tensor, int | Tensor]:
        if self._side is not None:
            return (tokens.sum(), 0) if self._side == "prompt" else (0, tokens.sum())
        places = self.positions
        generated = (places.position >= places.prompt_end)[:, self.end - self.start - self.fresh :]
        return (tokens & ~generated).sum(), (tokens & generated).sum()

    @property
    def _side(self) -> str | None:
        """Whether all fresh columns are prompt or all are generated; None if they are of both."""
        if self.prompt.lengths is not None:
            return None
        if self.prompt.width is None:
            return "generated" if self.ids.shape[1] == 1 else "prompt"
        if self.end <= self.prompt.width:
            return "prompt"
        return "generated" if self.end - self.fresh >= self.prompt.width else None

    @cached_property
    def _columns(self) -> Bool[Tensor, "text column"]:
        """Which tokens are real, those in the cache included."""
        if self._mask is not None:
            return self._mask.bool()
        return torch.ones(len(self.ids), self.end, dtype=torch.bool, device=self.ids.device)


class _Thread(threading.local):
    """The pass under way; each thread knows its own, because passes of several may halt and take turns."""

    now: ForwardPass | None = None
    last: ForwardPass | None = None  # the last one that had ids


class PositionClock:
    """Follows the forward passes of one model from the moment it is started, on the routes of the table above."""

    def __init__(self, model: nn.Module) -> None:
        self._host = host_of(model)
        self._thread = _Thread()
        self._prompts: weakref.WeakKeyDictionary[Generation, Prompt] = weakref.WeakKeyDictionary()
        self._handles = [*self._host.on_forward(self._announce), Listening(self._host)]

    @property
    def now(self) -> ForwardPass | None:
        """The forward pass under way; None where it has no token ids."""
        return self._thread.now

    def stop(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()

    def _announce(self, ids: Tensor | None, mask: object, cached: int | None) -> None:
        if self._host.probing:
            return
        generation = running(self._host)
        if ids is None:
            self._thread.now = None
            if generation is not None:
                generation.without_ids = True
            return
        rows = _TEXTS.get().rows
        if cached is None:
            why = "this model keeps its state in a cache that does not say how many tokens it holds (cache_params)"
            forward = ForwardPass(ids, None, 0, Prompt(None), rows=rows, unknown=why)
        else:
            prompt = self._in_own_code(ids, cached) if generation is None else self._of(generation, ids, cached)
            columns, why = _columns(ids, mask, cached, generation)
            forward = ForwardPass(ids, columns, cached, prompt, rows=rows, unknown=why)
        self._thread.now = self._thread.last = forward

    def _of(self, generation: Generation, ids: Tensor, cached: int) -> Prompt:
        """Return the prompt of the generation that a pass is of."""
        if generation.width is None and not generation.without_ids:
            generation.width = cached + ids.shape[1]
        return self._prompts.setdefault(generation, Prompt(generation.width))

    def _in_own_code(self, ids: Tensor, cached: int) -> Prompt:
        """Return the prompt of a pass that no call announced as a step."""
        prompts, last = _TEXTS.get().prompts, self._thread.last
        if cached == 0 and prompts is not None and len(prompts) == len(ids):
            return Prompt(None, prompts)
        if cached == 0 or ids.shape[1] > 1:
            return Prompt(cached + ids.shape[1])
        known = last is not None and len(last.ids) == len(ids) and cached <= last.end
        return last.prompt if last is not None and known else Prompt(None)


def _columns(ids: Tensor, mask: object, cached: int, generation: Generation | None) -> tuple[Tensor | None, str]:
    """Return which columns up to the pass's end are real (None: all), or "" and why that is unknown."""
    end, attended = cached + ids.shape[1], None if generation is None else generation.mask
    if mask is None:
        return None, ""
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= end:
        return mask[:, :end], ""
    if attended is None or len(ids) % len(attended):
        return None, (
            "its attention mask is no 2-D mask of all tokens up to its last, as static caches and own masks are: let "
            "the model's own generate make it, with attention_mask="
        )
    attended = attended.to(ids.device).repeat_interleave(len(ids) // len(attended), 0)[:, :end]
    return torch.cat([attended, attended.new_ones(len(attended), end - attended.shape[1])], 1), ""


def positions_of(forward: ForwardPass | None) -> TokenPositions:
    """Return a pass's positions; ModelError where they are unknown."""
    if forward is None:
        raise ModelError(
            "the model ran without ids or a mask, so positions are unknown: pass token ids, not embeddings"
        )
    return forward.positions
