"""Design: which texts are one observation, and which labels the null hypothesis may exchange.

A null hypothesis about labels needs units that are exchangeable. Copies of a text are one observation. Where all texts
of a block (a topic, an author) are of one side, the block is one observation, and labels are exchanged between blocks.
Where a block holds both sides (a pair, the answers to one prompt), its own texts are exchanged inside it: the block is
a stratum.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int


@dataclass(frozen=True)
class Design:
    """Observations inside strata: labels are exchangeable between the observations of a stratum.

    `observation` says which one every text belongs to; `stratum` and `is_source` are of observations. Stratum 0 holds
    the blocks of one side. A text that stands on both sides of a block is two observations with a stratum each, which
    nothing exchanges.
    """

    observation: Int[np.ndarray, " text"]
    stratum: Int[np.ndarray, " observation"]
    is_source: Bool[np.ndarray, " observation"]

    @classmethod
    def of(
        cls,
        is_source: Bool[np.ndarray, " text"],
        blocks: Int[np.ndarray, " text"] | None = None,
        copies: Int[np.ndarray, " text"] | None = None,
    ) -> Design:
        """Return the design of labelled texts; `copies` are equal for equal texts. None: every text is its own."""
        texts = np.arange(len(is_source))
        blocks = texts if blocks is None else np.unique(blocks, return_inverse=True)[1]
        copies = texts if copies is None else np.unique(copies, return_inverse=True)[1]
        mixed = _on_both_sides(blocks, is_source)
        _, copies = np.unique(np.stack([blocks, np.where(mixed, copies, -1)]), axis=1, return_inverse=True)
        split = mixed & _on_both_sides(copies, is_source)
        keys = np.stack([copies.reshape(-1), is_source])
        _, first, observation = np.unique(keys, axis=1, return_index=True, return_inverse=True)
        stratum = np.where(mixed, 1 + blocks, 0)
        stratum = np.where(split, 1 + len(texts) + keys[0] * 2 + is_source, stratum)
        return cls(observation.reshape(-1), stratum[first], is_source[first])

    @property
    def simple(self) -> bool:
        """Whether every text is an observation, and all are of one stratum."""
        return len(self.stratum) == len(self.observation) and not self.stratum.any()

    @property
    def strata(self) -> list[Int[np.ndarray, " observation"]]:
        """The observations of every stratum that holds both sides."""
        members = [np.flatnonzero(self.stratum == number) for number in np.unique(self.stratum)]
        return [rows for rows in members if 0 < int(self.is_source[rows].sum()) < len(rows)]

    def relabelled(self, permutations: int, seed: int) -> Bool[np.ndarray, "permutation text"]:
        """Draw labels that the null hypothesis finds as likely as the given ones."""
        random = np.random.default_rng(seed)
        count = len(self.stratum)
        order = np.argsort(self.stratum, kind="stable")
        starts = np.unique(self.stratum, return_inverse=True)[1].reshape(-1)
        # Sorted by stratum plus a number below 1, the observations of every stratum come in a random order.
        shuffled = np.argsort(starts + random.random((permutations, count)), axis=1)
        labels = np.empty((permutations, count), dtype=np.bool_)
        np.put_along_axis(labels, shuffled, np.broadcast_to(self.is_source[order], shuffled.shape), axis=1)
        return labels[:, self.observation]


def _on_both_sides(
    members: Int[np.ndarray, " text"], is_source: Bool[np.ndarray, " text"]
) -> Bool[np.ndarray, " text"]:
    """Whether the set that a text belongs to holds texts of both sides."""
    members = members.reshape(-1)
    sides = [np.bincount(members[side], minlength=int(members.max()) + 1) > 0 for side in (is_source, ~is_source)]
    both: Bool[np.ndarray, " text"] = (sides[0] & sides[1])[members]
    return both
