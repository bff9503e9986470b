"""Decoding against the plainest loop there is: one row, no padding, no cache, the best token of every step."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from lens_steer.errors import ModelError, SettingError
from lens_steer.host import decode as decoding_room
from lens_steer.host.adapter import host_of
from lens_steer.host.clock import announced_texts
from lens_steer.host.decode import Decoding, RowNoise, decode
from lens_steer.interventions.intervention import Intervention
from tests.evaluation.hosts import HOSTS, CloseCalls, make_host, random_edit

SCOPES = (None, "all", "prompt", "generated", "last")
PROMPTS = [[1, 8, 12, 30, 22, 9, 41], [1], [1, 17, 5], [1, 33], [1, 4, 25, 18, 7]]
STEPS = 8
NEVER = 10_000  # an id that no vocabulary here has
GREEDY = Decoding(max_new_tokens=STEPS, temperature=0.0)
pytestmark = pytest.mark.compat


@pytest.fixture(scope="module", params=HOSTS)
def hosted(request: pytest.FixtureRequest) -> Any:
    return make_host(request.param)


@pytest.fixture
def close_calls(monkeypatch: pytest.MonkeyPatch) -> CloseCalls:
    return CloseCalls(monkeypatch)


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ends a row early, so that every step is compared."""
    monkeypatch.setattr(decoding_room, "_stop_ids", lambda host: [NEVER])


def edit_of(model: Any, scope: Any) -> Intervention | None:
    return None if scope is None else random_edit(model, scope=scope)


def plain_loop(model: Any, prompt: list[int], steps: int = STEPS) -> list[int]:
    """Greedy without padding and cache; a clock sees pairs whose completion grows by one token a pass."""
    host, ids = host_of(model), torch.tensor([prompt])
    with torch.no_grad(), announced_texts([0], [len(prompt)]):
        for _ in range(steps):
            logits = host.logits(ids, torch.ones_like(ids, dtype=torch.bool))
            ids = torch.cat([ids, logits[:, -1].argmax(1, keepdim=True)], 1)
    return ids[0, len(prompt) :].tolist()


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize("scope", SCOPES)
def test_batched_with_cache_equals_rows_without(hosted: Any, scope: Any, close_calls: CloseCalls) -> None:
    edit = edit_of(hosted, scope)
    with nullcontext() if edit is None else edit.on(hosted):
        batched = decode(hosted, PROMPTS, GREEDY, rows=range(len(PROMPTS)))
    single = []
    for prompt in PROMPTS:
        with nullcontext() if edit is None else edit.on(hosted):
            single.append(plain_loop(hosted, prompt))
    close_calls.require_equal(batched, single)


@pytest.mark.usefixtures("endless")
def test_edits_and_their_scopes_change_the_text(hosted: Any) -> None:
    found = set()
    for scope in SCOPES:
        edit = edit_of(hosted, scope)
        with nullcontext() if edit is None else edit.on(hosted):
            found.add(str(decode(hosted, PROMPTS, GREEDY, rows=range(len(PROMPTS)))))
    assert len(found) == len(SCOPES)


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize("scope", [None, "last"])
def test_every_family_pads_left_correctly(family: Any, scope: Any, close_calls: CloseCalls) -> None:
    edit = edit_of(family, scope)
    single = []
    for prompt in PROMPTS:
        with nullcontext() if edit is None else edit.on(family):
            new = family.original_model.generate(
                torch.tensor([prompt]), max_new_tokens=STEPS, do_sample=False, use_cache=False, eos_token_id=NEVER
            )
        single.append(new[0, len(prompt) :].tolist())
    with nullcontext() if edit is None else edit.on(family):
        batched = decode(family, PROMPTS, GREEDY, rows=range(len(PROMPTS)))
    close_calls.require_equal(batched, single)


@pytest.mark.usefixtures("endless")
@pytest.mark.parametrize(
    "settings",
    [{}, {"temperature": 0.7, "top_k": 10}, {"top_p": 0.8}, {"temperature": 0.0, "repetition_penalty": 1.5}],
    ids=str,
)
def test_a_row_does_not_feel_its_neighbours(hosted: Any, settings: dict[str, Any], close_calls: CloseCalls) -> None:
    decoding = Decoding(max_new_tokens=STEPS, seed=3, **settings)
    batched = decode(hosted, PROMPTS, decoding, rows=range(len(PROMPTS)))
    single = [decode(hosted, [prompt], decoding, rows=[row])[0] for row, prompt in enumerate(PROMPTS)]
    backwards = decode(hosted, PROMPTS[::-1], decoding, rows=range(len(PROMPTS))[::-1])[::-1]
    close_calls.require_equal(batched, single)
    close_calls.require_equal(backwards, single)


@pytest.mark.usefixtures("endless")
def test_repetition_penalty_is_that_of_the_definition(tiny: Any, close_calls: CloseCalls) -> None:
    penalty, expected = 1.5, []
    for prompt in PROMPTS:
        ids = list(prompt)
        for _ in range(STEPS):
            here = torch.tensor([ids])
            logits = host_of(tiny).logits(here, torch.ones_like(here, dtype=torch.bool))[0, -1]
            seen = torch.tensor(sorted(set(ids)))
            logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
            ids.append(int(logits.argmax()))
        expected.append(ids[len(prompt) :])
    decoding = Decoding(max_new_tokens=STEPS, temperature=0.0, repetition_penalty=penalty)
    close_calls.require_equal(decode(tiny, PROMPTS, decoding, rows=range(len(PROMPTS))), expected)


