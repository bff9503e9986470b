"""The price of an edit: how surprised the model is by texts (perplexity), how far its next tokens move (divergence)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from torch import nn

from lens_steer.errors import SettingError
from lens_steer.host.attach import edited
from lens_steer.host.next_tokens import Reduction, TextDivergences, TextLosses, read_divergences, read_losses
from lens_steer.interventions.intervention import Intervention
from lens_steer.settings import require_settings
from lens_steer.texts.contrast import ChatFormat, Row
from lens_steer.texts.messages import Conversation


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
    require_settings(perplexity, locals())
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
    with edited(model, intervention, strength):
        return read_losses(model, texts, chat=chat, batch_size=batch_size, progress=progress)


def divergence(
    model: nn.Module,
    texts: Sequence[Row],
    *,
    intervention: Intervention | None,
    strength: float = 1.0,
    chat: ChatFormat = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> float:
    """Return the mean KL(unedited || edited) of the next token, in nats per token: what an edit changes at all.

    0 for no edit. The tokens that count, and everything else, are those of `perplexity`.
    """
    require_settings(divergence, locals())
    return text_divergences(
        model, texts, intervention=intervention, strength=strength, chat=chat, batch_size=batch_size, progress=progress
    ).mean


def text_divergences(
    model: nn.Module,
    texts: Sequence[Row],
    *,
    intervention: Intervention | None,
    strength: float = 1.0,
    chat: ChatFormat = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> TextDivergences:
    """Return each text's summed divergence and token count."""
    return read_divergences(
        model,
        texts,
        lambda: nullcontext() if intervention is None else intervention.on(model, strength),
        chat=chat,
        batch_size=batch_size,
        progress=progress,
    )
