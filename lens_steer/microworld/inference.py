"""Exact inference: a text's path through the automaton, the belief over the attributes and the law of the next word.

The path is observed (the automaton is deterministic), so a text multiplies each component's belief by one number per
value and step. All numbers are natural logarithms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float

from lens_steer.microworld.automaton import END, Arc, Draw, Recall, Table
from lens_steer.microworld.grammar import Attribute, Grammar
from lens_steer.microworld.sampler import aligned


@dataclass(frozen=True)
class State:
    """Where a text stands: the node and the words in the registers."""

    node: int
    memory: tuple[str | None, ...]


@dataclass(frozen=True)
class Belief:
    """Log weights of the attributes, one array per component; with `constant`, log P(attributes, words so far)."""

    components: tuple[np.ndarray, ...]
    constant: float = 0.0

    def log_weight(self) -> float:
        """Log P(the words so far), in nats; -inf when no attributes allow them."""
        return self.constant + sum(_log_sum(component) for component in self.components)

    def posterior(self) -> tuple[np.ndarray, ...]:
        """Per component the joint law of its attributes."""
        return tuple(np.exp(component - _log_sum(component)) for component in self.components)


def _log_sum(logs: np.ndarray) -> float:
    top = float(logs.max())
    return top if top == -np.inf else top + float(np.log(np.exp(logs - top).sum()))


@dataclass(frozen=True, eq=False, repr=False)
class _Table:
    """A table laid over its component's axes; component is None where it looks at no attribute."""

    component: int | None
    law: Float[np.ndarray, "... k"]
    log: Float[np.ndarray, "... k"]


Evidence = tuple[tuple[int | None, np.ndarray], ...]
"""What a step says: per factor the component it weighs (None: a constant) and its logarithms over that one's axes."""


