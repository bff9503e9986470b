"""Blocks: rows that belong together, and the one splitter that never parts them.

Copies of a text, the completions of one prompt, the texts of one group and the two texts of a pair are not independent.
Where one of them chooses or trains and another one measures, noise looks like a result.
"""

import hashlib
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lens_steer.errors import ContrastError, SettingError
from lens_steer.texts.messages import Conversation, ConversationRow

# A text, a conversation, or a (prompt, completion) pair whose pools cover the completion only; the prompt may be empty.
Row = str | tuple[str, str] | ConversationRow
_SIDES = {1: "source", 0: "target"}


def text_hash(*texts: str) -> int:
    """Return a signed 64-bit number, the beginning of the texts' SHA-256: the same on every machine."""
    whole = "\x1f".join(texts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(whole).digest()[:8], "big", signed=True)


def row_hashes(rows: Sequence[Row | Conversation]) -> Int[np.ndarray, " text"]:
    """Return one stable int64 per row; equal rows have equal ones, and a pair without a prompt is its completion."""
    return np.array([text_hash(*row_parts(row)) for row in rows], dtype=np.int64)


def blocks_of(rows: Sequence[Row | Conversation], *memberships: Iterable[Hashable | None]) -> Int[np.ndarray, " text"]:
    """Number the blocks of the rows: 0, 1, ... in the order in which they begin.

    Two rows are of one block where they are the same, are pairs with the same prompt (not an empty one), or where a
    membership names the same for both (its group, its pair; None joins nothing); and so on along the chain.
    """
    parts = [row_parts(row) for row in rows]
    prompts = [part[0] if len(part) > 1 else None for part in parts]
    named: list[Iterable[Hashable | None]] = [parts, prompts, *memberships]
    number: dict[Hashable, int] = {}
    links = [
        (row, number.setdefault((kind, name), len(rows) + len(number)))
        for kind, names in enumerate(named)
        for row, name in enumerate(names)
        if name is not None
    ]
    nodes = len(rows) + len(number)
    ends = np.array(links, dtype=np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(links), dtype=np.bool_), (ends[0], ends[1])), shape=(nodes, nodes))
    block: Int[np.ndarray, " text"] = connected_components(graph, directed=False)[1][: len(rows)].astype(np.int64)
    return block


def alternate_blocks(
    rows: Sequence[Row | Conversation], what: str, groups: Sequence[str | None] | None = None
) -> Bool[np.ndarray, " text"]:
    """Return which rows are of the first, third, ... block (see `blocks_of`): two halves that have no block in common.

    `groups` name a group per row. SettingError, which names `what` the rows are, where there are more or fewer names
    than rows, or all rows are one block.
    """
    if groups is not None and len(groups) != len(rows):
        raise SettingError(f"{what} are {len(rows)}, and their groups {len(groups)}: name one for each, None for none")
    blocks = blocks_of(rows, *([] if groups is None else [groups]))
    if not blocks.any():
        raise SettingError(f"{what} are {len(blocks)} in one block, and a block cannot be halved: give two or more")
    first: Bool[np.ndarray, " text"] = blocks % 2 == 0
    return first


def block_draws(
    blocks: Int[np.ndarray, " text"], seed: int, purpose: str, hashes: Int[np.ndarray, " text"] | None = None
) -> Int[np.ndarray, " text"]:
    """Return a random number per row, the same for all rows of a block.

    It depends on the seed, the purpose and the block's texts (by `hashes`) alone: not on the order of the rows, nor on
    what other rows there are. Without hashes it depends on the block's place.
    """
    if seed < 0:
        raise SettingError(f"seed must be 0 or more, not {seed}")
    _, first, inverse = np.unique(blocks, return_index=True, return_inverse=True)
    if hashes is None:
        key = np.argsort(np.argsort(first))
    else:
        key = np.full(len(first), np.iinfo(np.int64).max)
        np.minimum.at(key, inverse, hashes)
    draws = np.array([text_hash(purpose, str(seed), str(value)) for value in key.tolist()], dtype=np.int64)
    drawn: Int[np.ndarray, " text"] = draws[inverse]
    return drawn


