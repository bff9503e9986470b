"""The microworld's oracle as a scorer: exact, and silent about what it cannot read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lens_steer.display.shown_result import shown_result
from lens_steer.errors import SettingError
from lens_steer.evaluation.reading import Reading, Share
from lens_steer.microworld.contrasts import concept
from lens_steer.microworld.english import english
from lens_steer.microworld.oracle import Oracle
from lens_steer.settings import require_settings


class OracleScorer:
    """The posterior probability that a microworld text was written with an attribute's value.

    The mean over texts is the expected share of texts with the value. A text in which no sentence is grammatical is
    unreadable: its score is NaN, it is no part of an effect and is never taken for a text without the value.
    `evaluate` reports beside the effect

    - unreadable: the share of unreadable texts, among those that say anything;
    - grammatical: the share of grammatical sentences, of those that have come to their end;
    - empty: the share of texts without a word (the model ended where the prompt did), which say nothing either.

    A continuation is read from where its prompt has left off, and judged by its own words alone: after a rude prompt,
    "rude" means that it goes on rudely.

    Parameters
    ----------
    value:
        What a named contrast tells ("rude", "topic=film"), or an attribute's value with `attribute`.
    attribute:
        Such as "register"; left out, that of the named contrast.
    name:
        What tables call it; the value when left out.

    Raises
    ------
    MicroworldError
        There is no such attribute, value or contrast; the known ones are listed.

    """

    def __init__(self, value: str, *, attribute: str | None = None, name: str | None = None) -> None:
        require_settings(OracleScorer.__init__, {"value": value, "attribute": attribute, "name": name})
        if attribute is None:
            asked = concept(value)
            attribute, value = asked.attribute, asked.value
        english().attribute(attribute).index(value)
        self.attribute, self.value = attribute, value
        self.name = name or f"the oracle's {value}"
        self._oracle = Oracle()

    def __repr__(self) -> str:
        return f"OracleScorer({self.value!r}, attribute={self.attribute!r})"

    def _repr_html_(self) -> str:
        facts = [("scores", "the posterior probability of the value"), (self.attribute, self.value)]
        return shown_result(f"Scorer: {self.name}", facts=facts)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """Return the probability of the value for each whole text, NaN for the unreadable ones."""
        return self.read([""] * len(texts), texts).scores

    def read(self, prompts: Sequence[str], continuations: Sequence[str]) -> Reading:
        """Judge each continuation by its own words, from where its prompt has left off."""
        if len(prompts) != len(continuations):
            raise SettingError(f"{len(prompts)} prompts do not go with {len(continuations)} continuations")
        judged = np.array([self._judge(*pair) for pair in zip(prompts, continuations, strict=True)]).reshape(-1, 4)
        score, grammatical, finished, says = judged.T
        return Reading(
            score,
            {
                "unreadable": Share(np.isnan(score) * says, says, "share of texts"),
                "grammatical": Share(grammatical, finished, "share of sentences"),
                "empty": Share(1 - says, np.ones(len(says)), "share of texts"),
            },
        )

    def _judge(self, prompt: str, text: str) -> tuple[float, int, int, bool]:
        """Return the probability of the value, how many finished sentences are grammatical, of how many, any word?"""
        sentences = self._oracle.sentences(text, after=prompt)
        belief = self._oracle.posterior(text, after=prompt)
        score = belief[self.attribute][self.value] if belief.readable else np.nan
        grammatical = sum(sentence.grammatical for sentence in sentences)
        finished = sum(sentence.status != "unfinished" for sentence in sentences)
        return score, grammatical, finished, bool(sentences)
