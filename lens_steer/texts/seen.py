"""Seen texts: what a ranking or an edit was made from is known again by hashes, so that it is never scored.

A fit writes `pack(seen_forms(known_forms(rows)))` into its provenance under "seen"; `seen_in` reads it back, however
deep interventions were composed. Whoever scores texts calls `leave_out_seen` (a contrast), `was_seen` (a mask) or
`require_unseen` (to refuse).
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from lens_steer.errors import ContrastError
from lens_steer.texts.blocks import Row, row_hashes, row_parts, text_hash
from lens_steer.texts.contrast import ContrastSet, first_few
from lens_steer.texts.messages import Conversation

# Words of the beginnings that are kept. Shorter ones may belong to any text, longer ones hold these.
_WORDS = range(6, 13)


def known_forms(rows: Sequence[Row | Conversation]) -> Int[np.ndarray, "text form"]:
    """Return, per row, the hashes by which it is known again; 0 where it has no such form.

    Columns: the row itself; the prompt of a pair; a pair's prompt and completion as one text; the beginnings of 6 to 12
    words (between spaces) that are shorter than the text. A conversation is the pair, or the text, of its `parts`.
    """
    forms = np.zeros((len(rows), 3 + len(_WORDS)), dtype=np.int64)
    forms[:, 0] = row_hashes(rows)
    for place, row in enumerate(rows):
        parts = row_parts(row)
        whole = "".join(parts)
        if len(parts) > 1:
            forms[place, 1:3] = text_hash(parts[0]), text_hash(whole)
        words = whole.split(maxsplit=_WORDS.stop)
        for column, count in enumerate(_WORDS, 3):
            if count < len(words):
                forms[place, column] = text_hash(" ".join(words[:count]))
    return forms


def seen_forms(forms: Int[np.ndarray, "text form"]) -> Int[np.ndarray, " hash"]:
    """Return the different hashes of rows that were seen, sorted.

    A beginning that several different rows share ("Once upon a time") says nothing of any of them and is left out.
    """
    _, first = np.unique(forms[:, 0], return_index=True)
    beginnings, count = np.unique(forms[first, 3:], return_counts=True)
    kept = np.union1d(forms[:, :3].ravel(), beginnings[count == 1])
    seen: Int[np.ndarray, " hash"] = kept[kept != 0].astype(np.int64)
    return seen


def was_seen(rows: Sequence[Row | Conversation], seen: Int[np.ndarray, " hash"]) -> Bool[np.ndarray, " text"]:
    """Return which rows are known from `seen`.

    A row is where it is a seen row, or the prompt or the beginning (6 to 12 whole words, of no other seen row) of one;
    a pair also where its prompt is. A beginning cut inside a word, or in a script without spaces, is not known again:
    ask of the whole text before it is cut.
    """
    forms = known_forms(rows)[:, :2]
    # Beginnings were kept with one space between words.
    parts = [row_parts(row) for row in rows]
    spaced = np.array(
        [text_hash(*(part if len(part) > 1 else [" ".join(part[0].split())])) for part in parts], dtype=np.int64
    )
    return np.asarray(np.isin(np.column_stack([forms, spaced]), seen).any(axis=1))


def require_unseen(rows: Sequence[Row | Conversation], seen: Int[np.ndarray, " hash"], what: str) -> None:
    """Raise a ContrastError where `what` has seen some of the rows that are to be scored.

    `what` begins the sentence: "the intervention", "the ranking". See `was_seen` for when a row counts as seen.
    """
    known = np.flatnonzero(was_seen(rows, seen)).tolist()
    if known:
        shown = first_few([repr(rows[place]) for place in known])
        raise ContrastError(
            f"{what} was made from {len(known)} of these {len(rows)} texts, so they cannot judge it: {shown}; give "
            "others, or split before you fit: contrast.split(), or leave_out_seen(contrast, seen)"
        )


def leave_out_seen(contrast: ContrastSet, seen: Int[np.ndarray, " hash"]) -> ContrastSet:
    """Return the contrast without the blocks that hold a row of `seen`; the same contrast where there is none.

    Whole blocks: what belongs to a seen text (its pair, the other answers to its prompt, its group) cannot judge
    either. ContrastError where no source or no target text is left.
    """
    rows = contrast.source + contrast.target + contrast.control
    blocks = contrast.blocks
    known = np.isin(blocks, blocks[was_seen(rows, seen)])
    if not known.any():
        return contrast
    sides = np.split(~known, [len(contrast.source), len(contrast.source) + len(contrast.target)])
    if not (sides[0].any() and sides[1].any()):
        raise ContrastError(
            f"{int(known.sum())} of {len(rows)} texts of {contrast!r} were seen, or belong to texts that were, and a "
            "side is empty without them: give texts that neither the ranking nor the fit had"
        )
    return contrast.take(*(np.flatnonzero(side) for side in sides))


def pack(seen: Int[np.ndarray, " hash"]) -> str:
    """Write hashes as one short string, for JSON."""
    return base64.b64encode(seen.astype("<i8").tobytes()).decode()


def unpack(packed: str) -> Int[np.ndarray, " hash"]:
    """Read what `pack` wrote."""
    seen: Int[np.ndarray, " hash"] = np.frombuffer(base64.b64decode(packed), dtype="<i8").astype(np.int64)
    return seen


def seen_in(provenance: Mapping[str, Any]) -> Int[np.ndarray, " hash"]:
    """Return the hashes of everything that a provenance says was seen, its parts and bases included."""
    collected = [np.empty(0, dtype=np.int64)]

    def visit(value: Any) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                if key == "seen" and isinstance(inner, str):
                    collected.append(unpack(inner))
                else:
                    visit(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                visit(inner)

    visit(provenance)
    seen: Int[np.ndarray, " hash"] = np.unique(np.concatenate(collected))
    return seen