def split_blocks(
    blocks: Int[np.ndarray, " text"],
    sides: Int[np.ndarray, " text"],
    share: float,
    seed: int,
    *,
    hashes: Int[np.ndarray, " text"] | None = None,
    fewest: int = 1,
    what: str = "these texts",
    remedy: str = "give more texts or groups, or another share",
) -> Bool[np.ndarray, " text"]:
    """Return which rows are held out: whole blocks, about `share` of the source rows (1) and of the target rows (0).

    Blocks come in random order, and each is held out where that brings the two counts nearer to the share. Rows of side
    -1 take no part. The same texts are held out whatever the order of the rows (see `block_draws`).

    Raises
    ------
    SettingError
        The share is not between 0 and 1, or the seed is negative.
    ContrastError
        One of the halves would have fewer than `fewest` rows of a side.

    """
    if not 0 < share < 1:
        raise SettingError(f"the share of texts to hold out lies between 0 and 1, not {share}")
    part = np.flatnonzero(sides >= 0)
    draws = block_draws(blocks[part], seed, "split", None if hashes is None else hashes[part])
    _, inverse = np.unique(draws, return_inverse=True)
    counts = np.stack(
        [np.bincount(inverse[sides[part] == side], minlength=inverse.max(initial=-1) + 1) for side in _SIDES]
    )
    sizes = counts.sum(1)
    chosen = _nearest(counts.T.tolist(), [max(size, 1) for size in sizes.tolist()], share)
    held = np.zeros(len(blocks), dtype=np.bool_)
    held[part] = np.array(chosen, dtype=np.bool_)[inverse]
    for side, size in zip(_SIDES, sizes.tolist()):
        out = int((held & (sides == side)).sum())
        if min(out, size - out) < fewest:
            raise ContrastError(
                f"{what}: to hold out {share:.0%} of {size} {_SIDES[side]} texts in "
                f"{int((counts[1 - side] > 0).sum())} blocks leaves {size - out} and {out}, each half needs {fewest} "
                f"or more; copies of a text, one prompt, a group and a pair stay together: {remedy}"
            )
    return held


def _nearest(counts: list[list[int]], sizes: list[int], share: float) -> list[bool]:
    """Choose blocks one after the other, each where the chosen counts come nearer to the share of both sides."""
    room = [int(share * size + 0.5) for size in sizes]
    chosen = []
    for block in counts:
        rest = [free - count for free, count in zip(room, block)]
        nearer = sum(abs(after) / size - abs(free) / size for after, free, size in zip(rest, room, sizes)) < -1e-12
        room = rest if nearer else room
        chosen.append(nearer)
    return chosen


def row_parts(row: Row | Conversation) -> tuple[str, ...]:
    """Return prompt and completion, or the one text of a row that has no prompt."""
    if isinstance(row, str):
        return (row,)
    conversation = ConversationRow.of(row)
    prompt, *rest = tuple(map(str, row)) if conversation is None else conversation.parts
    return (prompt, *rest) if prompt else tuple(rest)


def prompt_of(row: Row) -> Row:
    """Return a pair's prompt, or what a conversation asks, as a row of its own; a text is returned as it is."""
    if isinstance(row, ConversationRow):
        return row.asked
    return row if isinstance(row, str) else row[0]


def pooled_text(row: Row | Conversation) -> str:
    """Return the words of a row that pools cover: a text, a pair's completion, a conversation's last message."""
    if isinstance(row, str):
        return row
    conversation = ConversationRow.of(row)
    if conversation is not None:
        return conversation[-1][1]
    if not isinstance(row, tuple | list) or not row:
        raise ContrastError(f"a row is a text, a (prompt, completion) pair or a conversation, not {row!r:.60}")
    return str(row[-1])
