"""Contrasts: the texts that show a concept (source), texts that do not (target), and neutral ones (control).

Rows are plain, immutable data here: tokens, masks and the chat template belong to the host, files to `reading`.
"""

import copy
import hashlib
import json
import warnings
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int, Int8

from lens_steer.display.shown_result import shown_result
from lens_steer.errors import ContrastError, LensSteerWarning, SettingError
from lens_steer.settings import require_settings
from lens_steer.statistics.design import Design
from lens_steer.texts.blocks import Row as Row
from lens_steer.texts.blocks import block_draws, blocks_of, row_hashes, split_blocks
from lens_steer.texts.messages import Conversation, ConversationRow
from lens_steer.texts.rows import checked_labels, checked_names, checked_pairs, checked_rows, numbered_copies
from lens_steer.texts.rows import first_few as first_few
from lens_steer.texts.shown_texts import shown_rows, shown_sides

if TYPE_CHECKING:
    from lens_steer.texts.lint.finding import ContrastLint

# None: the text as it is. True: the tokenizer's chat template. A str: a format in which "{text}" stands for the text.
ChatFormat = bool | str | None
SIDES = ("source", "target", "control")


def _chat(chat: Any) -> ChatFormat:
    if not isinstance(chat, bool | None) and "{text}" not in str(chat):
        raise ContrastError(f"chat must be None, True or a format such as 'User: {{text}}\nBot:', not {chat!r}")
    return chat or None


def _require_template(rows: Iterable[Row], chat: ChatFormat) -> None:
    if isinstance(chat, str) and any(isinstance(row, ConversationRow) for row in rows):
        raise ContrastError("conversations are laid into the tokenizer's template: leave chat away, or set it True")


