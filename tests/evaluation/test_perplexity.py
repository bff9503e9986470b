import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessorList

from lens_steer.errors import LensSteerWarning, ModelError, SettingError, TokenError
from lens_steer.evaluation.evaluation import evaluate
from lens_steer.evaluation.generation import generate
from lens_steer.evaluation.perplexity import perplexity, text_losses
from lens_steer.evaluation.scorers import WordList
from lens_steer.host import decode as decoding_room
from lens_steer.host.adapter import BridgeHost, host_of
from lens_steer.host.generations import Generation, announced
from lens_steer.host.scope import Scope
from lens_steer.host.tokens import tokenize
from lens_steer.interventions.intervention import Intervention
from lens_steer.methods.caa import CAA
from lens_steer.methods.cast import CAST
from lens_steer.texts.contrast import ContrastSet
from tests.evaluation.hosts import random_edit
from tests.families import sentences

TEXTS = sentences(9, seed=2, length=(2, 15))
STORIES = [
    "Once upon a time there was a little dog.",
    "Lily was very sad because her mother said that she could not go to the park.",
    "The boy ran.",
    "No!",
]
SAD = ContrastSet(sentences(12, seed=1, must="sad"), sentences(12, seed=2, must="happy"))
pytestmark = pytest.mark.compat


def plain_loss(model: Any, text: str, prompt: str = "") -> tuple[float, int]:
    """One unpadded text, from the model's own logits, in double precision: summed loss and tokens."""
    tokenizer, bos = model.tokenizer, host_of(model).prepends_bos
    ids = [tokenizer.bos_token_id] * bos + tokenizer(prompt + text, add_special_tokens=False).input_ids
    given = max(1, bos + len(tokenizer(prompt, add_special_tokens=False).input_ids))
    with torch.no_grad():
        logs = model(torch.tensor([ids]), return_type="logits")[0].double().log_softmax(1)
    losses = [-float(logs[place - 1, ids[place]]) for place in range(given, len(ids))]
    return sum(losses), len(losses)


