"""Generation: prompts continued with or without an intervention, reproducibly row by row."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from lens_steer.errors import SettingError, TokenError
from lens_steer.host.adapter import host_of
from lens_steer.host.decode import Decoding, decode
from lens_steer.host.tokens import Tokens, tokenize
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.strengths import Strength, as_strengths
from lens_steer.progress import progress_bar
from lens_steer.texts.contrast import ChatFormat

_TOKEN_BUDGET = 8192


def generate(
    model: nn.Module,
    prompts: Sequence[str],
    *,
    intervention: Intervention | None = None,
    strength: Strength = 1.0,
    max_new_tokens: int = 50,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    repetition_penalty: float = 1.0,
    chat: ChatFormat = None,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> list[str]:
    """Return the continuation of every prompt, in their order, without the prompt and without special tokens.

    The text of row r depends on its prompt, the settings and (seed, r) only: not on the batch size, the other prompts,
    nor on chance differences between a steered and an unsteered call, which draw from the same random stream.

    Parameters
    ----------
    model:
        A hosted TransformerLens model.
    prompts:
        Texts to continue. They are tokenised as everywhere, with one BOS; the empty prompt is BOS alone.
    intervention, strength:
        The edit under which the model runs, and how much of it (0 changes nothing): one number, or one per prompt.
    max_new_tokens:
        A row ends there, or before its first EOS.
    temperature, top_p, top_k, repetition_penalty:
        See `lens_steer.host.decode.Decoding`; temperature 0 is greedy. The penalty counts the prompt's tokens too.
    chat:
        None, True (the tokenizer's template) or a format with `{text}`, laid around each prompt.
    seed:
        Fixes every row's random stream.
    batch_size:
        Prompts per batch; by default as many as make about 8,000 tokens.
    progress:
        Whether to show a progress bar.

    Raises
    ------
    SettingError
        A setting is out of range, there is no prompt, or there are other numbers of strengths and prompts.
    TokenError
        A prompt and `max_new_tokens` together exceed the model's context (nothing is cut in silence), or a prompt is
        empty on a model without BOS.

    """
    decoding = Decoding(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    tokens = _prompt_tokens(model, prompts, chat, max_new_tokens)
    strengths = as_strengths(strength)
    if isinstance(strengths, tuple) and len(strengths) != len(prompts):
        raise SettingError(f"{len(strengths)} strengths do not fit {len(prompts)} prompts: give one each, or a number")
    tokenizer = host_of(model).tokenizer
    continuations = [""] * len(tokens)
    with edited(model, intervention, strength):
        batches = _batches(tokens, max_new_tokens, batch_size)
        for rows in progress_bar(batches, desc="generate", unit="batch", show=progress):
            batch = [tokens.ids[row] for row in rows]
            for row, new in zip(rows, decode(model, batch, decoding, rows=rows), strict=True):
                continuations[row] = _continuation(tokenizer, tokens.ids[row], new)
    return continuations


def edited(model: nn.Module, intervention: Intervention | None, strength: Strength) -> AbstractContextManager[Any]:
    """Return the context in which the model runs with this intervention, if there is one."""
    return nullcontext() if intervention is None else intervention.on(model, strength)


def _prompt_tokens(model: nn.Module, prompts: Sequence[str], chat: ChatFormat, max_new_tokens: int) -> Tokens:
    if isinstance(prompts, str):
        raise SettingError("prompts must be a list: write a single prompt as [prompt]")
    if not prompts:
        raise SettingError("there is no prompt to continue; [''] continues BOS")
    host = host_of(model)
    if "" in prompts and not chat and not host.prepends_bos:
        raise TokenError(f"prompt {list(prompts).index('')} is empty, and this model has no BOS to start from")
    tokens = tokenize(model, prompts, chat=chat, special_in_pool=True, overflow="refuse")
    for row, length in enumerate(tokens.lengths):
        if length + max_new_tokens > host.context:
            raise TokenError(
                f"prompt {row} has {length} tokens, which leaves no room for {max_new_tokens} new ones in the model's "
                f"context of {host.context}: shorten it, or lower max_new_tokens"
            )
    return tokens


def _batches(tokens: Tokens, max_new_tokens: int, batch_size: int | None) -> list[list[int]]:
    """Return row numbers, longest prompts first, so that a batch pads little."""
    if batch_size is not None and batch_size < 1:
        raise SettingError(f"batch_size must be 1 or more, not {batch_size}")
    size = batch_size or max(1, _TOKEN_BUDGET // (max(tokens.lengths) + max_new_tokens))
    order = sorted(range(len(tokens)), key=lambda row: -len(tokens.ids[row]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _continuation(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> str:
    """Return the new text as it stands behind the prompt: decoded alone it could lose its leading space."""
    start, whole = (
        str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for ids in (list(prompt), [*prompt, *new])
    )
    if whole.startswith(start):
        return whole.removeprefix(start)
    return str(tokenizer.decode(list(new), skip_special_tokens=True, clean_up_tokenization_spaces=False))
