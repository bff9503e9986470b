"""GGUF files: converted, their logits are their source's; what cannot be read is named, and nothing half is left."""

from __future__ import annotations

import hashlib
import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lens_steer import cli
from lens_steer.errors import LensSteerError, ModelError, OutputError
from lens_steer.host.adapter import host_of
from lens_steer.host.gguf import convert_gguf, read_gguf
from lens_steer.host.load import load_model
from tests.families import make_tokenizer
from tests.handles import logits
from tests.host.ggufs import CHAT, quantised, source, write_gguf
from tests.host.test_attach import random_edit

IDS = torch.tensor([[1, 5, 9, 7, 30, 31, 12, 40, 8]])


def plain_logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", source())


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text"])
@pytest.mark.parametrize("eight_bits", [False, True])
def test_a_converted_file_has_its_sources_logits(family: str, eight_bits: bool, tmp_path: Path) -> None:
    model = source(family)
    file = write_gguf(tmp_path / "tiny.gguf", model, tokenizer=False, eight_bits=eight_bits)
    out = convert_gguf(file, tmp_path / "out", tokenizer=make_tokenizer())
    written = AutoModelForCausalLM.from_pretrained(out)
    expected = plain_logits(quantised(model) if eight_bits else model)
    torch.testing.assert_close(plain_logits(written), expected, rtol=1e-6, atol=1e-6)
    content = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in content
    assert content["lens_steer_origin"] == {
        "file": "tiny.gguf",
        "quantization": "Q8_0" if eight_bits else "F32",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }


def test_the_directory_is_whole_in_plain_transformers(file: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(convert_gguf(file, tmp_path / "out"))
    assert tokenizer.tokenize("the dog 12") == ["the", "Ġdog", "Ġ", "1", "2"]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|start|>", "<|end|>")
    said = [{"role": "user", "content": "hi"}]
    assert tokenizer.chat_template == CHAT
    assert tokenizer.apply_chat_template(said, tokenize=False) == "<|start|>user: hi<|end|>"


def test_a_hosted_file_is_the_hosted_directory(file: Path, tmp_path: Path) -> None:
    direct, converted = load_model(file), load_model(convert_gguf(file, tmp_path / "out"))
    assert torch.equal(logits(direct, IDS), logits(converted, IDS))
    torch.testing.assert_close(logits(direct, IDS), plain_logits(source()), rtol=1e-4, atol=1e-5)
    for model in (direct, converted):
        assert model.to_tokens("the dog").tolist() == direct.to_tokens("the dog").tolist()
        assert model.tokenizer.chat_template == CHAT
        origin = host_of(model).provenance["origin"]
        assert "file tiny.gguf" in origin
        assert hashlib.sha256(file.read_bytes()).hexdigest() in origin
    assert host_of(direct).provenance["model"] == str(file)
    edit = random_edit(direct)
    with edit.on(direct), edit.on(converted):
        assert torch.equal(logits(direct, IDS), logits(converted, IDS))


def test_half_precision(file: Path, tmp_path: Path) -> None:
    out = convert_gguf(file, tmp_path / "half", dtype=torch.bfloat16)
    half = AutoModelForCausalLM.from_pretrained(out)
    assert half.dtype == torch.bfloat16
    single = convert_gguf(file, tmp_path / "single")
    assert (out / "model.safetensors").stat().st_size < 0.6 * (single / "model.safetensors").stat().st_size
    expected = source().to(torch.bfloat16).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in half.state_dict().items())
    assert host_of(load_model(str(file), dtype="bfloat16")).dtype == torch.bfloat16


