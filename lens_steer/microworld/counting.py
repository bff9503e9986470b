"""The counts that say the microworld has no short cut: how many documents, how few repeats, how spread its evidence."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lens_steer.microworld.attributes import THING
from lens_steer.microworld.automaton import END, Draw
from lens_steer.microworld.english import english
from lens_steer.microworld.grammar import SPECIALS, Grammar
from lens_steer.microworld.oracle import Oracle
from lens_steer.microworld.sampler import Document, sample
from lens_steer.microworld.topics import HOMOGRAPHS

LIFT = 2.0


@dataclass(frozen=True)
class Carriers:
    """What carries an attribute value.

    `number` counts the words or constructions that are at least twice as frequent in documents with the value as in
    the others (among those an attribute concerns); `largest_share` is the share of the value's documents that hold
    the commonest of them.
    """

    number: int
    largest_share: float
    commonest: str


@dataclass(frozen=True)
class Counts:
    """The microworld in numbers; `repeats` is the expected share of fresh documents among `training_documents`."""

    words: int
    log10_documents: float
    repeats: float
    training_documents: int
    nats_per_token: float
    tokens_per_document: float
    homographs: int
    carriers: Mapping[tuple[str, str], Carriers]


def counts(*, documents: int = 20000, training_documents: int = 20_000_000, seed: int = 90210) -> Counts:
    """Count, exactly where the automaton allows it, else on `documents` fresh ones (likelihoods on a tenth)."""
    grammar, oracle = english(), Oracle()
    drawn = sample(documents, seed=seed)
    scored = drawn[: max(1, documents // 10)]
    logs = np.array([oracle.log_likelihood(document.text) for document in scored])
    tokens = np.array([len(document.text.split()) + 1 for document in scored])
    seen = -np.expm1(-training_documents * np.exp(logs))
    return Counts(
        words=len(grammar.words) - len(SPECIALS),
        log10_documents=log10_documents(grammar),
        repeats=float(seen.mean()),
        training_documents=training_documents,
        nats_per_token=float(-logs.sum() / tokens.sum()),
        tokens_per_document=float(tokens.mean()),
        homographs=len(HOMOGRAPHS),
        carriers=_carriers(grammar, drawn),
    )


def log10_documents(grammar: Grammar) -> float:
    """The number of distinct documents, as a power of ten; where words are barred, all of them count as barred."""
    nodes = grammar.automaton.nodes
    number: dict[int, int] = {END: 1}

    def reach(node: int) -> int:
        if node not in number:
            total = 0
            for arc in nodes[node]:
                ways = 1
                if isinstance(arc.emission, Draw):
                    ways = len(arc.emission.category.words) - len(arc.emission.exclude)
                total += ways * reach(arc.target)
            number[node] = total
        return number[node]

    return math.log10(reach(grammar.automaton.start))


def _carriers(grammar: Grammar, drawn: list[Document]) -> dict[tuple[str, str], Carriers]:
    carriers: dict[tuple[str, str], Carriers] = {}
    for attribute in grammar.attributes:
        held: dict[str, Counter[str]] = {value: Counter() for value in attribute.values}
        total: Counter[str] = Counter()
        for document in drawn:
            value = document.attributes[attribute.name]
            if not _concerned(attribute.name, document):
                continue
            total[value] += 1
            held[value].update(_signs(attribute.name, document))
        for value in attribute.values:
            if total[value]:
                carriers[attribute.name, value] = _value_carriers(held, total, value)
    return carriers


def _concerned(attribute: str, document: Document) -> bool:
    talk = document.attributes["speaker"] != "none"
    return talk if attribute == "speaker" else not talk


def _signs(attribute: str, document: Document) -> set[str]:
    if attribute != "speaker":
        return set(document.text.split()) - {".", "?", ","}
    return _answers(document.text)


def _answers(text: str) -> set[str]:
    """Per answer of a talk, the verb and how it stands to the facts: right, swapped (the other's thing) or invented."""
    sentences = [sentence.split() for sentence in text.replace("?", ".").split(" .") if sentence.strip()]
    facts: dict[str, str] = {}
    things = set(THING.words)
    signs = set()
    for sentence in sentences[:2]:
        facts[sentence[2]] = next(word for word in sentence[4:] if word in things)
    for sentence in sentences[3::2]:
        name = next(word for word in sentence if word in facts)
        verb = sentence[sentence.index(name) + 1]
        answer = next(word for word in sentence[sentence.index(verb) + 1 :] if word in things)
        kind = "right" if answer == facts[name] else "swapped" if answer in facts.values() else "invented"
        signs.add(f"{kind} after {verb}")
    return signs


def _value_carriers(held: Mapping[str, Counter[str]], total: Counter[str], value: str) -> Carriers:
    rest = sum(total.values()) - total[value]
    shares: dict[str, float] = {}
    for sign, times in held[value].items():
        share = times / total[value]
        elsewhere = sum(counter[sign] for other, counter in held.items() if other != value) / max(rest, 1)
        if times >= 10 and share >= LIFT * elsewhere:
            shares[sign] = share
    commonest = max(shares, key=lambda sign: shares[sign], default="")
    return Carriers(len(shares), shares.get(commonest, 0.0), commonest)
