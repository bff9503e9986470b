"""Tokens: one BOS, masks that never look at ids, what pools may read, chat formats, pairs, too long texts."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jaxtyping
import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, ByT5Tokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from lens_steer.activations.collect import collect
from lens_steer.errors import LensSteerWarning, ModelError, SettingError, TokenError
from lens_steer.evaluation.generation import generate
from lens_steer.evaluation.perplexity import perplexity
from lens_steer.host.adapter import host_of
from lens_steer.host.encoding import apply_chat
from lens_steer.host.load import load_model
from lens_steer.host.padding import most_pads
from lens_steer.host.scope import Scope
from lens_steer.host.sites import find_sites
from lens_steer.host.tokens import Tokens, tokenize
from lens_steer.texts.contrast import ContrastSet
from tests.compat import make_hooked_tiny
from tests.families import make_tiny, make_tokenizer

TEMPLATE = (
    "{{ bos_token }} {% for m in messages %}<user> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<bot> {% endif %}"
)


def words(model: Any, tokens: Tokens, row: int = 0) -> list[str]:
    return list(model.tokenizer.convert_ids_to_tokens(tokens.ids[row]))


def pooled(model: Any, tokens: Tokens, row: int = 0) -> list[str]:
    return [word for word, keep in zip(words(model, tokens, row), tokens.pooled[row], strict=True) if keep]


@pytest.fixture(scope="module")
def chatty() -> Any:
    """A model whose tokenizer has a template, with turn markers that are added tokens and no named special ones."""
    model = make_tiny("gpt2")
    # Its vocabulary of 64 has room for two more.
    marks = [AddedToken(mark, special=True) for mark in ("<user>", "<bot>")]
    model.tokenizer = copy.deepcopy(model.tokenizer)
    model.tokenizer.add_tokens(marks, special_tokens=True)
    model.tokenizer.chat_template = TEMPLATE
    assert len(model.tokenizer) <= 64
    return model


@pytest.mark.compat
def test_one_bos_that_no_pool_reads(host_model: Any) -> None:
    tokens = tokenize(host_model, ["a dog ran", "<bos> a dog ran"])
    assert words(host_model, tokens) == words(host_model, tokens, 1) == ["<bos>", "a", "dog", "ran"]
    assert pooled(host_model, tokens) == ["a", "dog", "ran"]
    assert tokens.lengths == [4, 4]
    assert len(tokens) == 2


@pytest.mark.compat
def test_no_bos_where_the_model_wants_none() -> None:
    model = make_tiny("gpt2")
    model.cfg.default_prepend_bos = False
    assert words(model, tokenize(model, ["a dog"])) == ["a", "dog"]
    assert words(model, tokenize(model, [("a dog", " ran")])) == ["a", "dog", "ran"]
    assert pooled(model, tokenize(model, [("a dog", " ran")])) == ["ran"]


@pytest.mark.compat
@pytest.mark.parametrize("inside", [True, False])
def test_special_tokens_in_the_text(host_model: Any, inside: bool) -> None:
    tokens = tokenize(host_model, ["a dog <eos> ran nowhere"], special_in_pool=inside)
    assert words(host_model, tokens) == ["<bos>", "a", "dog", "<eos>", "ran", "<unk>"]
    assert pooled(host_model, tokens) == (words(host_model, tokens) if inside else ["a", "dog", "ran"])


@pytest.mark.compat
def test_batches_are_padded_on_the_right_with_the_mask_of_their_lengths(host_model: Any) -> None:
    tokens = tokenize(host_model, ["a dog ran home", "cat", "the <pad> cat"])
    batch = tokens.batch([1, 0, 2])
    assert batch.ids.tolist() == [[1, 7, 0, 0, 0], list(tokens.ids[0]), [1, 4, 0, 7, 0]]
    assert batch.mask.tolist() == [[1, 1, 0, 0, 0], [1] * 5, [1, 1, 1, 1, 0]]
    assert batch.pooled.tolist() == [[0, 1, 0, 0, 0], [0, 1, 1, 1, 1], [0, 1, 0, 1, 0]]
    assert batch.ids.dtype == torch.long
    assert batch.mask.dtype == batch.pooled.dtype == torch.bool


def test_batches_hold_every_row_once_and_the_longest_first() -> None:
    tokens = Tokens(tuple((1,) * n for n in (3, 9, 2, 9, 5)), tuple((True,) * n for n in (3, 9, 2, 9, 5)), 0)
    batches = list(tokens.batches(2))
    assert [rows for rows, _ in batches] == [[1, 3], [4, 0], [2]]
    assert [tuple(batch.ids.shape) for _, batch in batches] == [(2, 9), (2, 5), (1, 2)]
    assert [rows for rows, _ in tokens.batches(2, rows=[2, 4, 0])] == [[4, 0], [2]]
    assert [rows for rows, _ in tokens.batches(budget=20)] == [[1, 3], [4, 0, 2]]
    assert [rows for rows, _ in tokens.batches(budget=1)] == [[1], [3], [4], [0], [2]]
    for size in (0, -1):
        with pytest.raises(SettingError, match="batch_size must be 1 or more"):
            list(tokens.batches(size))


def test_a_batch_has_at_most_so_many_pads() -> None:
    lengths = (3, 9, 2, 9, 5, 8)
    tokens = Tokens(tuple((1,) * n for n in lengths), tuple((True,) * n for n in lengths), 0)
    assert list(tokens.batch_rows(most_pads=0)) == [[1, 3], [5], [4], [0], [2]]
    assert list(tokens.batch_rows(most_pads=1)) == [[1, 3, 5], [4], [0, 2]]
    assert list(tokens.batch_rows(most_pads=99)) == list(tokens.batch_rows()) == [[1, 3, 5, 4, 0, 2]]
    assert list(tokens.batch_rows(most_pads=1, budget=18)) == [[1, 3], [5], [4], [0, 2]]
    assert list(tokens.batch_rows(4, most_pads=0)) == [[1, 3, 5, 4], [0, 2]]  # a size that was asked for holds
    for most in (0, 1, 5):
        for batch in (batch for _, batch in tokens.batches(most_pads=most)):
            assert int((~batch.mask).sum()) <= most


def test_pads_are_weighed_against_a_pass_by_the_width_of_the_model(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = most_pads(tiny)
    monkeypatch.setattr(host_of(tiny).model.cfg, "d_model", 4096)
    wide = most_pads(tiny)
    assert narrow is not None
    assert wide is not None
    assert 0 < wide < narrow


@pytest.mark.compat
def test_a_format_is_laid_around_the_text(host_model: Any) -> None:
    tokens = tokenize(host_model, ["a dog ran"], chat="boy {text} girl")
    assert words(host_model, tokens) == ["<bos>", "boy", "a", "dog", "ran", "girl"]
    assert pooled(host_model, tokens) == ["a", "dog", "ran"]
    asked_for = tokenize(host_model, ["a dog ran"], chat="boy {text} girl", format_in_pool=True)
    assert pooled(host_model, asked_for) == words(host_model, tokens)[1:]
    pair = tokenize(host_model, [("a dog", " ran")], chat="<bos> boy {text} girl")
    assert words(host_model, pair) == ["<bos>", "boy", "a", "dog", "girl", "ran"]
    assert pooled(host_model, pair) == ["ran"]


@pytest.mark.compat
def test_a_text_with_braces_does_not_disturb_the_format(tiny: Any) -> None:
    assert apply_chat(tiny.tokenizer, "{text} {0}", "say {text} !") == "say {text} {0} !"


@pytest.mark.compat
def test_the_tokenizers_template(chatty: Any) -> None:
    tokens = tokenize(chatty, ["a dog ran"], chat=True)
    assert words(chatty, tokens) == ["<bos>", "<user>", "a", "dog", "ran", "<bot>"]
    assert pooled(chatty, tokens) == ["a", "dog", "ran"]
    pair = tokenize(chatty, [("a dog", "ran home")], chat=True)
    assert words(chatty, pair) == ["<bos>", "<user>", "a", "dog", "<bot>", "ran", "home"]
    assert pooled(chatty, pair) == ["ran", "home"]


@pytest.mark.compat
def test_markers_that_are_added_tokens_are_special(chatty: Any) -> None:
    """Llama-3 lists its turn markers among the added tokens only."""
    assert set(Scope.without_special(chatty.tokenizer).special) == {0, 1, 2, 3, *chatty.tokenizer.added_tokens_decoder}
    assert pooled(chatty, tokenize(chatty, ["<user> a dog <bot>"])) == ["a", "dog"]


@pytest.mark.compat
def test_no_template(host_model: Any) -> None:
    with pytest.raises(TokenError, match=r'no chat template: give the format, such as chat="User: \{text\}'):
        tokenize(host_model, ["a dog"], chat=True)
    assert tokenize(host_model, ["a dog"], chat=False) == tokenize(host_model, ["a dog"], chat=None)


@pytest.mark.compat
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (("a dog", " ran home"), ["ran", "home"]),
        (("a dog ", "ran home"), ["ran", "home"]),
        (("", "a dog"), ["a", "dog"]),
        (("a do", "g ran"), ["dog", "ran"]),  # a token that spans the boundary belongs to the completion
        (("a dog <eos>", " ran"), ["ran"]),
    ],
)
def test_pairs_pool_their_completion(host_model: Any, row: tuple[str, str], expected: list[str]) -> None:
    assert pooled(host_model, tokenize(host_model, [row])) == expected


@pytest.mark.compat
@pytest.mark.parametrize(
    ("scope", "text", "pair"),
    [
        (Scope("prompt"), None, ["a", "dog"]),
        (Scope("last"), ["a", "dog", "ran", "home"], ["dog", "ran", "home"]),
        (Scope("generated"), ["a", "dog", "ran", "home"], ["ran", "home"]),
        (Scope.of_steps(1), ["a"], ["ran"]),
        (Scope.of_steps(1, name="last"), None, ["dog"]),
        (Scope.from_position(2), ["dog", "ran", "home"], ["ran", "home"]),
        (Scope.from_position(4), ["home"], ["home"]),
        (Scope.from_position(5), None, None),
        (Scope("no_special", special=(1, 5)), ["dog", "ran", "home"], ["ran", "home"]),
    ],
)
def test_scopes(host_model: Any, scope: Scope, text: list[str] | None, pair: list[str] | None) -> None:
    for row, expected in ("a dog ran home", text), (("a dog", " ran home"), pair):
        if expected is None:
            with pytest.raises(
                (TokenError, SettingError), match="text 0 has no token that a pool|plain texts have none"
            ):
                tokenize(host_model, [row], scope=scope)
        else:
            assert pooled(host_model, tokenize(host_model, [row], scope=scope)) == expected


@pytest.mark.compat
@pytest.mark.parametrize("text", ["", "   ", "<eos>", ("a dog", ""), ("a dog", "<eos>")])
def test_nothing_to_pool(host_model: Any, text: Any) -> None:
    with pytest.raises(TokenError, match="text 1 has no token that a pool may read"):
        tokenize(host_model, ["a dog", text])


@pytest.mark.compat
def test_too_long_texts_are_cut_and_counted(host_model: Any) -> None:
    long, context = "dog " * 80, 64
    with pytest.warns(LensSteerWarning, match="2 of 3 texts were longer than the context of 64 tokens and were cut"):
        tokens = tokenize(host_model, [long + "home", "cat " + long, "a dog"])
    assert tokens.lengths == [context, context, 3]
    assert words(host_model, tokens, 1) == ["<bos>", "cat", *["dog"] * 62]
    with pytest.raises(TokenError, match="text 1 has 82 tokens, the model's context is 64"):
        tokenize(host_model, ["a dog", "cat " + long], overflow="refuse")
    exact = "dog " * 63
    assert tokenize(host_model, [exact], overflow="refuse").lengths == [64]


@pytest.mark.compat
def test_too_long_pairs_keep_bos_and_completion(host_model: Any) -> None:
    with pytest.warns(LensSteerWarning, match="1 of 1 texts"):
        tokens = tokenize(host_model, [("dog " * 80, "ran home")])
    assert words(host_model, tokens) == ["<bos>", *["dog"] * 61, "ran", "home"]
    assert pooled(host_model, tokens) == ["ran", "home"]
    with pytest.warns(LensSteerWarning, match="1 of 1 texts"):
        tokens = tokenize(host_model, [("dog " * 3, "cat " * 80)])
    assert words(host_model, tokens) == ["<bos>", *["cat"] * 63]
    assert pooled(host_model, tokens) == ["cat"] * 63


@pytest.mark.compat
def test_a_cut_text_runs(host_model: Any) -> None:
    with pytest.warns(LensSteerWarning, match="1 of 2"):
        values = collect(host_model, ContrastSet(["dog " * 80], ["a cat"]), "hook_resid_post", pool="mean")
    assert torch.isfinite(values.source[values.sites[0]]).all()


def test_a_model_without_tokenizer() -> None:
    model = make_tiny("gpt2")
    model.tokenizer = None
    with pytest.raises(ModelError, match="no tokenizer: pass one to load_model"):
        tokenize(model, ["a dog"])


@pytest.mark.compat
def test_a_hooked_transformer_without_tokenizer() -> None:
    with pytest.raises(ModelError, match="no tokenizer: pass one to load_model"):
        tokenize(make_hooked_tiny(tokenizer=False), ["a dog"])


def test_a_tokenizer_without_pad_or_bos() -> None:
    tokenizer = make_tokenizer()
    tokenizer.bos_token = tokenizer.pad_token = None
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model = load_model(GPT2LMHeadModel(config), tokenizer=tokenizer)
    model.tokenizer.bos_token = model.tokenizer.pad_token = None
    tokens = tokenize(model, ["a dog", "cat"])
    assert words(model, tokens) == ["a", "dog"]
    assert tokens.batch([0, 1]).mask.tolist() == [[True, True], [True, False]]


@pytest.mark.compat
def test_padding_changes_nothing(host_model: Any) -> None:
    texts = ["a dog ran home and slept", "cat", "the <pad> boy"]
    rows = collect(host_model, ContrastSet(texts, ["a cat"]), ["hook_resid_post", "attn.hook_z"], batch_size=1)
    batch = collect(host_model, ContrastSet(texts, ["a cat"]), ["hook_resid_post", "attn.hook_z"], batch_size=4)
    for site in rows.sites:
        scale = rows.source[site].abs().max()
        assert (rows.source[site] - batch.source[site]).abs().max() < 1e-5 * scale


@pytest.mark.real
@pytest.mark.compat
def test_real_tokenizers(real_model: Any) -> None:
    """Pad, EOS, BOS and unknown are one id in tinytalk: masks come from lengths."""
    bos = real_model.tokenizer.bos_token
    texts = ["Once upon a time", "The dog ran home and was very happy."]
    tokens = tokenize(real_model, [*texts, bos + texts[0]])
    assert tokens.ids[0] == tokens.ids[2]
    for row in range(3):
        assert words(real_model, tokens, row).count(bos) == 1
        assert words(real_model, tokens, row)[0] == bos
        assert pooled(real_model, tokens, row) == words(real_model, tokens, row)[1:]
    batch = tokens.batch([0, 1])
    assert batch.mask.sum(1).tolist() == tokens.lengths[:2]
    assert batch.mask[0].tolist() == [True] * tokens.lengths[0] + [False] * (tokens.lengths[1] - tokens.lengths[0])
    chat = tokenize(real_model, ["I am sad."], chat="User: {text}\nBot:")
    assert real_model.tokenizer.decode(chat.ids[0][1:]) == "User: I am sad.\nBot:"
    with pytest.raises(TokenError, match="no chat template"):
        tokenize(real_model, ["I am sad."], chat=True)


@pytest.mark.real
@pytest.mark.compat
@pytest.mark.parametrize(
    ("prompt", "completion", "read"),
    [
        ("Once upon", " a time", " a time"),
        ("Once upon ", "a time", " a time"),
        ("Once up", "on a time", " upon a time"),
        ("I am sad.", "\nShe ran", "\nShe ran"),
        ("User: hi\nBot:", " I am", " I am"),
        ("a", "  dog", "  dog"),
    ],
)
def test_boundaries_of_pairs(real_model: Any, prompt: str, completion: str, read: str) -> None:
    tokens = tokenize(real_model, [(prompt, completion)])
    ids = [token for token, keep in zip(tokens.ids[0], tokens.pooled[0], strict=True) if keep]
    assert real_model.tokenizer.decode(list(tokens.ids[0][1:])) == prompt + completion
    assert real_model.tokenizer.decode(ids).strip(" ") == read.strip(" ")
    assert list(tokens.ids[0]) == list(tokenize(real_model, [prompt + completion]).ids[0])


@pytest.mark.real
def test_a_template_on_a_real_tokenizer(shared: Any) -> None:
    model = load_model(shared / "models" / "tinytalk-neo")
    model.tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}User: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}Bot:{% endif %}"
    )
    with_template = tokenize(model, ["I am sad.", "Hello"], chat=True)
    assert with_template == tokenize(model, ["I am sad.", "Hello"], chat="User: {text}\nBot:")
    assert [row.count(model.tokenizer.bos_token_id) for row in with_template.ids] == [1, 1]


GENERATED: dict[str, Any] = {"progress": False, "max_new_tokens": 4, "temperature": 0.0}


def test_conversations(chatty: Any) -> None:
    """Rows and prompts: the ids are those of the template, and the last message's words are read."""
    turns = [("system", "the cat"), ("user", "a dog ran"), ("assistant", "the bird sang"), ("user", "a boy")]
    chat = [{"role": role, "content": content} for role, content in turns]
    laid = chatty.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    tokens = tokenize(chatty, [chat, {"messages": chat}, chat[:3]], chat=True)
    expected = chatty.tokenizer(laid, add_special_tokens=False).input_ids
    assert list(tokens.ids[0]) == list(tokens.ids[1]) == expected
    assert [pooled(chatty, tokens, row) for row in range(3)] == [["a", "boy"]] * 2 + [["the", "bird", "sang"]]
    assert tokens.prompts == (None, None, len(tokens.ids[2]) - 3)
    assert words(chatty, tokens, 2)[-4:] == ["<bot>", "the", "bird", "sang"]
    found = generate(chatty, [chat, {"messages": chat}, chat[:3], "a dog"], **GENERATED)
    assert found == generate(
        chatty, [laid, laid, "".join(chatty.tokenizer.decode(tokens.ids[2])), "a dog"], **GENERATED
    )
    assert generate(chatty, [chat], chat=True, **GENERATED) == found[:1]


