"""Strengths per row: each row is what it would be alone at its strength, and strengths go with their texts."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from lens_steer.activations.collect import collect
from lens_steer.errors import LensSteerWarning, SettingError
from lens_steer.evaluation.generation import generate
from lens_steer.evaluation.perplexity import text_losses
from lens_steer.host.tokens import tokenize
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.strengths import as_strengths, warn_if_far
from lens_steer.texts.contrast import ContrastSet
from tests.host.test_attach import random_edit
from tests.host.test_clock import left_padded

TEXTS = ["the dog", "a big cat ran home", "the girl was sad and cried", "a bird"]
STRENGTHS = [0.5, 0.0, 1.0, 0.5]
SITES = ["hook_resid_post", "attn.hook_z"]


def forward(model: Any, context: Any) -> Tensor:
    batch = tokenize(model, TEXTS).batch(range(len(TEXTS)))
    with context, torch.no_grad():
        out: Tensor = model(batch.ids, attention_mask=batch.mask.long())
    return out


@pytest.mark.compat
@pytest.mark.parametrize("scope", ["all", "last"])
@pytest.mark.parametrize("given", [STRENGTHS, torch.tensor(STRENGTHS)], ids=["list", "tensor"])
def test_each_row_is_the_batch_at_its_strength(tiny: Any, scope: Any, given: Any) -> None:
    edit = random_edit(tiny, SITES).scoped(scope)
    rows = forward(tiny, edit.on(tiny, given))
    counts = edit.touched.prompt_tokens.tolist()
    for row, strength in enumerate(STRENGTHS):
        assert torch.equal(rows[row], forward(tiny, edit.on(tiny, strength))[row])
    assert torch.equal(rows[1], forward(tiny, edit.on(tiny, 0.0))[1])
    steered = [len(ids) if scope == "all" else 1 for ids in tokenize(tiny, TEXTS).ids]
    assert counts == [sum(steered) - steered[1]] * len(edit.edits)


def test_plain_hooks_take_them_too(tiny: Any) -> None:
    edit = random_edit(tiny, SITES)
    expected = forward(tiny, edit.on(tiny, STRENGTHS))
    assert torch.equal(forward(tiny, tiny.hooks(fwd_hooks=edit.hooks(STRENGTHS))), expected)


@pytest.mark.parametrize("cache", [True, False])
def test_generation_of_a_batch(tiny: Any, cache: bool) -> None:
    edit = random_edit(tiny, SITES)
    ids, mask = left_padded([list(row) for row in tokenize(tiny, TEXTS).ids])
    own = {"attention_mask": mask, "max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def run(strength: Any) -> Tensor:
        with edit.on(tiny, strength):
            out: Tensor = tiny.original_model.generate(ids, use_cache=cache, **own)
        return out

    rows = run(STRENGTHS)
    for row, strength in enumerate(STRENGTHS):
        assert torch.equal(rows[row], run(strength)[row])


def test_strengths_go_with_their_prompts_and_texts(tiny: Any) -> None:
    """However a call sorts and batches them: prompts by length here, two to a batch."""
    edit = random_edit(tiny, SITES)
    run: dict[str, Any] = {"intervention": edit, "batch_size": 2, "progress": False}
    texts = generate(tiny, TEXTS, strength=STRENGTHS, max_new_tokens=5, **run)
    for row, strength in enumerate(STRENGTHS):
        assert texts[row] == generate(tiny, TEXTS, strength=strength, max_new_tokens=5, **run)[row]
    with edit.on(tiny, STRENGTHS):
        losses = text_losses(tiny, TEXTS, batch_size=2, progress=False).sums
        acts = collect(tiny, ContrastSet(TEXTS[:2], TEXTS[2:]), "hook_resid_post", pool="mean", batch_size=3)
    for row, strength in enumerate(STRENGTHS):
        with edit.on(tiny, strength):
            assert losses[row] == pytest.approx(text_losses(tiny, TEXTS, progress=False).sums[row], rel=1e-5)
            alone = collect(tiny, ContrastSet(TEXTS[:2], TEXTS[2:]), "hook_resid_post", pool="mean")
        site = acts.sites[1]
        torch.testing.assert_close(acts.values[site][row], alone.values[site][row], rtol=1e-4, atol=1e-5)
    with edit.on(tiny, STRENGTHS[:3]), pytest.raises(SettingError, match="text 3"):
        text_losses(tiny, TEXTS, progress=False)
    with pytest.raises(SettingError, match="3 strengths do not fit 4 prompts"):
        generate(tiny, TEXTS, strength=STRENGTHS[:3], intervention=edit)


def test_other_rows_than_strengths_are_refused(tiny: Any) -> None:
    edit = random_edit(tiny, SITES)
    with pytest.raises(SettingError, match="3 strengths, and this forward pass has 4 rows"):
        forward(tiny, edit.on(tiny, STRENGTHS[:3]))
    for bad in ([], [[1.0, 2.0]], [0.5, float("nan")]):
        with pytest.raises(SettingError, match="strength"):
            as_strengths(torch.tensor(bad))


def test_a_strength_far_outside_the_useful_range_warns(tiny: Any) -> None:
    edit = Intervention(random_edit(tiny).edits, strengths=(0.0, 2.0))
    with pytest.warns(LensSteerWarning, match="strength 4.5 lies far outside .* 0 to 2") as caught, edit.on(tiny, 4.5):
        pass
    assert len(caught) == 1
    with pytest.warns(LensSteerWarning, match="strength -2.5"), edit.on(tiny, [0.0, -2.5]):
        pass
    for fine in (4.0, -2.0, [1.0, 3.9]):
        with edit.on(tiny, fine):
            pass
    warn_if_far(0.1 + 0.2, (0.1, 0.2), stacklevel=1)


def test_no_range_is_claimed_that_nobody_measured(tiny: Any) -> None:
    """A fit has no useful range; the warning then speaks of no edit and of the edit as it was fitted."""
    edit = random_edit(tiny)
    assert edit.strengths is None
    with pytest.warns(LensSteerWarning, match="4.5 lies far outside 0 to 1, .* no other range was measured"):
        warn_if_far(4.5, edit.strengths, stacklevel=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fine in (2.0, -1.0):
            warn_if_far(fine, None, stacklevel=1)
    # What is measured of an edit holds for it, rescaled, and for nothing else that is made of it.
    measured = Intervention(edit.edits, strengths=(0.0, 3.0))
    assert measured.scaled(0.5).strengths == (0.0, 6.0)
    assert measured.scaled(-1.0).strengths == (-3.0, 0.0)
    assert measured.scaled(0.0).strengths is None
    parts = (
        measured.then(measured),
        measured.inverse(),
        measured.restrict(measured.sites[:1]),
        measured.scoped("last"),
    )
    assert [part.strengths for part in parts] == [None] * 4