def require_plain(model: Any, texts: list[str], **settings: Any) -> None:
    sums, counts = zip(*(plain_loss(model, text) for text in texts), strict=True)
    assert perplexity(model, texts, **settings) == pytest.approx(math.exp(sum(sums) / sum(counts)), rel=1e-5)
    by_text = math.exp(np.mean([loss / count for loss, count in zip(sums, counts, strict=True)]))
    assert perplexity(model, texts, reduction="text", **settings) == pytest.approx(by_text, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_equals_the_plain_loop(hosted: Any, batch_size: int | None) -> None:
    require_plain(hosted, TEXTS, batch_size=batch_size)


def test_equals_the_plain_loop_on_every_family(family: Any) -> None:
    require_plain(family, TEXTS)


@pytest.mark.real
def test_equals_the_plain_loop_on_real_models(real_model: Any) -> None:
    require_plain(real_model, STORIES)


def forced(model: Any, prompt: list[int], completion: list[int], edit: Intervention) -> float:
    """The completion's loss where it is forced on a generation, token by token on a cache: what an edit truly costs."""
    host, losses = host_of(model), []

    def force(input_ids: Tensor, scores: Tensor) -> Tensor:
        token = (
            completion[input_ids.shape[1] - len(prompt)] if isinstance(host, BridgeHost) else completion[len(losses)]
        )
        losses.append(-float(scores.double().log_softmax(1)[0, token]))
        return torch.full_like(scores, -1e9).index_fill(1, torch.tensor([token]), 0.0)

    run = decoding_room._bridge_generate if isinstance(host, BridgeHost) else decoding_room._hooked_generate
    ids = torch.tensor([prompt])
    with torch.no_grad(), edit.on(model), announced(Generation(host, ids=ids)):
        run(host, ids, torch.ones_like(ids, dtype=torch.bool), LogitsProcessorList([force]), len(completion), [])
    return sum(losses)


SCOPES: list[Any] = ["all", "prompt", "generated", "last", Scope.of_steps(2), Scope.of_steps(3, 1, name="last")]


@pytest.mark.parametrize("scope", SCOPES, ids=str)
def test_steered_equals_a_generation_that_is_forced(hosted: Any, scope: Any) -> None:
    """Pairs of every length in one batch; plain texts are completions of BOS."""
    edit = random_edit(hosted).scoped(scope)
    pairs = [("the dog", " was very sad"), ("", "cat ran"), ("the mother sat in the park and", " cried and ran home")]
    rows: list[Any] = pairs if scope == "prompt" else [*pairs, *TEXTS[:3]]
    tokens = tokenize(hosted, rows)
    expected = [
        forced(hosted, list(ids[: prompt or 1]), list(ids[prompt or 1 :]), edit)
        for ids, prompt in zip(tokens.ids, tokens.prompts, strict=True)
    ]
    for batch_size in (1, None):
        losses = text_losses(hosted, rows, intervention=edit, batch_size=batch_size)
        np.testing.assert_allclose(losses.sums, expected, rtol=1e-4)
    assert abs(text_losses(hosted, rows).sums - expected).min() > 1e-3 or scope == "prompt"


@pytest.mark.real
@pytest.mark.parametrize("scope", ["generated", "last"])
def test_the_cost_of_an_edit_of_generated_tokens(tinytalk: Any, scope: Any) -> None:
    """A completion under an edit that breaks it: what evaluate and perplexity say is what generation gives."""
    sad = ["She cried all night because her cat was lost.", "He felt sad and lonely.", "The boy was upset and cried."]
    glad = ["She laughed all day because her cat came home.", "He felt glad and warm.", "The boy was happy and sang."]
    edit = CAA(layers=(2,), multiplier=12.0).fit(tinytalk, ContrastSet(sad, glad)).scoped(scope)
    pair = ("The boy lost his dog. He was", " very happy and he sang")
    (ids,), (prompt,) = (tokens := tokenize(tinytalk, [pair])).ids, tokens.prompts
    assert prompt is not None
    right = math.exp(forced(tinytalk, list(ids[:prompt]), list(ids[prompt:]), edit) / (len(ids) - prompt))
    plain = perplexity(tinytalk, [pair])
    assert perplexity(tinytalk, [pair], intervention=edit) == pytest.approx(right, rel=1e-4)
    assert right > {"generated": 1.2, "last": 8.0}[scope] * plain
    settings: dict[str, Any] = {"prompts": [pair[0]], "scorer": WordList(["sad"]), "max_new_tokens": 2}
    for neutral in ([pair], ["A big dog ran to the park.", "They had a red ball.", "The girl liked to play."]):
        frame = evaluate(tinytalk, edit, neutral=neutral, **settings).frame.set_index("measure")
        assert frame.change["cost"] > 0.1 * plain


def test_texts_without_prompt_are_refused_where_an_edit_is_for_prompts(tiny: Any) -> None:
    for edit in (random_edit(tiny, scope="prompt"), CAST(base=CAA(layers=(-1,))).fit(tiny, SAD)):
        with pytest.raises(SettingError, match=r"plain texts have none .*give \(prompt, completion\) pairs"):
            perplexity(tiny, TEXTS, intervention=edit)
        perplexity(tiny, [("the dog was sad and", " ran"), ("the happy bird", " sang")], intervention=edit)


def test_a_gate_decides_on_the_prompt_of_a_pair(tiny: Any) -> None:
    """Whatever is completed: the rows for which it opens are those for which it opens on the prompt alone."""
    edit = CAST(base=CAA(layers=(-1,)), similarity="cosine", direction="mean_difference").fit(tiny, SAD)
    prompts = ["the dog was sad and sad", "a happy bird", "sad sad", "the happy happy girl smiled at"]
    opened = []
    for prompt in prompts:
        generate(tiny, [prompt], intervention=edit, max_new_tokens=1)
        opened.append(bool(edit.touched.prompt_tokens.sum()))
    assert 0 < sum(opened) < len(opened)
    for word in ("sad", "happy"):
        pairs = [(prompt, f" {word} {word} {word} {word} {word} ran") for prompt in prompts]
        moved = text_losses(tiny, pairs, intervention=edit).sums != text_losses(tiny, pairs).sums
        assert moved.tolist() == opened


def test_is_exp_of_the_models_own_loss(hosted: Any) -> None:
    for text in TEXTS[:3]:
        ids = torch.tensor([[1, *hosted.tokenizer(text, add_special_tokens=False).input_ids]])
        loss = float(hosted(ids, return_type="loss"))
        assert perplexity(hosted, [text]) == pytest.approx(math.exp(loss), rel=1e-5)


def test_pairs_count_their_completion_only(hosted: Any) -> None:
    pairs = [("the dog", " was very sad"), ("", "cat ran"), ("the mother sat in the park and", " cried")]
    losses = text_losses(hosted, pairs)
    for (prompt, completion), loss, count in zip(pairs, losses.sums, losses.counts, strict=True):
        expected = plain_loss(hosted, completion, prompt)
        assert (loss, count) == (pytest.approx(expected[0], rel=1e-5), expected[1])


def test_chat_surrounds_the_prompt_of_a_pair(tiny: Any) -> None:
    written_out = perplexity(tiny, [("the dog was", " very sad")])
    assert perplexity(tiny, [("dog", " very sad")], chat="the {text} was") == written_out


def test_strength_zero_is_the_model_itself(hosted: Any) -> None:
    edit = random_edit(hosted)
    plain = perplexity(hosted, TEXTS)
    assert perplexity(hosted, TEXTS, intervention=edit, strength=0.0) == plain
    assert perplexity(hosted, TEXTS, intervention=edit) != pytest.approx(plain, rel=1e-3)
    assert perplexity(hosted, TEXTS) == plain


def test_order_and_repetition_change_nothing(tiny: Any) -> None:
    losses, backwards = text_losses(tiny, TEXTS), text_losses(tiny, TEXTS[::-1])
    np.testing.assert_allclose(losses.sums, backwards.sums[::-1], rtol=1e-5)
    assert perplexity(tiny, TEXTS * 2) == pytest.approx(perplexity(tiny, TEXTS), rel=1e-5)


def test_greedy_text_is_the_least_surprising(tiny: Any) -> None:
    greedy, sampled = (generate(tiny, ["the dog"] * 4, max_new_tokens=8, temperature=t, chat=None) for t in (0.0, 5.0))
    pairs = [[("the dog", text) for text in texts if text.strip()] for texts in (greedy, sampled)]
    assert perplexity(tiny, pairs[0]) < perplexity(tiny, pairs[1])


def test_long_texts_are_cut_with_a_warning(tiny: Any) -> None:
    with pytest.warns(LensSteerWarning, match="1 of 2"):
        losses = text_losses(tiny, ["dog " * 80, "the cat"])
    assert losses.counts.tolist() == [63, 2]


def test_bad_input_is_refused(tiny: Any) -> None:
    with pytest.raises(SettingError, match="no text"):
        perplexity(tiny, [])
    with pytest.raises(SettingError, match="list"):
        perplexity(tiny, "the dog")
    with pytest.raises(SettingError, match="batch_size"):
        perplexity(tiny, TEXTS, batch_size=0)
    with pytest.raises(TokenError, match="text 1 has no token to predict"):
        perplexity(tiny, ["the dog", ""])
    with pytest.raises(ModelError, match="not finite"):
        perplexity(tiny, TEXTS, intervention=random_edit(tiny).scaled(1e38))
