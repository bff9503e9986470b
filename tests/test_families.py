"""Newer families, once through the whole toolkit: sites, presets, guards, AurA, LinEAS, baking, generation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from lens_steer.errors import MapError, SiteError
from lens_steer.evaluation.generation import generate
from lens_steer.host.guards import check_edit_sites
from lens_steer.host.sites import find_sites
from lens_steer.host.tokens import tokenize
from lens_steer.interventions.bake import bake
from lens_steer.interventions.intervention import Intervention
from lens_steer.methods.activation_transport import MeanAcT
from lens_steer.methods.aura import AurA
from lens_steer.methods.lineas import LinEAS
from lens_steer.texts.contrast import ContrastSet
from tests.families import NEWER_CONFIGS, make_tiny, random_model, sentences
from tests.handles import handles

IDS = torch.tensor([[1, 5, 9, 7, 30, 31, 12, 40, 8], [1, 44, 6, 51, 33, 20, 9, 9, 4]])
NEURONS = ["mlp.hook_pre", "mlp.hook_pre_linear", "mlp.hook_post"]
EDITABLE = ["hook_resid_pre", "hook_attn_out", "hook_mlp_out", "hook_resid_post"]
EDITABLE += [f"attn.hook_{name}" for name in "qkvz"]
EXPERTS = {"qwen3_moe"}  # mixtures of experts: no single layer of neurons
POST_NORMS = {"ln1_post.hook_out", "ln2_post.hook_out"}
# The norms whose outputs LinEAS's paper edits: behind each branch where there are such, else the one before the MLP.
LINEAS = {"gemma3_text": POST_NORMS, "olmo2": POST_NORMS}
# What stands behind the edit of those norms in the weights: biases that the config can switch on, or nothing.
SHIFTS_FOLD: set[str] = {"smollm3"}


@pytest.fixture(scope="module", params=NEWER_CONFIGS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(name: str) -> Any:
    return make_tiny(name)


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return ContrastSet(sentences(8, seed=1, must="sad"), sentences(8, seed=2, must="happy"), name="sad")


def plain_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def edited_logits(model: Any, edit: Intervention) -> torch.Tensor:
    """Return the logits under an edit, which moves them and leaves nothing behind."""
    before, there = plain_logits(model.original_model), handles(model)
    with edit.on(model):
        edited = plain_logits(model.original_model)
    assert not torch.allclose(edited, before, rtol=1e-3, atol=1e-3)
    assert torch.equal(plain_logits(model.original_model), before)
    assert handles(model) == there
    return edited


def assert_bakes(model: Any, edit: Intervention) -> None:
    hooked = edited_logits(model, edit)
    assert float((plain_logits(bake(model, edit)) - hooked).abs().max() / hooked.abs().max()) < 1e-5


def test_hosting_changes_nothing(name: str, model: Any) -> None:
    torch.testing.assert_close(
        plain_logits(model.original_model), plain_logits(random_model(name).eval()), rtol=1e-5, atol=1e-5
    )


def test_sites_presets_and_guards(name: str, model: Any) -> None:
    check_edit_sites(model, find_sites(model, EDITABLE))
    widths = {site.kind: site.width for site in find_sites(model, EDITABLE)}
    narrow = 16  # two key-value heads of eight
    assert widths == dict.fromkeys(EDITABLE, 32) | {"attn.hook_k": narrow, "attn.hook_v": narrow}
    presets = ["paper:act", "paper:lineas"] if name in EXPERTS else ["paper:aura", "paper:selfcond"]
    for preset in {*presets, "paper:act", "paper:lineas"}:
        check_edit_sites(model, find_sites(model, preset))
    assert {site.kind for site in find_sites(model, "paper:lineas")} == LINEAS.get(name, {"ln2.hook_out"})
    if name in EXPERTS:
        for pattern in (*NEURONS, "paper:aura", "paper:selfcond"):
            with pytest.raises(SiteError, match="mixture of experts.*ask for hook_mlp_out|no site"):
                find_sites(model, pattern)
    else:
        neurons = find_sites(model, NEURONS)
        check_edit_sites(model, neurons)
        assert {site.width for site in neurons} == {48}


def test_aura_bakes(name: str, model: Any, contrast: ContrastSet) -> None:
    sites = "hook_mlp_out" if name in EXPERTS else "mlp.hook_post"
    edit = AurA(sites=sites).fit(model, contrast)
    if name in EXPERTS:
        edited_logits(model, edit)
        with pytest.raises(MapError, match="cannot be baked.*keep it as hooks"):
            bake(model, edit)
    else:
        assert_bakes(model, edit)


def test_lineas_bakes_or_says_why_not(name: str, model: Any, contrast: ContrastSet) -> None:
    edit = LinEAS(sites="paper:lineas", loss_sites="paper:lineas", gamma_share=0.1, steps=4).fit(model, contrast)
    if name in SHIFTS_FOLD:
        assert_bakes(model, edit)
    else:
        edited_logits(model, edit)
        with pytest.raises(MapError, match="cannot be baked.*Nearest: .*keep it as hooks"):
            bake(model, edit)


def test_a_mean_difference_on_the_stream(model: Any, contrast: ContrastSet) -> None:
    edited_logits(model, MeanAcT(sites="hook_resid_post").fit(model, contrast))


def test_generation(model: Any, contrast: ContrastSet) -> None:
    """Greedy continuations are plain transformers', one row at a time and in a batch, and an edit changes them."""
    prompts = ["the dog was", "a big red bird sat on the tree and sang"]
    texts = generate(model, prompts, temperature=0.0, max_new_tokens=8)
    tokens = tokenize(model, prompts)
    for row, text in enumerate(texts):
        batch = tokens.batch([row])
        settings = GenerationConfig(max_new_tokens=8, do_sample=False, pad_token_id=0, bos_token_id=1, eos_token_id=2)
        ids = model.original_model.generate(
            batch.ids, attention_mask=batch.mask.long(), generation_config=settings, tokenizer=model.tokenizer
        )
        assert text.split() == model.tokenizer.decode(ids[0, batch.ids.shape[1] :], skip_special_tokens=True).split()
    edit = MeanAcT(sites="hook_resid_post").fit(model, contrast)
    assert generate(model, prompts, intervention=edit, strength=0.0, temperature=0.0, max_new_tokens=8) == texts
    assert generate(model, prompts, intervention=edit, strength=2.0, temperature=0.0, max_new_tokens=8) != texts
