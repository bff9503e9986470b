"""Fingerprints and stamps: what identifies a model as it runs, and when what was tried on it is tried again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lens_steer.errors import ArtifactError, SiteError
from lens_steer.host.adapter import host_of
from lens_steer.host.fingerprint import ModelFingerprint, model_fingerprint
from lens_steer.host.guards import check_edit_sites
from lens_steer.host.learned import weight_stamp
from lens_steer.host.load import load_model
from lens_steer.host.sites import find_sites
from lens_steer.interventions.ablation import ablate
from lens_steer.interventions.intervention import Intervention
from tests.families import make_tiny, make_tokenizer, random_model
from tests.handles import Forwards
from tests.host.test_attach import random_edit

S = "blocks.0.mlp.hook_post"


def fitted(model: Any) -> Intervention:
    return Intervention.fitted(model, random_edit(model).edits)


def halve(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.original_model.parameters():
            parameter.mul_(0.5)


def merge(model: Any) -> None:
    """As peft merges an adapter: neither the place in memory nor the version counter moves."""
    weight = model.original_model.transformer.h[0].mlp.c_fc.weight
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(size, 2, generator=generator) for size in weight.shape)
    weight.data += down @ up.T


def load_others(model: Any) -> None:
    state = model.original_model.state_dict()
    model.original_model.load_state_dict({name: value + 0.1 for name, value in state.items()})


CHANGES = [halve, merge, load_others, lambda model: model.enable_compatibility_mode()]


@pytest.mark.parametrize("change", CHANGES, ids=["scaled in place", "merged", "loaded", "compatibility mode"])
def test_what_was_tried_before_the_weights_changed_is_tried_again(change: Callable[[Any], None]) -> None:
    model = make_tiny("gpt2")
    edit = fitted(model)
    before = model_fingerprint(model)
    with edit.on(model):
        pass
    change(model)
    assert before.difference(model_fingerprint(model))
    assert host_of(model).checked_sites == set()
    with pytest.raises(ArtifactError, match="fitted on other weights"), edit.on(model):
        pass


def test_a_guard_sees_a_weight_that_became_zero() -> None:
    model = make_tiny("gpt2")
    sites = find_sites(model, "attn.hook_z", layers=[1])
    check_edit_sites(model, sites)
    with torch.no_grad():
        model.original_model.transformer.h[1].attn.c_proj.weight.zero_()
    with pytest.raises(SiteError, match="does not move the logits"):
        check_edit_sites(model, sites)


def test_a_switch_that_is_set_after_the_first_look() -> None:
    model = make_tiny("gpt2")
    with pytest.raises(SiteError, match="set_use_"):
        find_sites(model, "attn.hook_result")
    model.set_use_attn_result(True)
    assert [site.heads for site in find_sites(model, "attn.hook_result")] == [4, 4]
    model.set_use_attn_result(False)
    with pytest.raises(SiteError, match="set_use_"):
        find_sites(model, "attn.hook_result")


def test_a_stamp_stays_while_nothing_changes() -> None:
    model = make_tiny("gpt2")
    before = weight_stamp(model)
    with torch.no_grad(), fitted(model).on(model):
        model(torch.tensor([[1, 5, 9]]))
    assert weight_stamp(model) == before


def test_models_are_told_apart_by_content_and_not_by_name() -> None:
    one, same, other = make_tiny("gpt2"), make_tiny("gpt2"), make_tiny("gpt2", seed=1)
    assert host_of(one).provenance == host_of(other).provenance
    assert model_fingerprint(one).difference(model_fingerprint(same)) == ""
    assert "logits" in model_fingerprint(one).readings
    assert model_fingerprint(one).difference(model_fingerprint(other)) != ""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_another_dtype_of_the_same_weights_is_the_same_model(dtype: torch.dtype) -> None:
    one, other = make_tiny("gpt2"), make_tiny("gpt2", seed=1)
    half, other_half = (
        load_model(random_model("gpt2", seed=seed).to(dtype), tokenizer=make_tokenizer()) for seed in (0, 1)
    )
    assert model_fingerprint(one).difference(model_fingerprint(half)) == ""
    assert model_fingerprint(one).difference(model_fingerprint(other_half)) != ""
    assert model_fingerprint(other).difference(model_fingerprint(other_half)) == ""


def test_a_head_of_its_own_is_part_of_the_model() -> None:
    model = make_tiny("llama")
    before = model_fingerprint(model)
    with torch.no_grad():
        model.original_model.lm_head.weight.copy_(torch.flip(model.original_model.lm_head.weight, (0,)))
    assert "logits" in before.difference(model_fingerprint(model))


class TestWhatIsAttached:
    def test_an_edit_and_its_strength_are_part_of_the_model(self, tiny: Any) -> None:
        edit, other = ablate([(S, 5)], model=tiny), ablate([(S, 6)], model=tiny)
        bare = model_fingerprint(tiny)
        seen = [bare]
        for intervention, strength in ((edit, 1.0), (edit, 0.5), (other, 1.0), (edit.scoped("generated"), 1.0)):
            with intervention.on(tiny, strength):
                seen.append(model_fingerprint(tiny))
        for place, one in enumerate(seen):
            for further in seen[place + 1 :]:
                assert "intervention" in one.difference(further)
        with ablate([(S, 5)], model=tiny).on(tiny):  # equal content, another object
            assert seen[1].difference(model_fingerprint(tiny)) == ""
        with edit.on(tiny, 0.0):
            assert bare.difference(model_fingerprint(tiny)) == ""
        assert bare.difference(model_fingerprint(tiny)) == ""

    def test_the_order_counts(self, tiny: Any) -> None:
        one, other = ablate([(S, 5)], model=tiny), ablate([(S, 6)], model=tiny)
        with one.on(tiny), other.on(tiny):
            first = model_fingerprint(tiny)
        with other.on(tiny), one.on(tiny):
            assert first.difference(model_fingerprint(tiny)) != ""

    def test_plain_hooks_take_part_on_request(self) -> None:
        tiny = make_tiny("gpt2")
        bare = model_fingerprint(tiny, users_hooks=True)
        assert bare.difference(model_fingerprint(tiny)) == ""
        with tiny.hooks(fwd_hooks=[(S, lambda tensor, hook: tensor * 0)]):
            assert bare.difference(model_fingerprint(tiny)) == ""
            assert bare.difference(model_fingerprint(tiny, users_hooks=True)) != ""

    def test_nothing_is_counted_as_touched(self, tiny: Any) -> None:
        with ablate([(S, 5)], model=tiny).on(tiny) as touched:
            model_fingerprint(tiny, users_hooks=True)
        assert touched.frame[["prompt_tokens", "generated_tokens"]].to_numpy().sum() == 0


def test_a_fingerprint_is_plain_data(tiny: Any) -> None:
    import json

    with ablate([(S, 5)], model=tiny).on(tiny):
        fingerprint = model_fingerprint(tiny)
    assert ModelFingerprint.rebuilt(json.loads(json.dumps(fingerprint.content()))) == fingerprint


def test_asking_again_runs_nothing() -> None:
    model = make_tiny("gpt2")
    with Forwards(model) as forwards:
        model_fingerprint(model)
        model_fingerprint(model)
    assert forwards.count == 1
