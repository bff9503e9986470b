"""Tiny random models of the families that lens_steer promises, with a word tokenizer; seconds to build, no download."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lens_steer.host.load import load_model

WORDS = (
    "the a dog cat bird sad happy ran sat saw big small red blue and then but was is in on at home park tree water "
    "food mother boy girl cried smiled played ate slept sang jumped quickly slowly very not never always good bad day "
    "night"
).split()
_SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gpt_neox": _SIZES,
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": None},
    "gemma2": {**_GROUPED, "query_pre_attn_scalar": 8},
}
_GROUPED_ALONE = {**_SIZES, "num_key_value_heads": 2}  # of families whose config has no head_dim
# Families that test_families.py alone goes through: the rest of the suite does not grow with them.
NEWER_CONFIGS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        **_GROUPED,
        "query_pre_attn_scalar": 8,
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "qwen3": _GROUPED,
    "olmo2": _GROUPED_ALONE,
    "smollm3": {**_GROUPED_ALONE, "no_rope_layers": [1, 0]},
    "phi3": _GROUPED_ALONE,
    "qwen3_moe": {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token per word, with BOS, EOS and pad."""
    vocabulary = {word: index for index, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    # TransformerLens reloads a tokenizer from where it lies, so it has to lie somewhere.
    with tempfile.TemporaryDirectory() as folder:
        fast.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, add_bos_token=True)


def random_model(family: str, *, seed: int = 0) -> Any:
    """Return a random Hugging Face model of a family."""
    torch.manual_seed(seed)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(family, **(CONFIGS | NEWER_CONFIGS)[family], **special)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # Larger than the usual 0.02, so that a write is visible in the logits.
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
        elif "bias" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def make_tiny(family: str, *, seed: int = 0) -> Any:
    """Return a hosted random model of a family."""
    return load_model(random_model(family, seed=seed), tokenizer=make_tokenizer())


@cache
def shared_tiny(family: str) -> Any:
    """Return the hosted random model of a family that tests share; a test that changes it makes one of its own."""
    return make_tiny(family)


def save_tiny(family: str, directory: Path) -> None:
    """Write a random model and its tokenizer as a directory, as a user has them."""
    random_model(family).save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)


def sentences(n: int, *, seed: int = 0, must: str | None = None, length: tuple[int, int] = (3, 9)) -> list[str]:
    """Return random sentences of known words, each holding the word `must`."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    rows = []
    for _ in range(n):
        words = [WORDS[draw(0, len(WORDS))] for _ in range(draw(*length))]
        if must is not None:
            words.insert(draw(0, len(words) + 1), must)
        rows.append(" ".join(words))
    return rows
