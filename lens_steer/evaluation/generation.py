"""Generation: prompts continued with or without an intervention, reproducibly row by row."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lens_steer.errors import SettingError
from lens_steer.host.adapter import host_of
from lens_steer.host.attach import edited
from lens_steer.host.decode import Decoding, decode
from lens_steer.host.prompts import Prompt, continuation, prompt_batches, prompt_tokens
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.strengths import Strength, as_strengths
from lens_steer.progress import progress_bar
from lens_steer.settings import require_settings
from lens_steer.texts.contrast import ChatFormat


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
    require_settings(generate, locals())
    decoding = Decoding(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    tokens = prompt_tokens(model, prompts, chat, max_new_tokens)
    strengths = as_strengths(strength)
    if isinstance(strengths, tuple) and len(strengths) != len(prompts):
        raise SettingError(f"{len(strengths)} strengths do not fit {len(prompts)} prompts: give one each, or a number")
    tokenizer = host_of(model).tokenizer
    continuations = [""] * len(tokens)
    with edited(model, intervention, strength):
        batches = prompt_batches(tokens, max_new_tokens, batch_size)
        for rows in progress_bar(batches, desc="generate", unit="batch", show=progress):
            batch = [tokens.ids[row] for row in rows]
            for row, new in zip(rows, decode(model, batch, decoding, rows=rows), strict=True):
                continuations[row] = continuation(tokenizer, tokens.ids[row], new)
    return continuations
