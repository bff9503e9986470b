"""Contrasts: the texts that show a concept (source), texts that do not (target), and neutral ones (control).

Rows are plain, immutable data here: tokens, masks and the chat template belong to the host, files to `reading`.
"""

import copy
import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int8

from lens_steer.errors import ContrastError, LensSteerWarning, SettingError

# A text, or a (prompt, completion) pair whose pools cover the completion only; the prompt may be empty.
Row = str | tuple[str, str]
# None: the text as it is. True: the tokenizer's chat template. A str: a format in which "{text}" stands for the text.
ChatFormat = bool | str | None
SIDES = ("source", "target", "control")


def _pooled(row: object) -> str | None:
    """The text of `row` that pools cover; None where `row` is neither a text nor a pair of texts."""
    parts: tuple[object, ...] = row if isinstance(row, tuple) and len(row) == 2 else (row,)
    return str(parts[-1]) if all(isinstance(part, str) for part in parts) else None


def first_few(places: Sequence[object]) -> str:
    """The first five of `places`, and how many there are in all."""
    shown = ", ".join(map(str, places[:5]))
    return shown if len(places) <= 5 else f"{shown}, ... ({len(places)} in all)"


def _rows(**sides: Any) -> list[tuple[Row, ...]]:
    for side, rows in sides.items():
        if isinstance(rows, str | bytes | dict) or not isinstance(rows, Iterable):
            raise ContrastError(f"{side} must be a list, not one {type(rows).__name__}; write a single text as [text]")
    listed = {side: tuple(rows) for side, rows in sides.items()}
    placed = [(f"{side}[{index}]", row) for side, rows in listed.items() for index, row in enumerate(rows)]
    if foreign := [place for place, row in placed if _pooled(row) is None]:
        raise ContrastError(f"neither a text nor a (prompt, completion) pair of texts: {first_few(foreign)}")
    if blank := [place for place, row in placed if not (_pooled(row) or "").strip()]:
        raise ContrastError(f"blank rows have nothing to pool, leave them out: {first_few(blank)}")
    pairs = [place for place, row in placed if not isinstance(row, str)]
    if 0 < len(pairs) < len(placed):
        what = f"{len(pairs)} of {len(placed)} rows are (prompt, completion) pairs, the others texts"
        raise ContrastError(f"{what}; write every text as ('', text), or no pairs: {first_few(pairs)}")
    return list(listed.values())


def _names(names: Iterable[object], what: str, count: int | None = None) -> tuple[str, ...]:
    listed: tuple[Any, ...] = tuple(names)
    if foreign := [f"{what}[{index}]" for index, name in enumerate(listed) if not isinstance(name, str)]:
        raise ContrastError(f"not a string: {first_few(foreign)}")
    if count is not None and len(listed) != count:
        raise ContrastError(f"{what} must name one group per row: {len(listed)} names for {count} rows")
    return listed


def _chat(chat: Any) -> ChatFormat:
    if not isinstance(chat, bool | None) and "{text}" not in str(chat):
        raise ContrastError(f"chat must be None, True or a format such as 'User: {{text}}\nBot:', not {chat!r}")
    return chat or None


def _labels(values: object, shape: tuple[int, int]) -> Int8[np.ndarray, "text concept"]:
    """A read-only int8 copy; a flat list does for one concept."""
    given = np.array(values, dtype=object)
    given = given[:, None] if given.ndim == 1 and shape[1] == 1 else given
    if given.shape != shape:
        raise ContrastError(f"labels must be texts x concepts, {shape}, not {given.shape}")
    if wrong := [f"labels[{row}]" for row in np.flatnonzero(~np.isin(given, (-1, 0, 1)).all(axis=1))]:
        raise ContrastError(f"labels must be 1 (source), 0 (target) or -1 (takes no part): {first_few(wrong)}")
    labels = given.astype(np.int8)
    labels.setflags(write=False)
    return labels


