"""The position clock: the same positions on every route of a host, with and without a cache, padded or not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from lens_steer.activations.collect import collect
from lens_steer.errors import ModelError, SettingError
from lens_steer.host.attach import attach
from lens_steer.host.clock import ForwardPass, PositionClock, TokenPositions, positions_of
from lens_steer.host.scope import Scope
from lens_steer.host.sites import find_sites
from lens_steer.host.tokens import tokenize
from lens_steer.host.trunk import text_logits, trunk
from lens_steer.texts.contrast import ContrastSet
from tests.handles import handles

pytestmark = pytest.mark.compat

ROWS = [[1, 5, 9, 7, 30], [1, 8], [1, 12, 13, 14]]
STEPS = 4


def left_padded(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    length = max(map(len, rows))
    ids = torch.tensor([[0] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


@contextmanager
def watching(model: Any) -> Any:
    """Give the list to which every forward pass adds the positions that an edit sees."""
    record: list[TokenPositions] = []

    def write(flat: Tensor, forward: ForwardPass | None) -> Tensor:
        positions = positions_of(forward)
        assert positions.position.shape == flat.shape[:2]
        record.append(positions)
        return flat

    with attach(model, [(find_sites(model, "hook_resid_pre")[1], write)]):
        yield record


def is_hooked(model: Any) -> bool:
    return not hasattr(model, "original_model")


def test_a_text(host_model: Any) -> None:
    ids = torch.tensor([ROWS[0], ROWS[0][::-1]])
    with watching(host_model) as record:
        host_model(ids)
    (seen,) = record
    assert seen.position.tolist() == [[0, 1, 2, 3, 4]] * 2
    assert seen.prompt_length.tolist() == [5, 5]
    assert seen.real.all()
    assert seen.ids is not None
    assert torch.equal(seen.ids, ids)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(host_model: Any, side: str) -> None:
    ids, mask = left_padded(ROWS)
    if side == "right":
        ids = torch.stack([row.roll(-int((1 - real).sum())) for row, real in zip(ids, mask, strict=True)])
        mask = mask.flip(1)
    with watching(host_model) as record:
        host_model(ids, attention_mask=mask)
    (seen,) = record
    assert torch.equal(seen.real, mask.bool())
    assert seen.prompt_length.tolist() == [len(row) for row in ROWS]
    for row, (positions, real) in enumerate(zip(seen.position, seen.real, strict=True)):
        assert positions[real].tolist() == list(range(len(ROWS[row])))


def routes(model: Any, cache: bool) -> dict[str, Callable[[Tensor, Tensor], Any]]:
    """Return every way in which this host generates, greedily."""
    own = {"max_new_tokens": STEPS, "do_sample": False, "stop_at_eos": False, "verbose": False}

    def generate(ids: Tensor, mask: Tensor) -> Any:
        return model.generate(ids, use_past_kv_cache=cache, **own)

    if is_hooked(model):
        return {"generate": generate}
    theirs = {"max_new_tokens": STEPS, "do_sample": False, "use_cache": cache, "eos_token_id": None, "pad_token_id": 0}

    def original(ids: Tensor, mask: Tensor) -> Any:
        return model.original_model.generate(input_ids=ids, attention_mask=mask, **theirs)

    def hugging_face(ids: Tensor, mask: Tensor) -> Any:
        return model.hf_generate(ids, attention_mask=mask, **theirs | {"use_past_kv_cache": cache})

    return {"generate": generate, "original": original, "hf_generate": hugging_face}


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("rows", [ROWS[:1], [[1]], [[1, 5, 9], [1, 8, 8]]], ids=["one", "one token", "batch"])
def test_generation(host_model: Any, cache: bool, rows: list[list[int]]) -> None:
    ids, mask = left_padded(rows)
    for name, generate in routes(host_model, cache).items():
        with watching(host_model) as record:
            generate(ids, mask)
        check_generation(record, rows, cache, name)


@pytest.mark.parametrize("cache", [True, False])
def test_generation_from_padded_prompts(tiny: Any, cache: bool) -> None:
    ids, mask = left_padded([*ROWS, [1]])
    ways = routes(tiny, cache)
    for name in ("original", "hf_generate"):
        with watching(tiny) as record:
            ways[name](ids, mask)
        check_generation(record, [*ROWS, [1]], cache, name)


@pytest.mark.parametrize("cache", [True, False])
def test_generation_from_strings(host_model: Any, cache: bool) -> None:
    """TransformerLens pads a list of prompts on the left itself."""
    prompts = ["a dog ran", "cat", "the sad boy sat on"]
    with watching(host_model) as record:
        host_model.generate(prompts, max_new_tokens=STEPS, do_sample=False, use_past_kv_cache=cache, verbose=False)
    rows = [[0] * (1 + len(prompt.split())) for prompt in prompts]
    check_generation(record, rows, cache, "strings", steps=len(record))


def check_generation(
    record: list[TokenPositions], rows: list[list[int]], cache: bool, name: str, steps: int = STEPS
) -> None:
    assert len(record) == steps, name
    assert steps >= 1
    for step, seen in enumerate(record):
        assert seen.prompt_length.tolist() == [len(row) for row in rows], (name, step)
        for row, prompt in enumerate(rows):
            length = len(prompt) + step
            expected = [length - 1] if cache and step else list(range(length))
            assert seen.position[row][seen.real[row]].tolist() == expected, (name, step)


def test_ids_are_those_of_the_pass(host_model: Any) -> None:
    for cache in (True, False):
        with watching(host_model) as record:
            out = routes(host_model, cache)["generate"](torch.tensor([ROWS[0]]), torch.ones(1, 5))
        for step, seen in enumerate(record):
            here = out[:, : 5 + step] if not (cache and step) else out[:, 4 + step : 5 + step]
            assert seen.ids is not None
            assert torch.equal(seen.ids, here)


def test_two_generations_in_one_context(host_model: Any) -> None:
    for cache in (True, False):
        with watching(host_model) as record:
            for rows in (ROWS[:1], ROWS[2:], [[1]]):
                start = len(record)
                routes(host_model, cache)["generate"](*left_padded(rows))
                check_generation(record[start:], rows, cache, "generate")


def test_a_prompt_that_is_the_last_one_plus_a_token_on_a_filled_cache(tiny: Any) -> None:
    """With a cache nothing has to be guessed: an empty cache begins a prompt, whatever came before."""
    original = tiny.original_model
    ids = torch.tensor([ROWS[0]])
    with watching(tiny) as record, torch.no_grad():
        cache = original(ids[:, :4], use_cache=True).past_key_values
        original(ids[:, 4:], past_key_values=cache)
    assert [seen.prompt_length.tolist() for seen in record] == [[4], [4]]
    assert record[1].position.tolist() == [[4]]


def test_a_text_that_is_one_token_longer_is_a_text(host_model: Any) -> None:
    """Own loops over prefixes: no pass of theirs is a step, whatever came before."""
    ids = torch.tensor([ROWS[0]])
    with watching(host_model) as record, torch.no_grad():
        for tokens in (ids[:, :3], ids[:, :4], ids[:, :5], ids[:, :3], ids[:, [0, 2, 1, 3]], ids):
            host_model(tokens)
    assert [seen.prompt_length.item() for seen in record] == [3, 4, 5, 3, 4, 5]


def test_own_loops_on_a_cache(tiny: Any) -> None:
    """One token at a time is generated, several are the next turn; other rows or a foreign cache: nobody can tell."""
    original, ids = tiny.original_model, torch.tensor([ROWS[0], ROWS[0][::-1]])
    with watching(tiny) as record, torch.no_grad():
        cache = original(ids[:, :2], use_cache=True).past_key_values
        for tokens in (ids[:, 2:3], ids[:, 3:4], ids[:, :3], ids[:, 2:3]):
            original(tokens, past_key_values=cache)
    assert [seen.prompt_length.tolist() for seen in record] == [[2, 2]] * 3 + [[7, 7]] * 2
    assert [seen.position[1].tolist() for seen in record] == [[0, 1], [2], [3], [4, 5, 6], [7]]
    foreign = original(ids, use_cache=True).past_key_values
    for first in (None, ids[:1]):
        with watching(tiny) as record, torch.no_grad():
            if first is not None:
                original(first)
            original(ids[:, :1], past_key_values=foreign)
        assert record[-1].position.tolist()[0][0] >= 5
        with pytest.raises(ModelError, match="where the prompt in it ends cannot be told"):
            Scope("generated").mask(record[-1])
        assert Scope.from_position(2).mask(record[-1]).all()


def test_whole_texts_and_their_prompts(host_model: Any) -> None:
    """A pair's prompt ends where its completion begins; a text counts as generated behind BOS."""
    rows = [("a dog", " ran home"), "a dog ran", ("", "the cat")]
    tokens = tokenize(host_model, rows)
    assert tokens.prompts == (3, None, 1)
    with watching(host_model) as record, torch.no_grad():
        with trunk(host_model, {find_sites(host_model, "hook_resid_post")[1]: lambda *_: None}) as run:
            run(tokens.batch([2, 1, 0]))
        text_logits(host_model, tokens.batch([0]))
        host_model(torch.tensor(tokens.ids[:1]))
    assert [seen.prompt_length.tolist() for seen in record] == [[1, 1, 3], [3], [5]]
    assert [seen.plain for seen in record] == [True, False, False]
    for seen, batch in zip(record, (tokens.batch([2, 1, 0]), tokens.batch([0])), strict=False):
        assert torch.equal(Scope("last").mask(seen), Scope("last").mask(batch.positions))
    with pytest.raises(SettingError, match=r"plain texts have none .*give \(prompt, completion\) pairs"):
        Scope("prompt").mask(record[0])


