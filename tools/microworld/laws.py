"""The law of every next word of a drawn document, given its attributes: what the model is trained towards.

The sampler knows a document's attributes, so it knows the law that each word was drawn from. A loss against that law
has the same mean as one against the word that happened to be drawn, and far less noise: every step says which words
may come at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float, Int

from lens_steer.microworld.automaton import Draw, Recall
from lens_steer.microworld.grammar import Grammar
from lens_steer.microworld.sampler import Walk, aligned


@dataclass(frozen=True, eq=False, repr=False)
class _Recalled:
    """At a node, the probability that the word in a register comes (`forms`: word id -> the id it is said as)."""

    register: int
    forms: Int[np.ndarray, " word"]
    mass: Float[np.ndarray, " configuration"]


@dataclass(frozen=True, eq=False, repr=False)
class _Excluding:
    """At a node, words that are drawn anew but for those in some registers."""

    registers: tuple[int, ...]
    words: Int[np.ndarray, " own"]


@dataclass(frozen=True, eq=False, repr=False)
class Laws:
    """One row over the vocabulary per node and configuration of the attributes that the node looks at.

    A row leaves out what hangs on the registers; `fill` puts it in.
    """

    rows: Float[np.ndarray, "law word"]
    offset: Int[np.ndarray, " node"]
    stride: Int[np.ndarray, "node attribute"]
    recalled: dict[int, list[_Recalled]]
    excluding: dict[int, list[_Excluding]]

    @staticmethod
    @cache
    def of(grammar: Grammar) -> Laws:
        """The laws of a grammar, built once."""
        nodes = grammar.automaton.nodes
        rows, offset = [], np.zeros(len(nodes), dtype=np.int64)
        stride = np.zeros((len(nodes), len(grammar.attributes)), dtype=np.int64)
        recalled: dict[int, list[_Recalled]] = {}
        excluding: dict[int, list[_Excluding]] = {}
        total = 0
        for node, arcs in enumerate(nodes):
            drawn = [arc.emission for arc in arcs if isinstance(arc.emission, Draw)]
            tables = [table for arc in arcs for table, _ in arc.factors] + [draw.category.table for draw in drawn]
            touched = {name for table in tables for name in table.scope}
            scope = [draw for draw in grammar.attributes if draw.name in touched]
            names, shape = [draw.name for draw in scope], [len(draw.values) for draw in scope]
            law = np.zeros((*shape, len(grammar.words)))
            for arc in arcs:
                mass = np.ones(shape)
                for table, outcome in arc.factors:
                    mass = mass * aligned(table, names)[..., outcome]
                if isinstance(arc.emission, Recall):
                    forms = np.arange(len(grammar.words))
                    for word, spoken in arc.emission.forms.items():
                        forms[grammar.ids[word]] = grammar.ids[spoken]
                    recalled.setdefault(node, []).append(_Recalled(arc.emission.register, forms, mass.ravel()))
                    continue
                words = np.array([grammar.ids[word] for word in arc.emission.category.words])
                law[..., words] += mass[..., None] * aligned(arc.emission.category.table, names)
                if arc.emission.exclude:
                    excluding.setdefault(node, []).append(_Excluding(arc.emission.exclude, words))
            offset[node] = total
            for axis, attribute in enumerate(scope):
                stride[node, grammar.attributes.index(attribute)] = int(np.prod(shape[axis + 1 :], dtype=np.int64))
            rows.append(law.reshape(-1, len(grammar.words)).astype(np.float32))
            total += len(rows[-1])
        return Laws(np.concatenate(rows), offset, stride, recalled, excluding)

    def number(self, walk: Walk) -> Int[np.ndarray, "row position"]:
        """The number of the law before each word of the walk, -1 after its end."""
        known = self.offset[walk.node] + np.einsum("ra,rpa->rp", walk.values, self.stride[walk.node])
        return np.where(walk.ids >= 0, known, -1).astype(np.int32)

    def fill(self, law: Int[np.ndarray, " n"], memory: Int[np.ndarray, "n register"]) -> Float[np.ndarray, "n word"]:
        """The laws by number, completed by what the registers hold; each sums to 1."""
        filled = self.rows[law]
        node = np.searchsorted(self.offset, law, side="right") - 1
        for state in np.unique(node).tolist():
            if state not in self.recalled and state not in self.excluding:
                continue
            here = np.flatnonzero(node == state)
            for arc in self.excluding.get(state, ()):
                own = filled[np.ix_(here, arc.words)]
                barred = (arc.words[None, :, None] == memory[here][:, None, list(arc.registers)]).any(-1)
                left = np.where(barred, 0.0, own)
                filled[np.ix_(here, arc.words)] = left * (own.sum(-1) / left.sum(-1))[:, None]
            for recall in self.recalled.get(state, ()):
                filled[here, recall.forms[memory[here, recall.register]]] += recall.mass[law[here] - self.offset[state]]
        return np.asarray(filled)
