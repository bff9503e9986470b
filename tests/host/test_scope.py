"""Scopes: what each means, and that a steered generation is the same with and without a cache, batched or alone."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from lens_steer.errors import SettingError, TokenError
from lens_steer.host.clock import TokenPositions
from lens_steer.host.scope import ALL_TOKENS, Scope, as_scope
from lens_steer.host.tokens import tokenize
from lens_steer.interventions.intervention import Intervention
from tests.families import make_tokenizer
from tests.host.test_attach import random_edit
from tests.host.test_clock import left_padded

SPECIAL = Scope.without_special(make_tokenizer())
SCOPES = {
    "all": ALL_TOKENS,
    "prompt": Scope("prompt"),
    "generated": Scope("generated"),
    "last": Scope("last"),
    "from 3": Scope.from_position(3),
    "no special": SPECIAL,
    "prompt from 1": Scope("prompt", start=1),
    "generated from 8": Scope("generated", start=8),
    "before 4": Scope(stop=4),
    "only 3": Scope(start=3, stop=4),
    "prompt 1 to 3": Scope("prompt", start=1, stop=3),
    "generated before 8": Scope("generated", stop=8),
    "first three": Scope.of_steps(3),
    "last, steps 2 to 4": Scope.of_steps(4, 2, name="last"),
    "second on": Scope("generated", start_step=1),
    "some tokens": Scope.of_tokens(range(2, 32, 3)),
    "some tokens from 2": Scope("tokens", start=2, tokens=tuple(range(5, 64, 2))),
}
ROWS = [[1, 5, 9, 2, 30, 31], [1, 8], [1, 12, 13, 14], [1]]
STEPS = 5
SITES = ["hook_resid_post", "attn.hook_k", "mlp.hook_post"]


def meant(scope: Scope, ids: list[int], prompt: int) -> list[bool]:
    """Say the same as `Scope.mask`, token by token and in other words."""
    rules = {
        "all": lambda place: True,
        "prompt": lambda place: place < prompt,
        "no_special": lambda place: ids[place] not in scope.special,
        "tokens": lambda place: ids[place] in scope.tokens,
    }
    read = 1 if scope.name == "last" else 0
    steps = range(
        prompt - read + scope.start_step, 10**6 if scope.stop_step is None else prompt - read + scope.stop_step
    )
    rules["generated"] = rules["last"] = lambda place: place in steps
    window = range(scope.start, len(ids) if scope.stop is None else scope.stop)
    return [rules[scope.name](place) and place in window for place in range(len(ids))]


def by_hand(model: Any, intervention: Intervention, scope: Scope, ids: list[int], prompt: int) -> Tensor:
    """Return the logits of one whole sequence with the maps applied at the tokens that are meant."""
    inside = torch.tensor(meant(scope, ids, prompt))

    def hook_of(edit: Any) -> Any:
        def hook_function(tensor: Tensor, hook: Any) -> Tensor:
            scale, shift = edit.map.scale.reshape(tensor.shape[2:]), edit.map.shift.reshape(tensor.shape[2:])
            return torch.where(inside.reshape(1, -1, *[1] * (tensor.ndim - 2)), tensor * scale + shift, tensor)

        return hook_function

    hooks = [(edit.site.name, hook_of(edit)) for edit in intervention.edits]
    with torch.no_grad(), model.hooks(fwd_hooks=hooks):
        logits: Tensor = model(torch.tensor([ids]))
    return logits[0]


def generate(model: Any, rows: list[list[int]], *, cache: bool) -> tuple[list[list[int]], Tensor]:
    """Return each row's prompt and continuation, and the logits of every step: [step, row, vocab]."""
    ids, mask = left_padded(rows)
    out = model.original_model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=STEPS,
        do_sample=False,
        use_cache=cache,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    pad = ids.shape[1]
    whole = [row + out.sequences[place, pad:].tolist() for place, row in enumerate(rows)]
    return whole, torch.stack(out.logits).detach()


