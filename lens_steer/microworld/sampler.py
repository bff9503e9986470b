"""Drawing documents: thousands of automata walk in step, a few array operations per word.

Documents come in blocks of `BLOCK` rows. Each block has its own random stream, so that document i of `sample(n,
seed=s)` depends on (s, i) and on the attributes asked for, never on n.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Int

from lens_steer.microworld.automaton import END, Draw, Recall, Table
from lens_steer.microworld.english import english
from lens_steer.microworld.grammar import Grammar
from lens_steer.microworld.requests import checked_count, checked_seed

BLOCK = 1024


@dataclass(frozen=True)
class Document:
    """A text and the attributes it was drawn with."""

    text: str
    attributes: Mapping[str, str]


def sample(n: int, *, seed: int = 0, **attributes: str) -> list[Document]:
    """Draw `n` documents; attributes given by name (`register="rude"`) are fixed, the others are drawn.

    Document i depends on the seed, i and the fixed attributes only. MicroworldError for unknown attributes and values,
    numbers that are not whole, n below 0, a seed outside 0 to 2**32 - 1.
    """
    grammar = english()
    n, seed = checked_count(n, "documents", least=0), checked_seed(seed)
    sampler = Sampler.of(grammar)
    documents: list[Document] = []
    for block in range(-(-n // BLOCK)):
        walk = sampler.draw(BLOCK, stream=(seed, block), given=attributes)
        values, ids = walk.values, walk.ids
        for row in range(min(BLOCK, n - len(documents))):
            length = int((ids[row] >= 0).sum()) - 1
            text = " ".join(map(grammar.words.__getitem__, ids[row, :length].tolist()))
            drawn = {attribute.name: attribute.values[values[row, k]] for k, attribute in enumerate(grammar.attributes)}
            documents.append(Document(text, drawn))
    return documents


@dataclass(frozen=True, eq=False, repr=False)
class Walk:
    """Documents as they were drawn, a row each: attribute values, token ids (-1 after the end), and the node and the
    registers (word ids, negative while empty) before each word.
    """

    values: Int[np.ndarray, "row attribute"]
    ids: Int[np.ndarray, "row position"]
    node: Int[np.ndarray, "row position"]
    memory: Int[np.ndarray, "row position register"]


@dataclass(frozen=True, eq=False, repr=False)
class _Rows:
    """Many laws laid end to end: row r owns cumulative values in (r, r + 1], so that one search serves all rows."""

    cumulative: Float[np.ndarray, " entry"]
    outcome: Int[np.ndarray, " entry"]
    offset: Int[np.ndarray, " table"]
    stride: Int[np.ndarray, "table attribute"]

    @classmethod
    def of(cls, grammar: Grammar, tables: list[tuple[Table, Int[np.ndarray, " _"]]]) -> _Rows:
        names = [attribute.name for attribute in grammar.attributes]
        stride = np.zeros((len(tables), len(names)), dtype=np.int64)
        offset, cumulative, outcome, row = np.zeros(len(tables), dtype=np.int64), [], [], 0
        for index, (table, outcomes) in enumerate(tables):
            laws = table.probabilities.reshape(-1, len(outcomes))
            for axis, name in enumerate(table.scope):
                stride[index, names.index(name)] = int(
                    np.prod(table.probabilities.shape[axis + 1 : -1], dtype=np.int64)
                )
            offset[index] = row
            summed = np.cumsum(laws, axis=-1)
            cumulative.append((summed / summed[:, -1:] + np.arange(row, row + len(laws))[:, None]).ravel())
            outcome.append(np.tile(outcomes, len(laws)))
            row += len(laws)
        return cls(np.concatenate(cumulative), np.concatenate(outcome), offset, stride)

    def pick(
        self,
        table: Int[np.ndarray, " row"],
        values: Int[np.ndarray, "row attribute"],
        uniform: Float[np.ndarray, " row"],
    ) -> Int[np.ndarray, " row"]:
        """One outcome per row, from the law that its table gives under its attributes."""
        law = self.offset[table] + (values * self.stride[table]).sum(-1)
        place = np.searchsorted(self.cumulative, law + np.minimum(uniform, 1 - 1e-9), side="right")
        return np.asarray(self.outcome[place])


@dataclass(frozen=True, eq=False, repr=False)
class Sampler:
    """The automaton of a grammar as flat arrays."""

    grammar: Grammar
    arcs: _Rows
    categories: _Rows
    target: Int[np.ndarray, " arc"]
    category: Int[np.ndarray, " arc"]
    recall: Int[np.ndarray, " arc"]
    form: Int[np.ndarray, " arc"]
    store: Int[np.ndarray, " arc"]
    exclude: Int[np.ndarray, "arc register"]
    forms: Int[np.ndarray, "form word"]

    @staticmethod
    @cache
    def of(grammar: Grammar) -> Sampler:
        """The sampler of a grammar, built once."""
        arcs = [arc for node in grammar.automaton.nodes for arc in node]
        position = {arc: index for index, arc in enumerate(arcs)}
        tables = [
            (_joint(grammar, [arc.factors for arc in node]), np.array([position[arc] for arc in node]))
            for node in grammar.automaton.nodes
        ]
        emissions = [arc.emission for arc in arcs]
        categories = list(dict.fromkeys(one.category for one in emissions if isinstance(one, Draw)))
        number = {one: index for index, one in enumerate(categories)}
        forms, form = [np.arange(len(grammar.words))], np.zeros(len(arcs), dtype=np.int64)
        exclude = np.zeros((len(arcs), max(grammar.registers, 1)), dtype=np.int64)
        for index, emission in enumerate(emissions):
            if isinstance(emission, Recall) and emission.forms:
                mapping = np.arange(len(grammar.words))
                for key, value in emission.forms.items():
                    mapping[grammar.ids[key]] = grammar.ids[value]
                form[index] = len(forms)
                forms.append(mapping)
            elif isinstance(emission, Draw):
                exclude[index, list(emission.exclude)] = 1
        return Sampler(
            grammar,
            _Rows.of(grammar, tables),
            _Rows.of(grammar, [(one.table, np.array([grammar.ids[word] for word in one.words])) for one in categories]),
            np.array([arc.target for arc in arcs]),
            np.array([number[one.category] if isinstance(one, Draw) else -1 for one in emissions]),
            np.array([one.register if isinstance(one, Recall) else -1 for one in emissions]),
            form,
            np.array([one.store if isinstance(one, Draw) and one.store is not None else -1 for one in emissions]),
            exclude,
            np.stack(forms),
        )

    def draw(self, n: int, *, stream: tuple[int, ...], given: Mapping[str, str]) -> Walk:
        """Draw `n` documents, each ending with `<eos>`."""
        rng = np.random.default_rng(list(stream))
        fixed = self.grammar.check(given)
        values = np.stack(
            [
                np.full(n, fixed[attribute.name])
                if attribute.name in fixed
                else rng.choice(len(attribute.values), size=n, p=attribute.prior)
                for attribute in self.grammar.attributes
            ],
            axis=-1,
        )
        node = np.full(n, self.grammar.automaton.start)
        memory = np.full((n, max(self.grammar.registers, 1)), -2)
        columns: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        rows = np.arange(n)
        while len(rows):
            uniform = rng.random((2, n))[:, rows]
            arc = self.arcs.pick(node[rows], values[rows], uniform[0])
            words = self._say(rows, arc, values, memory, uniform[1], rng)
            before = node.copy(), memory.astype(np.int16)
            keeps = self.store[arc] >= 0
            memory[rows[keeps], self.store[arc[keeps]]] = words[keeps]
            column = np.full(n, -1)
            column[rows] = words
            columns.append((column, *before))
            node[rows] = self.target[arc]
            rows = rows[node[rows] != END]
        ids, nodes, memories = (np.stack(part, axis=1) for part in zip(*columns))
        return Walk(values, ids, nodes, memories)

    def _say(
        self,
        rows: Int[np.ndarray, " row"],
        arc: Int[np.ndarray, " row"],
        values: Int[np.ndarray, "all attribute"],
        memory: Int[np.ndarray, "all register"],
        uniform: Float[np.ndarray, " row"],
        rng: np.random.Generator,
    ) -> Int[np.ndarray, " row"]:
        words = np.empty(len(rows), dtype=np.int64)
        recalls = self.recall[arc] >= 0
        words[recalls] = self.forms[self.form[arc[recalls]], memory[rows[recalls], self.recall[arc[recalls]]]]
        open_rows = np.flatnonzero(~recalls)
        draws = uniform[open_rows]
        while len(open_rows):
            category, where = self.category[arc[open_rows]], rows[open_rows]
            words[open_rows] = self.categories.pick(category, values[where], draws)
            clash = ((memory[where] == words[open_rows, None]) & (self.exclude[arc[open_rows]] == 1)).any(-1)
            open_rows = open_rows[clash]
            draws = rng.random(len(open_rows))
        return words


def _joint(grammar: Grammar, factors: list[tuple[tuple[Table, int], ...]]) -> Table:
    """The law of a node's arcs as one table over all the attributes its choices look at."""
    touched = {name for arc in factors for table, _ in arc for name in table.scope}
    scope = tuple(attribute for attribute in grammar.attributes if attribute.name in touched)
    names = [attribute.name for attribute in scope]
    law = np.ones((*[len(attribute.values) for attribute in scope], len(factors)))
    for index, arc in enumerate(factors):
        for table, outcome in arc:
            law[..., index] *= aligned(table, names)[..., outcome]
    return Table(tuple(names), law)


def aligned(table: Table, names: list[str]) -> Float[np.ndarray, "*value outcome"]:
    """A table's probabilities with its axes in the order of `names`, length 1 where it does not look."""
    order = sorted(range(len(table.scope)), key=lambda axis: names.index(table.scope[axis]))
    moved = np.transpose(table.probabilities, (*order, len(table.scope)))
    present = [name in table.scope for name in names]
    shape = iter(moved.shape[:-1])
    return moved.reshape(*[next(shape) if here else 1 for here in present], moved.shape[-1])
