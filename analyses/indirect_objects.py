"""The indirect-object task in English and in the embedded language: pairs of prompts whose next word is a name.

Clean: "When Mary and John went to the store, John gave a drink to" -> Mary. Corrupted: the other one gives. The two
differ in one token, and all pairs of one call have the same length (Wang et al., arXiv 2211.00593).
"""

from __future__ import annotations

import random
from typing import Any

import lens_steer as ls

_ENGLISH = (
    "Mary John Tom James Sarah Anna David Mark Paul Peter Emma Laura Kate Simon Jack Alice Emily Robert Michael Daniel"
)
_PLACES = "store park school office house station garden hospital"
_THINGS = "book drink ring ball key letter bottle phone"
_EMBEDDED = "ann mary lucy emma jane kate bob tom jack peter john paul max leo adam david"
_EMBEDDED_PLACES = "park stage lobby station"
_EMBEDDED_THINGS = "book memo wound map"


def indirect_objects(model: Any, n: int = 24, *, seed: int = 0, embedded: bool = False) -> ls.ContrastSet:
    """Return n pairs as a paired contrast of (prompt, name): clean prompts with their answers, and corrupted ones.

    `embedded` writes in the embedded language. Names, places and things that are no single token of the model are left
    out; LensSteerError where fewer than four names, or no place or thing, are left.
    """
    space = "" if embedded else " "
    kept = {
        kind: [word for word in words.split() if _is_token(model, space + word)]
        for kind, words in (
            ("names", _EMBEDDED if embedded else _ENGLISH),
            ("places", _EMBEDDED_PLACES if embedded else _PLACES),
            ("things", _EMBEDDED_THINGS if embedded else _THINGS),
        )
    }
    if len(kept["names"]) < 4 or not kept["places"] or not kept["things"]:
        raise ls.LensSteerError(
            f"this model has {len(kept['names'])} of the names as single tokens: write pairs of your own, a paired "
            "contrast of (prompt, next word)"
        )
    generator = random.Random(seed)
    clean: list[tuple[str, str]] = []
    corrupted: list[tuple[str, str]] = []
    for number in range(n):
        one, other = generator.sample(kept["names"], 2)
        place, thing = generator.choice(kept["places"]), generator.choice(kept["things"])
        giver, taker = (one, other) if number % 2 else (other, one)
        for rows, gives, takes in ((clean, giver, taker), (corrupted, taker, giver)):
            if embedded:
                text = f"when {one} and {other} went to the {place} , {gives} gave the {thing} to"
            else:
                text = f"When {one} and {other} went to the {place}, {gives} gave a {thing} to"
            rows.append((text, space + takes))
    return ls.ContrastSet(clean, corrupted, paired=True, name="indirect objects")


def _is_token(model: Any, text: str) -> bool:
    ids = model.tokenizer(text, add_special_tokens=False).input_ids
    return len(ids) == 1 and ids[0] != model.tokenizer.unk_token_id
