"""Brute force on expressions: no automaton, no components, no shared arithmetic with the package."""

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np

from lens_steer.microworld.automaton import (
    Category,
    Choice,
    Draw,
    Recall,
    Seq,
    Table,
    choice,
    maybe,
    seq,
    styled,
    uniform,
)
from lens_steer.microworld.grammar import EOS, Attribute, Grammar

MOOD = Attribute("mood", ("glad", "sad"), (0.3, 0.7))
PLACE = Attribute("place", ("sea", "hill", "town"), (0.5, 0.3, 0.2))
TRUTH = Attribute("truth", ("yes", "no", "silent"), (0.4, 0.2, 0.4))


@cache
def cut_down() -> Grammar:
    """Three attributes, two of them tied by one table; memory, barred words, another form of a remembered word.

    Only the silent leave facts untold and unasked, so that some beginnings rule values out.
    """
    opening = Draw(styled("opening", "mood", {"glad": "hurray", "sad": "alas"}, shared="well", leak=0.1))
    law = np.random.default_rng(5).dirichlet(np.ones(3), size=(3, 2))
    where = Category("where", ("boat", "path", "shop"), Table(("place", "mood"), law))
    names = uniform("name", "ann bob tom")
    lone = seq(maybe(0.4, seq(opening, ",")), "the", Draw(where), choice((0.5, seq("stays")), (0.5, seq("goes"))), ".")
    pair = seq(
        Draw(names, store=0), choice((0.5, seq("meets")), (0.5, seq("sees"))), Draw(names, exclude=(0,), store=1), "."
    )
    answer = Choice(
        Table(("truth",), np.array([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]])),
        (Recall(0), Recall(1, {"ann": "anna", "bob": "bobby", "tom": "tommy"})),
    )
    told = seq(pair, "who", "?", answer, ".")
    story = Choice(
        Table(("truth",), np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]])), (seq(lone, maybe(0.5, lone)), told)
    )
    return Grammar((MOOD, PLACE, TRUTH), seq(story, EOS))


def combinations(grammar: Grammar) -> Iterator[tuple[dict[str, int], float]]:
    for values in product(*[range(len(attribute.values)) for attribute in grammar.attributes]):
        prior = np.prod([attribute.prior[value] for attribute, value in zip(grammar.attributes, values)])
        yield dict(zip([attribute.name for attribute in grammar.attributes], values)), float(prior)


def say(expression, values: dict[str, int], memory: dict[int, str]):
    """Every way to say an expression: words, memory afterwards, probability."""
    if isinstance(expression, Recall):
        word = memory[expression.register]
        yield (expression.forms.get(word, word),), memory, 1.0
    elif isinstance(expression, Draw):
        table = expression.category.table
        law = table.probabilities[tuple(values[name] for name in table.scope)]
        barred = {memory.get(register) for register in expression.exclude}
        left = {word: p for word, p in zip(expression.category.words, law) if word not in barred}
        for word, p in left.items():
            after = memory if expression.store is None else {**memory, expression.store: word}
            yield (word,), after, float(p / sum(left.values()))
    elif isinstance(expression, Choice):
        law = expression.table.probabilities[tuple(values[name] for name in expression.table.scope)]
        for p, option in zip(law, expression.options):
            for words, after, q in say(option, values, memory):
                yield words, after, float(p) * q
    elif not expression.items:
        yield (), memory, 1.0
    else:
        for words, after, p in say(expression.items[0], values, memory):
            for more, last, q in say(Seq(expression.items[1:]), values, after):
                yield words + more, last, p * q


@cache
def all_documents() -> dict[tuple[str, ...], list[tuple[dict[str, int], float]]]:
    """Words of a document (`<eos>` left out) -> attribute values with the joint probability of both."""
    found: dict[tuple[str, ...], list[tuple[dict[str, int], float]]] = {}
    grammar = cut_down()
    for values, prior in combinations(grammar):
        for words, _, p in say(grammar.root, values, {}):
            found.setdefault(words[:-1], []).append((values, prior * p))
    return found


def match(expression, words: list[str], at: int, values: dict[str, int], memory: tuple[str | None, ...]):
    """All ways to read an expression from position `at`: (position, memory) -> probability, given every attribute."""
    if isinstance(expression, Recall):
        word = memory[expression.register]
        hit = at < len(words) and words[at] == expression.forms.get(word, word)
        return {(at + 1, memory): 1.0} if hit else {}
    if isinstance(expression, Draw):
        if at >= len(words) or words[at] not in expression.category.words:
            return {}
        table = expression.category.table
        law = table.probabilities[tuple(values[name] for name in table.scope)]
        barred = {memory[register] for register in expression.exclude}
        if words[at] in barred:
            return {}
        left = sum(p for word, p in zip(expression.category.words, law) if word not in barred)
        after = list(memory)
        if expression.store is not None:
            after[expression.store] = words[at]
        return {(at + 1, tuple(after)): float(law[expression.category.words.index(words[at])] / left)}
    if isinstance(expression, Choice):
        law = expression.table.probabilities[tuple(values[name] for name in expression.table.scope)]
        found: dict = {}
        for p, option in zip(law, expression.options):
            for place, q in match(option, words, at, values, memory).items():
                found[place] = found.get(place, 0.0) + float(p) * q
        return found
    places = {(at, memory): 1.0}
    for item in expression.items:
        reached: dict = {}
        for (position, kept), p in places.items():
            for place, q in match(item, words, position, values, kept).items():
                reached[place] = reached.get(place, 0.0) + p * q
        places = reached
    return places


@cache
def begun() -> dict[tuple[str, ...], np.ndarray]:
    """Words that a document may begin with -> P(begins so | attributes) over (mood, place, truth)."""
    grammar = cut_down()
    shape = [len(attribute.values) for attribute in grammar.attributes]
    prior = np.zeros(shape)
    for values, p in combinations(grammar):
        prior[tuple(values.values())] = p
    laws: dict[tuple[str, ...], np.ndarray] = {}
    for words, entries in all_documents().items():
        for length in range(len(words) + 1):
            law = laws.setdefault(words[:length], np.zeros(shape))
            for values, p in entries:
                law[tuple(values.values())] += p
    return {words: law / prior for words, law in laws.items()}
