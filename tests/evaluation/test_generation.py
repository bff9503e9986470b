from typing import Any

import pytest

from lens_steer.errors import ArtifactError, SettingError, SiteError, TokenError
from lens_steer.evaluation.generation import generate
from lens_steer.host.fingerprint import SiteReading
from lens_steer.host.sites import find_sites
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from tests.evaluation.hosts import CloseCalls, random_edit
from tests.families import WORDS, sentences

PROMPTS = ["", *sentences(7, seed=1, length=(1, 12))]
STORIES = [
    "Once upon a time there was a little dog",
    "",
    "Lily was very sad because her mother said that she could not go to the park with her friends today",
    "The boy",
    "Tom and Ben found a big red ball. Tom said",
    "One day a bird sat in the tree and",
    "The water was cold, so the cat",
    "Mia",
]
WAYS = [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2}]


@pytest.mark.compat
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("scope", [None, "last"])
def test_batches_equal_rows(hosted: Any, way: dict[str, Any], scope: Any, close_calls: CloseCalls) -> None:
    settings = {**way, "max_new_tokens": 8, "intervention": scope and random_edit(hosted, scope=scope)}
    single = generate(hosted, PROMPTS, batch_size=1, **settings)
    for batch_size in (3, None):
        close_calls.require_equal(generate(hosted, PROMPTS, batch_size=batch_size, **settings), single)


@pytest.mark.real
@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("scope", [None, "last"])
def test_batches_equal_rows_on_real_models(
    real_model: Any, way: dict[str, Any], scope: Any, close_calls: CloseCalls
) -> None:
    edit = scope and random_edit(real_model, scope=scope, size=0.03)
    settings = {**way, "max_new_tokens": 12, "intervention": edit}
    single = generate(real_model, STORIES, batch_size=1, **settings)
    close_calls.require_equal(generate(real_model, STORIES, **settings), single)


@pytest.mark.compat
def test_strength_leaves_the_random_stream_alone(hosted: Any) -> None:
    edit = random_edit(hosted)
    plain = generate(hosted, PROMPTS, max_new_tokens=8)
    assert generate(hosted, PROMPTS, max_new_tokens=8, intervention=edit, strength=0.0) == plain
    assert generate(hosted, PROMPTS, max_new_tokens=8, intervention=edit) != plain
    assert generate(hosted, PROMPTS, max_new_tokens=8) == plain


@pytest.mark.compat
def test_seed_and_row_change_the_text(hosted: Any) -> None:
    same = ["the dog"] * 6
    texts = generate(hosted, same, max_new_tokens=8, seed=0)
    assert len(set(texts)) == len(same)
    assert generate(hosted, same, max_new_tokens=8, seed=1) != texts
    assert generate(hosted, same[:2], max_new_tokens=8, seed=0) == texts[:2]
    assert len(set(generate(hosted, same, max_new_tokens=8, temperature=0.0))) == 1


@pytest.mark.compat
def test_an_edit_that_a_context_already_holds_acts_too(hosted: Any) -> None:
    edit = random_edit(hosted, scope="generated")
    inside = generate(hosted, PROMPTS, max_new_tokens=8, intervention=edit)
    with edit.on(hosted):
        assert generate(hosted, PROMPTS, max_new_tokens=8) == inside


@pytest.mark.filterwarnings("ignore:no token was in the scope")
def test_one_new_token_at_a_time_starts_a_new_prompt_each_call(tiny: Any) -> None:
    # Each prompt extends the one before by a token, and still none of its tokens was generated.
    prompts = [" ".join(WORDS[:length]) for length in range(1, 20)]
    plain = [generate(tiny, [prompt], max_new_tokens=1, temperature=0.0) for prompt in prompts]
    with random_edit(tiny, scope="generated", size=2.0).on(tiny):
        inside = [generate(tiny, [prompt], max_new_tokens=1, temperature=0.0) for prompt in prompts]
    assert inside == plain


@pytest.mark.real
def test_continuations_join_their_prompts(real_model: Any) -> None:
    prompt = "Once upon a time there was a little"
    (text,) = generate(real_model, [prompt], max_new_tokens=10, temperature=0.0)
    assert text.startswith(" ")
    ids = real_model.tokenizer(prompt + text, add_special_tokens=False).input_ids
    start = real_model.tokenizer(prompt, add_special_tokens=False).input_ids
    assert ids[: len(start)] == start
    assert "<" not in text


@pytest.mark.real
def test_agrees_with_transformer_lens_own_generate(tinytalk: Any) -> None:
    for prompt in STORIES[:4]:
        whole = tinytalk.generate(prompt, max_new_tokens=10, do_sample=False, verbose=False, prepend_bos=True)
        assert generate(tinytalk, [prompt], max_new_tokens=10, temperature=0.0)[0].strip() in whole


def test_chat_formats_surround_every_prompt(tiny: Any) -> None:
    plain = generate(tiny, ["the dog was", "the cat was"], max_new_tokens=5)
    assert generate(tiny, ["dog", "cat"], max_new_tokens=5, chat="the {text} was") == plain


def test_bad_input_is_refused(tiny: Any) -> None:
    for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"max_new_tokens": 0}, {"batch_size": 0}):
        with pytest.raises(SettingError, match=next(iter(bad))):
            generate(tiny, ["the dog"], **bad)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="list"):
        generate(tiny, "the dog")
    with pytest.raises(SettingError, match="no prompt"):
        generate(tiny, [])
    with pytest.raises(TokenError, match=r"prompt 1 has 41 tokens.*context of 64"):
        generate(tiny, ["the", "dog " * 40], max_new_tokens=24)
    assert len(generate(tiny, ["dog " * 39], max_new_tokens=24)) == 1
    with pytest.raises(TokenError, match="72 tokens"):
        generate(tiny, ["dog " * 71])


def test_empty_prompt_needs_a_bos(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny.cfg, "default_prepend_bos", False)
    with pytest.raises(TokenError, match="prompt 1 is empty"):
        generate(tiny, ["the", ""])


def test_interventions_that_do_not_fit_are_refused(tiny: Any) -> None:
    (site, *_) = find_sites(tiny, "hook_resid_post")
    elsewhere = {site.name: SiteReading(9.0, 9.0, (9.0,) * 16, (9.0,) * 16)}
    foreign = Intervention((Edit(site, DiagonalAffine.identity(32)),), fingerprint=elsewhere)
    with pytest.raises(ArtifactError, match="other weights"):
        generate(tiny, ["the"], intervention=foreign)
    wide = type(site)(site.name, site.layer, site.kind, 48)
    with pytest.raises(SiteError, match="32 units"):
        generate(tiny, ["the"], intervention=Intervention((Edit(wide, DiagonalAffine.identity(48)),)))
