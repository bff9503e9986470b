"""What a model says of the next tokens of texts: its losses, and how far an edit moves its distributions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lens_steer.errors import ModelError, SettingError, TokenError
from lens_steer.host.adapter import host_of
from lens_steer.host.padding import most_pads
from lens_steer.host.tokens import TOKEN_BUDGET, TokenBatch, Tokens, tokenize
from lens_steer.host.trunk import text_logits
from lens_steer.host.turns import taking_turns
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


@dataclass(frozen=True)
class TextDivergences:
    """Per text, the sum over its tokens of KL(as it is || edited) of the next token (nats), and how many those are.

    `tokens` holds the divergence at every token, text by text.
    """

    sums: Float[np.ndarray, " text"]
    counts: Int[np.ndarray, " text"]
    tokens: tuple[Float[np.ndarray, " _"], ...] = ()

    @property
    def mean(self) -> float:
        """Nats per token, over all tokens."""
        return float(self.sums.sum() / self.counts.sum())


def read_losses(
    model: nn.Module,
    texts: Sequence[Row | Conversation],
    *,
    chat: ChatFormat = None,
    batch_size: int | None,
    progress: bool,
) -> TextLosses:
    """Return the losses of texts on the model as it stands.

    Counted are the tokens behind BOS (without one, behind the first), and of a pair those of its completion.
    SettingError where there is no text, TokenError for a text without a token to predict, ModelError for a loss that
    is not finite.
    """
    tokens, counts = _counted_tokens(model, texts, chat)
    sums = np.zeros(len(tokens))
    with torch.no_grad():
        for rows, batch in _batches(model, tokens, batch_size, "perplexity", progress, copies=1):
            sums[rows] = [values.sum() for values in _by_token(batch, _losses, text_logits(model, batch))]
    if not np.isfinite(sums).all():
        raise _not_finite("the loss", sums)
    return TextLosses(sums, counts)


def read_divergences(
    model: nn.Module,
    texts: Sequence[Row | Conversation],
    edited: Callable[[], AbstractContextManager[object]],
    *,
    chat: ChatFormat = None,
    batch_size: int | None,
    progress: bool,
) -> TextDivergences:
    """Return the divergence of the model inside `edited` from the model as it stands: on the same tokens as the losses.

    Errors as `read_losses`.
    """
    tokens, counts = _counted_tokens(model, texts, chat)
    of_rows: dict[int, Float[np.ndarray, " _"]] = {}
    with torch.no_grad(), taking_turns(model):
        for rows, batch in _batches(model, tokens, batch_size, "divergence", progress, copies=2):
            before = text_logits(model, batch)
            with edited():
                after = text_logits(model, batch)
            of_rows |= dict(zip(rows, _by_token(batch, _divergences, before, after), strict=True))
    in_order = tuple(of_rows[row] for row in range(len(tokens)))
    sums = np.array([values.sum() for values in in_order])
    if not np.isfinite(sums).all():
        raise _not_finite("the divergence", sums)
    return TextDivergences(sums, counts, in_order)


def _counted_tokens(
    model: nn.Module, texts: Sequence[Row | Conversation], chat: ChatFormat
) -> tuple[Tokens, Int[np.ndarray, " text"]]:
    if not len(texts):
        raise SettingError("there is no text to measure the perplexity of")
    tokens = tokenize(model, texts, chat=chat, special_in_pool=True, format_in_pool=True)
    # The first token of a row is given, never predicted.
    counts = np.array([sum(row[1:]) for row in tokens.pooled])
    if not counts.all():
        raise TokenError(f"text {int(np.argmin(counts))} has no token to predict: it is one token long")
    return tokens, counts


def _batches(
    model: nn.Module, tokens: Tokens, batch_size: int | None, what: str, progress: bool, *, copies: int
) -> Iterator[tuple[list[int], TokenBatch]]:
    """Yield batches on the model's device, so small that `copies` of their logits stay within the budget."""
    host = host_of(model)
    budget = min(TOKEN_BUDGET, max(1, _LOGIT_BUDGET // (copies * host.vocabulary)))
    batches = list(tokens.batches(batch_size, budget=budget, most_pads=most_pads(model)))
    for rows, batch in progress_bar(batches, desc=what, unit="batch", show=progress):
        yield rows, batch.to(host.device)


def _by_token(
    batch: TokenBatch, statistic: Callable[..., Tensor], *logits: Float[Tensor, "text pos vocab"]
) -> list[Float[np.ndarray, " _"]]:
    """Return a statistic of every counted token, text by text."""
    counted: Bool[Tensor, "text pos"] = batch.mask[:, 1:] & batch.pooled[:, 1:]
    # Row by row, so that the wider copies that a log-softmax makes are never larger than one text's.
    of_texts = [
        statistic(ids[1:][keep], *(row[:-1][keep] for row in rows))
        for keep, ids, *rows in zip(counted, batch.ids, *logits, strict=True)
    ]
    values: Float[np.ndarray, " _"] = torch.cat(of_texts).cpu().numpy()
    return np.split(values, np.cumsum([len(of_text) for of_text in of_texts])[:-1])


def _losses(ids: Int[Tensor, " pos"], logits: Float[Tensor, "pos vocab"]) -> Float[Tensor, " pos"]:
    return F.cross_entropy(logits.float(), ids, reduction="none").double()


def _divergences(
    ids: Int[Tensor, " pos"], before: Float[Tensor, "pos vocab"], after: Float[Tensor, "pos vocab"]
) -> Float[Tensor, " pos"]:
    of_before, of_after = (logits.float().log_softmax(1) for logits in (before, after))
    return (of_before.exp() * (of_before - of_after)).double().sum(1)


def _not_finite(what: str, sums: Float[np.ndarray, " text"]) -> ModelError:
    return ModelError(
        f"{what} of text {int(np.argmin(np.isfinite(sums)))} is not finite: the model overflows, or an edit of this "
        "strength makes it"
    )
