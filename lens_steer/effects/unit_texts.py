"""The texts of a unit page: concepts, the table that is looked at, and the texts in which the unit is largest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lens_steer.activations.show import UnitView
from lens_steer.effects.unit_causes import TopTexts
from lens_steer.errors import ContrastError, TokenError
from lens_steer.host.scope import Scope
from lens_steer.host.tokens import Tokens, tokenize
from lens_steer.texts.contrast import ContrastSet, LabelledTexts, Row

Contrasts = ContrastSet | LabelledTexts | Sequence[ContrastSet]


def concepts_of(contrasts: Contrasts) -> tuple[ContrastSet, ...]:
    """Return the concepts, one contrast each."""
    if isinstance(contrasts, ContrastSet):
        return (contrasts,)
    if isinstance(contrasts, LabelledTexts):
        return tuple(contrasts.contrast(name) for name in contrasts.concepts)
    return tuple(contrasts)


def texts_of(concepts: Sequence[ContrastSet], texts: Sequence[Row]) -> ContrastSet | LabelledTexts:
    """The texts that are looked at, as a table; ContrastError where there are fewer than two."""
    if isinstance(texts, str):
        raise ContrastError("texts is a list: write a single text as [text]")
    if not len(texts):
        if not concepts:
            raise ContrastError("a unit page needs texts: give texts= (two or more), or contrasts=")
        return concepts[0] if len(concepts) == 1 else LabelledTexts.of(concepts)
    if len(texts) < 2:
        raise ContrastError("a unit page needs two texts or more: with one, nothing is known of how texts vary")
    # Two concepts that say nothing, so that no side is shown.
    labels = np.stack([np.arange(len(texts)) % 2, (np.arange(len(texts)) + 1) % 2], axis=1).astype(np.int8)
    return LabelledTexts(tuple(texts), labels, ("even", "odd"))


def _table(base: ContrastSet | LabelledTexts) -> LabelledTexts:
    return base.labelled if isinstance(base, ContrastSet) else base


def in_two_halves(base: ContrastSet | LabelledTexts) -> LabelledTexts:
    """The same texts in two halves that mean nothing: token moments are of both."""
    table = _table(base)
    labels = (np.arange(len(table.texts)) % 2).astype(np.int8)[:, None]
    return LabelledTexts(table.texts, labels, ("half",), chat=table.chat)


def checked_tokens(model: nn.Module, base: ContrastSet | LabelledTexts) -> Tokens:
    """Return the tokens of the table; TokenError for a text of fewer than two."""
    table = _table(base)
    tokens = tokenize(model, table.texts, chat=table.chat)
    for row, pooled in enumerate(tokens.pooled):
        if sum(pooled) < 2:
            raise TokenError(
                f"text {row} has {sum(pooled)} token of its own, and a unit page asks what follows a token: leave out "
                "texts of fewer than two tokens, or give others as texts="
            )
    return tokens


def word_tokens(words: Sequence[str], tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens of words, with a space before them and without; TokenError for a word that is none."""
    if isinstance(words, str):
        raise ContrastError(f"words is a list: write a single word as [{words!r}]")
    tokens: set[int] = set()
    for word in words:
        spellings = dict.fromkeys((word, f" {word.strip()}", word.strip()))
        ids = {one for spelling in spellings for one in _single(spelling, tokenizer)}
        if not ids:
            Scope.of_tokens([word], tokenizer)  # which says why it is none
        tokens |= ids
    return tuple(sorted(tokens))


def _single(text: str, tokenizer: Any) -> tuple[int, ...]:
    try:
        return Scope.of_tokens([text], tokenizer).tokens
    except TokenError:
        return ()


def top_texts(view: UnitView, base: ContrastSet | LabelledTexts, tokens: Tokens) -> TopTexts:
    """Return the shown texts of a view, largest first."""
    top, rows = view.units[0].top, _table(base).texts
    chosen = [text.row for text in top]
    kept = Tokens(
        tuple(tokens.ids[row] for row in chosen),
        tuple(tokens.pooled[row] for row in chosen),
        tokens.pad_id,
        tuple(tokens.prompts[row] for row in chosen) if tokens.prompts else (),
    )
    peaks = [text.start + int(text.values.masked_fill(~torch.tensor(text.pooled), -torch.inf).argmax()) for text in top]
    return TopTexts([rows[row] for row in chosen], kept, peaks)
