"""Scorers: how much of a concept a text shows, from 0 to 1, judged from the text alone."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from lens_steer.display.shown_result import shown_result, with_interval
from lens_steer.errors import ContrastError, LensSteerWarning, SettingError
from lens_steer.settings import require_settings
from lens_steer.statistics.scores import auroc
from lens_steer.statistics.significance import auroc_interval
from lens_steer.statistics.verdict import Verdict, verdict_of
from lens_steer.texts.blocks import pooled_text
from lens_steer.texts.contrast import ContrastSet, require_contrast
from lens_steer.texts.scripts import composed, whole_word, word_features

_SHOWN_WORDS = 12

Unproven = Literal["refuse", "warn"]
"""What becomes of a classifier that was not shown to tell the sides apart."""


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
        require_settings(WordList, locals())
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

    def _repr_html_(self) -> str:
        more = f" and {len(self.words) - _SHOWN_WORDS} more" if len(self.words) > _SHOWN_WORDS else ""
        words = ", ".join(self.words[:_SHOWN_WORDS]) + more
        facts = [("scores", "1 where a word is in the text"), ("words", words)]
        return shown_result(f"Scorer: {self.name}", facts=facts)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(whole_word, self.words)), re.IGNORECASE)


@dataclass(frozen=True, eq=False, repr=False)
class ConceptClassifier:
    """The probability that a text is a source text, by logistic regression on TF-IDF of its words and word pairs.

    Of scripts without spaces between words, n-grams of one to three characters stand for words.

    Made by `fit`. `heldout_accuracy` (share of texts on the right side of 1/2) and `heldout_auroc` with its 95 %
    interval, `heldout_low` to `heldout_high`, say, on the texts that were kept out of the training, how far its scores
    can be trusted; `verdict` whether they can at all.
    """

    name: str
    heldout_accuracy: float
    heldout_auroc: float
    pipeline: Any
    heldout_low: float = math.nan
    heldout_high: float = math.nan

    @property
    def verdict(self) -> Verdict:
        """Whether its held-out AUROC was shown to lie above 1/2 (HIGHER): only then can it judge a text."""
        return verdict_of(self.heldout_low, self.heldout_high, reference=0.5)

    @classmethod
    def fit(
        cls, contrast: ContrastSet, *, seed: int = 0, test: float = 0.5, unproven: Unproven = "refuse"
    ) -> ConceptClassifier:
        """Train on one part of the contrast and measure on the other, a share `test`.

        Fit an intervention on texts that the classifier did not see, or it judges its own teacher's examples. One that
        was not shown to tell the sides apart cannot judge: what it says of an edit is noise. `unproven="warn"` returns
        it all the same, with a warning (LensSteerWarning).

        Raises
        ------
        ContrastError
            A part lacks a side, the training texts hold no word, or the interval of the held-out AUROC is not above
            1/2.

        """
        require_settings(ConceptClassifier.fit, locals())
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import accuracy_score
        from sklearn.pipeline import make_pipeline

        require_contrast(contrast)
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
        source, target = (torch.from_numpy(part[:, None]) for part in np.split(scores, [len(heldout.source)]))
        blocks = heldout.blocks[: len(scores)]
        apart = len(np.unique(blocks)) == len(blocks)
        clusters = None if apart else (blocks[: len(source)], blocks[len(source) :])
        area = auroc(source, target)
        interval = auroc_interval(source, target, area, confidence=0.95, clusters=clusters)
        classifier = cls(
            name=f"{contrast.name} classifier",
            heldout_accuracy=float(accuracy_score(labels, scores > 0.5)),
            heldout_auroc=float(area),
            pipeline=pipeline,
            heldout_low=float(interval.low),
            heldout_high=float(interval.high),
        )
        if classifier.verdict is not Verdict.HIGHER:
            classifier._say_unproven(len(scores), unproven)
        return classifier

    def __repr__(self) -> str:
        return f"ConceptClassifier({self.name!r}, held-out AUROC {self._auroc})"

    def _repr_html_(self) -> str:
        judges = "can judge" if self.verdict is Verdict.HIGHER else "cannot judge: not shown to be above 0.5"
        facts = [
            ("scores", "the probability that a text is a source text"),
            ("held-out AUROC", f"{self._auroc}: it {judges}"),
            ("held-out accuracy", f"{self.heldout_accuracy:.3g}"),
        ]
        return shown_result(f"Scorer: {self.name}", facts=facts)

    @property
    def _auroc(self) -> str:
        return with_interval(self.heldout_auroc, self.heldout_low, self.heldout_high)

    def _say_unproven(self, texts: int, unproven: Unproven) -> None:
        message = (
            f"the {self.name} cannot judge: on {texts} held-out texts its AUROC is {self.heldout_auroc:.2f} "
            f"[{self.heldout_low:.2f}, {self.heldout_high:.2f}], not shown to be above .5"
        )
        if unproven == "refuse":
            raise ContrastError(
                f'{message}: give more texts or another scorer, such as a word list, or ask for it with unproven="warn"'
            )
        warnings.warn(message, LensSteerWarning, stacklevel=3)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """Return the probability of source per text."""
        scores: Float[np.ndarray, " text"] = self.pipeline.predict_proba(list(texts))[:, 1]
        return scores


def _labelled(contrast: ContrastSet) -> tuple[list[str], list[int]]:
    """Return the words that pools cover, as texts, with 1 for source and 0 for target."""
    texts = [pooled_text(row) for row in contrast.source + contrast.target]
    return texts, [1] * len(contrast.source) + [0] * len(contrast.target)