@dataclass(frozen=True, eq=False, repr=False)
class LabelledTexts:
    """One table of texts for many concepts: `labels` [text, concept] is 1 for source, 0 for target, -1 for no part.

    Booleans do as labels, and a flat list for one concept; they are kept as read-only int8. `groups` name a subgroup
    per text (None: it has none), `pairs` [text, concept] number the pairs of a paired concept (-1: no pair), and
    `blocks` number what belongs together (see `blocks_of`): what is given is joined with equal texts, prompts, groups
    and pairs. Equal by value. Refused (`ContrastError`): blank rows, rows of several kinds, conversations with a format
    of their own (`chat`), other labels or shapes, a concept without both sides.
    """

    texts: tuple[Row, ...]
    labels: Int8[np.ndarray, "text concept"]
    concepts: tuple[str, ...]
    _: KW_ONLY
    groups: tuple[str | None, ...] | None = None
    chat: ChatFormat = None
    name: str = "texts"
    pairs: Int[np.ndarray, "text concept"] | None = None
    blocks: tuple[int, ...] = ()
    __no_type_check__ = True  # jaxtyping's hook leaves the constructor, which takes lists and names bad rows, alone

    def __post_init__(self) -> None:
        (texts,) = checked_rows(texts=self.texts)
        require_settings(LabelledTexts, vars(self))
        _require_template(texts, self.chat)
        concepts = checked_names(self.concepts, "concepts")
        if not concepts or len(set(concepts)) < len(concepts):
            raise ContrastError(f"concepts must be different names, one or more, not {concepts}")
        labels = checked_labels(self.labels, (len(texts), len(concepts)))
        for concept, column in zip(concepts, labels.T):
            if missing := [side for side, label in (("source", 1), ("target", 0)) if label not in column]:
                raise ContrastError(f"concept {concept!r} has no {' and no '.join(missing)} text")
        groups = None if self.groups is None else tuple(self.groups)
        if groups is not None:
            checked_names(("" if name is None else name for name in groups), "groups", len(texts))
        pairs = None if self.pairs is None else checked_pairs(self.pairs, labels.shape)
        together: list[Sequence[Hashable | None]] = [] if groups is None else [groups]
        if len(self.blocks):
            if len(self.blocks) != len(texts):
                raise ContrastError(f"blocks must number every text: {len(self.blocks)} numbers, {len(texts)} texts")
            together.append(self.blocks)
        if pairs is not None:
            together += [[None if pair < 0 else pair for pair in column] for column in pairs.T.tolist()]
        blocks = tuple(blocks_of(texts, *together).tolist())
        self.__dict__.update(texts=texts, labels=labels, concepts=concepts, groups=groups, chat=_chat(self.chat))
        self.__dict__.update(pairs=pairs, blocks=blocks)

    def contrast(self, concept: str) -> "ContrastSet":
        """The texts that take part in `concept`, in the order of the table, as a contrast of that name.

        A paired concept comes in the order of its pairs; groups go with it where all of its texts have one.
        """
        if concept not in self.concepts:
            raise ContrastError(f"no concept {concept!r} in {self!r}; there is {', '.join(map(repr, self.concepts))}")
        place = self.concepts.index(concept)
        rows = [np.flatnonzero(self.labels[:, place] == label) for label in (1, 0)]
        pairs = [[] if self.pairs is None else self.pairs[side, place].tolist() for side in rows]
        if paired := sorted(pairs[0]) == sorted(pairs[1]) and -1 not in pairs[0] and bool(pairs[0]):
            rows = [side[np.argsort(numbers)] for side, numbers in zip(rows, pairs)]
        source, target = ([self.texts[row] for row in side] for side in rows)
        named = [[self.groups[row] for row in side] if self.groups else [None] for side in rows]
        groups = [None if None in named[0] + named[1] else side for side in named]
        return ContrastSet(
            source,
            target,
            name=concept,
            paired=paired,
            source_groups=groups[0],  # type: ignore[arg-type]
            target_groups=groups[1],  # type: ignore[arg-type]
            chat=self.chat,
        )

    @staticmethod
    def of(contrasts: Iterable["ContrastSet"], *, name: str = "texts") -> "LabelledTexts":
        """One table of several contrasts, a concept each: a text takes part in the concepts whose contrast holds it.

        A text stands in the table as often as in the contrast that holds it most often. Groups and pairs are kept, and
        blocks are those of all contrasts together; of different groups of a text the first is named. Control texts are
        left out. Refused (`ContrastError`): contrasts of one name, a text on both sides of a contrast, chat formats
        that differ.
        """
        listed = tuple(contrasts)
        if len(formats := {contrast.chat for contrast in listed}) > 1:
            raise ContrastError(f"one table has one chat format, not {len(formats)}")
        place: dict[tuple[Row, int], int] = {}
        columns = []
        for contrast in listed:
            if both := set(contrast.source) & set(contrast.target):
                raise ContrastError(f"{len(both)} text(s) on both sides of {contrast!r}: a table has one label a text")
            columns.append(
                [place.setdefault(copy, len(place)) for copy in numbered_copies(contrast.source + contrast.target)]
            )
        shape = len(place), len(listed)
        labels, pairs = np.full(shape, -1), np.full(shape, -1)
        groups: list[str | None] = [None] * len(place)
        memberships: list[dict[int, str]] = []
        for number, (contrast, rows) in enumerate(zip(listed, columns)):
            size = len(contrast.source)
            labels[rows, number] = [1] * size + [0] * len(contrast.target)
            if contrast.paired:
                pairs[rows, number] = [*range(size), *range(size)]
            memberships.append(dict(zip(rows, (contrast.source_groups or ()) + (contrast.target_groups or ()))))
            for row, group in memberships[-1].items():
                groups[row] = groups[row] or group
        texts = tuple(row for row, _ in place)
        return LabelledTexts(
            texts,
            labels,
            tuple(contrast.name for contrast in listed),
            groups=tuple(groups) if any(groups) else None,
            chat=formats.pop(),
            name=name,
            pairs=pairs if any(contrast.paired for contrast in listed) else None,
            blocks=tuple(
                blocks_of(texts, *([of.get(row) for row in range(len(texts))] for of in memberships)).tolist()
            ),
        )

    @property
    def data_hash(self) -> str:
        """SHA-256 (hex) of texts, labels, concepts, groups and chat, in order."""
        content = {**self.__dict__, "labels": self.labels.tolist(), "name": None}
        content = {key: value for key, value in content.items() if key not in ("pairs", "blocks")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LabelledTexts) and (self.name, self.data_hash) == (other.name, other.data_hash)

    def __hash__(self) -> int:
        return hash(self.data_hash)

    def __repr__(self) -> str:
        return f"LabelledTexts({self.name!r}, {len(self.texts)} texts, {len(self.concepts)} concepts)"

    def _repr_html_(self) -> str:
        table = shown_sides({"all": self.texts}, np.array(self.blocks)).drop(columns="side")
        facts = [("concepts", ", ".join(self.concepts)), *shown_rows(self.texts, self.groups, self.chat)]
        return shown_result(f"Labelled texts: {self.name}", facts=facts, table=table)