class Inference:
    """The steps of a grammar: which arc a word takes, what it says about the attributes, what may follow."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self._tables: dict[Table, _Table] = {}
        self._index: dict[int, tuple[dict[str, tuple[Arc, int]], tuple[Arc, ...]]] = {}

    @staticmethod
    @cache
    def of(grammar: Grammar) -> Inference:
        """The inference of a grammar, built once."""
        return Inference(grammar)

    def start(self) -> State:
        """The state before the first word."""
        return State(self.grammar.automaton.start, (None,) * self.grammar.registers)

    def prior(self, given: Mapping[str, str] | None = None) -> Belief:
        """The belief before any word; `given` fixes attributes and renormalises, so that the weight starts at 1."""
        fixed = self.grammar.check(given or {})
        return Belief(tuple(_prior(component, fixed) for component in self.grammar.components))

    def step(self, state: State, word: str) -> tuple[State, Evidence] | None:
        """The next state and what the word says about the attributes; None where the grammar does not allow it."""
        if state.node == END:
            return None
        known, recalls = self._arcs(state.node)
        for arc in recalls:
            if self._recalled(arc, state) == word:
                return State(arc.target, state.memory), self._choices(arc)
        if word not in known:
            return None
        arc, position = known[word]
        emission = arc.emission
        assert isinstance(emission, Draw)
        barred = [emission.category.words.index(other) for other in self._barred(emission, state)]
        if position in barred:
            return None
        table = self._table(emission.category.table)
        log = table.log[..., position]
        if barred:
            log = np.asarray(log - np.log1p(-table.law[..., barred].sum(-1)))
        memory = state.memory
        if emission.store is not None:
            memory = (*memory[: emission.store], word, *memory[emission.store + 1 :])
        return State(arc.target, memory), (*self._choices(arc), (table.component, log))

    def update(self, belief: Belief, evidence: Evidence) -> Belief:
        """The belief after a step."""
        components, constant = list(belief.components), belief.constant
        for component, log in evidence:
            if component is None:
                constant += float(log)
            else:
                components[component] = np.asarray(components[component] + log)
        return Belief(tuple(components), constant)

    def keep_possible(self, belief: Belief, evidence: Evidence) -> Belief:
        """The belief after a step that is no evidence: values that could not take it are struck out, no more."""
        return self.update(belief, tuple((part, np.where(np.isneginf(log), -np.inf, 0.0)) for part, log in evidence))

    def law(self, state: State, belief: Belief) -> Float[np.ndarray, " word"]:
        """P(next word | the words so far) over the vocabulary, in token-id order; it sums to 1."""
        law = np.zeros(len(self.grammar.words))
        posterior = belief.posterior()
        for arc in self.grammar.automaton.nodes[state.node]:
            weights: list[np.ndarray] = list(posterior)
            mass = 1.0
            for table, outcome in arc.factors:
                laid = self._table(table)
                if laid.component is None:
                    mass *= float(laid.law[..., outcome])
                else:
                    weights[laid.component] = weights[laid.component] * laid.law[..., outcome]
            if isinstance(arc.emission, Recall):
                law[self.grammar.ids[self._recalled(arc, state)]] += mass * _product(weights)
                continue
            laid = self._table(arc.emission.category.table)
            words = laid.law
            barred = [arc.emission.category.words.index(word) for word in self._barred(arc.emission, state)]
            if barred:
                words = words.copy()
                words[..., barred] = 0.0
                words = words / words.sum(-1, keepdims=True)
            if laid.component is None:
                drawn = mass * _product(weights) * words
            else:
                own = weights.pop(laid.component)
                drawn = mass * _product(weights) * (own[..., None] * words).reshape(-1, words.shape[-1]).sum(0)
            law[self._positions(arc.emission)] += drawn
        return law

    def marginals(self, belief: Belief) -> dict[str, dict[str, float]]:
        """Attribute -> value -> probability."""
        marginals: dict[str, dict[str, float]] = {}
        for component, law in zip(self.grammar.components, belief.posterior()):
            for axis, attribute in enumerate(component):
                others = tuple(other for other in range(len(component)) if other != axis)
                marginals[attribute.name] = dict(zip(attribute.values, map(float, law.sum(others))))
        return {attribute.name: marginals[attribute.name] for attribute in self.grammar.attributes}

    def _arcs(self, node: int) -> tuple[dict[str, tuple[Arc, int]], tuple[Arc, ...]]:
        if node not in self._index:
            arcs = self.grammar.automaton.nodes[node]
            drawn = {
                word: (arc, position)
                for arc in arcs
                if isinstance(arc.emission, Draw)
                for position, word in enumerate(arc.emission.category.words)
            }
            self._index[node] = drawn, tuple(arc for arc in arcs if isinstance(arc.emission, Recall))
        return self._index[node]

    def _choices(self, arc: Arc) -> Evidence:
        tables = [(self._table(table), outcome) for table, outcome in arc.factors]
        return tuple((table.component, table.log[..., outcome]) for table, outcome in tables)

    def _table(self, table: Table) -> _Table:
        if table not in self._tables:
            component, law = None, table.probabilities
            if table.scope:
                groups = [[attribute.name for attribute in group] for group in self.grammar.components]
                component = next(index for index, names in enumerate(groups) if table.scope[0] in names)
                law = aligned(table, groups[component])
            with np.errstate(divide="ignore"):
                self._tables[table] = _Table(component, law, np.log(law))
        return self._tables[table]

    @cache  # noqa: B019 - one Inference lives as long as its grammar
    def _positions(self, emission: Draw) -> list[int]:
        return [self.grammar.ids[word] for word in emission.category.words]

    @staticmethod
    def _recalled(arc: Arc, state: State) -> str:
        assert isinstance(arc.emission, Recall)
        word = state.memory[arc.emission.register]
        assert word is not None
        return arc.emission.forms.get(word, word)

    @staticmethod
    def _barred(emission: Draw, state: State) -> Sequence[str]:
        words = [state.memory[register] for register in emission.exclude]
        return [word for word in words if word is not None and word in emission.category.words]


def _prior(component: tuple[Attribute, ...], fixed: Mapping[str, int]) -> np.ndarray:
    law = np.ones(())
    for attribute in component:
        weights = np.array(attribute.prior)
        if attribute.name in fixed:
            weights = np.eye(len(weights))[fixed[attribute.name]]
        law = law[..., None] * weights
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(law))


def _product(weights: list[np.ndarray]) -> float:
    product = 1.0
    for weight in weights:
        product *= float(weight.sum())
    return product
