"""One sort per unit, and what it leaves: groups of tied texts, over which every rank statistic is a sum.

AUROC, average precision, DeLong's variance, the tie correction of Mann and Whitney's test and the Wasserstein distance
all follow from how many source and target texts hold each value. So a unit's texts are sorted once, whatever is asked
of them, also of parts of them (a held-out half): a part has the same groups, with fewer texts in each.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int

_INDEX_BITS = 31
_INDEX_MASK = (1 << _INDEX_BITS) - 1
_COUNT_BITS = 63  # of an integer that counts several sets of texts at once


@dataclass(frozen=True, eq=False)
class SortedTexts:
    """The texts of every unit from the highest value down, in groups of equal values.

    `order` numbers the texts, `ranked` holds their values as `descending_order` gives them. `ends` are the places, in
    the flattened order, of the last text of every group; `first` is where each unit's groups begin among the groups.
    """

    order: Int[np.ndarray, "unit text"]
    ranked: np.ndarray
    ends: Int[np.ndarray, " group"]
    first: Int[np.ndarray, " unit"]

    @classmethod
    def of(cls, values: Float[np.ndarray, "unit text"]) -> SortedTexts:
        """Sort."""
        order, last, ranked = descending_order(values)
        ends = np.flatnonzero(last)
        units, texts = order.shape
        return cls(order, ranked, ends, np.searchsorted(ends, np.arange(units) * texts))

    @property
    def values(self) -> Float[np.ndarray, " group"]:
        """The value of every group."""
        return _floats(self.ranked.ravel()[self.ends])

    def groups(self, *sides: tuple[Bool[np.ndarray, " text"], Bool[np.ndarray, " text"]]) -> list[TieGroups]:
        """Count, for each pair of a source and a target side, its texts in every group; a text may be of neither."""
        running = self._running([side for pair in sides for side in pair])
        counts = [tuple(int(np.count_nonzero(side)) for side in pair) for pair in sides]
        own = [_increments(side, self.first) for side in running]
        return [
            TieGroups((n, m), self.first, own[i], own[i + 1], running[i], running[i + 1])
            for i, (n, m) in zip(range(0, len(own), 2), counts, strict=True)
        ]

    def _running(self, sets: list[Bool[np.ndarray, " text"]]) -> list[Float[np.ndarray, " group"]]:
        """Count the texts of each set down to the end of every group.

        As many sets share one integer, and one pass, as it has room for.
        """
        bits = _COUNT_BITS // len(sets)
        if self.order.shape[1] >> bits:
            middle = len(sets) // 2
            return [*self._running(sets[:middle]), *self._running(sets[middle:])]
        packed = np.zeros(self.order.shape[1], dtype=np.int64)
        for place, members in enumerate(sets):
            packed |= members.astype(np.int64) << (bits * place)
        counts = packed.take(self.order)
        np.cumsum(counts, axis=1, out=counts)
        reached, running = counts.ravel().take(self.ends), []
        for _ in sets[1:]:
            running.append((reached & ((1 << bits) - 1)).astype(np.float64))
            reached >>= bits
        return [*running, reached.astype(np.float64)]


@dataclass(frozen=True, eq=False)
class TieGroups:
    """Texts of equal value, from the highest value down, unit after unit in flat arrays.

    `source` and `target` count each group's own texts, `hits` the source texts and `false_hits` the target texts at or
    above its value; `first` is where each unit's groups begin. `texts` is (source texts, target texts) of one unit.
    Counts are float64, exact to 2^53.
    """

    texts: tuple[int, int]
    first: Int[np.ndarray, " unit"]
    source: Float[np.ndarray, " group"]
    target: Float[np.ndarray, " group"]
    hits: Float[np.ndarray, " group"]
    false_hits: Float[np.ndarray, " group"]

    @property
    def tied(self) -> bool:
        """Whether any unit has two texts of one value."""
        return len(self.hits) < len(self.first) * sum(self.texts)

    def total(self, per_group: Float[np.ndarray, " group"]) -> Float[np.ndarray, " unit"]:
        """Sum a quantity over each unit's groups."""
        return np.asarray(np.add.reduceat(per_group, self.first))

    @cached_property
    def source_above(self) -> Float[np.ndarray, " group"]:
        """Twice the source texts above each group, its own counting half: what a target text of the group loses to."""
        above = 2 * self.hits
        above -= self.source
        return above

    @cached_property
    def target_above(self) -> Float[np.ndarray, " group"]:
        """Twice the target texts above each group, its own counting half."""
        above = 2 * self.false_hits
        above -= self.target
        return above

    @cached_property
    def wins(self) -> Float[np.ndarray, " unit"]:
        """Twice the pairs of texts in which the source lies above the target, tied pairs counting half: 2 n m AUROC."""
        return self.total(self.target * self.source_above)

    def wins_without(self, part: TieGroups) -> Float[np.ndarray, " unit"]:
        """Return the `wins` of the other texts, where `part` counts some of the same units' texts.

        Of all pairs, those with a source or a target text of the part go.
        """
        with_either = self.total(self.target * part.source_above) + self.total(part.target * self.source_above)
        return np.asarray(self.wins - with_either + part.wins)


