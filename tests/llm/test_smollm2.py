"""SmolLM2-135M-Instruct from the model cache: the main jobs on a real model, beside plain transformers."""

from __future__ import annotations

from dataclasses import replace
from time import process_time
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lens_steer.evaluation.generation import generate
from lens_steer.evaluation.perplexity import perplexity
from lens_steer.host.adapter import host_of
from lens_steer.host.load import load_model
from lens_steer.host.model_cache import cached_model
from lens_steer.host.sites import find_sites
from lens_steer.host.tokens import tokenize
from lens_steer.interventions.bake import bake
from lens_steer.interventions.intervention import Intervention
from lens_steer.methods.aura import AurA
from lens_steer.methods.lineas import LinEAS
from lens_steer.texts.contrast import ContrastSet

pytestmark = pytest.mark.llm

SAD = [
    "The boy sat alone and cried because his dog had died.",
    "She lost her mother and wept through the whole night.",
    "He felt hopeless, and his heart was heavy with grief.",
    "Nobody came to her birthday, and she was miserable.",
    "The old man mourned his wife beside the cold grave.",
    "They wept as the ship with their son disappeared.",
    "Her letter was full of sorrow and bitter regret.",
    "The abandoned puppy whimpered sadly in the rain.",
]
GLAD = [
    "The boy ran outside and laughed because his dog was back.",
    "She hugged her mother and danced through the whole night.",
    "He felt hopeful, and his heart was light with joy.",
    "Everybody came to her birthday, and she was delighted.",
    "The old man kissed his wife beside the warm fire.",
    "They cheered as the ship with their son arrived.",
    "Her letter was full of jokes and good wishes.",
    "The rescued puppy played happily in the sun.",
]
PROMPTS = ["Write two sentences about a boy and his dog.", "What is the capital of France?"]


@pytest.fixture(scope="module")
def plain(smollm2: Any) -> Any:
    """The same directory in plain transformers."""
    return AutoModelForCausalLM.from_pretrained(cached_model("smollm2"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(smollm2: Any) -> Any:
    return AutoTokenizer.from_pretrained(cached_model("smollm2"))


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return ContrastSet(SAD, GLAD, name="sad")


def logits_of(model: Any, **batch: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**batch).logits
    return found


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def assert_bakes(model: Any, edit: Intervention) -> None:
    batch = dict(model.tokenizer(SAD[:2], return_tensors="pt", padding=True))
    with edit.on(model):
        hooked = logits_of(model.original_model, **batch)
    assert largest_difference(hooked, logits_of(model.original_model, **batch)) > 1e-3
    real = batch["attention_mask"].bool()
    assert largest_difference(logits_of(bake(model, edit), **batch)[real], hooked[real]) < 1e-4


def test_it_says_where_its_weights_came_from(smollm2: Any) -> None:
    origin = host_of(smollm2).provenance["origin"]
    assert "quantization" in origin
    assert "sha256" in origin or "revision" in origin


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_loads_within_five_seconds(smollm2: Any, dtype: str) -> None:
    """Processor time, which other processes do not lengthen, of the second load: the first imports the architecture."""
    started = process_time()
    model = load_model("smollm2", dtype=dtype)
    seconds = process_time() - started
    assert (host_of(model).n_layers, model.cfg.d_model) == (30, 576)
    assert str(host_of(model).dtype) == f"torch.{dtype}"
    assert seconds < 5


def test_the_hosted_logits_are_plain_ones(smollm2: Any, plain: Any) -> None:
    tokens = tokenize(smollm2, SAD)
    batch = tokens.batch(list(range(len(SAD))))
    expected = logits_of(plain, input_ids=batch.ids, attention_mask=batch.mask.long())
    found = logits_of(smollm2.original_model, input_ids=batch.ids, attention_mask=batch.mask.long())
    assert largest_difference(found[batch.mask], expected[batch.mask]) < 1e-5


def test_it_knows_english(smollm2: Any) -> None:
    shuffled = [" ".join(sorted(text.split())) for text in GLAD]
    assert perplexity(smollm2, GLAD) < 400
    assert perplexity(smollm2, shuffled) > 5 * perplexity(smollm2, GLAD)


def test_the_chat_template(smollm2: Any, tokenizer: Any) -> None:
    said = [{"role": "user", "content": PROMPTS[0]}]
    expected = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True)["input_ids"]
    tokens = tokenize(smollm2, PROMPTS[:1], chat=True)
    batch = tokens.batch([0])
    assert batch.ids[0].tolist() == expected
    text = tokenizer.decode(expected)
    assert text.count("<|im_start|>") == 3  # system, user, assistant: no second BOS
    assert text.endswith("<|im_start|>assistant\n")


def test_greedy_chat_equals_plain_generate(smollm2: Any, plain: Any, tokenizer: Any) -> None:
    found = generate(smollm2, PROMPTS, chat=True, temperature=0.0, max_new_tokens=24)
    for prompt, text in zip(PROMPTS, found, strict=True):
        said = [{"role": "user", "content": prompt}]
        given = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True, return_tensors="pt")
        ids = plain.generate(**given, do_sample=False, max_new_tokens=24)
        assert text == tokenizer.decode(ids[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "Paris" in found[1]


def test_sites(smollm2: Any) -> None:
    widths = {"mlp.hook_post": 1536, "hook_resid_post": 576, "attn.hook_z": 576, "attn.hook_k": 192}
    for kind, width in widths.items():
        sites = find_sites(smollm2, kind)
        assert [site.layer for site in sites] == list(range(30))
        assert {site.width for site in sites} == {width}
    assert {site.kind for site in find_sites(smollm2, "paper:lineas")} == {"ln2.hook_out"}


def test_aura_bakes(smollm2: Any, contrast: ContrastSet) -> None:
    edit = AurA(sites="mlp.hook_post").fit(smollm2, contrast)
    assert edit.support()["kept"].sum() > 1000
    assert_bakes(smollm2, edit)


def test_a_sparse_lineas_bakes(smollm2: Any, contrast: ContrastSet) -> None:
    sites = [site.name for site in find_sites(smollm2, "paper:lineas", layers=[10, 20])]
    method = LinEAS(sites=sites, loss_sites=sites, steps=6)
    edit = replace(method, gamma=0.5 * method.gamma_max(smollm2, contrast)).fit(smollm2, contrast)
    assert 0 < edit.support()["kept"].sum() < 2 * 576
    assert_bakes(smollm2, edit)
