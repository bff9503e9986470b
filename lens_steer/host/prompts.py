"""Prompts: what is continued, as token ids that leave room for what is added, and continuations as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lens_steer.errors import SettingError, TokenError
from lens_steer.host.adapter import host_of
from lens_steer.host.encoding import passage
from lens_steer.host.tokens import Tokens, filled, tokenize
from lens_steer.texts.contrast import ChatFormat
from lens_steer.texts.messages import Conversation, messages_of

_TOKEN_BUDGET = 8192

Prompt = str | Conversation
"""A text to continue, or a list of chat messages, which the tokenizer's template lays out."""


def prompt_text(model: nn.Module, prompt: Prompt, number: int, chat: ChatFormat = None) -> str:
    """Return a prompt as the text that is continued; SettingError for what is neither text nor conversation."""
    if not isinstance(prompt, str) and messages_of(prompt) is None:
        raise SettingError(
            f"prompt {number} is neither a text nor a conversation (a list of messages), but a "
            f"{type(prompt).__name__}: {prompt!r:.60}"
        )
    return passage(host_of(model).tokenizer, prompt, chat).text


def prompt_tokens(model: nn.Module, prompts: Sequence[Prompt], chat: ChatFormat, max_new_tokens: int) -> Tokens:
    """Return prompts as they are continued; SettingError and TokenError as `generate` says."""
    if isinstance(prompts, str):
        raise SettingError("prompts must be a list: write a single prompt as [prompt]")
    if not len(prompts):
        raise SettingError("there is no prompt to continue; [''] continues BOS")
    host = host_of(model)
    texts = [prompt_text(model, prompt, number, chat) for number, prompt in enumerate(prompts)]
    if "" in texts and not host.prepends_bos:
        raise TokenError(f"prompt {texts.index('')} is empty, and this model has no BOS to start from")
    tokens = tokenize(model, texts, special_in_pool=True, overflow="refuse", what="prompt")
    for row, length in enumerate(tokens.lengths):
        if length + max_new_tokens > host.context:
            raise TokenError(
                f"prompt {row} has {length} tokens, which leaves no room for {max_new_tokens} new ones in the model's "
                f"context of {host.context}: shorten it, or lower max_new_tokens"
            )
    return tokens


def prompt_batches(tokens: Tokens, max_new_tokens: int, batch_size: int | None) -> list[list[int]]:
    """Return row numbers, longest prompts first, so that a batch pads little."""
    order = sorted(range(len(tokens)), key=lambda row: -len(tokens.ids[row]))
    lengths = [length + max_new_tokens for length in tokens.lengths]
    return list(filled(order, lengths, batch_size, _TOKEN_BUDGET))


def continuation(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> str:
    """Return the new text as it stands behind the prompt: decoded alone it could lose its leading space."""
    start, whole = (
        str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for ids in (list(prompt), [*prompt, *new])
    )
    if whole.startswith(start):
        return whole.removeprefix(start)
    return str(tokenizer.decode(list(new), skip_special_tokens=True, clean_up_tokenization_spaces=False))