@dataclass(frozen=True, eq=False, repr=False)
class LabelledTexts:
    """One table of texts for many concepts: `labels` [text, concept] is 1 for source, 0 for target, -1 for no part.

    Booleans do as labels, and a flat list for one concept; they are kept as read-only int8. Equal by value. Refused
    (`ContrastError`): blank rows, texts mixed with pairs, other labels or shapes, a concept without both sides.
    """

    texts: tuple[Row, ...]
    labels: Int8[np.ndarray, "text concept"]
    concepts: tuple[str, ...]
    _: KW_ONLY
    groups: tuple[str, ...] | None = None
    chat: ChatFormat = None
    name: str = "texts"
    __no_type_check__ = True  # jaxtyping's hook leaves the constructor, which takes lists and names bad rows, alone

    def __post_init__(self) -> None:
        (texts,) = _rows(texts=self.texts)
        concepts = _names(self.concepts, "concepts")
        if not concepts or len(set(concepts)) < len(concepts):
            raise ContrastError(f"concepts must be different names, one or more, not {concepts}")
        labels = _labels(self.labels, (len(texts), len(concepts)))
        for concept, column in zip(concepts, labels.T):
            if missing := [side for side, label in (("source", 1), ("target", 0)) if label not in column]:
                raise ContrastError(f"concept {concept!r} has no {' and no '.join(missing)} text")
        groups = None if self.groups is None else _names(self.groups, "groups", len(texts))
        self.__dict__.update(texts=texts, labels=labels, concepts=concepts, groups=groups, chat=_chat(self.chat))

    def contrast(self, concept: str) -> "ContrastSet":
        """The texts that take part in `concept`, in the order of the table, as a contrast of that name."""
        if concept not in self.concepts:
            raise ContrastError(f"no concept {concept!r} in {self!r}; there is {', '.join(map(repr, self.concepts))}")
        column = self.labels[:, self.concepts.index(concept)]
        rows = [np.flatnonzero(column == label) for label in (1, 0)]
        source, target = ([self.texts[row] for row in side] for side in rows)
        groups = [self.groups and [self.groups[row] for row in side] for side in rows]
        return ContrastSet(
            source, target, name=concept, source_groups=groups[0], target_groups=groups[1], chat=self.chat
        )

    @staticmethod
    def of(contrasts: Iterable["ContrastSet"], *, name: str = "texts") -> "LabelledTexts":
        """One table of several contrasts, a concept each: a text takes part in the concepts whose contrast holds it.

        Control texts and groups are left out. Refused (`ContrastError`): contrasts of one name, a text on both sides of
        a contrast, chat formats that differ.
        """
        listed = tuple(contrasts)
        if len(formats := {each.chat for each in listed}) > 1:
            raise ContrastError(f"one table has one chat format, not {len(formats)}")
        rows = list(dict.fromkeys(row for each in listed for row in each.source + each.target))
        place = {row: number for number, row in enumerate(rows)}
        labels = np.full((len(rows), len(listed)), -1)
        for column, each in enumerate(listed):
            if both := set(each.source) & set(each.target):
                raise ContrastError(f"{len(both)} text(s) on both sides of {each!r}: a table has one label per text")
            for label, side in ((1, each.source), (0, each.target)):
                labels[[place[row] for row in side], column] = label
        return LabelledTexts(tuple(rows), labels, tuple(each.name for each in listed), chat=formats.pop(), name=name)

    @property
    def data_hash(self) -> str:
        """SHA-256 (hex) of everything but the name, in order."""
        content = {**self.__dict__, "labels": self.labels.tolist(), "name": None}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelledTexts) and (self.name, self.data_hash) == (other.name, other.data_hash)

    def __hash__(self) -> int:
        return hash(self.data_hash)

    def __repr__(self) -> str:
        return f"LabelledTexts({self.name!r}, {len(self.texts)} texts, {len(self.concepts)} concepts)"


