"""Probabilistic automata whose choices depend on hidden attributes: the form every microworld grammar takes.

A grammar is an expression over words (`Draw`, `Recall`, `Seq`, `Choice`); `compile_automaton` turns it into nodes and
arcs without empty moves. It is deterministic by construction (checked): from a node, a word belongs to one arc only,
so the path of a text is observed and only the attributes are hidden. A few registers remember words already said
("ann ... bob ... ann").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

import numpy as np
from jaxtyping import Float

from lens_steer.errors import MicroworldError

END = -1


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """The law of `k` outcomes given the attributes in `scope`: probabilities of shape [*scope, k]."""

    scope: tuple[str, ...]
    probabilities: Float[np.ndarray, "*scope k"]

    def __post_init__(self) -> None:
        if self.probabilities.ndim != len(self.scope) + 1 or not np.allclose(self.probabilities.sum(-1), 1.0):
            raise MicroworldError(f"A table over {self.scope} must hold one law per combination of their values.")


@dataclass(frozen=True, eq=False, repr=False)
class Category:
    """A set of words with the law by which one of them is drawn."""

    name: str
    words: tuple[str, ...]
    table: Table

    def __post_init__(self) -> None:
        if len(set(self.words)) != len(self.words) or self.table.probabilities.shape[-1] != len(self.words):
            raise MicroworldError(f"Category {self.name!r} needs one probability for each of its distinct words.")


@dataclass(frozen=True, eq=False, repr=False)
class Draw:
    """One word from a category, none of those in the registers `exclude`; kept in register `store` when given."""

    category: Category
    exclude: tuple[int, ...] = ()
    store: int | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Recall:
    """The word in a register, in another form where `forms` (word -> word) gives one."""

    register: int
    forms: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class Seq:
    """Expressions one after another; `Seq(())` is the empty one."""

    items: tuple[Expression, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Choice:
    """One of several expressions, drawn by a table."""

    table: Table
    options: tuple[Expression, ...]

    def __post_init__(self) -> None:
        if self.table.probabilities.shape[-1] != len(self.options):
            raise MicroworldError("A choice needs one probability for each of its options.")


Expression = Draw | Recall | Seq | Choice
Factor = tuple[Table, int]


def word(text: str) -> Draw:
    """A fixed word."""
    return Draw(Category(text, (text,), Table((), np.ones(1))))


def seq(*items: Expression | str) -> Seq:
    """Expressions, or words separated by spaces, one after another."""
    parts: list[Expression] = []
    for item in items:
        parts.extend([word(part) for part in item.split()] if isinstance(item, str) else [item])
    return Seq(tuple(parts))


def choice(*options: tuple[float, Expression]) -> Choice:
    """One of several expressions with fixed weights."""
    weights = np.array([weight for weight, _ in options], dtype=float)
    return Choice(Table((), weights / weights.sum()), tuple(option for _, option in options))


def maybe(probability: float, expression: Expression) -> Choice:
    """The expression with a fixed probability, nothing otherwise."""
    return choice((probability, expression), (1 - probability, Seq(())))


@dataclass(frozen=True, eq=False, repr=False)
class Arc:
    """A step: the choices that lead to it, the word it says and the node it reaches (`END` after the last one)."""

    factors: tuple[Factor, ...]
    emission: Draw | Recall
    target: int


@dataclass(frozen=True, eq=False, repr=False)
class Automaton:
    """Nodes with their arcs; node `start` begins a document."""

    nodes: tuple[tuple[Arc, ...], ...]
    start: int


Branch = tuple[tuple[Factor, ...], Draw | Recall, "Entry"]


@dataclass(frozen=True, eq=False, repr=False)
class Entry:
    """The branches that may come next while an automaton is being built."""

    branches: tuple[Branch, ...]


def compile_automaton(root: Expression) -> Automaton:
    """The automaton of an expression, checked to be deterministic."""
    entries: list[Entry] = []
    number: dict[Entry, int] = {}
    stop = Entry(())
    # Expressions and entries are equal where they are the same object, which the keys keep alive.
    built: dict[tuple[Expression, Entry], Entry] = {}

    def enter(entry: Entry) -> Entry:
        if entry not in number and entry is not stop:
            number[entry] = len(entries)
            entries.append(entry)
        return entry

    def build(expression: Expression, then: Entry) -> Entry:
        key = (expression, then)
        if key not in built:
            built[key] = branches(expression, then)
        return built[key]

    def branches(expression: Expression, then: Entry) -> Entry:
        if isinstance(expression, Seq):
            for item in reversed(expression.items):
                then = build(item, then)
            return then
        if isinstance(expression, Choice):
            return Entry(
                tuple(
                    (((expression.table, index), *factors), emission, target)
                    for index, option in enumerate(expression.options)
                    for factors, emission, target in build(option, then).branches
                )
            )
        return Entry((((), expression, enter(then)),))

    start = enter(build(root, stop))
    nodes = tuple(
        tuple(Arc(factors, emission, number.get(target, END)) for factors, emission, target in entry.branches)
        for entry in entries
    )
    for arcs in nodes:
        _refuse_ambiguity(arcs)
    return Automaton(nodes, number[start])


def _refuse_ambiguity(arcs: Sequence[Arc]) -> None:
    draws = [arc.emission.category for arc in arcs if isinstance(arc.emission, Draw)]
    for first, second in combinations(draws, 2):
        common = set(first.words) & set(second.words)
        if common:
            raise MicroworldError(
                f"Categories {first.name!r} and {second.name!r} may both come next and share {sorted(common)[:3]}."
            )


def styled(
    name: str, attribute: str, own: Mapping[str, str], *, shared: str = "", share: float = 0.2, leak: float = 0.015
) -> Category:
    """A category that an attribute colours.

    A value draws a shared word with probability `share` (0 where there are none), else one of its own words, or with
    probability `leak` one of another value's. Every word is possible under every value, so that no single word decides.
    """
    share = share if shared else 0.0
    lists = {value: words.split() for value, words in own.items()}
    words = list(dict.fromkeys([word for group in lists.values() for word in group] + shared.split()))
    position = {word: index for index, word in enumerate(words)}
    law = np.zeros((len(lists), len(words)))
    for row, value in enumerate(lists):
        for other, group in lists.items():
            mass = 1 - leak if other == value else leak / (len(lists) - 1)
            for word in group:
                law[row, position[word]] += (1 - share) * mass / len(group)
        for word in shared.split():
            law[row, position[word]] += share / len(shared.split())
    return Category(name, tuple(words), Table((attribute,), law))


def uniform(name: str, words: str) -> Category:
    """A category whose words are equally likely whatever the attributes."""
    group = tuple(words.split())
    return Category(name, group, Table((), np.full(len(group), 1 / len(group))))
