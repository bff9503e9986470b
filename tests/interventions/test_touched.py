"""Touched: the counts are those of the scopes, with and without a cache, padded or not; idle scopes are told."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch

from lens_steer.errors import LensSteerWarning, MapError, SettingError
from lens_steer.evaluation.perplexity import perplexity
from lens_steer.host.scope import Scope
from lens_steer.interventions import touched as touched_room
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.methods.act_add import ActAdd
from lens_steer.texts.contrast import ContrastSet
from tests.families import make_tokenizer
from tests.host.test_attach import random_edit
from tests.host.test_clock import left_padded
from tests.host.test_scope import SCOPES, meant

ROWS = [[1, 5, 9, 2, 30, 31], [1, 8], [1, 12, 13, 14], [1]]
STEPS = 5


@pytest.mark.compat
@pytest.mark.filterwarnings("ignore:no token was in the scope")
@pytest.mark.parametrize("scope", SCOPES)
def test_counts_in_a_padded_generation(tiny: Any, scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(touched_room, "_PENDING", 7)
    edit = random_edit(tiny).scoped(SCOPES[scope])
    ids, mask = left_padded(ROWS)
    for cache in (True, False):
        with edit.on(tiny) as touched:
            out = tiny.original_model.generate(
                ids, attention_mask=mask, max_new_tokens=STEPS, do_sample=False, use_cache=cache, eos_token_id=None,
                pad_token_id=0,
            )  # fmt: skip
        expected = [0, 0]
        for row, prompt in enumerate(ROWS):
            whole = prompt + out[row, ids.shape[1] : -1].tolist()  # the last token is never run
            inside = meant(SCOPES[scope], whole, len(prompt))
            expected[0] += sum(inside[: len(prompt)])
            expected[1] += sum(inside[len(prompt) :])
        frame = edit.touched
        assert frame[["prompt_tokens", "generated_tokens"]].to_numpy().tolist() == [expected] * len(edit.edits)
        assert touched.frame.equals(frame)
    assert frame.site.tolist() == [site.name for site in edit.sites]


def test_each_context_counts_for_itself(tiny: Any) -> None:
    edit = random_edit(tiny)
    assert edit.touched.prompt_tokens.tolist() == [0, 0]
    with edit.on(tiny) as outer, edit.on(tiny) as inner:
        tiny(torch.tensor([[1, 5, 9]]))
    with edit.on(tiny, 0.0):
        tiny(torch.tensor([[1, 5, 9]]))
    assert [one.frame.prompt_tokens.tolist() for one in (outer, inner)] == [[3, 3], [3, 3]]
    assert edit.touched.prompt_tokens.tolist() == [0, 0]
    assert edit == Intervention(edit.edits)


def test_passes_in_several_threads_are_all_counted(tiny: Any) -> None:
    edit = random_edit(tiny).scoped("last")

    def run() -> None:
        with torch.no_grad():
            for _ in range(5):
                tiny(torch.tensor([[1, 5, 9], [1, 8, 7]]))

    with edit.on(tiny):
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert edit.touched.prompt_tokens.tolist() == [4 * 5 * 2] * 2


def test_a_scope_that_no_token_was_in_warns_once(tiny: Any) -> None:
    edit = random_edit(tiny).scoped("generated")
    with (
        pytest.warns(
            LensSteerWarning, match="scope of edit 0 at blocks.0.hook_resid_post with the scope 'generated'"
        ) as caught,
        edit.on(tiny),
    ):
        tiny(torch.tensor([[1, 5, 9]]))
    assert len(caught) == 1
    assert "and 1 more" in str(caught[0].message)
    # Of whole texts, what stands behind BOS or a pair's prompt counts as generated.
    perplexity(tiny, ["the dog ran", ("the dog", " ran home and sat")], intervention=edit, progress=False)
    assert edit.touched.generated_tokens.tolist() == [3 + 4] * 2
    perplexity(tiny, [("the dog", " ran home")], intervention=edit.scoped("all"), progress=False)
    # Nothing to tell: the model did not run, or the part with tokens ran, or it ended otherwise.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with edit.on(tiny):
            pass
        with random_edit(tiny).then(random_edit(tiny).scoped("last")).on(tiny):
            tiny(torch.tensor([[1, 5, 9]]))
        with pytest.raises(RuntimeError), edit.on(tiny):
            tiny(torch.tensor([[1, 5, 9]]))
            raise RuntimeError
    words = random_edit(tiny).scoped(Scope.of_tokens(["happy"], make_tokenizer()))
    with pytest.warns(LensSteerWarning, match="scope 'tokens"), words.on(tiny):
        tiny(tiny.to_tokens("the dog was sad"))


def test_scoped_keeps_the_positions_that_an_edit_is_for(tiny: Any) -> None:
    edit = ActAdd(layers=(1,)).fit(tiny, ContrastSet(["the sad dog"], ["a happy bird"]))
    positions = [scope.start for scope in (one.scope for one in edit.edits)]
    assert len(positions) > 1
    for name in ("all", "generated", "last"):
        assert [one.scope for one in edit.scoped(name).edits] == [Scope(name, start=p, stop=p + 1) for p in positions]
    ids = tiny.to_tokens("the cat sat on the tree and ran")
    with edit.on(tiny):
        expected = tiny(ids)
    with edit.scoped("all").on(tiny):
        assert torch.equal(tiny(ids), expected)
    assert [one.scope.start for one in edit.scoped(Scope(start=positions[1])).edits] == positions[1:]
    with pytest.raises(MapError, match="no edit is for a position of the scope 'all from position 50'"):
        edit.scoped(Scope(start=50))
    with pytest.raises(SettingError, match="shares no position"):
        edit.edits[0].scoped(Scope(start=50))


def test_edits_of_parts_are_idle_together(tiny: Any) -> None:
    """A prompt that is shorter than ActAdd's pair leaves its last positions without a token: nothing to warn of."""
    edit = ActAdd(layers=(1,)).fit(tiny, ContrastSet(["the sad dog"], ["a happy bird"]))
    with edit.on(tiny):
        tiny(torch.tensor([[1, 5]]))
    assert edit.touched.prompt_tokens.tolist() == [1, *[0] * (len(edit.edits) - 1)]
    apart = Intervention((*random_edit(tiny).edits, *(Edit(one.site, one.map, Scope("last")) for one in edit.edits)))
    with apart.on(tiny):
        tiny(torch.tensor([[1, 5]]))