@pytest.mark.plain  # a type check would speak first
@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"role": "user", "content": "a dog"}, r"write a single message as \[message\]"),
        ([{"role": "user"}], "a message has a role and a text"),
        ({"messages": []}, "at least one message"),
        ([{"role": "assistant", "content": "a dog"}], "not the assistant's"),
        (3, "neither a text nor a conversation|a row is a text"),
        (None, "neither a text nor a conversation|a row is a text"),
        (["a dog", "ran"], "neither a text nor a conversation|a row is a text"),
    ],
)
def test_what_is_no_row_is_refused(chatty: Any, row: Any, says: str) -> None:
    for call in (tokenize, generate, perplexity):
        with untyped(), pytest.raises(SettingError, match=says):
            call(chatty, ["a dog", row])


@contextmanager
def untyped() -> Iterator[None]:
    """Call as a user does: without the type checks of the tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_templates_that_fail_and_texts_that_cannot_be_encoded(chatty: Any, tiny: Any) -> None:
    model = copy.copy(chatty.tokenizer)
    model.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(TokenError, match="refuses messages of the roles user: no system role"):
        apply_chat(model, "a dog", True)
    for call in (tokenize, generate):
        with pytest.raises(TokenError, match=r"1 cannot be encoded: it holds half of a surrogate pair"):
            call(tiny, ["a dog", "a \ud83d dog"])


def test_a_tokenizer_without_offsets() -> None:
    """Bytes as tokens: whose they are is told by the ids of the text's beginnings."""
    tokenizer = ByT5Tokenizer()
    config = GPT2Config(vocab_size=384, n_layer=2, n_head=2, n_embd=32, n_positions=128, bos_token_id=1, eos_token_id=1)
    model = load_model(GPT2LMHeadModel(config), tokenizer=tokenizer)
    pairs = [("Q: hi\nA:", " yés"), ("", "ja"), ("né", "é")]
    tokens = tokenize(model, pairs, chat="User: {text}!")
    for row, (_, completion) in enumerate(pairs):
        bytes_read = bytes(token - 3 for token, keep in zip(tokens.ids[row], tokens.pooled[row], strict=True) if keep)
        assert bytes_read.decode() == completion
        assert tokens.prompts[row] == len(tokens.ids[row]) - len(completion.encode())
    chat = tokenize(model, ["né ja"], chat="User: {text}!")
    assert bytes(t - 3 for t, keep in zip(chat.ids[0], chat.pooled[0], strict=True) if keep).decode() == "né ja"
    assert perplexity(model, pairs, progress=False) > 1
    with pytest.raises(TokenError, match="surrogate"):
        tokenize(model, ["a \ud83d dog"])


