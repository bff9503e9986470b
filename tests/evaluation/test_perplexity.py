import math
from typing import Any

import numpy as np
import pytest
import torch

from lens_steer.errors import LensSteerWarning, ModelError, SettingError, TokenError
from lens_steer.evaluation.generation import generate
from lens_steer.evaluation.perplexity import perplexity, text_losses
from lens_steer.host.adapter import host_of
from tests.evaluation.hosts import random_edit
from tests.families import sentences

TEXTS = sentences(9, seed=2, length=(2, 15))
STORIES = [
    "Once upon a time there was a little dog.",
    "Lily was very sad because her mother said that she could not go to the park.",
    "The boy ran.",
    "No!",
]
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


@pytest.mark.filterwarnings("ignore:no token was in the scope")
@pytest.mark.parametrize("scope", ["all", "prompt", "generated", "last"])
def test_steered_equals_the_plain_loop_under_the_edit(hosted: Any, scope: Any) -> None:
    edit = random_edit(hosted, scope=scope)
    expected = []
    for text in TEXTS:
        with edit.on(hosted, 0.5):
            expected.append(plain_loss(hosted, text)[0])
    for batch_size in (1, None):
        losses = text_losses(hosted, TEXTS, intervention=edit, strength=0.5, batch_size=batch_size)
        np.testing.assert_allclose(losses.sums, expected, rtol=1e-5)


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


def test_no_token_of_a_text_counts_as_generated(hosted: Any) -> None:
    texts = ["the dog", "the dog ran", "the dog ran home"]
    plain = [perplexity(hosted, [text]) for text in texts]
    with pytest.warns(LensSteerWarning, match="no token was in the scope"):
        with random_edit(hosted, scope="generated").on(hosted):
            assert [perplexity(hosted, [text]) for text in texts] == plain


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