@dataclass(frozen=True, repr=False)
class ContrastSet:
    """Source rows show the concept that a method moves away from, target rows what it moves towards.

    `control` holds neutral texts, `paired` keeps source[i] and target[i] together, groups name a subgroup per row (on
    both sides or neither), `chat` is recorded for the host. Rows of one block (`blocks`) are never parted.

    Rows are texts, (prompt, completion) pairs, or conversations: lists of {"role", "content"}, kept as
    `ConversationRow`, which the host lays into the tokenizer's chat template. One that ends with the assistant's words
    is a pair of what was asked and the answer; of another the last message enters the pools.

    Refused (`ContrastError`): an empty side, blank rows, rows of several kinds, conversations beside a `chat` format,
    paired sides of unequal length. A text on both sides is warned about, once.
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
            source: Sequence[Row | Conversation],
            target: Sequence[Row | Conversation],
            *,
            control: Sequence[Row | Conversation] = (),
            paired: bool = False,
            name: str = "contrast",
            source_groups: Sequence[str] | None = None,
            target_groups: Sequence[str] | None = None,
            chat: ChatFormat = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        source, target, control = checked_rows(source=self.source, target=self.target, control=self.control)
        self.__dict__.update(source=source, target=target, control=control, chat=_chat(self.chat))
        _require_template(source + target + control, self.chat)
        if not source or not target:
            raise ContrastError(f"both sides need texts, not so in {self!r}")
        if self.paired and len(source) != len(target):
            raise ContrastError(f"paired sides must be of one length, not so in {self!r}")
        if (self.source_groups is None) != (self.target_groups is None):
            raise ContrastError(f"give groups for both sides or for neither, not so in {self!r}")
        for field, rows in (("source_groups", source), ("target_groups", target)):
            if (groups := getattr(self, field)) is not None:
                self.__dict__[field] = checked_names(groups, field, len(rows))
        if both := len(set(source) & set(target)):
            what = f"{both} different text(s) on both sides of {self!r}: nothing tells source from target there"
            warnings.warn(what, LensSteerWarning, stacklevel=3)

    def _derived(self, **changes: object) -> "ContrastSet":
        """A copy whose changes keep it valid: nothing is checked, or warned about, a second time."""
        derived = copy.copy(self)
        derived.__dict__.update(changes)
        return derived

    def take(
        self,
        source: Int[np.ndarray, " n"],
        target: Int[np.ndarray, " m"],
        control: Int[np.ndarray, " k"] | None = None,
    ) -> "ContrastSet":
        """The rows of these numbers, by side, in the order of the contrast; control None: all of it."""
        changes: dict[str, object] = {}
        for side, chosen in (("source", source), ("target", target), ("control", control)):
            for field in (side, f"{side}_groups"):
                if chosen is not None and (values := getattr(self, field, None)) is not None:
                    changes[field] = tuple(values[number] for number in sorted(chosen.tolist()))
        return self._derived(**changes)

    def swap(self) -> "ContrastSet":
        """The other direction: what was removed is now induced."""
        groups = {"source_groups": self.target_groups, "target_groups": self.source_groups}
        return self._derived(source=self.target, target=self.source, **groups)

    def require(self, minimum: int, what: str) -> None:
        """Raise a `ContrastError` in the name of `what` where a side has fewer than `minimum` texts."""
        if min(len(self.source), len(self.target)) < minimum:
            raise ContrastError(f"{what} needs at least {minimum} texts per side, got {self!r}")

    @property
    def blocks(self) -> Int[np.ndarray, " text"]:
        """The number of the block of every row, source, target, then control: see `blocks_of`.

        Equal texts, pairs with one prompt, the rows of a group and the two rows of a pair are of one block.
        """
        rest = [None] * len(self.control)
        together: list[Sequence[Hashable | None]] = []
        if self.source_groups is not None and self.target_groups is not None:
            together.append([*self.source_groups, *self.target_groups, *rest])
        if self.paired:
            together.append([*range(len(self.source)), *range(len(self.target)), *rest])
        return blocks_of(self.source + self.target + self.control, *together)

    def subsample(self, n: int, seed: int = 0) -> "ContrastSet":
        """Draw `n` rows per side (`n` pairs) without replacement. Control stays whole.

        Blocks are drawn one after the other and stay whole but for the last one of a side. Those that have more than
        `n` rows on a side cannot; their rows are drawn one by one when no other block is left. A smaller `n` draws a
        subset where no block is larger than it.
        """
        require_settings(ContrastSet.subsample, locals())
        if n < 1:
            raise SettingError(f"n must be 1 or more, not {n}")
        self.require(n, f"subsample({n})")
        size, rows = len(self.source), self.source + self.target
        hashes, blocks = row_hashes(rows), self.blocks[: len(rows)]
        large = np.maximum(*(np.bincount(side, minlength=len(rows)) for side in np.split(blocks, [size])))[blocks] > n
        draws = {"block": blocks, "row": hashes}
        of_block, of_row = (block_draws(ids, seed, f"subsample {what}", hashes) for what, ids in draws.items())
        first = np.where(large, 0, of_block)
        if self.paired:
            source = target = np.lexsort((of_row[size:], of_row[:size], first[:size], large[:size]))[:n]
        else:
            order = np.lexsort((of_row, first, large))
            source, target = order[order < size][:n], order[order >= size][:n] - size
        return self.take(source, target)

    def lint(self, *, seed: int = 0) -> "ContrastLint":
        """Return what may be wrong with the texts of the two sides, before a model sees them: see `ContrastLint`."""
        require_settings(ContrastSet.lint, locals())
        from lens_steer.texts.lint.lint import lint_of

        return lint_of(self.name, self.source, self.target, self.blocks, seed)

    def shuffled(self, seed: int = 0) -> "ContrastSet":
        """A null control: the same texts, their sides permuted (paired: swapped within pairs at random).

        Rows that are not independent move together: a block of one side changes sides as a whole, and inside a block of
        both sides the different texts are permuted. So the sides keep their sizes where blocks are of one size, as they
        are without blocks.
        """
        require_settings(ContrastSet.shuffled, locals())
        count = len(self.source)
        rows, names = self.source + self.target, (self.source_groups or ()) + (self.target_groups or ())
        if seed < 0:
            raise SettingError(f"seed must be 0 or more, not {seed}")
        changes: dict[str, Any] = {"name": f"{self.name} (shuffled)"}
        if self.paired:
            swapped = np.tile(np.random.default_rng([seed, *b"shuffled"]).random(count) < 0.5, 2)
            order = (np.arange(2 * count) + count * swapped) % (2 * count)
        else:
            labels = np.arange(len(rows)) < count
            design = Design.of(labels, self.blocks[: len(rows)], row_hashes(rows))
            is_source = design.relabelled(1, seed)[0]
            order, count = np.argsort(~is_source, kind="stable"), int(is_source.sum())
        for field, values in (("", rows), ("_groups", names)):
            if values:
                mixed = tuple(values[number] for number in order)
                changes |= {f"source{field}": mixed[:count], f"target{field}": mixed[count:]}
        return self._derived(**changes)

    def split(self, test: float = 0.5, seed: int = 0) -> tuple["ContrastSet", "ContrastSet"]:
        """Train and test contrasts: about a share `test` of every side, control too, goes into the second.

        Blocks stay together (see `split_blocks`): `rank_experts(collect(model, contrast), holdout=test, seed=seed)`
        holds out the same rows. ContrastError where a part would lack source or target.
        """
        require_settings(ContrastSet.split, locals())
        rows = self.source + self.target + self.control
        count, hashes, blocks = len(self.source) + len(self.target), row_hashes(rows), self.blocks
        sides = np.repeat([1, 0, -1], [len(self.source), len(self.target), len(self.control)])
        held = split_blocks(blocks, sides, test, seed, hashes=hashes, what=repr(self))
        # Neutral texts of a block that is decided go with it, the others by their own draw.
        held |= np.isin(blocks, blocks[held])
        free = np.flatnonzero(~np.isin(blocks, blocks[:count]))
        draws = block_draws(blocks[free], seed, "split", hashes[free])
        room = max(0, int(test * len(self.control) + 0.5) - int(held[count:].sum()))
        held[free] = draws <= np.sort(draws)[room - 1] if 0 < room <= len(free) else room > 0
        parts = np.split(held, [len(self.source), count])
        first, second = (self.take(*(np.flatnonzero(part == out) for part in parts)) for out in (False, True))
        return first, second

    @property
    def labelled(self) -> LabelledTexts:
        """One concept, named like the contrast: source rows (label 1), then target rows (0); control is left out."""
        groups = self.source_groups and self.target_groups and self.source_groups + self.target_groups
        sizes = len(self.source), len(self.target)
        marks = np.repeat(np.array([[1], [0]], dtype=np.int8), sizes, axis=0)
        pairs = np.concatenate([np.arange(size) for size in sizes])[:, None] if self.paired else None
        texts = self.source + self.target
        return LabelledTexts(texts, marks, (self.name,), groups=groups, chat=self.chat, name=self.name, pairs=pairs)

    @property
    def data_hash(self) -> str:
        """SHA-256 (hex) of everything but the name, in order."""
        return hashlib.sha256(json.dumps({**self.__dict__, "name": None}, sort_keys=True).encode()).hexdigest()

    def __repr__(self) -> str:
        sizes = [f"{len(getattr(self, side))} {side}" for side in SIDES if side != "control" or self.control]
        return f"ContrastSet({self.name!r}, {', '.join(sizes)}{', paired' if self.paired else ''})"

    def _repr_html_(self) -> str:
        table = shown_sides({side: getattr(self, side) for side in SIDES}, self.blocks)
        groups = None if self.target_groups is None else {*(self.source_groups or ()), *self.target_groups}
        facts = [("paired", "source[i] with target[i]" * self.paired), *shown_rows(self.source, groups, self.chat)]
        return shown_result(f"Contrast: {self.name}", facts=facts, table=table)


def require_contrast(contrast: object) -> None:
    """Raise a `ContrastError` for what is no contrast of one concept, such as a list of texts."""
    if not isinstance(contrast, ContrastSet):
        raise ContrastError(
            f"a contrast is needed, not {type(contrast).__name__}: ContrastSet(source, target) or read_contrast(path)"
        )
