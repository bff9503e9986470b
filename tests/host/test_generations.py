"""Every way in which a host generates, by the clock's table: the same tokens are edited, with the same text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from lens_steer.errors import ModelError
from lens_steer.host.adapter import host_of
from lens_steer.host.generations import _WRAPPERS
from lens_steer.host.scope import Scope
from lens_steer.interventions.intervention import Intervention
from tests.families import make_tiny, random_model
from tests.host.test_attach import random_edit
from tests.host.test_clock import left_padded

ROWS = [[1, 5, 9, 2, 30, 31, 7], [1, 8, 12, 4, 6]]
STEPS = 6
GREEDY = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
SCOPES: dict[str, Any] = {
    "all": "all",
    "prompt": "prompt",
    "generated": "generated",
    "last": "last",
    "positions": Scope(start=1, stop=4),
    "first two": Scope.of_steps(2),
    "last, first two": Scope.of_steps(2, name="last"),
}
Route = Callable[[Any, Tensor, Tensor], Tensor]


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_tiny("llama")


def plain(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    return model.original_model.generate(ids, attention_mask=mask, **GREEDY)


def uncached(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    return model.original_model.generate(input_ids=ids, attention_mask=mask, use_cache=False, **GREEDY)


def in_chunks(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    return model.original_model.generate(ids, attention_mask=mask, prefill_chunk_size=3, **GREEDY)


def static(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    return model.original_model.generate(
        ids, attention_mask=mask, cache_implementation="static", disable_compile=True, **GREEDY
    )


def assisted(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    return model.original_model.generate(
        ids, attention_mask=mask, assistant_model=random_model("llama", seed=0), **GREEDY
    )


def drafted_from_the_prompt(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    return model.original_model.generate(ids, attention_mask=mask, prompt_lookup_num_tokens=3, **GREEDY)


def first_turn(model: Any, ids: Tensor, mask: Tensor) -> DynamicCache:
    cache, places = DynamicCache(), (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        model.original_model(ids[:, :4], mask[:, :4], places[:, :4], past_key_values=cache, use_cache=True)
    return cache


def kept_cache(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """The second turn on the cache of the first."""
    cache = first_turn(model, ids, mask)
    return model.original_model.generate(ids, attention_mask=mask, past_key_values=cache, **GREEDY)


def kept_cache_and_new_ids(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """The same with the new ids alone, as transformers also takes it."""
    cache = first_turn(model, ids, mask)
    new = model.original_model.generate(ids[:, 4:], attention_mask=mask, past_key_values=cache, **GREEDY)
    return torch.cat([ids[:, :4], new], 1)


def own_loop(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Chunks of the prompt and steps by hand."""
    cache, original = DynamicCache(), model.original_model
    with torch.no_grad():
        original(ids[:, :3], attention_mask=mask[:, :3], past_key_values=cache)
        logits = original(ids[:, 3:], attention_mask=mask, past_key_values=cache).logits
        for step in range(STEPS):
            new = logits[:, -1].argmax(1, keepdim=True)
            ids, mask = torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
            if step < STEPS - 1:
                logits = original(new, attention_mask=mask, past_key_values=cache).logits
    return ids