@dataclass(frozen=True, repr=False)
class ContrastSet:
    """Source rows show the concept that a method moves away from, target rows what it moves towards.

    `control` holds neutral texts, `paired` keeps source[i] and target[i] together, groups name a subgroup per row (on
    both sides or neither), `chat` is recorded for the host. Refused (`ContrastError`): an empty side, blank rows, texts
    mixed with pairs, paired sides of unequal length. A text on both sides is warned about, once.
    """

    source: tuple[Row, ...]
    target: tuple[Row, ...]
    _: KW_ONLY
    control: tuple[Row, ...] = ()
    paired: bool = False
    name: str = "contrast"
    source_groups: tuple[str, ...] | None = None
    target_groups: tuple[str, ...] | None = None
    chat: ChatFormat = None
    __no_type_check__ = True  # as above

    if TYPE_CHECKING:  # any sequence is taken, tuples are kept

        def __init__(
            self,
            source: Sequence[Row],
            target: Sequence[Row],
            *,
            control: Sequence[Row] = (),
            paired: bool = False,
            name: str = "contrast",
            source_groups: Sequence[str] | None = None,
            target_groups: Sequence[str] | None = None,
            chat: ChatFormat = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        source, target, control = _rows(source=self.source, target=self.target, control=self.control)
        self.__dict__.update(source=source, target=target, control=control, chat=_chat(self.chat))
        if not source or not target:
            raise ContrastError(f"both sides need texts, not so in {self!r}")
        if self.paired and len(source) != len(target):
            raise ContrastError(f"paired sides must be of one length, not so in {self!r}")
        if (self.source_groups is None) != (self.target_groups is None):
            raise ContrastError(f"give groups for both sides or for neither, not so in {self!r}")
        for field, rows in (("source_groups", source), ("target_groups", target)):
            if (groups := getattr(self, field)) is not None:
                self.__dict__[field] = _names(groups, field, len(rows))
        if both := len(set(source) & set(target)):
            what = f"{both} different text(s) on both sides of {self!r}: nothing tells source from target there"
            warnings.warn(what, LensSteerWarning, stacklevel=3)

    def _derived(self, **changes: object) -> "ContrastSet":
        """A copy whose changes keep it valid: nothing is checked, or warned about, a second time."""
        derived = copy.copy(self)
        derived.__dict__.update(changes)
        return derived

    def _take(self, **numbers: Any) -> "ContrastSet":
        """The rows of these numbers, by side, in the order of the contrast."""
        changes: dict[str, object] = {}
        for side, chosen in numbers.items():
            for field in (side, f"{side}_groups"):
                if (values := getattr(self, field, None)) is not None:
                    changes[field] = tuple(values[number] for number in sorted(chosen))
        return self._derived(**changes)

    def swap(self) -> "ContrastSet":
        """The other direction: what was removed is now induced."""
        groups = {"source_groups": self.target_groups, "target_groups": self.source_groups}
        return self._derived(source=self.target, target=self.source, **groups)

    def require(self, minimum: int, what: str) -> None:
        """Raise a `ContrastError` in the name of `what` where a side has fewer than `minimum` texts."""
        if min(len(self.source), len(self.target)) < minimum:
            raise ContrastError(f"{what} needs at least {minimum} texts per side, got {self!r}")

    def _draws(self, purpose: str, seed: int) -> dict[str, list[float]]:
        """A number in [0, 1) per row; those of a side depend on the purpose, the side, the seed and its size alone."""
        if seed < 0:
            raise SettingError(f"seed must be 0 or more, not {seed}")
        streams = {side: np.random.default_rng([seed, *f"{purpose} {side}".encode()]) for side in SIDES}
        return {side: stream.random(len(getattr(self, side))).tolist() for side, stream in streams.items()}

    def subsample(self, n: int, seed: int = 0) -> "ContrastSet":
        """Draw `n` rows per side (`n` pairs) without replacement; a smaller `n` draws a subset. Control stays whole."""
        if n < 1:
            raise SettingError(f"n must be 1 or more, not {n}")
        self.require(n, f"subsample({n})")
        source, target, _ = (np.argsort(draws)[:n] for draws in self._draws("subsample", seed).values())
        return self._take(source=source, target=source if self.paired else target)

    def shuffled(self, seed: int = 0) -> "ContrastSet":
        """A null control: the same texts, their sides permuted (paired: swapped within pairs at random)."""
        count, draws = len(self.source), self._draws("shuffled", seed)
        order = np.argsort(draws["source"] + draws["target"])
        if self.paired:
            swapped = np.tile(np.array(draws["source"]) < 0.5, 2)
            order = (np.arange(2 * count) + count * swapped) % (2 * count)
        changes: dict[str, object] = {"name": f"{self.name} (shuffled)"}
        for source, target in (("source", "target"), ("source_groups", "target_groups")):
            if getattr(self, source) is not None:
                both = getattr(self, source) + getattr(self, target)
                mixed = tuple(both[number] for number in order)
                changes |= {source: mixed[:count], target: mixed[count:]}
        return self._derived(**changes)

    def split(self, test: float = 0.5, seed: int = 0) -> tuple["ContrastSet", "ContrastSet"]:
        """Train and test contrasts: about a share `test` of every side, control too, goes into the second.

        Identical texts, on whatever side, and pairs stay together. Refused where a part would lack source or target.
        """
        if not 0 < test < 1:
            raise SettingError(f"test must be a share between 0 and 1, not {test}")
        room = {side: int(test * len(getattr(self, side)) + 0.5) for side in SIDES}
        train, tested = ({side: list[int]() for side in SIDES} for _ in range(2))
        for block in self._blocks(seed):
            fits = all(room[side] >= count for side, count in Counter(side for side, _ in block).items())
            for side, number in block:
                (tested if fits else train)[side].append(number)
                room[side] -= fits
        if not all(part[side] for part in (train, tested) for side in SIDES[:2]):
            raise ContrastError(f"test={test} empties a side of {self!r}; identical texts and pairs stay together")
        return self._take(**train), self._take(**tested)

    def _blocks(self, seed: int) -> list[list[tuple[str, int]]]:
        """The (side, number) of rows that stay together, in random order."""
        draws = self._draws("split", seed)
        rows = [(side, number, text) for side in SIDES for number, text in enumerate(getattr(self, side))]
        parent: dict[object, object] = {}

        def root(node: object) -> object:
            parent.setdefault(node, node)
            while parent[node] != node:
                parent[node] = node = parent[parent[node]]
            return node

        for side, number, text in rows:
            parent[root(number if self.paired and side != "control" else (side, number))] = root(text)
        blocks: dict[object, list[tuple[str, int]]] = {}
        for side, number, text in rows:
            blocks.setdefault(root(text), []).append((side, number))
        return sorted(blocks.values(), key=lambda block: draws[block[0][0]][block[0][1]])

    @property
    def labelled(self) -> LabelledTexts:
        """One concept, named like the contrast: source rows (label 1), then target rows (0); control is left out."""
        groups = self.source_groups and self.target_groups and self.source_groups + self.target_groups
        marks = np.repeat(np.array([[1], [0]], dtype=np.int8), (len(self.source), len(self.target)), axis=0)
        texts = self.source + self.target
        return LabelledTexts(texts, marks, (self.name,), groups=groups, chat=self.chat, name=self.name)

    @property
    def data_hash(self) -> str:
        """SHA-256 (hex) of everything but the name, in order."""
        return hashlib.sha256(json.dumps({**self.__dict__, "name": None}, sort_keys=True).encode()).hexdigest()

    def __repr__(self) -> str:
        sizes = [f"{len(getattr(self, side))} {side}" for side in SIDES if side != "control" or self.control]
        return f"ContrastSet({self.name!r}, {', '.join(sizes)}{', paired' if self.paired else ''})"