def check_against_hand(model: Any, scope: Scope) -> None:
    edit = random_edit(model, SITES).scoped(scope)
    with edit.on(model):
        alone = [generate(model, [row], cache=False) for row in ROWS]
        runs = {cache: generate(model, ROWS, cache=cache) for cache in (True, False)}
        cached = [generate(model, [row], cache=True) for row in ROWS]
    for place, row in enumerate(ROWS):
        (ids,), logits = alone[place]
        expected = by_hand(model, edit, scope, ids[:-1], len(row))[len(row) - 1 :]
        scale = float(expected.abs().max())
        for other, found in [(cached[place][0][0], cached[place][1][:, 0]), (ids, logits[:, 0])]:
            assert other == ids
            assert (found - expected).abs().max() < 1e-5 * scale
        for whole, found in runs.values():
            assert whole[place] == ids
            assert (found[:, place] - expected).abs().max() < 1e-5 * scale


@pytest.mark.compat
@pytest.mark.parametrize("scope", SCOPES)
def test_generation_does_what_the_scope_says(tiny: Any, scope: str) -> None:
    check_against_hand(tiny, SCOPES[scope])


@pytest.mark.compat
def test_generation_does_what_the_scope_says_in_every_family(family: Any) -> None:
    check_against_hand(family, SCOPES["last"])


@pytest.mark.compat
@pytest.mark.filterwarnings("ignore:no token was in the scope")  # of the shortest rows
@pytest.mark.parametrize("scope", ["all", "prompt", "last", "generated from 8", "last, steps 2 to 4", "some tokens"])
def test_transformer_lens_own_generation(host_model: Any, scope: str) -> None:
    """The same on TransformerLens's own route, on both hosts; it has no steps' logits, so the whole text is scored."""
    edit = random_edit(host_model, SITES).scoped(SCOPES[scope])
    own = {"max_new_tokens": STEPS, "do_sample": False, "stop_at_eos": False, "verbose": False}
    for row in ROWS:
        with edit.on(host_model):
            outs = [host_model.generate(torch.tensor([row]), use_past_kv_cache=c, **own)[0].tolist() for c in (1, 0)]
        assert outs[0] == outs[1]
        logits = by_hand(host_model, edit, SCOPES[scope], outs[0][:-1], len(row))[len(row) - 1 :]
        assert logits.argmax(-1).tolist() == outs[0][len(row) :]


@pytest.mark.compat
def test_scopes_differ(tiny: Any) -> None:
    """The comparisons above would see a scope that is taken for another."""
    texts = {}
    for name, scope in SCOPES.items():
        with random_edit(tiny, SITES).scoped(scope).on(tiny):
            texts[name] = generate(tiny, ROWS[:1], cache=True)[1]
    names = list(texts)
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            assert not torch.allclose(texts[one], texts[other], atol=1e-3), (one, other)


