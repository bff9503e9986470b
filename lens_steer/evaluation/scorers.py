"""Scorers: how much of a concept a text shows, from 0 to 1, judged from the text alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from lens_steer.errors import ContrastError, SettingError
from lens_steer.texts.blocks import pooled_text
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.scripts import composed, whole_word, word_features


@runtime_checkable
class Scorer(Protocol):
    """Anything with a name that turns texts into scores in [0, 1], one per text, each independent of the others."""

    @property
    def name(self) -> str:
        """What tables and plots call it."""
        ...

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """Return one score per text; more means more of the concept."""
        ...


@dataclass(frozen=True, init=False)
class WordList:
    """1 for a text that holds any of the words, 0 otherwise.

    A word counts where it stands whole, whatever its case: "cat" is in "Cat!" and not in "catch". An entry may be a
    phrase. Accents count alike whether composed or combining. In scripts without spaces between words (Chinese,
    Japanese, Thai, ...) a word counts wherever its characters stand, also as a part of a longer word. Refused
    (`SettingError`): an empty list, blank entries, one string in place of a list.
    """

    words: tuple[str, ...]
    name: str

    def __init__(self, words: Iterable[str], *, name: str = "word list") -> None:
        if isinstance(words, str):
            raise SettingError(f"words must be a list: write a single word as [{words!r}]")
        listed = tuple(words)
        if not listed or not all(word.strip() for word in listed):
            raise SettingError("a word list needs one or more words, none of them blank")
        object.__setattr__(self, "words", listed)
        object.__setattr__(self, "name", name)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """Return 1.0 or 0.0 per text."""
        return np.array([float(self._pattern.search(composed(text)) is not None) for text in texts])

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(whole_word, self.words)), re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class ConceptClassifier:
    """The probability that a text is a source text, by logistic regression on TF-IDF of its words and word pairs.

    Of scripts without spaces between words, n-grams of one to three characters stand for words.

    Made by `fit`. `heldout_accuracy` (share of texts on the right side of 1/2) and `heldout_auroc` say, on the texts
    that were kept out of the training, how far its scores can be trusted.
    """

    name: str
    heldout_accuracy: float
    heldout_auroc: float
    pipeline: Any

    @classmethod
    def fit(cls, contrast: ContrastSet, *, seed: int = 0, test: float = 0.5) -> ConceptClassifier:
        """Train on one part of the contrast and measure on the other, a share `test`.

        Fit an intervention on texts that the classifier did not see, or it judges its own teacher's examples.

        Raises
        ------
        ContrastError
            A part lacks a side, or the training texts hold no word.

        """
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import accuracy_score, roc_auc_score
        from sklearn.pipeline import make_pipeline

        train, heldout = contrast.split(test=test, seed=seed)
        # Balanced: an even prior, so that 1/2 separates the sides whatever their sizes.
        pipeline = make_pipeline(
            TfidfVectorizer(analyzer=word_features, sublinear_tf=True),
            LogisticRegression(class_weight="balanced", C=10.0, max_iter=1000, random_state=seed),
        )
        texts, labels = _labelled(train)
        try:
            pipeline.fit(texts, labels)
        except ValueError as error:
            raise ContrastError(f"no classifier can be trained on {contrast!r}: {error}") from error
        texts, labels = _labelled(heldout)
        scores = pipeline.predict_proba(texts)[:, 1]
        return cls(
            name=f"{contrast.name} classifier",
            heldout_accuracy=float(accuracy_score(labels, scores > 0.5)),
            heldout_auroc=float(roc_auc_score(labels, scores)),
            pipeline=pipeline,
        )

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """Return the probability of source per text."""
        scores: Float[np.ndarray, " text"] = self.pipeline.predict_proba(list(texts))[:, 1]
        return scores


def _labelled(contrast: ContrastSet) -> tuple[list[str], list[int]]:
    """Return the words that pools cover, as texts, with 1 for source and 0 for target."""
    texts = [pooled_text(row) for row in contrast.source + contrast.target]
    return texts, [1] * len(contrast.source) + [0] * len(contrast.target)
