"""The exact oracle of the microworld: grammar, likelihood, hidden attributes and next words of any text.

How texts with faults are read. A text is cut into sentences after "." and "?". A sentence is grammatical when the
automaton accepts it from the point that the grammatical sentences before it have reached; an ungrammatical one is
skipped and leaves that point unchanged. A last sentence without its stop is `unfinished` when it begins
grammatically. The posterior takes all grammatical sentences and an unfinished last one as evidence, nothing else. A
text is unreadable when no complete sentence is grammatical, unless it is nothing but one unfinished grammatical
beginning (a prompt).

A continuation is read `after` its prompt: the grammar stands where the prompt has left it, the values that could not
have written the prompt are struck out, and among the others, from their prior, only the continuation's own words are
evidence. Its sentences are those that it adds to or begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import numpy as np
from jaxtyping import Float

from lens_steer.display.shown_result import shown_result
from lens_steer.errors import MicroworldError
from lens_steer.microworld.english import english
from lens_steer.microworld.grammar import EOS, STOPS, Grammar
from lens_steer.microworld.inference import Belief, Inference, State

Status = Literal["grammatical", "ungrammatical", "unfinished"]


@dataclass(frozen=True)
class Sentence:
    """A sentence of a text and what the grammar says about it."""

    text: str
    status: Status

    @property
    def grammatical(self) -> bool:
        """True for a complete grammatical sentence."""
        return self.status == "grammatical"


@dataclass(frozen=True)
class Posterior(Mapping[str, Mapping[str, float]]):
    """Attribute -> value -> probability; empty when the text is unreadable."""

    attributes: Mapping[str, Mapping[str, float]]

    @property
    def readable(self) -> bool:
        """False where no sentence is grammatical: nothing can be said about the attributes."""
        return bool(self.attributes)

    def __getitem__(self, attribute: str) -> Mapping[str, float]:
        if not self.readable:
            raise MicroworldError("The text is unreadable: no sentence is grammatical. Ask `.readable` first.")
        return self.attributes[attribute]

    def __iter__(self) -> Iterator[str]:
        return iter(self.attributes)

    def __len__(self) -> int:
        return len(self.attributes)

    def best(self, attribute: str) -> str:
        """The most probable value of an attribute, or "unreadable"."""
        if not self.readable:
            return "unreadable"
        values = self[attribute]
        return max(values, key=lambda value: values[value])

    def _repr_html_(self) -> str:
        import pandas as pd

        rows = [(name, self.best(name), self[name][self.best(name)]) for name in self]
        sentences = [] if self.readable else ["Unreadable: no sentence is grammatical."]
        table = pd.DataFrame(rows, columns=["attribute", "most probable", "probability"])
        return shown_result("Posterior of the attributes", sentences=sentences, table=table)


@dataclass(frozen=True, eq=False)
class NextToken:
    """The law of the next token, in token-id order: `probabilities[i]` is that of `words[i]`; `<eos>` ends a text."""

    words: tuple[str, ...]
    probabilities: Float[np.ndarray, " word"]

    def __getitem__(self, word: str) -> float:
        if word not in self.words:
            raise MicroworldError(unknown_word(word, self.words))
        return float(self.probabilities[self.words.index(word)])

    def top(self, k: int = 10) -> list[tuple[str, float]]:
        """The k most probable tokens, best first."""
        order = np.argsort(-self.probabilities, kind="stable")[:k]
        return [(self.words[index], float(self.probabilities[index])) for index in order]

    def _repr_html_(self) -> str:
        import pandas as pd

        table = pd.DataFrame(self.top(), columns=["token", "probability"])[["probability", "token"]]
        possible = int((self.probabilities > 0).sum())
        facts = [("entropy", f"{self.entropy:.3g} nats"), ("possible", f"{possible:,} of {len(self.words):,} tokens")]
        return shown_result("Law of the next token", facts=facts, table=table)

    @property
    def entropy(self) -> float:
        """Entropy in nats."""
        positive = self.probabilities[self.probabilities > 0]
        return float(-(positive * np.log(positive)).sum())


class Oracle:
    """Exact answers about texts of a grammar (by default the microworld's), in nats."""

    def __init__(self, grammar: Grammar | None = None) -> None:
        self.grammar = grammar or english()
        self._inference = Inference.of(self.grammar)

    def sentences(self, text: str, *, after: str = "") -> list[Sentence]:
        """Each sentence of a text and whether it is grammatical; an unknown word makes its sentence ungrammatical.

        With `after`, a prompt, the text continues it: its first sentence begins where the prompt's last one does.
        """
        return self._read(text, after)[0]

    def log_likelihood(self, text: str, *, given: Mapping[str, str] | None = None) -> float:
        """Log P(text is the whole document), in nats; -inf where the text is no grammatical document."""
        state, belief = self._inference.start(), self._inference.prior(given)
        for word in (*self.words(text), EOS):
            step = self._inference.step(state, word)
            if step is None:
                return -np.inf
            state, belief = step[0], self._inference.update(belief, step[1])
        return belief.log_weight()

    def posterior(self, text: str, *, after: str = "") -> Posterior:
        """Attribute -> value -> probability, from the grammatical sentences; not `.readable` where none is left.

        With `after`, a prompt that the text continues: P(value | text) under the prior of the values that could have
        written the prompt, whose words are no evidence beyond that.
        """
        sentences, belief = self._read(text, after)
        if not self._readable(sentences) or belief.log_weight() == -np.inf:
            return Posterior({})
        return Posterior(self._inference.marginals(belief))

    def next_token(self, prefix: str, *, given: Mapping[str, str] | None = None) -> NextToken:
        """The law of the token after a grammatical beginning, also when attributes are given (`{"register": "rude"}`).

        Refused: a prefix the grammar does not allow (the first wrong word is named), or not with these attributes.
        """
        state, belief = self._inference.start(), self._inference.prior(given)
        for position, word in enumerate(self.words(prefix)):
            step = self._inference.step(state, word)
            if step is None:
                raise MicroworldError(
                    f"The prefix is not grammatical: {word!r} (word {position + 1}) cannot come here."
                )
            state, belief = step[0], self._inference.update(belief, step[1])
        if belief.log_weight() == -np.inf:
            raise MicroworldError(f"The prefix is impossible with {dict(given or {})}.")
        return NextToken(self.grammar.words, self._inference.law(state, belief))

    def follow(
        self, words: Sequence[str], *, given: Mapping[str, str] | None = None
    ) -> Iterator[Float[np.ndarray, " word"]]:
        """The law before each word of a grammatical beginning and the one after the last: len(words) + 1 laws."""
        state, belief = self._inference.start(), self._inference.prior(given)
        for word in words:
            yield self._inference.law(state, belief)
            step = self._inference.step(state, word)
            if step is None:
                raise MicroworldError(f"{word!r} cannot come here; the beginning is not grammatical.")
            state, belief = step[0], self._inference.update(belief, step[1])
        yield self._inference.law(state, belief)

    def words(self, text: str) -> list[str]:
        """The words of a text; one outside the vocabulary is refused, with the nearest ones."""
        words = text.split()
        for word in words:
            if word not in self.grammar.ids or word.startswith("<"):
                raise MicroworldError(unknown_word(word, self.grammar.words))
        return words

    def _read(self, text: str, after: str) -> tuple[list[Sentence], Belief]:
        point: tuple[State, Belief] = self._inference.start(), self._inference.prior()
        given, readings = len(after.split()), []
        for words in _split(f"{after} {text}"):
            reached = self._accept(*point, words, given)
            if reached is None:
                status: Status = "ungrammatical"
            else:
                point = reached
                status = "grammatical" if words[-1] in STOPS else "unfinished"
            if given < len(words):
                readings.append(Sentence(" ".join(words), status))
            given = max(0, given - len(words))
        return readings, point[1]

    def _accept(self, state: State, belief: Belief, words: list[str], given: int) -> tuple[State, Belief] | None:
        """Where a sentence leads from here, its first `given` words being a prompt's; None if it is ungrammatical."""
        for place, word in enumerate(words):
            step = self._inference.step(state, word)
            if step is None or word == EOS:
                return None
            weigh = self._inference.update if place >= given else self._inference.keep_possible
            state, belief = step[0], weigh(belief, step[1])
        return state, belief

    @staticmethod
    def _readable(sentences: list[Sentence]) -> bool:
        if any(sentence.grammatical for sentence in sentences):
            return True
        return len(sentences) == 1 and sentences[0].status == "unfinished"


def _split(text: str) -> Iterator[list[str]]:
    words: list[str] = []
    for word in text.split():
        words.append(word)
        if word in STOPS:
            yield words
            words = []
    if words:
        yield words


def unknown_word(word: str, words: Sequence[str]) -> str:
    """The message about a word outside the vocabulary, with the nearest ones."""
    near = get_close_matches(word.lower(), [known for known in words if not known.startswith("<")], n=3, cutoff=0.5)
    return f"{word!r} is not a word of the microworld" + (f"; the nearest are {', '.join(near)}." if near else ".")