def test_an_opening_of_the_tokenizers_own(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """GLM's layout: two tokens of the tokenizer's own, and no BOS beside them."""
    ours = make_tokenizer()
    ours.backend_tokenizer.post_processor = TemplateProcessing(
        single="<unk> <pad> $A", special_tokens=[("<unk>", 3), ("<pad>", 0)]
    )
    monkeypatch.setattr(tiny, "tokenizer", ours)
    tokens = tokenize(tiny, ["a dog", ("a dog", " ran"), "<unk> <pad> a cat"])
    assert [words(tiny, tokens, row)[:3] for row in range(3)] == [["<unk>", "<pad>", "a"]] * 3
    assert tokens.prompts == (None, 4, None)


def test_an_invented_bos_beyond_the_vocabulary() -> None:
    """TransformerLens gives a tokenizer without special tokens one that no embedding has."""
    bare = Tokenizer(WordLevel({"<u>": 0, "a": 1, "dog": 2, "ran": 3}, unk_token="<u>"))
    bare.pre_tokenizer = WhitespaceSplit()
    with tempfile.TemporaryDirectory() as folder:
        PreTrainedTokenizerFast(tokenizer_object=bare).save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    config = GPT2Config(
        vocab_size=4, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=None, eos_token_id=None
    )
    model = load_model(GPT2LMHeadModel(config), tokenizer=tokenizer)
    tokens = tokenize(model, ["a dog ran", "a"])
    assert tokens.ids == ((1, 2, 3), (1,))
    assert tokens.pad_id < 4
    assert generate(model, ["a dog", "ran a dog"], **GENERATED)
    values = collect(model, ContrastSet(["a dog ran"], ["dog"]), "hook_resid_post").source
    assert all(torch.isfinite(values[site]).all() for site in find_sites(model, "hook_resid_post"))


def test_a_long_text_does_not_set_the_size_of_all_batches(tiny: Any) -> None:
    texts = ["dog " * 60, *["a dog ran", "the cat sat on the tree", "a bird"] * 20]
    batches = [len(rows) for rows, _ in tokenize(tiny, texts).batches(budget=128)]
    assert batches[0] == 2
    assert max(batches) > 20
    for size in (1, 7):
        one, other = (collect(tiny, ContrastSet(texts, ["the"]), "hook_resid_post", batch_size=n) for n in (size, None))
        for site in one.sites:
            scale = one.values[site].abs().max()
            assert (one.values[site] - other.values[site]).abs().max() < 1e-5 * scale


def test_a_tokenizer_that_is_given_again_does_not_change_the_vocabulary() -> None:
    model = make_tiny("gpt2")
    host, before = host_of(model), host_of(model).probe_ids(16)
    model.tokenizer = model.tokenizer  # a bridge now says that it has as many tokens as the tokenizer knows
    assert host.vocabulary == model.W_U.shape[-1] == 64
    assert torch.equal(host.probe_ids(16), before)
