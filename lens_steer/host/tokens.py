"""Tokens: texts as padded ids with the mask of real tokens and the mask of those that pools may see."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from lens_steer.errors import LensSteerWarning, SettingError, TokenError
from lens_steer.host.adapter import host_of
from lens_steer.host.clock import TokenPositions
from lens_steer.host.scope import ALL_TOKENS, Scope, special_ids
from lens_steer.texts.contrast import ChatFormat, Row

Overflow = Literal["truncate", "refuse"]


@dataclass(frozen=True)
class TokenBatch:
    """A right-padded batch of the texts `rows`: `mask` marks real tokens, `pooled` those that pools read."""

    ids: Int[Tensor, "text pos"]
    mask: Bool[Tensor, "text pos"]
    pooled: Bool[Tensor, "text pos"]
    rows: tuple[int, ...] = ()

    def to(self, device: torch.device) -> TokenBatch:
        """Return the batch on another device."""
        return TokenBatch(self.ids.to(device), self.mask.to(device), self.pooled.to(device), self.rows)


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts, unpadded; `pooled` says per token whether pools read it."""

    ids: tuple[tuple[int, ...], ...]
    pooled: tuple[tuple[bool, ...], ...]
    pad_id: int

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
        return TokenBatch(torch.tensor(ids), real, torch.tensor(pooled), tuple(rows))

    def batches(self, batch_size: int, *, rows: Sequence[int] | None = None) -> Iterator[tuple[list[int], TokenBatch]]:
        """Yield (rows, batch), longest texts first: little padding, and memory runs out at once or never."""
        if batch_size < 1:
            raise SettingError(f"batch_size must be 1 or more, not {batch_size}")
        order = sorted(range(len(self)) if rows is None else rows, key=lambda row: -len(self.ids[row]))
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            yield chosen, self.batch(chosen)


def default_batch_size(tokens: Tokens, *, budget: int = 2048) -> int:
    """Return how many texts make about `budget` tokens a batch: enough to fill two cores, small enough for caches."""
    return max(1, min(len(tokens), budget // max(max(tokens.lengths), 1)))


def tokenize(
    model: nn.Module,
    rows: Sequence[Row],
    *,
    chat: ChatFormat = None,
    scope: Scope = ALL_TOKENS,
    special_in_pool: bool = False,
    overflow: Overflow = "truncate",
) -> Tokens:
    """Turn texts, or (prompt, completion) pairs, into token ids with one BOS where the model uses one.

    Parameters
    ----------
    model:
        A hosted TransformerLens model.
    rows:
        Texts, whose tokens all enter the pools, or pairs, of which only the completion does.
    chat:
        None for the text as it is, True for the tokenizer's chat template, or a format with `{text}`; it is laid
        around a text, or around the prompt of a pair.
    scope:
        Which tokens may enter the pools; a pair's prompt ends where its completion begins, and enters for the scopes
        `prompt` and `last` only.
    special_in_pool:
        Whether BOS and other special tokens enter the pools.
    overflow:
        What happens to a text longer than the context: cut at its end (a pair: at its start) with a warning that
        counts, or refused.

    Raises
    ------
    TokenError
        A text has no token to pool, is too long, or the tokenizer has no chat template.

    """
    host = host_of(model)
    tokenizer = host.tokenizer
    special = special_ids(tokenizer)
    all_ids: list[tuple[int, ...]] = []
    all_pooled: list[tuple[bool, ...]] = []
    cut = 0
    for number, row in enumerate(rows):
        ids, prompt = _encode(tokenizer, row, chat)
        if host.prepends_bos and (not ids or ids[0] != tokenizer.bos_token_id):
            ids, prompt = [tokenizer.bos_token_id, *ids], prompt + 1 if isinstance(row, tuple) else 0
        if len(ids) > host.context:
            if overflow == "refuse":
                raise TokenError(f"text {number} has {len(ids)} tokens, the model's context is {host.context}")
            ids, prompt = _cut(ids, prompt, host.context)
            cut += 1
        inside = _in_scope(scope, ids, prompt)
        pooled = [keep and (special_in_pool or token not in special) for token, keep in zip(ids, inside, strict=True)]
        if not any(pooled):
            raise TokenError(f"text {number} has no token that a pool may read: {_short(row)}")
        all_ids.append(tuple(ids))
        all_pooled.append(tuple(pooled))
    if cut:
        _warn_cut(cut, len(rows), host.context)
    return Tokens(tuple(all_ids), tuple(all_pooled), pad_id(tokenizer))


def pad_id(tokenizer: Any) -> int:
    """Return an id to pad with; masks never depend on it."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def apply_chat(tokenizer: Any, text: str, chat: ChatFormat) -> str:
    """Lay the chat format around one user turn; the model's answer comes after it."""
    if chat is None or chat is False:
        return text
    if isinstance(chat, str):
        return chat.replace("{text}", text)
    if not getattr(tokenizer, "chat_template", None):
        raise TokenError('this tokenizer has no chat template: give the format, such as chat="User: {text}\\nBot:"')
    turns = [{"role": "user", "content": text}]
    return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))


def _encode(tokenizer: Any, row: Row, chat: ChatFormat) -> tuple[list[int], int]:
    """Return ids without BOS, and how many of them are a pair's prompt (0 for a text)."""
    if isinstance(row, str):
        return list(tokenizer(apply_chat(tokenizer, row, chat), add_special_tokens=False).input_ids), 0
    prompt = apply_chat(tokenizer, row[0], chat)
    # Encoded as one text, so that the boundary gets the tokens that the model would see; a token that spans it counts
    # as completion.
    encoded = tokenizer(prompt + row[1], add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded.input_ids), sum(end <= len(prompt) for _, end in encoded.offset_mapping)


def _cut(ids: list[int], prompt: int, context: int) -> tuple[list[int], int]:
    """Cut a text at its end; a pair at the start of its prompt, behind the first token (BOS)."""
    if prompt == 0:
        return ids[:context], 0
    return ids[:1] + ids[1 - context :], max(prompt - (len(ids) - context), 1)


def _in_scope(scope: Scope, ids: list[int], prompt: int) -> list[bool]:
    # Only a scope that speaks of the prompt reaches into that of a pair.
    first = 0 if scope.name in ("prompt", "last") else prompt
    if scope.is_all:
        return [place >= first for place in range(len(ids))]
    row = torch.tensor([ids])
    end = torch.tensor([prompt or len(ids)])
    places = TokenPositions(torch.arange(len(ids))[None], end, torch.ones_like(row, dtype=torch.bool), row)
    inside: list[bool] = scope.mask(places)[0].tolist()
    return [keep and place >= first for place, keep in enumerate(inside)]


def _warn_cut(cut: int, rows: int, context: int) -> None:
    warnings.warn(
        f"{cut} of {rows} texts were longer than the context of {context} tokens and were cut", LensSteerWarning, 3
    )


def _short(row: Row) -> str:
    text = repr(row)
    return text if len(text) <= 60 else text[:57] + "..."
