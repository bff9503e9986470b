"""Perplexity: how surprised a model is by texts, with or without an intervention; the price of an edit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lens_steer.errors import ModelError, SettingError, TokenError
from lens_steer.evaluation.generation import edited
from lens_steer.host.adapter import host_of
from lens_steer.host.tokens import TOKEN_BUDGET, TokenBatch, tokenize
from lens_steer.host.trunk import text_logits
from lens_steer.interventions.intervention import Intervention
from lens_steer.progress import progress_bar
from lens_steer.texts.contrast import ChatFormat, Row
from lens_steer.texts.messages import Conversation

Reduction = Literal["token", "text"]
_LOGIT_BUDGET = 2**26  # numbers in the logits of one batch: 256 MiB in float32


@dataclass(frozen=True)
class TextLosses:
    """Per text, the sum of its tokens' negative log-likelihoods (nats) and how many tokens that are."""

    sums: Float[np.ndarray, " text"]
    counts: Int[np.ndarray, " text"]

    def perplexity(self, reduction: Reduction = "token") -> float:
        """Return exp of the mean loss: over all tokens, or over the texts' own means."""
        if reduction == "token":
            return float(np.exp(self.sums.sum() / self.counts.sum()))
        return float(np.exp((self.sums / self.counts).mean()))


def perplexity(
    model: nn.Module,
    texts: Sequence[Row | Conversation],
    *,
    intervention: Intervention | None = None,
    strength: float = 1.0,
    reduction: Reduction = "token",
    chat: ChatFormat = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> float:
    """Return exp of the mean next-token negative log-likelihood, from 1 (certain) upwards.

    Parameters
    ----------
    model:
        A hosted TransformerLens model.
    texts:
        Texts, whose every token behind BOS counts (on a model without BOS, behind their first token), or (prompt,
        completion) pairs, of which only the completion does. Texts longer than the context are cut, with a warning.
    intervention, strength:
        The edit under which the model runs, and how much of it (0 changes nothing). The result is that of forcing the
        texts on a generation step by step: an edit of generated tokens acts on a pair's completion, and on a plain
        text behind its BOS (see `Scope`).
    reduction:
        "token" weighs every token alike, "text" every text.
    chat:
        None, True (the tokenizer's template) or a format with `{text}`; it is laid around a text and then counts with
        it, or around the prompt of a pair.
    batch_size:
        Texts per batch; by default as many as keep a batch's logits under 256 MiB.
    progress:
        Whether to show a progress bar.

    Raises
    ------
    SettingError
        There is no text, or the reduction is unknown; an edit with the scope `prompt` or a gate meets plain texts.
    TokenError
        A text has no token to predict.
    ModelError
        A text's loss is not a number: the model overflows, by itself or under this edit.

    """
    if reduction not in ("token", "text"):
        raise SettingError(f'reduction is "token" or "text", not {reduction!r}')
    losses = text_losses(
        model, texts, intervention=intervention, strength=strength, chat=chat, batch_size=batch_size, progress=progress
    )
    return losses.perplexity(reduction)


def text_losses(
    model: nn.Module,
    texts: Sequence[Row | Conversation],
    *,
    intervention: Intervention | None = None,
    strength: float = 1.0,
    chat: ChatFormat = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> TextLosses:
    """Return each text's summed loss and token count, from which perplexities and their intervals follow."""
    if not len(texts):
        raise SettingError("there is no text to measure the perplexity of")
    tokens = tokenize(model, texts, chat=chat, special_in_pool=True, format_in_pool=True)
    # The first token of a row is given, never predicted.
    counts = np.array([sum(row[1:]) for row in tokens.pooled])
    if not counts.all():
        raise TokenError(f"text {int(np.argmin(counts))} has no token to predict: it is one token long")
    sums = np.zeros(len(tokens))
    with torch.no_grad(), edited(model, intervention, strength):
        batches = list(tokens.batches(batch_size, budget=_budget(model)))
        for rows, batch in progress_bar(batches, desc="perplexity", unit="batch", show=progress):
            sums[rows] = _batch_losses(model, batch)
    if not np.isfinite(sums).all():
        raise ModelError(
            f"the loss of text {int(np.argmin(np.isfinite(sums)))} is not finite: the model overflows, or an edit of "
            "this strength makes it"
        )
    return TextLosses(sums, counts)


def _budget(model: nn.Module) -> int:
    """Return how many tokens a batch may have."""
    return min(TOKEN_BUDGET, max(1, _LOGIT_BUDGET // int(host_of(model).model.cfg.d_vocab)))


def _batch_losses(model: nn.Module, batch: TokenBatch) -> Float[np.ndarray, " text"]:
    batch = batch.to(host_of(model).device)
    logits = text_logits(model, batch)
    counted: Bool[Tensor, "text pos"] = batch.mask[:, 1:] & batch.pooled[:, 1:]
    # Row by row, so that the float32 copies that a log-softmax makes are never larger than one text's.
    sums = [
        F.cross_entropy(row[:-1][keep].float(), ids[1:][keep], reduction="none").double().sum()
        for row, ids, keep in zip(logits, batch.ids, counted, strict=True)
    ]
    losses: Float[np.ndarray, " text"] = torch.stack(sums).cpu().numpy()
    return losses
