"""A grammar as data: hidden attributes, an automaton whose choices depend on them, and the vocabulary it speaks.

Attributes are independent a priori. Tables that share an attribute tie their attributes together; what is tied forms a
`component`, and a posterior is a product over components, so that exact inference never touches the full joint table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from lens_steer.errors import MicroworldError
from lens_steer.microworld.automaton import Automaton, Draw, Expression, Recall, Table, compile_automaton

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

BOS, EOS, PAD, UNK = "<bos>", "<eos>", "<pad>", "<unk>"
SPECIALS = (BOS, EOS, PAD, UNK)
STOPS = frozenset({".", "?"})


@dataclass(frozen=True)
class Attribute:
    """A hidden property of a document: its values and how often each is drawn."""

    name: str
    values: tuple[str, ...]
    prior: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.prior) or abs(sum(self.prior) - 1) > 1e-9:
            raise MicroworldError(f"Attribute {self.name!r} needs one probability per value, summing to 1.")

    def index(self, value: str) -> int:
        """The position of a value; an unknown one is refused with the list."""
        if value not in self.values:
            raise MicroworldError(f"Attribute {self.name!r} has no value {value!r}; it has {', '.join(self.values)}.")
        return self.values.index(value)


@dataclass(frozen=True, eq=False, repr=False)
class Grammar:
    """Attributes and the expression of a whole document, which ends with the word `<eos>`."""

    attributes: tuple[Attribute, ...]
    root: Expression

    @cached_property
    def automaton(self) -> Automaton:
        """The deterministic automaton of the documents."""
        return compile_automaton(self.root)

    @cached_property
    def words(self) -> tuple[str, ...]:
        """The vocabulary in token-id order: the special tokens, then every word the grammar can say."""
        words: set[str] = set()
        for arcs in self.automaton.nodes:
            for arc in arcs:
                words.update(
                    arc.emission.category.words if isinstance(arc.emission, Draw) else arc.emission.forms.values()
                )
        return (*SPECIALS, *sorted(words - set(SPECIALS)))

    @cached_property
    def ids(self) -> dict[str, int]:
        """Word -> token id."""
        return {word: index for index, word in enumerate(self.words)}

    @cached_property
    def registers(self) -> int:
        """How many registers the grammar uses."""
        used = [-1]
        for arcs in self.automaton.nodes:
            for arc in arcs:
                if isinstance(arc.emission, Recall):
                    used.append(arc.emission.register)
                elif arc.emission.store is not None:
                    used.append(arc.emission.store)
        return max(used) + 1

    @cached_property
    def starts(self) -> frozenset[int]:
        """Nodes at which a sentence begins."""
        states = {self.automaton.start}
        for arcs in self.automaton.nodes:
            for arc in arcs:
                if isinstance(arc.emission, Draw) and STOPS & set(arc.emission.category.words):
                    states.add(arc.target)
        return frozenset(states)

    @cached_property
    def components(self) -> tuple[tuple[Attribute, ...], ...]:
        """The attributes, grouped so that no table reaches over two groups."""
        groups = [{attribute.name} for attribute in self.attributes]
        for table in self._tables():
            touched = [group for group in groups if group & set(table.scope)]
            if len(touched) > 1:
                groups = [group for group in groups if group not in touched] + [set().union(*touched)]
        return tuple(tuple(one for one in self.attributes if one.name in group) for group in groups)

    def attribute(self, name: str) -> Attribute:
        """The attribute of that name; an unknown one is refused with the list."""
        for attribute in self.attributes:
            if attribute.name == name:
                return attribute
        known = ", ".join(attribute.name for attribute in self.attributes)
        raise MicroworldError(f"The microworld has no attribute {name!r}; it has {known}.")

    def check(self, given: Mapping[str, str]) -> dict[str, int]:
        """Attribute names and values as value positions; unknown ones are refused."""
        return {name: self.attribute(name).index(value) for name, value in given.items()}

    def _tables(self) -> Iterator[Table]:
        for arcs in self.automaton.nodes:
            for arc in arcs:
                yield from (table for table, _ in arc.factors)
                if isinstance(arc.emission, Draw):
                    yield arc.emission.category.table


def given_table(attribute: Attribute, laws: Mapping[str, Mapping[str, float]]) -> Table:
    """A table over one attribute from value -> outcome -> weight; outcomes take the order of the first law's keys."""
    outcomes = list(next(iter(laws.values())))
    weights = np.array([[laws[value].get(outcome, 0.0) for outcome in outcomes] for value in attribute.values])
    return Table((attribute.name,), weights / weights.sum(-1, keepdims=True))