def test_pads_are_the_rows_own_tokens_and_stand_on_the_left() -> None:
    ids, mask = decoding_room._left_padded(PROMPTS)
    for row, real, prompt in zip(ids, mask, PROMPTS, strict=True):
        assert row[real].tolist() == prompt == row[-len(prompt) :].tolist()
        assert set(row.tolist()) == set(prompt)


@pytest.mark.usefixtures("endless")
def test_narrowest_sampling_is_greedy(hosted: Any) -> None:
    rows = range(len(PROMPTS))
    greedy = decode(hosted, PROMPTS, GREEDY, rows=rows)
    for narrow in (Decoding(max_new_tokens=STEPS, top_k=1), Decoding(max_new_tokens=STEPS, top_p=1e-6)):
        assert decode(hosted, PROMPTS, narrow, rows=rows) == greedy
    assert decode(hosted, PROMPTS, Decoding(max_new_tokens=STEPS), rows=rows) != greedy


def test_a_row_ends_before_its_first_stop(hosted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding_room, "_stop_ids", lambda host: [NEVER])
    free = decode(hosted, PROMPTS, GREEDY, rows=range(len(PROMPTS)))
    stop = free[0][2]
    monkeypatch.setattr(decoding_room, "_stop_ids", lambda host: [stop])
    stopped = decode(hosted, PROMPTS, GREEDY, rows=range(len(PROMPTS)))
    assert stopped == [row[: row.index(stop)] if stop in row else row for row in free]
    assert len(stopped[0]) <= 2


def test_stop_ids_are_those_of_tokenizer_and_config(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny.original_model.generation_config, "eos_token_id", [2, 7])
    assert decoding_room._stop_ids(host_of(tiny)) == [2, 7]
    monkeypatch.setattr(tiny.original_model.generation_config, "eos_token_id", None)
    assert decoding_room._stop_ids(host_of(tiny)) == [2]
    monkeypatch.setattr(tiny.original_model.generation_config, "eos_token_id", 64)  # the vocabulary ends at 63
    assert decoding_room._stop_ids(host_of(tiny)) == [2]


def test_the_models_own_sampling_defaults_have_no_say(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, sampled = range(len(PROMPTS)), Decoding(max_new_tokens=STEPS, seed=1)
    before = decode(tiny, PROMPTS, GREEDY, rows=rows), decode(tiny, PROMPTS, sampled, rows=rows)
    own: dict[str, Any] = {
        "do_sample": True,
        "temperature": 0.3,
        "top_k": 2,
        "top_p": 0.5,
        "repetition_penalty": 3.0,
        "min_length": 30,
    }
    own |= {"no_repeat_ngram_size": 1, "num_beams": 2, "suppress_tokens": list(range(4, 60)), "max_time": 1e-9}
    own |= {"bad_words_ids": [[token] for token in before[0][0]], "forced_eos_token_id": 9, "guidance_scale": 3.0}
    own |= {"sequence_bias": [[[11], 1e4]], "encoder_repetition_penalty": 9.0, "return_dict_in_generate": True}
    own |= {"num_return_sequences": 2, "stop_strings": ["dog"], "penalty_alpha": 0.9, "token_healing": True}
    for name, value in own.items():
        monkeypatch.setattr(tiny.original_model.generation_config, name, value)
    theirs = tiny.original_model.generation_config
    assert (decode(tiny, PROMPTS, GREEDY, rows=rows), decode(tiny, PROMPTS, sampled, rows=rows)) == before
    assert tiny.original_model.generation_config is theirs


def test_noise_draws_from_the_softmax() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, float("-inf")])
    draws = 20_000
    noisy = RowNoise(0, range(draws))(torch.zeros(draws, 1, dtype=torch.long), logits.repeat(draws, 1))
    share = np.bincount(noisy.argmax(1).numpy(), minlength=5) / draws
    np.testing.assert_allclose(share, logits.softmax(0).numpy(), atol=0.015)
    assert share[4] == 0


def test_noise_of_a_row_knows_only_seed_row_and_step() -> None:
    ids, zeros = torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 11)
    together, alone, other_seed = RowNoise(5, [0, 1, 2]), RowNoise(5, [2]), RowNoise(6, [2])
    steps = [together(ids, zeros)[2] for _ in range(3)]
    assert all(torch.equal(step, alone(ids[:1], zeros[:1])[0]) for step in steps)
    assert not torch.equal(steps[0], steps[1])
    assert not torch.equal(steps[0], other_seed(ids[:1], zeros[:1])[0])


def test_an_overflowing_edit_is_named(hosted: Any) -> None:
    edit = random_edit(hosted).scaled(1e38)
    with edit.on(hosted), pytest.raises(ModelError, match="NaN"):
        decode(hosted, PROMPTS, GREEDY, rows=range(len(PROMPTS)))
    assert plain_loop(hosted, PROMPTS[0])


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"max_new_tokens": 0},
        {"repetition_penalty": 0.0},
        {"seed": -1},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(bad))):
        Decoding(**bad)
