"""Generation: prompts continued with or without an intervention, reproducibly row by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from lens_steer.errors import SettingError, TokenError
from lens_steer.host.adapter import host_of
from lens_steer.host.decode import Decoding, decode
from lens_steer.host.encoding import passage
from lens_steer.host.tokens import Tokens, filled, tokenize
from lens_steer.host.turns import taking_turns
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.strengths import Strength, as_strengths
from lens_steer.progress import progress_bar
from lens_steer.texts.contrast import ChatFormat
from lens_steer.texts.messages import Conversation, messages_of

_TOKEN_BUDGET = 8192

Prompt = str | Conversation
"""A text to continue, or a list of chat messages, which the tokenizer's template lays out."""


def generate(
    model: nn.Module,
    prompts: Sequence[Prompt],
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
    nor on chance differences between a steered and an unsteered call, which draw from the same random stream. That
    holds in float32, up to two scores within rounding of each other; in half precision (bfloat16, float16) the batch
    changes the rounding of the model itself, and with it some texts: take batch_size=1 where that must not be. Nothing
    of the model's own generation_config has a say but its EOS. Calls on one model from several threads wait for each
    other.

    Parameters
    ----------
    model:
        A hosted TransformerLens model.
    prompts:
        Texts to continue. They are tokenised as everywhere, with one BOS; the empty prompt is BOS alone. A conversation
        (a list of {"role", "content"}, or a record {"messages": [...]}) is laid into the tokenizer's template; where
        its last words are the assistant's, these are continued.
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
        Prompts per batch; by default as many as make about 8,000 tokens, the new ones included.
    progress:
        Whether to show a progress bar.

    Raises
    ------
    SettingError
        A setting is out of range, there is no prompt, a prompt is neither text nor conversation, or there are other
        numbers of strengths and prompts.
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


@contextmanager
def edited(model: nn.Module, intervention: Intervention | None, strength: Strength) -> Iterator[None]:
    """Run the model with this intervention, if there is one; calls of other threads wait until it is off again."""
    with taking_turns(model):
        if intervention is None:
            yield
            return
        with intervention.on(model, strength):
            yield


def prompt_text(model: nn.Module, prompt: Prompt, number: int, chat: ChatFormat = None) -> str:
    """Return a prompt as the text that is continued; SettingError for what is neither text nor conversation."""
    if not isinstance(prompt, str) and messages_of(prompt) is None:
        raise SettingError(
            f"prompt {number} is neither a text nor a conversation (a list of messages), but a "
            f"{type(prompt).__name__}: {prompt!r:.60}"
        )
    return passage(host_of(model).tokenizer, prompt, chat).text


def _prompt_tokens(model: nn.Module, prompts: Sequence[Prompt], chat: ChatFormat, max_new_tokens: int) -> Tokens:
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


def _batches(tokens: Tokens, max_new_tokens: int, batch_size: int | None) -> list[list[int]]:
    """Return row numbers, longest prompts first, so that a batch pads little."""
    order = sorted(range(len(tokens)), key=lambda row: -len(tokens.ids[row]))
    lengths = [length + max_new_tokens for length in tokens.lengths]
    return list(filled(order, lengths, batch_size, _TOKEN_BUDGET))


def _continuation(tokenizer: Any, prompt: Sequence[int], new: Sequence[int]) -> str:
    """Return the new text as it stands behind the prompt: decoded alone it could lose its leading space."""
    start, whole = (
        str(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))
        for ids in (list(prompt), [*prompt, *new])
    )
    if whole.startswith(start):
        return whole.removeprefix(start)
    return str(tokenizer.decode(list(new), skip_special_tokens=True, clean_up_tokenization_spaces=False))