def test_collect_under_a_scoped_edit_does_not_depend_on_the_order_of_texts(host_model: Any) -> None:
    from tests.host.test_attach import random_edit

    texts = ["a dog", "a dog ran", "a dog ran home", "a dog ran home and"]
    with random_edit(host_model).scoped("last").on(host_model):
        rows = collect(host_model, ContrastSet(texts, ["the cat"]), "hook_resid_post", pool="mean", batch_size=1)
        batch = collect(host_model, ContrastSet(texts[::-1], ["the cat"]), "hook_resid_post", pool="mean")
    for site in rows.sites:
        torch.testing.assert_close(rows.source[site], batch.source[site].flip(0), rtol=1e-4, atol=1e-4)


def test_embeddings_have_no_ids(tiny: Any) -> None:
    embedded = torch.randn(1, 4, 32)
    with watching(tiny), pytest.raises(ModelError, match="pass token ids, not embeddings"):
        tiny.original_model(inputs_embeds=embedded)


def test_embeddings_after_a_pass_of_tokens_have_no_ids(hooked_tiny: Any) -> None:
    with watching(hooked_tiny):
        hooked_tiny(torch.tensor([ROWS[0]]))
        with pytest.raises(ModelError, match="pass token ids, not embeddings"):
            hooked_tiny(torch.randn(1, 5, 32), start_at_layer=0)


def test_a_stopped_clock_hangs_nowhere(host_model: Any) -> None:
    hanging = handles(host_model)
    clock = PositionClock(host_model)
    assert clock.now is None
    assert handles(host_model) != hanging
    clock.stop()
    assert handles(host_model) == hanging


@pytest.mark.real
def test_real_models(real_model: Any) -> None:
    """Rotary positions and grouped heads; learned positions, local attention and pads that look like BOS."""
    prompts = ["Once upon a time", "The dog", "One day a little girl went to the park"]
    tokens = tokenize(real_model, prompts)
    rows = [list(row) for row in tokens.ids]
    ids, mask = left_padded(rows)
    ids[mask == 0] = tokens.pad_id
    for cache in (True, False):
        with watching(real_model) as record:
            routes(real_model, cache)["original"](ids, mask)
        check_generation(record, rows, cache, "original")
        with watching(real_model) as record:
            real_model.generate(prompts, max_new_tokens=2, do_sample=False, use_past_kv_cache=cache, verbose=False)
        check_generation(record, rows, cache, "strings", steps=len(record))
