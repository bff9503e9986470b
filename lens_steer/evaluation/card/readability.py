"""Readability: which continuations are no language any more, by the oracle, or else by repetition and surprise."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float
from torch import nn

from lens_steer.evaluation.oracle_scorer import OracleScorer
from lens_steer.evaluation.perplexity import text_losses
from lens_steer.texts.scripts import UNSPACED, combining_marks, composed

_NGRAM = 3
_REPEATED = 0.5  # share of repeated trigrams from which on a text goes round in circles
_FAR = 4.0  # robust standard deviations above the typical unedited continuation
_LEAST = 1.0  # nats per token: where unedited continuations hardly differ, so much more surprise is asked for
_MAD = 1.4826


@runtime_checkable
class Readability(Protocol):
    """Tells which continuations cannot be read."""

    @property
    def name(self) -> str:
        """What the share of these texts is called."""
        ...

    def unreadable(self, prompts: Sequence[str], texts: Sequence[str]) -> Bool[np.ndarray, " text"]:
        """Return which texts cannot be read; one without a word is among them, for it says nothing."""
        ...


@dataclass(frozen=True)
class ByOracle:
    """Unreadable is a text of the microworld in which no sentence is grammatical, or that has none."""

    scorer: OracleScorer
    name: str = "unreadable by the oracle"

    def unreadable(self, prompts: Sequence[str], texts: Sequence[str]) -> Bool[np.ndarray, " text"]:
        """Ask the oracle."""
        empty = np.array([not text.strip() for text in texts], dtype=bool)
        return np.asarray(np.isnan(self.scorer.read(prompts, texts).scores) | empty)


@dataclass(frozen=True, eq=False)
class ByRepetitionAndSurprise:
    """Broken is a text that goes round in circles, or that is far from what the unedited model would write.

    Half or more of its trigrams are repetitions; or the unedited model's loss per token lies more than four robust
    standard deviations, and a nat, above that of its own typical continuation. Neither knows what a text means: a text
    that passes may still be nonsense.
    """

    model: nn.Module
    typical: Float[np.ndarray, " text"]
    batch_size: int | None = None
    name: str = "broken by repetition or surprise"
    _limit: float = field(init=False)

    def __post_init__(self) -> None:
        known = self.typical[np.isfinite(self.typical)]
        middle = float(np.median(known)) if len(known) else np.inf
        spread = _MAD * float(np.median(np.abs(known - middle))) if len(known) else 0.0
        object.__setattr__(self, "_limit", middle + max(_FAR * spread, _LEAST))

    @classmethod
    def of(
        cls, model: nn.Module, prompts: Sequence[str], texts: Sequence[str], batch_size: int | None
    ) -> ByRepetitionAndSurprise:
        """Take the unedited model's own continuations as the measure."""
        return cls(model, surprise(model, prompts, texts, batch_size), batch_size)

    def unreadable(self, prompts: Sequence[str], texts: Sequence[str]) -> Bool[np.ndarray, " text"]:
        """Measure both."""
        losses = surprise(self.model, prompts, texts, self.batch_size)
        circles = np.array([repeated(text) >= _REPEATED for text in texts])
        return np.asarray(circles | np.isnan(losses) | (losses > self._limit))


def surprise(
    model: nn.Module, prompts: Sequence[str], texts: Sequence[str], batch_size: int | None
) -> Float[np.ndarray, " text"]:
    """Return the model's loss per token (nats) on each continuation behind its prompt; nan for an empty one."""
    losses = np.full(len(texts), np.nan)
    written = [place for place, text in enumerate(texts) if text.strip()]
    if written:
        pairs = [(prompts[place], texts[place]) for place in written]
        read = text_losses(model, pairs, batch_size=batch_size, progress=False)
        losses[written] = read.sums / read.counts
    return losses


def repeated(text: str) -> float:
    """Return the share of a text's trigrams of words that stood in it before; 0 for a text of fewer words."""
    words = words_in(text)
    trigrams = list(zip(*(words[place:] for place in range(_NGRAM)), strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


def words_in(text: str) -> list[str]:
    """Return the words of a text, in lower case; a character of a script without spaces is one."""
    return _words().findall(composed(text).lower())


@cache
def _words() -> re.Pattern[str]:
    return re.compile(f"[{UNSPACED}]|(?:(?![{UNSPACED}])[\\w{combining_marks()}])+")