def streamed(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """TransformerLens's stream; between two pieces the caller looks at other texts."""
    pieces = []
    for piece in model.generate_stream(
        ids, max_new_tokens=STEPS, do_sample=False, stop_at_eos=False, verbose=False, max_tokens_per_yield=2
    ):
        pieces.append(piece)
        with torch.no_grad(), untouched(model):
            model.original_model(torch.tensor([[1, 4]]))
    return torch.cat(pieces, 1) if pieces[0].shape[1] <= ids.shape[1] + 2 else pieces[-1]


@contextmanager
def untouched(model: Any) -> Iterator[None]:
    """Passes inside are not those of the generation, and no clock counts them."""
    with host_of(model).bare():
        yield


# A piece of a prompt that own code runs by itself is a prompt with a last token of its own.
IN_PIECES = [kept_cache, kept_cache_and_new_ids, own_loop]
PADDED: list[Route] = [uncached, in_chunks, static, *IN_PIECES]
ALONE: list[Route] = [*PADDED, assisted, drafted_from_the_prompt, streamed]


def outcome(model: Any, edit: Intervention, route: Route, rows: list[list[int]]) -> tuple[list[Any], list[Any]]:
    """The new tokens, and how many prompt and generated tokens each edit changed."""
    ids, mask = left_padded(rows)
    with edit.on(model) as touched:
        out = route(model, ids, mask)
    counts = touched.frame[["prompt_tokens", "generated_tokens"]]
    return out[:, ids.shape[1] : ids.shape[1] + STEPS].tolist(), counts.to_numpy().tolist()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("route", PADDED, ids=lambda route: route.__name__)
def test_padded_prompts(llama: Any, route: Route, scope: str) -> None:
    if route in IN_PIECES and scope.startswith("last"):
        pytest.skip("the last token of each piece is meant, too")
    edit = random_edit(llama).scoped(SCOPES[scope])
    assert outcome(llama, edit, route, ROWS) == outcome(llama, edit, plain, ROWS)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("route", ALONE, ids=lambda route: route.__name__)
def test_one_prompt(llama: Any, route: Route, scope: str) -> None:
    if route in IN_PIECES and scope.startswith("last"):
        pytest.skip("the last token of each piece is meant, too")
    edit = random_edit(llama).scoped(SCOPES[scope])
    text, counts = outcome(llama, edit, route, ROWS[:1])
    expected_text, expected_counts = outcome(llama, edit, plain, ROWS[:1])
    assert text == expected_text
    if route not in (assisted, drafted_from_the_prompt):  # drafts that are thrown away at the end count, too
        assert counts == expected_counts


def test_the_texts_differ_by_scope(llama: Any) -> None:
    """The comparisons above would see a scope that is taken for another."""
    texts = {name: str(outcome(llama, random_edit(llama).scoped(scope), plain, ROWS)) for name, scope in SCOPES.items()}
    assert len(set(texts.values())) == len(texts)


@pytest.mark.parametrize("scope", [name for name in SCOPES if name != "all"])
def test_what_cannot_be_told_is_refused(llama: Any, scope: str) -> None:
    """Masks of own making: every scope but all is refused, and all works."""
    ids = torch.tensor(ROWS[:1])
    four = torch.ones(1, 1, 7, 7).tril()[..., :].log()
    edit = random_edit(llama)
    with edit.scoped(SCOPES[scope]).on(llama), pytest.raises(ModelError, match="attention mask is no 2-D mask"):
        llama.original_model(ids, attention_mask=four)
    with torch.no_grad(), edit.on(llama) as touched:
        inside = llama.original_model(ids, attention_mask=four).logits
        torch.testing.assert_close(inside, llama.original_model(ids).logits, rtol=1e-4, atol=1e-4)
    assert touched.frame.prompt_tokens.tolist() == [7, 7]  # of the pass that tells


def test_a_static_cache_in_own_code(llama: Any) -> None:
    """Ids and a 2-D mask tell positions on any cache that knows its length."""
    ids, mask = left_padded(ROWS)
    edit = random_edit(llama).scoped("prompt")
    found = []
    for cache in (DynamicCache(), StaticCache(config=llama.original_model.config, max_cache_len=16)):
        with torch.no_grad(), edit.on(llama):
            llama.original_model(ids[:, :4], attention_mask=mask[:, :4], past_key_values=cache)
            found.append(llama.original_model(ids[:, 4:], attention_mask=mask, past_key_values=cache).logits)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_embeddings_are_refused_in_every_step(llama: Any) -> None:
    original = llama.original_model
    embedded = original.get_input_embeddings()(torch.tensor(ROWS[:1]))
    with random_edit(llama).scoped("generated").on(llama), pytest.raises(ModelError, match="token ids"):
        original.generate(inputs_embeds=embedded, **GREEDY)
    with random_edit(llama).on(llama):
        assert original.generate(inputs_embeds=embedded, **GREEDY).shape == (1, STEPS)


@pytest.mark.compat
def test_the_calls_are_as_before_when_the_last_clock_is_gone(host_model: Any) -> None:
    owners = [host_model, *([host_model.original_model] if hasattr(host_model, "original_model") else [])]
    before = [dict(vars(owner)) for owner in owners]
    first, second = (random_edit(host_model, seed=seed).on(host_model) for seed in (1, 2))
    first.__enter__()
    second.__enter__()
    assert all("generate" in vars(owner) for owner in owners)
    first.__exit__(None, None, None)
    assert all("generate" in vars(owner) for owner in owners)
    second.__exit__(None, None, None)
    assert [set(vars(owner)) for owner in owners] == [set(names) for names in before]
    assert _WRAPPERS[host_of(host_model)].listeners == 0
