"""Decoding: a left-padded batch of prompts continued token by token, each row with its own random stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lens_steer.errors import ModelError, SettingError
from lens_steer.host.adapter import BridgeHost, Host, host_of
from lens_steer.host.clock import announced_texts
from lens_steer.host.generations import Generation, announced
from lens_steer.host.nucleus import Nucleus
from lens_steer.host.turns import taking_turns


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How the next token is chosen.

    Attributes
    ----------
    max_new_tokens:
        Most tokens that are added to a prompt; EOS ends a row earlier.
    temperature:
        The logits are divided by it before a draw; 0 takes the best token (greedy), and top_k and top_p say nothing.
    top_k, top_p:
        Draw among the k most likely tokens (0: among all), and among the fewest whose probability reaches p.
    repetition_penalty:
        Positive logits of tokens that the row already holds, in prompt or continuation, are divided by it, negative
        ones multiplied (arXiv 1909.05858); 1 changes nothing. Pads never count.
    seed:
        With the number of a row it fixes that row's random stream.

    """

    max_new_tokens: int = 50
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            whole = name not in ("temperature", "top_p", "repetition_penalty")
            if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
                raise SettingError(f"{name} is a {'whole ' * whole}number, not {value!r}")
        # Written as what must hold, so that NaN is refused too.
        rules = {
            "max_new_tokens": (self.max_new_tokens >= 1, "1 or more"),
            "temperature": (0 <= self.temperature < float("inf"), "0 (greedy) or a positive number"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (1 keeps every token)"),
            "top_k": (self.top_k >= 0, "0 (every token) or a positive number"),
            "repetition_penalty": (0 < self.repetition_penalty < float("inf"), "a positive number (1 is none)"),
            "seed": (self.seed >= 0, "0 or more"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise SettingError(f"{name} must be {rule}, not {getattr(self, name)}")


class Sampling(TypedDict, total=False):
    """The settings of a `Decoding`, where a call takes them as keywords of its own."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int


def decode(
    model: nn.Module, prompts: Sequence[Sequence[int]], decoding: Decoding, *, rows: Sequence[int]
) -> list[list[int]]:
    """Continue prompts, given as token ids, in one batch; each row's new ids end before its first EOS.

    `rows` number the random streams, and what edits set or draw per row. What a row becomes depends on its prompt, its
    number and `decoding` alone: neither its neighbours nor an edit change its stream, so that a steered and an
    unsteered text are drawn with the same luck.
    """
    host = host_of(model)
    ids, mask = _left_padded(prompts)
    ids, mask = ids.to(host.device), mask.to(host.device)
    ends = _stop_ids(host)
    processors = _processors(decoding, rows)
    under_way = Generation(host, ids=ids, mask=mask)
    with torch.no_grad(), taking_turns(model), announced_texts(rows), announced(under_way):
        run = _bridge_generate if isinstance(host, BridgeHost) else _hooked_generate
        new = run(host, ids, mask, processors, decoding.max_new_tokens, ends)
    return [_until(row, ends) for row in new.tolist()]


def _left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "text pos"], Bool[Tensor, "text pos"]]:
    """Pad with each row's own first token: the ids of a row are then its own, also where the mask is not looked at."""
    length = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[prompt[0]] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    places = torch.arange(length)
    first = torch.tensor([length - len(prompt) for prompt in prompts])
    return ids, places[None] >= first[:, None]


def _stop_ids(host: Host) -> list[int]:
    """Return the ids that end a text: the tokenizer's EOS, and what a chat model's own config adds to it.

    An id that TransformerLens invented for a tokenizer without EOS is none: the model never writes it.
    """
    config = getattr(getattr(host.model, "original_model", None), "generation_config", None)
    named = getattr(config, "eos_token_id", None)
    ends = list(named) if isinstance(named, list | tuple) else [named]
    vocabulary = host.vocabulary
    return sorted({int(end) for end in [host.tokenizer.eos_token_id, *ends] if end is not None and end < vocabulary})


def _until(row: list[int], ends: list[int]) -> list[int]:
    stop = next((place for place, token in enumerate(row) if token in ends), len(row))
    return row[:stop]


def _processors(decoding: Decoding, rows: Sequence[int]) -> Any:
    """Return transformers' own warpers, the nucleus, and the noise that makes the best token a drawn one."""
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
    )

    chain: list[Any] = [_refuse_nan]
    if decoding.repetition_penalty != 1.0:
        chain.append(RepetitionPenaltyLogitsProcessor(float(decoding.repetition_penalty)))
    if decoding.temperature > 0:
        if decoding.temperature != 1.0:
            chain.append(TemperatureLogitsWarper(float(decoding.temperature)))
        if decoding.top_k > 0:
            chain.append(TopKLogitsWarper(decoding.top_k))
        if decoding.top_p < 1.0:
            chain.append(Nucleus(float(decoding.top_p)))
        chain.append(RowNoise(decoding.seed, rows))
    return LogitsProcessorList(chain)


def _refuse_nan(input_ids: Tensor, scores: Float[Tensor, "text vocab"]) -> Float[Tensor, "text vocab"]:
    if bool(scores.amax(1).isnan().any()):
        raise ModelError("the model's logits are not numbers (NaN): it overflows, or an edit of this strength makes it")
    return scores


class RowNoise:
    """Adds Gumbel noise to the scores, each row from its own stream, one draw of the whole vocabulary per step.

    The best of noisy scores is a draw from their softmax. Rows use up their streams alike whatever the scores are.
    """

    def __init__(self, seed: int, rows: Sequence[int]) -> None:
        self._streams = [np.random.default_rng((seed, row)) for row in rows]

    def __call__(self, input_ids: Tensor, scores: Float[Tensor, "text vocab"]) -> Float[Tensor, "text vocab"]:
        """Return the scores plus the next step's noise."""
        # In double precision: single has exact zeros among 10^7 draws, whose Gumbel value is infinite.
        waits = np.empty(scores.shape)
        for stream, row in zip(self._streams, waits, strict=True):
            stream.standard_exponential(out=row)
        return scores - torch.from_numpy(waits).log_().to(scores)


def _bridge_generate(
    host: Host,
    ids: Int[Tensor, "text pos"],
    mask: Bool[Tensor, "text pos"],
    processors: Any,
    steps: int,
    ends: list[int],
) -> Int[Tensor, "text new"]:
    """Let the wrapped Hugging Face model generate: every hook is seen, and it knows its own cache and positions."""
    from transformers import GenerationConfig

    original = host.model.original_model
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=steps, do_sample=False, eos_token_id=ends or None, pad_token_id=ends[0] if ends else 0
    )
    # What is left out here is filled in from the model's own config, which may penalise, forbid or return something
    # else on its own account: for the length of the call it has none.
    own, original.generation_config = original.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        out = original.generate(
            input_ids=ids, attention_mask=mask.long(), generation_config=config, logits_processor=processors
        )
    finally:
        original.generation_config = own
    new: Tensor = out[:, ids.shape[1] :]
    return new


def _hooked_generate(
    host: Host,
    ids: Int[Tensor, "text pos"],
    mask: Bool[Tensor, "text pos"],
    processors: Any,
    steps: int,
    ends: list[int],
) -> Int[Tensor, "text new"]:
    """Step through a HookedTransformer with its key-value cache; its own `generate` cannot draw row by row."""
    from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache

    cache = TransformerLensKeyValueCache.init_cache(host.model.cfg, host.device, len(ids))
    stops = torch.tensor(ends, device=ids.device)
    going = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    prompt, fresh, attended = ids.shape[1], ids, mask.long()
    for _ in range(steps):
        logits = host.model(fresh, attention_mask=attended, past_kv_cache=cache)[:, -1].float()
        fresh = processors(ids, logits).argmax(1, keepdim=True)
        ids = torch.cat([ids, fresh], 1)
        going &= ~torch.isin(fresh[:, 0], stops)
        if not bool(going.any()):
            break
        attended = torch.ones_like(fresh)
    return ids[:, prompt:]
