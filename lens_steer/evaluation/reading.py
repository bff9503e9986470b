"""Readings: what a scorer makes of continuations, also of those it cannot judge, and what it tells beside the score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from lens_steer.errors import SettingError
from lens_steer.evaluation.scorers import Scorer
from lens_steer.settings import require_settings


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


@dataclass(frozen=True)
class _Function:
    """A plain function as a scorer, called by its own name."""

    function: Callable[[Sequence[str]], Any]
    name: str

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        return _scores(self.name, self.function(texts))


def as_scorer(scorer: Any) -> Scorer:
    """Return a scorer, or a plain function as one; SettingError for what cannot be called."""
    if not callable(scorer):
        raise SettingError(
            f"a scorer is called with texts and returns their scores in [0, 1]; a {type(scorer).__name__} cannot be "
            "called: give a WordList, a ConceptClassifier, an OracleScorer or a function"
        )
    if isinstance(scorer, Scorer):
        return scorer
    return _Function(scorer, str(getattr(scorer, "__name__", type(scorer).__name__)))


def read_continuations(
    scorer: Scorer | Callable[[Sequence[str]], Any], prompts: Sequence[str], continuations: Sequence[str]
) -> Reading:
    """Let a scorer, or a plain function as one, judge continuations, and check its answer.

    Raises
    ------
    SettingError
        Not one score per text, what is no number, or one outside [0, 1]; NaN is for a `ContinuationScorer`, which
        reports its share.

    """
    require_settings(read_continuations, locals())
    scorer = as_scorer(scorer)
    if isinstance(scorer, ContinuationScorer):
        read = scorer.read(prompts, continuations)
        reading = Reading(_scores(scorer.name, read.scores), read.shares)
    else:
        reading = Reading(_scores(scorer.name, scorer(continuations)))
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


def _scores(name: str, answer: Any) -> Float[np.ndarray, "*axis"]:
    """Return what a scorer of this name answered as numbers; a text is none, also where it reads as one."""
    try:
        given = np.asarray(answer)
        if given.dtype.kind in "US":
            raise TypeError(f"{given.flat[0]!r:.60} is a text")
        return given.astype(float)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SettingError(f"a scorer returns one number in [0, 1] per text, {name!r} does not: {error}") from None
