"""Named contrasts: fresh source and target texts for every concept the microworld knows.

Source texts were drawn with the value and show it (the oracle is at least 90 % sure), target texts were drawn without
it and do not show it (at most 10 %); the other attributes are drawn alike on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from zlib import crc32

from lens_steer.errors import MicroworldError
from lens_steer.microworld.attributes import PERSON, REGISTER, SENTIMENT, TENSE
from lens_steer.microworld.oracle import Oracle
from lens_steer.microworld.requests import checked_count, checked_seed
from lens_steer.microworld.sampler import Document, sample
from lens_steer.microworld.topics import HOMOGRAPHS, TOPICS

SURE = 0.9
DEFAULT_SIZE = 200
DEFAULT_TABLE = 600


@dataclass(frozen=True)
class Concept:
    """An attribute value; what it is told from (`against`, empty: every other value); a word both sides must hold."""

    attribute: str
    value: str
    against: tuple[str, ...] = ()
    word: str | None = None
    fixed: dict[str, str] = field(default_factory=dict)

    def is_source(self, document: Document, belief: float) -> bool:
        """True for a text that was drawn with the value and shows it."""
        return document.attributes[self.attribute] == self.value and belief >= SURE and self._has_word(document)

    def is_target(self, document: Document, belief: float) -> bool:
        """True for a text that was drawn without the value and does not show it."""
        drawn = document.attributes[self.attribute]
        other = drawn in self.against if self.against else drawn != self.value
        return other and belief <= 1 - SURE and self._has_word(document)

    def _has_word(self, document: Document) -> bool:
        return self.word is None or self.word in document.text.split()


def _concepts() -> dict[str, Concept]:
    story = {"speaker": "none"}
    concepts = {value: Concept("register", value) for value in REGISTER.values}
    concepts |= {value: Concept("sentiment", value) for value in SENTIMENT.values}
    concepts |= {value: Concept("tense", value) for value in TENSE.values}
    concepts |= {value: Concept("person", value, fixed=story) for value in PERSON.values}
    concepts["she"] = Concept("person", "she", ("he",), fixed=story)
    concepts["he"] = Concept("person", "he", ("she",), fixed=story)
    concepts["truthful"] = Concept("speaker", "truthful", ("untruthful",))
    concepts["untruthful"] = Concept("speaker", "untruthful", ("truthful",))
    concepts |= {f"topic={topic}": Concept("topic", topic) for topic in TOPICS}
    for word, topics in HOMOGRAPHS.items():
        for topic in topics:
            others = tuple(other for other in topics if other != topic)
            concepts[f"{word}={topic}"] = Concept("topic", topic, others, word)
    return concepts


CONCEPTS: dict[str, Concept] = _concepts()


def contrast_names() -> tuple[str, ...]:
    """The names that `named_contrast` knows."""
    return tuple(CONCEPTS)


def concept(name: str) -> Concept:
    """The concept of a name; an unknown one is refused with the nearest names and the list."""
    if name not in CONCEPTS:
        near = get_close_matches(name, CONCEPTS, n=3, cutoff=0.4)
        hint = f" The nearest are {', '.join(near)}." if near else ""
        raise MicroworldError(f"There is no microworld contrast {name!r}.{hint} It has {', '.join(CONCEPTS)}.")
    return CONCEPTS[name]


def named_contrast(name: str, *, n: int | None = None, seed: int = 0) -> tuple[list[str], list[str]]:
    """`n` source texts and `n` target texts (200 by default) of a named concept, drawn fresh from the seed."""
    asked = concept(name)
    size, seed = checked_count(DEFAULT_SIZE if n is None else n, "texts per side"), checked_seed(seed)
    source = _collect(
        f"{name}/source/{seed}", size, {**asked.fixed, asked.attribute: asked.value}, asked, asked.is_source
    )
    only = {asked.attribute: asked.against[0]} if len(asked.against) == 1 else {}
    return source, _collect(f"{name}/target/{seed}", size, {**asked.fixed, **only}, asked, asked.is_target)


def labelled_documents(
    names: Sequence[str] = (), *, n: int | None = None, seed: int = 0
) -> tuple[list[str], list[list[int]], tuple[str, ...]]:
    """`n` documents (600 by default) drawn at random, their labels for every concept, and the concepts.

    A label is 1 or 0 where the text would be a source or a target of the concept's contrast, -1 where neither. The
    concepts of a word (homographs) are of few texts, and are left out unless they are named.
    """
    concepts = {name: concept(name) for name in names or [name for name in CONCEPTS if CONCEPTS[name].word is None]}
    size, seed = checked_count(DEFAULT_TABLE if n is None else n, "documents"), checked_seed(seed)
    oracle, documents = Oracle(), sample(size, seed=seed)
    beliefs = [oracle.posterior(document.text) for document in documents]
    labels = [
        [_label(asked, document, belief[asked.attribute][asked.value]) for asked in concepts.values()]
        for document, belief in zip(documents, beliefs)
    ]
    return [document.text for document in documents], labels, tuple(concepts)


def _label(asked: Concept, document: Document, belief: float) -> int:
    if any(document.attributes[attribute] != value for attribute, value in asked.fixed.items()):
        return -1
    return 1 if asked.is_source(document, belief) else 0 if asked.is_target(document, belief) else -1


def _collect(
    stream: str, size: int, fixed: dict[str, str], asked: Concept, wanted: Callable[[Document, float], bool]
) -> list[str]:
    oracle, texts, read = Oracle(), list[str](), 0
    while len(texts) < size:
        drawn = sample(2 * max(read, size), seed=crc32(stream.encode()), **fixed)
        for document in drawn[read:]:
            if asked.word is not None and f" {asked.word} " not in document.text:
                continue
            if wanted(document, oracle.posterior(document.text)[asked.attribute][asked.value]):
                texts.append(document.text)
        read = len(drawn)
    return texts[:size]
