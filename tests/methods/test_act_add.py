"""ActAdd against cached activations added by hand, with and without the key-value cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lens_steer.errors import ContrastError, SettingError, SiteError
from lens_steer.host.scope import Scope
from lens_steer.interventions.intervention import Intervention
from lens_steer.methods.act_add import ActAdd
from lens_steer.texts.contrast import ContrastSet
from tests.families import make_tiny
from tests.host.test_clock import left_padded

PAIR = ContrastSet(["the sad dog"], ["the happy dog ran home"])
PAD, BOS = 0, 1
STEPS = 4


def ids_of(model: Any, text: str) -> list[int]:
    return [BOS, *model.tokenizer(text, add_special_tokens=False).input_ids]


def difference(model: Any, name: str) -> Tensor:
    """Return [pos, unit]: what the target prompt of PAIR has over the source, filled up by hand, from two caches."""
    rows = [ids_of(model, text) for text in (PAIR.source[0], PAIR.target[0])]  # type: ignore[arg-type]
    rows[0] += [PAD] * (len(rows[1]) - len(rows[0]))
    source, target = (model.run_with_cache(torch.tensor([row]))[1][name][0] for row in rows)
    result: Tensor = target - source
    return result


def by_hand(model: Any, vectors: dict[str, Tensor], ids: list[int], prompt: int) -> Tensor:
    """Return the logits of a sequence with vectors added to the first tokens of its prompt."""

    def hook_of(vector: Tensor) -> Any:
        def add(tensor: Tensor, hook: Any) -> Tensor:
            count = min(prompt, len(vector))
            changed = tensor.clone()
            changed[:, :count] += vector[:count].reshape(1, count, *tensor.shape[2:])
            return changed

        return add

    with torch.no_grad(), model.hooks(fwd_hooks=[(name, hook_of(vector)) for name, vector in vectors.items()]):
        logits: Tensor = model(torch.tensor([ids]))
    return logits[0]


def starts(edit: Intervention) -> list[int]:
    return [one.scope.start for one in edit.edits]


@pytest.mark.compat
@pytest.mark.parametrize("site", ["hook_resid_pre", "hook_resid_post", "mlp.hook_post", "attn.hook_z"])
def test_it_adds_the_cached_difference_position_by_position(tiny: Any, site: str) -> None:
    edit = ActAdd(sites=site, layers=(1,), multiplier=1.5).fit(tiny, PAIR)
    (at,) = edit.sites
    vector = 1.5 * difference(tiny, at.name)
    ids = ids_of(tiny, "a big cat sat on the red tree and then ran")
    with edit.on(tiny):
        found = tiny(torch.tensor([ids]))[0]
    expected = by_hand(tiny, {at.name: vector}, ids, len(ids))
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (found - tiny(torch.tensor([ids]))[0]).abs().max() > 1e-2


@pytest.mark.compat
def test_bos_is_position_0_and_what_the_prompts_share_gets_nothing(tiny: Any) -> None:
    edit = ActAdd(layers=(1,)).fit(tiny, PAIR)
    assert starts(edit) == [2, 3, 4, 5]  # <bos> the | sad/happy dog/dog pad/ran pad/home
    assert all(one.scope == Scope("prompt", start=one.scope.start, stop=one.scope.start + 1) for one in edit.edits)
    assert float(difference(tiny, edit.sites[0].name)[:2].abs().max()) < 1e-5
    other = ActAdd(layers=(1,), prompts=("dog", "cat")).fit(tiny, PAIR)
    assert starts(other) == [1]


def test_without_bos_the_first_word_is_position_0() -> None:
    model = make_tiny("gpt2")
    model.cfg.default_prepend_bos = False
    edit = ActAdd(layers=(0,)).fit(model, ContrastSet(["sad"], ["happy dog"]))
    assert starts(edit) == [0, 1]
    embedding = model.original_model.get_input_embeddings().weight.detach()
    sad, happy = (model.tokenizer.convert_tokens_to_ids(word) for word in ("sad", "happy"))
    torch.testing.assert_close(edit.edits[0].map.shift, embedding[happy] - embedding[sad], rtol=1e-4, atol=1e-5)


@pytest.mark.compat
@pytest.mark.filterwarnings("ignore:no token was in the scope")  # of the shortest prompt
@pytest.mark.parametrize("prompt", ["a big cat sat on the tree", "a", "a big cat"])
def test_generation_with_and_without_a_cache(tiny: Any, prompt: str) -> None:
    """A prompt shorter than the pair is changed on its own tokens only, not on those that are generated."""
    edit = ActAdd().fit(tiny, PAIR)
    vectors = {site.name: difference(tiny, site.name) for site in edit.sites}
    row = ids_of(tiny, prompt)
    rows = [row, ids_of(tiny, "the bird sang and the boy smiled at the very small dog")]
    for together in ([row], rows):
        ids, mask = left_padded(together)
        for cache in (True, False):
            with edit.on(tiny):
                out = tiny.original_model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=STEPS,
                    do_sample=False,
                    use_cache=cache,
                    eos_token_id=None,
                    pad_token_id=PAD,
                    output_logits=True,
                    return_dict_in_generate=True,
                )
            whole = row + out.sequences[0, ids.shape[1] :].tolist()
            expected = by_hand(tiny, vectors, whole[:-1], len(row))[len(row) - 1 :]
            found = torch.stack(out.logits)[:, 0]
            assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_pair_is_chosen_by_number_or_given(tiny: Any) -> None:
    many = ContrastSet(["a bad day", "the sad dog"], ["a good day", "the happy dog ran home", "the cat"])
    single = ActAdd().fit(tiny, PAIR)
    assert ActAdd(pair=1).fit(tiny, many) == single
    assert ActAdd(prompts=("the sad dog", "the happy dog ran home")).fit(tiny, many) == single
    about = ActAdd(pair=1).fit(tiny, many).provenance
    assert about["prompts"] == ("the sad dog", "the happy dog ran home")
    assert about["tokens"][0][-2:] == [PAD, PAD]
    assert ActAdd(pair=0).fit(tiny, many) != single


def test_the_swap_is_the_negative_and_a_pair_its_whole_text(tiny: Any) -> None:
    assert ActAdd(multiplier=-2.0).fit(tiny, PAIR) == ActAdd(multiplier=2.0).fit(tiny, PAIR.swap())
    completions = ContrastSet([("the", " sad dog")], [("the", " happy dog ran home")])
    assert ActAdd().fit(tiny, completions) == ActAdd().fit(tiny, PAIR)
    chat = ContrastSet(PAIR.source, PAIR.target, chat="a boy {text} then")
    assert starts(ActAdd(layers=(0,)).fit(tiny, chat)) == [4, 5, 6, 7, 8]
    assert ActAdd(prompts=("the sad dog", "the happy dog ran home")).fit(tiny, chat) == ActAdd().fit(tiny, PAIR)


@pytest.mark.real
def test_the_shorter_prompt_is_filled_up_with_spaces(real_model: Any) -> None:
    edit = ActAdd(layers=(2,)).fit(real_model, ContrastSet(["Lily"], ["Lily was very very happy"]))
    source, target = edit.provenance["tokens"]
    assert len(source) == len(target)
    assert real_model.tokenizer.decode(source[-2:]).strip() == ""
    assert source[-1] != real_model.tokenizer.bos_token_id


def test_refusals(tiny: Any) -> None:
    two = ContrastSet(["a sad dog", "a sad cat"], ["a happy dog", "a happy cat"], name="moods")
    with pytest.raises(ContrastError, match=r"takes one pair.*'moods'.*has more: set pair= or prompts="):
        ActAdd().fit(tiny, two)
    with pytest.raises(ContrastError, match="has no pair 2; they are counted from 0"):
        ActAdd(pair=2).fit(tiny, two)
    with pytest.raises(ContrastError, match="same tokens"):
        ActAdd(prompts=("the dog", "the  dog")).fit(tiny, two)
    with pytest.raises(SettingError, match="finite"):
        ActAdd(multiplier=float("inf"))
    with pytest.raises(SettingError, match="goes without prompts"):
        ActAdd(pair=0, prompts=("a", "b"))
    with pytest.raises(SettingError, match="0 or more"):
        ActAdd(pair=-1)
    with pytest.raises(SettingError, match="neither of them blank"):
        ActAdd(prompts=("a", " "))
    with pytest.raises(SiteError, match="layer 9 does not exist"):
        ActAdd(layers=(9,)).fit(tiny, PAIR)
    with pytest.raises(SettingError, match="plain hooks see no positions"):
        ActAdd().fit(tiny, PAIR).hooks()