@pytest.mark.compat
def test_sampled_generation_and_beams(tiny: Any) -> None:
    """Several continuations of one prompt, and beams that change places: rows are still counted from their prompt."""
    edit = random_edit(tiny, SITES)
    ids, mask = left_padded(ROWS)
    for settings in ({"do_sample": True, "num_return_sequences": 2}, {"num_beams": 3, "do_sample": False}):
        torch.manual_seed(0)
        with edit.scoped("prompt").on(tiny):
            out = tiny.original_model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=STEPS,
                eos_token_id=None,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
                **settings,
            )
        repeats = settings.get("num_return_sequences", 1)
        step = 1
        if "num_beams" in settings:
            continue  # that beams run at all is what is asked; their logits are not in the rows' order
        for place in range(len(ROWS) * repeats):
            row = ROWS[place // repeats]
            whole = row + out.sequences[place, ids.shape[1] :].tolist()
            expected = by_hand(tiny, edit, Scope("prompt"), whole[: len(row) + step], len(row))[-1]
            assert (out.logits[step][place] - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.real
@pytest.mark.compat
@pytest.mark.parametrize("scope", ["prompt", "generated", "last"])
def test_real_models(real_model: Any, scope: Any) -> None:
    tokens = tokenize(real_model, ["Once upon a time", "The dog", "One day a little girl went to the park with"])
    rows = [list(row) for row in tokens.ids]
    edit = random_edit(real_model).scoped(scope)
    with edit.on(real_model, strength=0.3):
        whole, logits = generate(real_model, rows, cache=True)
        plain_whole, plain_logits = generate(real_model, rows, cache=False)
        alone = [generate(real_model, [row], cache=True) for row in rows]
    scale = float(logits.abs().max())
    assert whole == plain_whole == [one[0] for one, _ in alone]
    assert (logits - plain_logits).abs().max() < 1e-5 * scale
    assert (logits - torch.cat([one for _, one in alone], 1)).abs().max() < 1e-5 * scale


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("padding", [0, 3])
def test_mask(scope: str, padding: int) -> None:
    ids, prompt = [1, 5, 9, 2, 30, 31, 8, 0], 5
    row = torch.tensor([[7] * padding + ids])
    real = torch.tensor([[False] * padding + [True] * len(ids)])
    places = TokenPositions(real.long().cumsum(1) - 1, torch.tensor([prompt]), real, row)
    expected = [False] * padding + meant(SCOPES[scope], ids, prompt)
    assert SCOPES[scope].mask(places)[0].tolist() == expected


def test_a_scope_by_name() -> None:
    assert as_scope("last") == Scope("last")
    assert as_scope(SPECIAL) is SPECIAL
    assert Scope("all").is_all
    assert not Scope.from_position(1).is_all
    assert not Scope(stop=9).is_all
    assert SPECIAL.special == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"start": -1}, "position 0 or later, not -1"),
        ({"start": 3, "stop": 3}, "from position 3 to before 3 holds no token"),
        ({"stop": 0}, "holds no token"),
        ({"name": "no_special"}, "Scope.without_special"),
        ({"name": "prompt", "special": (1,)}, "no_special"),
        ({"name": "generated", "start_step": -1}, "counted from 0"),
        ({"name": "last", "start_step": 2, "stop_step": 2}, "holds no token"),
        ({"name": "prompt", "stop_step": 2}, "knows no decoding steps"),
        ({"name": "tokens"}, "Scope.of_tokens"),
        ({"name": "all", "tokens": (1,)}, "Scope.of_tokens"),
    ],
)
def test_refusals(settings: Any, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        Scope(**settings)


def test_a_set_of_tokens_by_words() -> None:
    tokenizer = make_tokenizer()
    dog, cat = tokenizer("dog cat", add_special_tokens=False).input_ids
    assert Scope.of_tokens(["dog", cat, "dog"], tokenizer) == Scope("tokens", tokens=tuple(sorted({dog, cat})))
    with pytest.raises(TokenError, match=r"'dog cat' is 2 for this tokenizer \('dog', 'cat'\)"):
        Scope.of_tokens(["dog cat"], tokenizer)
    with pytest.raises(TokenError, match="'zebra' is 1 for this tokenizer"):
        Scope.of_tokens(["zebra"], tokenizer)
    with pytest.raises(SettingError, match="give model.tokenizer"):
        Scope.of_tokens(["dog"])
    with pytest.raises(SettingError, match="needs ids"):
        Scope.of_tokens([])


def test_within_keeps_both_windows() -> None:
    assert Scope("last").within(Scope("prompt", start=2, stop=5)) == Scope("last", start=2, stop=5)
    assert Scope(start=3).within(Scope("prompt", start=2, stop=5)) == Scope(start=3, stop=5)
    assert Scope(start=5).within(Scope("prompt", start=2, stop=5)) is None
    assert Scope("prompt", start=4).everywhere == Scope("prompt")


def test_a_scope_is_written_and_read_as_plain_data() -> None:
    for scope in SCOPES.values():
        assert Scope.rebuilt(json.loads(json.dumps(asdict(scope)))) == scope


@pytest.mark.plain  # a type check would speak first
def test_an_unknown_name() -> None:
    # As a user meets it: without the type checks of the tests.
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with pytest.raises(SettingError, match="Scope: name is 'all', 'prompt', .* not 'first'"):
            as_scope("first")  # type: ignore[arg-type]
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