def test_digits_stand_alone_where_the_file_says_so(tmp_path: Path) -> None:
    cut = {}
    for pre in ("default", "smollm"):
        _, tokenizer = read_gguf(write_gguf(tmp_path / f"{pre}.gguf", source(), pre=pre))
        cut[pre] = [piece for piece, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12")]
    assert cut == {"default": ["a", "Ġ", "Ġ12"], "smollm": ["a", "ĠĠ", "1", "2"]}


def run(*words: str) -> str:
    written = io.StringIO()
    with redirect_stdout(written):
        cli.app(list(words))
    return written.getvalue()


def test_the_commands(file: Path, tmp_path: Path) -> None:
    assert "quantization F32" in run("convert", str(file), str(tmp_path / "out"), "--dtype", "bfloat16")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    random_edit(load_model(file)).scaled(0.0).save(tmp_path / "edit")
    baking = ["--intervention", str(tmp_path / "edit"), "--out", str(tmp_path / "baked")]
    run("bake", "--model", str(file), *baking)
    assert AutoTokenizer.from_pretrained(tmp_path / "baked").chat_template == CHAT
    no_tokenizer = write_gguf(tmp_path / "bare.gguf", source(), tokenizer=False)
    make_tokenizer().save_pretrained(tmp_path / "words")
    run("convert", str(no_tokenizer), str(tmp_path / "worded"), "--tokenizer", str(tmp_path / "words"))
    assert load_model(tmp_path / "worded").tokenizer.bos_token == "<bos>"


def refused(file: Path, match: str) -> None:
    out = file.parent / "out"
    for use in (lambda: load_model(file), lambda: convert_gguf(file, out)):
        with pytest.raises(ModelError, match=match) as raised:
            use()
        assert str(file) in str(raised.value)
        assert "\n" not in str(raised.value)
    assert not list(file.parent.glob("*out*"))


def test_a_file_without_tokenizer(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf", source(), tokenizer=False)
    refused(file, "has no tokenizer in it")
    model = load_model(file, tokenizer=make_tokenizer())
    torch.testing.assert_close(logits(model, IDS), plain_logits(source()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["grok", "rwkv7"])
def test_an_architecture_that_transformers_cannot_read(architecture: str, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf", source(), architecture=architecture)
    refused(file, f"{architecture!r}, which this transformers cannot read from GGUF; it reads .*llama")


def test_an_encoder_decoder(tmp_path: Path) -> None:
    refused(write_gguf(tmp_path / "x.gguf", source(), architecture="t5"), "'t5': it continues no texts")


def test_a_weight_that_is_missing(tmp_path: Path) -> None:
    """transformers would draw it at random and say so in a warning."""
    file = write_gguf(tmp_path / "x.gguf", source(), leave_out="layers.1.mlp.up_proj")
    refused(file, "lacks 1 weights .*layers.1.mlp.up_proj")


def test_weights_of_another_shape(tmp_path: Path) -> None:
    """transformers takes 128 for the width of every Qwen-3 head."""
    file = write_gguf(tmp_path / "x.gguf", source("qwen3", head_dim=8))
    refused(file, "has in another shape 12 weights .*layers.0.self_attn")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.99])
def test_half_a_file(file: Path, share: float, tmp_path: Path) -> None:
    whole = file.read_bytes()
    half = tmp_path / "x.gguf"
    half.write_bytes(whole[: int(share * len(whole))])
    refused(half, "no GGUF file" if share == 0 else "damaged or only half there .*fetch it again")


@pytest.mark.parametrize("place", [4, 8, 16, 30, 60])
def test_numbers_that_are_not_there(file: Path, place: int, tmp_path: Path) -> None:
    """Version, counts, lengths and types of the header, overwritten."""
    content = bytearray(file.read_bytes())
    content[place : place + 8] = b"\xff" * 8
    broken = tmp_path / "x.gguf"
    broken.write_bytes(content)
    refused(broken, "damaged")


def test_no_such_file_and_no_gguf(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gone.gguf cannot be read: No such file"):
        load_model(tmp_path / "gone.gguf")
    (tmp_path / "text.gguf").write_text("a text")
    refused(tmp_path / "text.gguf", "is no GGUF file")


def test_the_package_is_missing(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lens_steer.host.gguf.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'lens-steer\[gguf\]'"):
        load_model(file)


def test_an_occupied_place_is_refused_before_the_work(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    monkeypatch.setattr("lens_steer.host.gguf.read_gguf", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(OutputError, match="already holds other results"):
        convert_gguf(file, tmp_path / "out")


def test_nothing_half_is_left_when_writing_fails(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(LensSteerError, match="No space left on device"):
        convert_gguf(file, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
