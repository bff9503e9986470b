"""Loading: what is accepted, what comes back, what is refused, and what is never run or unpickled."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from lens_steer.activations.collect import collect
from lens_steer.errors import ModelError
from lens_steer.host.adapter import host_of
from lens_steer.host.load import load_model
from lens_steer.host.sites import find_sites
from lens_steer.texts.contrast import ContrastSet
from tests.compat import make_hooked_tiny
from tests.families import make_tiny, make_tokenizer, save_tiny, sentences
from tests.handles import logits
from tests.host.test_attach import random_edit

pytestmark = pytest.mark.compat

IDS = torch.tensor([[1, 5, 9, 7]])


def plain(**settings: Any) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, **settings))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A saved model with its tokenizer."""
    plain().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def is_ready(model: Any) -> bool:
    original = getattr(model, "original_model", model)
    modes = [module.training for module in (model, original, *original.modules())]
    return not any(modes) and not any(p.requires_grad for p in (*model.parameters(), *original.parameters()))


@pytest.mark.parametrize("as_text", [True, False])
def test_a_directory(directory: Path, as_text: bool) -> None:
    model = load_model(str(directory) if as_text else directory)
    assert is_ready(model)
    assert host_of(model).kind == "TransformerBridge"
    assert host_of(model).dtype == torch.float32
    assert host_of(model).context == 64
    torch.testing.assert_close(logits(model, IDS), plain().eval()(IDS).logits, rtol=1e-4, atol=1e-5)
    assert model.tokenizer.bos_token == "<bos>"


def test_a_relative_directory(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(directory.parent)
    for name in ("model", "./model"):
        assert host_of(load_model(name)).n_layers == 2
    assert host_of(load_model(Path("model"))).n_layers == 2


def test_a_hugging_face_model_keeps_its_weights_and_dtype() -> None:
    original = plain().to(torch.bfloat16).train()
    model = load_model(original, tokenizer=make_tokenizer())
    assert model.original_model is original
    assert is_ready(model)
    assert host_of(model).dtype == torch.bfloat16


def test_a_hugging_face_model_from_a_directory_finds_its_tokenizer(directory: Path) -> None:
    model = load_model(AutoModelForCausalLM.from_pretrained(directory))
    assert model.tokenizer.bos_token == "<bos>"
    assert is_ready(model)


@pytest.mark.parametrize("name", ["", "no/such-model", "gone"])
def test_a_hugging_face_model_without_tokenizer(name: str) -> None:
    original = plain()
    original.config._name_or_path = name
    with pytest.raises(ModelError, match="does not say where its tokenizer lies: pass tokenizer="):
        load_model(original)


def test_a_name_that_transformer_lens_knows_does_not_change_the_model() -> None:
    original = plain()
    original.config._name_or_path = "gpt2"
    model = load_model(original, tokenizer=make_tokenizer())
    assert (host_of(model).n_layers, host_of(model).context, model.cfg.d_model) == (2, 64, 32)


def test_a_bridge_is_returned_itself() -> None:
    model = make_tiny("gpt2")
    host = host_of(model)
    model.train()
    assert load_model(model) is model
    assert host_of(model) is host
    assert is_ready(model)


def test_a_hooked_transformer_is_returned_itself() -> None:
    model = make_hooked_tiny()
    assert load_model(model) is model
    assert host_of(model).kind == "HookedTransformer"
    assert is_ready(model)


def test_a_bridge_of_the_users_own(directory: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(directory))
    assert load_model(bridge) is bridge
    assert is_ready(bridge)


def test_a_second_bridge_over_one_model_is_refused() -> None:
    from transformer_lens.model_bridge import TransformerBridge

    model = make_tiny("gpt2")
    with pytest.raises(ModelError, match="already lives in a TransformerBridge: pass that bridge instead"):
        load_model(model.original_model, tokenizer=make_tokenizer())
    original = plain()
    first = load_model(original, tokenizer=make_tokenizer())
    second = None
    try:
        second = TransformerBridge.boot_transformers("local/gpt2", hf_model=original, tokenizer=make_tokenizer())
    except (ValueError, AttributeError, TypeError):
        pytest.skip("this transformer-lens refuses a second bridge itself")
    with pytest.raises(ModelError, match="already lives in another TransformerBridge"):
        load_model(second)
    assert host_of(first).model is first


@pytest.mark.parametrize("thing", [torch.nn.Linear(2, 2), torch.nn.Sequential()])
def test_not_a_language_model(thing: torch.nn.Module) -> None:
    with pytest.raises(ModelError, match="is neither a TransformerLens nor a Hugging Face model"):
        load_model(thing)
    with pytest.raises(ModelError, match=r"a TransformerLens model is needed.*load_model"):
        host_of(thing)


def test_missing_places(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a model directory: there is no such directory"):
        load_model(tmp_path / "gone")
    with pytest.raises(ModelError, match="is not a model directory: it has no config.json"):
        load_model(str(tmp_path))
    with pytest.raises(ModelError, match="no model 'no/such-model-anywhere'"):
        load_model("no/such-model-anywhere")


def test_a_directory_without_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"model.safetensors"):
        load_model(directory)


def test_half_the_weights(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:9000])
    with pytest.raises(ModelError, match="damaged or half-written weights.*fetch it again"):
        load_model(directory)


