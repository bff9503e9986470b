"""Readings: what a scorer makes of continuations, also of those it cannot judge, and what it tells beside the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from lens_steer.errors import SettingError
from lens_steer.evaluation.scorers import Scorer


@dataclass(frozen=True, eq=False)
class Share:
    """A share told beside the score: per text how many counted, of how many; pooled over texts, not averaged.

    `unit` says what is counted, such as "share of sentences".
    """

    counted: Float[np.ndarray, " text"]
    of: Float[np.ndarray, " text"]
    unit: str


@dataclass(frozen=True, eq=False)
class Reading:
    """Scores in [0, 1], NaN for a text that cannot be judged, and other shares by name."""

    scores: Float[np.ndarray, " text"]
    shares: Mapping[str, Share] = field(default_factory=dict)

    @property
    def effect(self) -> Share:
        """The scores as a share of the texts that could be judged."""
        judged = ~np.isnan(self.scores)
        return Share(np.where(judged, self.scores, 0.0), judged.astype(float), "mean score")


@runtime_checkable
class ContinuationScorer(Scorer, Protocol):
    """A scorer that reads a continuation where its prompt has left off, and may find that it cannot judge it."""

    def read(self, prompts: Sequence[str], continuations: Sequence[str]) -> Reading:
        """Judge each continuation by its own words."""
        ...


def read_continuations(scorer: Scorer, prompts: Sequence[str], continuations: Sequence[str]) -> Reading:
    """Let a scorer judge continuations, and check its answer.

    Raises
    ------
    SettingError
        Not one score per text, or one outside [0, 1]; NaN is for a `ContinuationScorer`, which reports its share.

    """
    if isinstance(scorer, ContinuationScorer):
        reading = scorer.read(prompts, continuations)
    else:
        reading = Reading(np.asarray(scorer(continuations), dtype=float))
    if reading.scores.shape != (len(continuations),):
        raise SettingError(
            f"a scorer returns one score per text: {scorer.name!r} gave shape {reading.scores.shape} for "
            f"{len(continuations)} texts"
        )
    wrong = ~((reading.scores >= 0) & (reading.scores <= 1))
    if isinstance(scorer, ContinuationScorer):
        wrong &= ~np.isnan(reading.scores)
    if wrong.any():
        place = int(np.argmax(wrong))
        raise SettingError(f"scores lie in [0, 1]: {scorer.name!r} gave {reading.scores[place]} for text {place}")
    return reading
