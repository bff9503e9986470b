"""Judges: the scorers of a card, of different kinds where they can be had, and what tells if a text can be read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lens_steer.errors import ContrastError
from lens_steer.evaluation.card.readability import ByOracle, ByRepetitionAndSurprise, Readability
from lens_steer.evaluation.card.trial import Trial, Tried
from lens_steer.evaluation.card.word_judge import word_judge
from lens_steer.evaluation.oracle_scorer import OracleScorer
from lens_steer.evaluation.reading import as_scorer, read_continuations
from lens_steer.evaluation.scorers import ConceptClassifier, Scorer
from lens_steer.texts.contrast import ContrastSet

MICROWORLD = "microworld:"


def scorers_for(
    given: Sequence[Scorer | Callable[[Sequence[str]], Any]] | None, train: ContrastSet, seed: int
) -> tuple[tuple[Scorer, ...], tuple[str, ...]]:
    """Return the scorers that were given, else the oracle of a microworld contrast, a classifier and a word list.

    At most two, trained on `train`; and why one that was tried cannot judge.
    """
    if given is not None:
        return tuple(as_scorer(scorer) for scorer in given), ()
    name = train.name.removesuffix(" (shuffled)")
    scorers: list[Scorer] = [OracleScorer(name.removeprefix(MICROWORLD))] if name.startswith(MICROWORLD) else []
    refused = []
    makers: tuple[Callable[..., Scorer], ...] = (ConceptClassifier.fit, word_judge)
    for make in makers[: 1 if scorers else None]:
        try:
            scorers.append(make(train, seed=seed))
        except ContrastError as error:
            refused.append(str(error))
    return tuple(scorers), tuple(refused)


def readability_for(scorers: Sequence[Scorer], trial: Trial) -> Readability:
    """Return the oracle where it is among the scorers, else the measure of repetition and surprise."""
    oracle = next((scorer for scorer in scorers if isinstance(scorer, OracleScorer)), None)
    if oracle is not None:
        return ByOracle(oracle)
    return ByRepetitionAndSurprise.of(trial.model, trial.laid_out, trial.unedited.texts, trial.batch_size)


@dataclass(frozen=True, eq=False)
class Judged:
    """Continuations as the judges read them, one row per scorer; scores of unreadable texts are nan."""

    scores: Float[np.ndarray, "scorer text"]
    unreadable: Bool[np.ndarray, " text"]

    @property
    def misses(self) -> Float[np.ndarray, "scorer text"]:
        """How far each text misses: by what it still shows of the concept, and altogether where it cannot be read."""
        return np.where(np.isnan(self.scores), 1.0, self.scores)


@dataclass(frozen=True, eq=False)
class Judges:
    """The scorers of a card and its measure of readability."""

    scorers: tuple[Scorer, ...]
    readability: Readability
    trial: Trial

    def judge(self, tried: Tried) -> Judged:
        """Read what was written."""
        prompts, texts = self.trial.laid_out, tried.texts
        unreadable = self.readability.unreadable(prompts, texts)
        scores = [
            np.where(unreadable, np.nan, read_continuations(scorer, prompts, texts).scores) for scorer in self.scorers
        ]
        return Judged(np.array(scores).reshape(len(self.scorers), len(texts)), unreadable)