@pytest.mark.parametrize(
    "config", [{"model_type": "no-such-architecture"}, {"architectures": ["GPT2LMHeadModel"]}, {"model_type": "t5x"}]
)
def test_an_unknown_architecture(directory: Path, config: dict[str, Any]) -> None:
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=f"{directory.name}"):
        load_model(directory)


def forbid_pickles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []

    def refuse(*arguments: Any, **settings: Any) -> Any:
        read.append(str(arguments[0]))
        raise AssertionError("something was unpickled")

    for place, name in (torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"):
        monkeypatch.setattr(place, name, refuse)
    return read


@pytest.mark.parametrize("sharded", [False, True])
def test_pickled_weights_are_refused_unread(directory: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool) -> None:
    """transformers would read them with torch.load(weights_only=True): still an unpickler."""
    (directory / "model.safetensors").unlink()
    torch.save(
        plain().state_dict(), directory / ("pytorch_model-00001-of-00001.bin" if sharded else "pytorch_model.bin")
    )
    if sharded:
        index = {"metadata": {}, "weight_map": dict.fromkeys(plain().state_dict(), "pytorch_model-00001-of-00001.bin")}
        (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    read = forbid_pickles(monkeypatch)
    with pytest.raises(ModelError, match=r"no model.safetensors.*reads no pickles.*save_pretrained"):
        load_model(directory)
    assert read == []


def test_safe_weights_are_taken_where_pickled_ones_lie_beside(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"nonsense": torch.zeros(1)}, directory / "pytorch_model.bin")
    read = forbid_pickles(monkeypatch)
    assert torch.isfinite(logits(load_model(directory), IDS)).all()
    assert read == []


def test_sharded_safe_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    plain().save_pretrained(directory, max_shard_size="20KB")
    assert (directory / "model.safetensors.index.json").is_file()
    assert is_ready(load_model(directory))


def test_remote_code_runs_only_if_asked_for(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = directory / "it-ran"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\nfrom transformers import GPT2Config\n"
    code += "class Config(GPT2Config):\n    model_type = 'strange'\n"
    (directory / "strange.py").write_text(code)
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoConfig": "strange.Config"}}
    (directory / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks at the terminal
    with pytest.raises(ModelError, match="trust_remote_code"):
        load_model(directory)
    assert not marker.exists()


@pytest.mark.parametrize("trust", [None, True])
def test_trust_and_revision_are_passed_on(directory: Path, monkeypatch: pytest.MonkeyPatch, trust: bool | None) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    given: list[dict[str, Any]] = []
    boot = TransformerBridge.boot_transformers

    def record(name: str, **settings: Any) -> Any:
        given.append(settings)
        return boot(name, **settings)

    monkeypatch.setattr(TransformerBridge, "boot_transformers", record)
    load_model(directory, **({} if trust is None else {"trust_remote_code": trust}), revision="main")
    assert given[0]["trust_remote_code"] is bool(trust)
    assert given[0]["revision"] == "main"


def test_bfloat16_end_to_end(directory: Path) -> None:
    single, half = load_model(directory), load_model(directory, dtype=torch.bfloat16)
    assert host_of(half).dtype == torch.bfloat16
    assert host_of(half).provenance["dtype"] == "bfloat16"
    contrast = ContrastSet(sentences(6, seed=1), sentences(6, seed=2))
    for sites in ("hook_resid_post", "attn.hook_z", "mlp.hook_post"):
        fine, coarse = (collect(model, contrast, sites, pool="mean") for model in (single, half))
        for site in fine.sites:
            assert coarse.source[site].dtype == torch.float32
            spread = fine.source[site].std()
            assert (fine.source[site] - coarse.source[site]).abs().max() < 0.1 * spread
    edit = random_edit(single)
    before = logits(half, IDS)
    with edit.on(single), edit.on(half):
        fine_logits, coarse_logits = logits(single, IDS), logits(half, IDS)
    assert coarse_logits.dtype == torch.bfloat16
    assert (fine_logits - coarse_logits.float()).abs().max() < 0.05 * fine_logits.abs().max()
    assert torch.equal(logits(half, IDS), before)


@pytest.mark.real
def test_a_real_model_in_bfloat16(shared: Path, tinytalk: Any) -> None:
    half = load_model(shared / "models" / "tinytalk-neo", dtype=torch.bfloat16)
    contrast = ContrastSet(["Tom was sad and cried."], ["Tom was happy and smiled."])
    fine, coarse = (collect(model, contrast, "hook_resid_post", pool="mean") for model in (tinytalk, half))
    for site in fine.sites:
        assert (fine.source[site] - coarse.source[site]).abs().max() < 0.1 * fine.source[site].std()
    edit = random_edit(tinytalk).restrict(find_sites(tinytalk, "hook_resid_post", layers=[3]))
    ids = tinytalk.tokenizer(["Tom was sad"], return_tensors="pt").input_ids
    with edit.on(tinytalk), edit.on(half):
        expected, found = logits(tinytalk, ids), logits(half, ids).float()
    assert (expected - found).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.real
def test_real_models(real_model: Any, shared: Path, tmp_path: Path) -> None:
    assert is_ready(real_model)
    assert host_of(real_model).provenance["weights"] == "raw"
    assert host_of(real_model).provenance["model"]
    copied = tmp_path / "copied"
    name = "tinytalk-neo" if host_of(real_model).n_layers == 8 else "stories260K"
    shutil.copytree(shared / "models" / name, copied)
    again = load_model(copied)
    ids = torch.tensor([[1, 5, 9, 7, 30]])
    assert torch.equal(logits(again, ids), logits(real_model, ids))


def test_the_microworld_is_read_from_where_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny("gpt2", tmp_path)
    monkeypatch.setattr("lens_steer.microworld.checkpoint.embedded_checkpoint", lambda: tmp_path)
    assert load_model("microworld").cfg.n_layers == 2


SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def gemma3_with_images() -> Any:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    text |= {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64, **SPECIAL}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    return Gemma3ForConditionalGeneration(
        Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **SPECIAL)
    )


def test_a_multimodal_model_installs_nothing_and_reads_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    started: list[Any] = []

    def refuse(*arguments: Any, **settings: Any) -> Any:
        started.append(arguments)
        raise OSError("a process was started")

    for name in ("check_call", "run", "Popen", "check_output", "call"):
        monkeypatch.setattr(subprocess, name, refuse)
    model = load_model(gemma3_with_images(), tokenizer=make_tokenizer())
    values = collect(model, ContrastSet(["a dog ran"], ["a cat sat"]), "hook_resid_post")
    assert [site.width for site in values.sites] == [32, 32]
    assert started == []


@pytest.mark.parametrize("device", ["potato", "cuda:99", "meta", torch.device("meta")])
def test_devices_that_are_not_there(device: Any, directory: Path) -> None:
    for model in (directory, plain(), make_tiny("gpt2")):
        with pytest.raises(ModelError, match="device"):
            load_model(model, device=device, tokenizer=make_tokenizer())


def test_a_model_in_hand_is_moved_or_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """TransformerLens takes CUDA for the place of any model wherever there is one: the model's own place is passed."""
    from transformer_lens.model_bridge import TransformerBridge

    places: list[Any] = []
    boot = TransformerBridge.boot_transformers

    def record(name: str, **settings: Any) -> Any:
        places.append(settings["device"])
        return boot(name, **settings)

    monkeypatch.setattr(TransformerBridge, "boot_transformers", record)
    for device in (None, "cpu", torch.device("cpu")):
        model = load_model(plain(), device=device, tokenizer=make_tokenizer())
        assert str(model.cfg.device) == str(host_of(model).device) == "cpu"
    assert places == ["cpu"] * 3


@pytest.mark.parametrize("dtype", ["bfloat16", "torch.float16", torch.float64])
def test_dtypes_by_name(directory: Path, dtype: Any) -> None:
    assert str(host_of(load_model(directory, dtype=dtype)).dtype).endswith(str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("dtype", ["potato", "int8", torch.int64, "nn"])
def test_dtypes_that_weights_cannot_have(directory: Path, dtype: Any) -> None:
    with pytest.raises(ModelError, match="weights cannot be kept as"):
        load_model(directory, dtype=dtype)


def test_models_that_continue_no_text_are_refused() -> None:
    from transformers import BertConfig, BertForMaskedLM, GPT2Model, T5Config, T5ForConditionalGeneration

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=32, d_ff=48, num_layers=2, num_heads=4, d_kv=8))
    for model in (t5, BertForMaskedLM(BertConfig(vocab_size=64, **sizes)), GPT2Model(plain().config)):
        with pytest.raises(ModelError, match="encoder-decoder|does not continue texts"):
            load_model(model, tokenizer=make_tokenizer())


def test_a_bridge_over_an_encoder_decoder_is_refused() -> None:
    model = make_tiny("gpt2")
    bridge = type("TransformerBridge", (torch.nn.Module,), {})()
    bridge.original_model = torch.nn.Module()
    bridge.original_model.config = type("Config", (), {"is_encoder_decoder": True, "model_type": "t5"})()
    with pytest.raises(ModelError, match="'t5' is an encoder-decoder"):
        host_of(bridge)
    assert host_of(model).kind == "TransformerBridge"


class PeftStandIn(torch.nn.Module):
    """What lens_steer asks of a peft model: its base model, with the adapter's layers in it, and its settings."""

    def __init__(self, base: torch.nn.Module, *, prompt_learning: bool) -> None:
        super().__init__()
        self.base = base
        self.peft_config = {"default": type("Config", (), {"is_prompt_learning": prompt_learning})()}

    def get_base_model(self) -> torch.nn.Module:
        return self.base


def test_a_peft_model_is_hosted_by_its_base() -> None:
    original = plain()
    model = load_model(PeftStandIn(original, prompt_learning=False), tokenizer=make_tokenizer())
    assert model.original_model is original
    with pytest.raises(ModelError, match="learned tokens before every text"):
        load_model(PeftStandIn(plain(), prompt_learning=True), tokenizer=make_tokenizer())


def test_an_adapter_folder_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"peft adapter, not a model.*merge_and_unload"):
        load_model(tmp_path)


@pytest.mark.parametrize("error", [ValueError, RuntimeError, KeyError])
def test_what_transformer_lens_cannot_host_is_not_called_missing(
    directory: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    def refuse(name: str, **settings: Any) -> Any:
        raise error("no such architecture")

    monkeypatch.setattr(TransformerBridge, "boot_transformers", refuse)
    with pytest.raises(ModelError, match="cannot be hosted by TransformerLens.*no such architecture") as raised:
        load_model(directory)
    assert "reachable on the hub" not in str(raised.value)


def test_name_and_revision_are_recorded(directory: Path) -> None:
    assert host_of(load_model(directory, revision="step1000")).provenance["revision"] == "step1000"
    original = AutoModelForCausalLM.from_pretrained(directory)
    assert host_of(load_model(original)).provenance["model"] == str(directory)
    named = plain()
    named.config._name_or_path, named.config._commit_hash = "somebody/model", "abc123"
    about = host_of(load_model(named, tokenizer=make_tokenizer())).provenance
    assert (about["model"], about["revision"]) == ("somebody/model", "abc123")
