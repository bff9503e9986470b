"""Seen texts: known again through saving, composing and cutting, and never by a beginning that many texts share."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from lens_steer.activations.collect import collect
from lens_steer.errors import ContrastError
from lens_steer.methods.caa import CAA
from lens_steer.methods.cast import CAST
from lens_steer.methods.dsas import DSAS
from lens_steer.ranking.experts import rank_experts
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.seen import (
    known_forms,
    leave_out_seen,
    pack,
    require_unseen,
    seen_forms,
    seen_in,
    unpack,
    was_seen,
)
from tests.families import sentences

STORIES = [
    "once upon a time there was a dog that ran home",
    "once upon a time there was a cat",
    "we saw the old mill again today",
]


def test_a_row_its_prompt_and_its_own_beginning_are_known() -> None:
    seen = seen_forms(known_forms(STORIES))
    asked = {
        STORIES[0]: True,
        "we saw the old mill again": True,
        " we saw  the old mill again": True,
        "once upon a time there was a dog": True,
        # Of two seen texts, so of neither; too short to be of one; not a beginning; more than was seen.
        "once upon a time there was a": False,
        "we saw the old mill": False,
        "saw the old mill again today": False,
        "we saw the new mill again": False,
        STORIES[1] + " down": False,
    }
    assert dict(zip(asked, was_seen(list(asked), seen).tolist(), strict=True)) == asked
    pairs = seen_forms(known_forms([("who ran?", " the dog"), ("", "a whole text of as many as eight words")]))
    rows = [("who ran?", " a cat"), "who ran?", "who ran? the dog", ("who sat?", " the dog"), " the dog"]
    assert was_seen(rows, pairs).tolist() == [True, True, True, False, False]
    assert was_seen(["a whole text of as many as eight words", "a whole text of as many"], pairs).all()
    assert not was_seen(STORIES, np.empty(0, dtype=np.int64)).any()


def test_hashes_survive_json() -> None:
    seen = seen_forms(known_forms(STORIES))
    np.testing.assert_array_equal(unpack(json.loads(json.dumps(pack(seen)))), seen)
    parts = {"parts": [{"seen": pack(seen[:3])}, {"base": {"seen": pack(seen[2:])}}], "seen": pack(seen[:1])}
    np.testing.assert_array_equal(seen_in(parts), seen)
    assert seen_in({"method": "ablate"}).size == 0


def test_what_was_seen_is_refused_or_left_out_with_its_block() -> None:
    seen = seen_forms(known_forms(["a b c d"]))
    with pytest.raises(ContrastError, match=r"the ranking was made from 1 of these 2 texts.*'a b c d'.*leave_out_seen"):
        require_unseen(["x", "a b c d"], seen, "the ranking")
    require_unseen(["x", "y"], seen, "the ranking")
    source, groups = ["a b c d", "e", "f"], ["g", "g", "h"]
    contrast = ContrastSet(
        source, ["i", "j", "k"], control=["a b c d", "l"], source_groups=groups, target_groups=["h", "m", "n"]
    )
    left = leave_out_seen(contrast, seen)
    assert (left.source, left.target, left.control) == (("f",), ("i", "j", "k"), ("l",))
    assert left.source_groups == ("h",)
    assert leave_out_seen(contrast, seen[:0]) is contrast
    with pytest.raises(ContrastError, match="a side is empty without them"):
        leave_out_seen(ContrastSet(["a b c d"], ["e"]), seen)


def test_rankings_and_fits_keep_what_they_have_seen(tiny: Any, tmp_path: Any) -> None:
    sad = ContrastSet(sentences(12, seed=1, must="sad"), sentences(12, seed=2, must="happy"), name="sad")
    ranking = rank_experts(collect(tiny, sad, progress=False), holdout=0.5, seed=4)
    first, second = sad.split(0.5, seed=4)
    assert was_seen(first.source + first.target, ranking.seen).all()
    assert leave_out_seen(second, ranking.seen) == second
    edit = CAA(layers=(-1,)).fit(tiny, first)
    saved = type(edit).load(edit.save(tmp_path / "edit"))
    for one in (edit, saved, edit.then(edit), edit.inverse(), edit.scoped("last")):
        assert was_seen(first.source + first.target, seen_in(one.provenance)).all()
        assert leave_out_seen(second, seen_in(one.provenance)) == second
    neutral, other = sentences(8, seed=3, must="dog"), ContrastSet(sentences(8, seed=7), sentences(8, seed=8))
    gated = DSAS(base=CAA(layers=(-1,))).fit(tiny, ContrastSet(first.source, first.target, control=neutral))
    assert was_seen([*first.source, *neutral], seen_in(gated.provenance)).all()
    conditional = CAST(base=CAA(layers=(-1,)), condition=other).fit(tiny, first)
    assert was_seen([*first.source, *other.source, *other.target], seen_in(conditional.provenance)).all()