def tie_groups(source: Float[np.ndarray, "unit n"], target: Float[np.ndarray, "unit m"]) -> TieGroups:
    """Group the texts of each unit by value."""
    is_source = np.arange(source.shape[1] + target.shape[1]) < source.shape[1]
    return SortedTexts.of(np.concatenate([source, target], axis=1)).groups((is_source, ~is_source))[0]


def descending_order(
    values: Float[np.ndarray, "unit text"],
) -> tuple[Int[np.ndarray, "unit text"], Bool[np.ndarray, "unit text"], np.ndarray]:
    """Return each unit's texts from the highest value down, where runs of equal values end, and the values so ranked.

    -0.0 equals 0.0. The values come as `_floats` takes them.
    """
    last = np.ones(values.shape, dtype=np.bool_)
    if values.dtype == np.float64:
        order = np.argsort(-values, axis=1)
        ranked = np.take_along_axis(values, order, axis=1)
        np.not_equal(ranked[:, 1:], ranked[:, :-1], out=last[:, :-1])
        return order, last, ranked
    # Value and text index fit one integer, and integers sort several times faster than an indirect sort.
    keys = np.left_shift(_descending_integers(values), np.int64(_INDEX_BITS), dtype=np.int64)
    keys |= np.arange(values.shape[1])
    keys.sort(axis=1)
    np.greater((keys[:, 1:] ^ keys[:, :-1]).view(np.uint64), _INDEX_MASK, out=last[:, :-1])
    return keys & _INDEX_MASK, last, keys


def doubled_midranks(values: Float[np.ndarray, "unit text"]) -> Int[np.ndarray, "unit text"]:
    """Return twice the midrank of each text, an integer; rank 1 is the smallest value."""
    order, last, _ = descending_order(values)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, sorted_doubled_midranks(last), axis=1)
    return ranks


def sorted_doubled_midranks(last: Bool[np.ndarray, "unit text"]) -> Int[np.ndarray, "unit text"]:
    """Return twice the midranks in the sorted order itself, from `descending_order`'s marks of where ties end."""
    ends = np.flatnonzero(last)
    sizes = np.diff(ends, prepend=-1)
    texts = last.shape[1]
    return np.repeat(2 * (texts - ends % texts) + sizes - 1, sizes).reshape(last.shape)


def _descending_integers(values: Float[np.ndarray, "unit text"]) -> Int[np.ndarray, "unit text"]:
    """Map float32 to integers in the opposite order.

    The bits of a float without its sign grow with its size; the sign is put back as an integer's, so that both zeros
    become 0.
    """
    bits = values.view(np.int32)
    flip = ~(bits >> 31)
    integers = bits & np.int32(0x7FFFFFFF)
    integers ^= flip
    integers -= flip
    return integers


def _floats(ranked: np.ndarray) -> Float[np.ndarray, " group"]:
    """Return the values, float64, of floats or of the integers that float32 was sorted by."""
    if ranked.dtype == np.float64:
        return ranked
    integers = (ranked >> _INDEX_BITS).astype(np.int32)
    return np.copysign(np.abs(integers).view(np.float32), -integers).astype(np.float64)


def _increments(running: Float[np.ndarray, " group"], first: Int[np.ndarray, " unit"]) -> Float[np.ndarray, " group"]:
    """Undo a running count that starts anew at every unit."""
    own = np.empty_like(running)
    np.subtract(running[1:], running[:-1], out=own[1:])
    own[first] = running[first]
    return own
