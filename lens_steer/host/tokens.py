"""Tokens: texts as padded ids with the mask of real tokens and the mask of those that pools may see."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from lens_steer.errors import LensSteerWarning, SettingError, TokenError
from lens_steer.host.adapter import host_of
from lens_steer.host.clock import TokenPositions, text_positions
from lens_steer.host.encoding import Encoded, encode, opening, passage
from lens_steer.host.scope import ALL_TOKENS, Scope, special_ids
from lens_steer.texts.contrast import ChatFormat, Row
from lens_steer.texts.messages import Conversation

Overflow = Literal["truncate", "refuse"]

TOKEN_BUDGET = 2048
"""Tokens in a batch of texts: enough to fill two cores, small enough for their caches."""


@dataclass(frozen=True)
class TokenBatch:
    """A right-padded batch of the texts `rows`: `mask` marks real tokens, `pooled` those that pools read.

    `prompts` are the tokens of each row that are a pair's prompt, BOS included; None for a text, and left empty: all
    are texts.
    """

    ids: Int[Tensor, "text pos"]
    mask: Bool[Tensor, "text pos"]
    pooled: Bool[Tensor, "text pos"]
    rows: tuple[int, ...] = ()
    prompts: tuple[int | None, ...] = ()

    def to(self, device: torch.device) -> TokenBatch:
        """Return the batch on another device."""
        tensors = (self.ids.to(device), self.mask.to(device), self.pooled.to(device))
        return TokenBatch(*tensors, self.rows, self.prompts)

    @property
    def prompt_lengths(self) -> tuple[int | None, ...]:
        """Number of prompt tokens of each row; None for a text."""
        return self.prompts or (None,) * len(self.ids)

    @property
    def positions(self) -> TokenPositions:
        """Where its tokens stand, as a clock tells edits when the batch is run."""
        return text_positions(self.ids, self.mask, self.prompt_lengths)


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts, unpadded; `pooled` says per token whether pools read it, `prompts` is as in a batch."""

    ids: tuple[tuple[int, ...], ...]
    pooled: tuple[tuple[bool, ...], ...]
    pad_id: int
    prompts: tuple[int | None, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each text, BOS included."""
        return [len(row) for row in self.ids]

    def batch(self, rows: Sequence[int]) -> TokenBatch:
        """Pad these rows on the right into one batch."""
        length = max(len(self.ids[row]) for row in rows)
        pads = [length - len(self.ids[row]) for row in rows]
        ids = [(*self.ids[row], *(self.pad_id,) * pad) for row, pad in zip(rows, pads, strict=True)]
        pooled = [(*self.pooled[row], *(False,) * pad) for row, pad in zip(rows, pads, strict=True)]
        real = torch.arange(length)[None] < length - torch.tensor(pads)[:, None]
        prompts = tuple(self.prompts[row] for row in rows) if self.prompts else ()
        return TokenBatch(torch.tensor(ids), real, torch.tensor(pooled), tuple(rows), prompts)

    def batches(
        self,
        batch_size: int | None = None,
        *,
        rows: Sequence[int] | None = None,
        budget: int = TOKEN_BUDGET,
        most_pads: int | None = None,
    ) -> Iterator[tuple[list[int], TokenBatch]]:
        """Yield (rows, batch), longest texts first: little padding, and memory runs out at once or never.

        A batch has `batch_size` texts, or with None as many as make `budget` tokens, pads included, of which it has
        `most_pads` at most (see `lens_steer.host.padding`). SettingError for a size below 1.
        """
        for chosen in self.batch_rows(batch_size, rows=rows, budget=budget, most_pads=most_pads):
            yield chosen, self.batch(chosen)

    def batch_rows(
        self,
        batch_size: int | None = None,
        *,
        rows: Sequence[int] | None = None,
        budget: int = TOKEN_BUDGET,
        most_pads: int | None = None,
    ) -> Iterator[list[int]]:
        """Yield the rows of each batch of `batches`."""
        order = sorted(range(len(self)) if rows is None else rows, key=lambda row: -len(self.ids[row]))
        for chosen in filled(order, self.lengths, batch_size, budget):
            yield from [chosen] if batch_size else self.of_like_length(chosen, most_pads)

    def of_like_length(self, rows: Sequence[int], most_pads: int | None) -> Iterator[list[int]]:
        """Yield rows, the longest first, in parts of at most `most_pads` pads; with None in one part."""
        left = list(rows)
        while left:
            pads = accumulate(len(self.ids[left[0]]) - len(self.ids[row]) for row in left)
            size = len(left) if most_pads is None else sum(count <= most_pads for count in pads)
            yield left[:size]
            left = left[size:]


def checked_batch_size(batch_size: int | None) -> int | None:
    """Return a batch size as it was given; SettingError unless it is None or a whole number from 1 on."""
    if batch_size is None:
        return None
    if isinstance(batch_size, bool) or int(batch_size) != batch_size or batch_size < 1:
        raise SettingError(
            f"batch_size must be 1 or more, not {batch_size!r}: leave it out (None) for a size that fits the texts"
        )
    return int(batch_size)


def filled(order: Sequence[int], lengths: Sequence[int], batch_size: int | None, budget: int) -> Iterator[list[int]]:
    """Yield the numbers of `order`, longest first, in batches of a size, or of as many as `budget` tokens take."""
    chosen = checked_batch_size(batch_size)
    start = 0
    while start < len(order):
        size = chosen or max(1, budget // max(lengths[order[start]], 1))
        yield list(order[start : start + size])
        start += size


def tokenize(
    model: nn.Module,
    rows: Sequence[Row | Conversation],
    *,
    chat: ChatFormat = None,
    scope: Scope = ALL_TOKENS,
    special_in_pool: bool = False,
    format_in_pool: bool = False,
    overflow: Overflow = "truncate",
    what: str = "text",
    numbers: Sequence[int] | None = None,
) -> Tokens:
    """Turn rows into token ids with one BOS where the model uses one.

    Parameters
    ----------
    model:
        A hosted TransformerLens model.
    rows:
        Texts, whose tokens all enter the pools, (prompt, completion) pairs, of which only the completion does, or
        conversations (lists of {"role", "content"}) in the tokenizer's template: one that ends with the assistant's
        words is a pair, of another the last message enters.
    chat:
        None for the text as it is, True for the tokenizer's chat template, or a format with `{text}`; it is laid
        around a text, or around the prompt of a pair.
    scope:
        Which tokens may enter the pools; a pair's prompt ends where its completion begins, and enters for the scopes
        `prompt` and `last` only. A text has no prompt (see `Scope`).
    special_in_pool, format_in_pool:
        Whether BOS and other special tokens, and whether the chat format's own words enter the pools.
    overflow:
        What happens to a text longer than the context: cut at its end (a pair: at its start) with a warning that
        counts, or refused.
    what:
        What a row is called in an error.
    numbers:
        The numbers that errors give the rows, where these are a part; 0, 1, ... when left out.

    Raises
    ------
    SettingError
        A row is no row, or the scope is for prompts and a row is a text.
    TokenError
        A text has no token to pool, is too long or cannot be encoded, or the tokenizer has no chat template.

    """
    host = host_of(model)
    tokenizer = host.tokenizer
    if isinstance(rows, str):
        raise SettingError(f"{what}s are a list: write a single one as [{what}]")
    rows = list(rows)
    special, front = special_ids(tokenizer), opening(tokenizer, bos=host.prepends_bos)
    named = range(len(rows)) if numbers is None else numbers
    encoded = encode(tokenizer, [passage(tokenizer, row, chat) for row in rows], what, named) if rows else []
    opened = [_opened(one, front, tokenizer.bos_token_id) for one in encoded]
    long = [number for number, one in enumerate(opened) if len(one.ids) > host.context]
    if long and overflow == "refuse":
        length = len(opened[long[0]].ids)
        raise TokenError(f"{what} {named[long[0]]} has {length} tokens, the model's context is {host.context}")
    for number in long:
        opened[number] = _cut(opened[number], len(front), host.context)
    pooled = []
    for number, one in enumerate(opened):
        inside = _in_scope(scope, one)
        keep = [
            kept and (special_in_pool or token not in special) and (format_in_pool or own)
            for token, kept, own in zip(one.ids, inside, one.own, strict=True)
        ]
        if not any(keep):
            raise TokenError(f"{what} {named[number]} has no token that a pool may read: {_short(rows[number])}")
        pooled.append(tuple(keep))
    if long:
        _warn_cut(len(long), len(rows), host.context)
    ids, prompts = tuple(tuple(one.ids) for one in opened), tuple(one.prompt for one in opened)
    return Tokens(ids, tuple(pooled), pad_id(tokenizer, host.vocabulary), prompts)


def pad_id(tokenizer: Any, vocabulary: int | None = None) -> int:
    """Return an id to pad with, below the size of a `vocabulary`; masks never depend on it."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None and (vocabulary is None or token < vocabulary):
            return int(token)
    return 0


def _opened(one: Encoded, front: list[int], bos: int | None) -> Encoded:
    """Put the opening in front, unless the text brings it or its BOS along; special tokens are nobody's words."""
    missing = front
    if front and (one.ids[: len(front)] == front or one.ids[:1] == [bos]):
        missing = []
    prompt = None if one.prompt is None else one.prompt + len(missing)
    return Encoded([*missing, *one.ids], prompt, [*[True] * len(missing), *one.own])


def _cut(one: Encoded, front: int, context: int) -> Encoded:
    """Cut a text at its end; a pair at the start of its prompt, behind the opening."""
    if one.prompt is None:
        return Encoded(one.ids[:context], None, one.own[:context])
    gone = len(one.ids) - context
    ids, own = one.ids[:front] + one.ids[front + gone :], one.own[:front] + one.own[front + gone :]
    return Encoded(ids, max(one.prompt - gone, front), own)


def _in_scope(scope: Scope, one: Encoded) -> list[bool]:
    # Only a scope that speaks of the prompt reaches into that of a pair.
    first = 0 if one.prompt is None or scope.name in ("prompt", "last") else one.prompt
    if scope.is_all:
        return [place >= first for place in range(len(one.ids))]
    row = torch.tensor([one.ids])
    places = text_positions(row, torch.ones_like(row, dtype=torch.bool), [one.prompt])
    inside: list[bool] = scope.mask(places)[0].tolist()
    return [keep and place >= first for place, keep in enumerate(inside)]


def _warn_cut(cut: int, rows: int, context: int) -> None:
    warnings.warn(
        f"{cut} of {rows} texts were longer than the context of {context} tokens and were cut", LensSteerWarning, 3
    )


def _short(row: Row | Conversation) -> str:
    text = repr(row)
    return text if len(text) <= 60 else text[:57] + "..."
