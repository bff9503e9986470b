"""Tiny GGUF files, written with the gguf package from random Hugging Face models as llama.cpp's converter does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.convert_slow_tokenizer import bytes_to_unicode

MERGES = ["t h", "th e", "d o", "do g", "c a", "ca t", "Ġ the", "Ġ dog"]
TOKENS = ["<|end|>", "<|start|>", *bytes_to_unicode().values(), *(merge.replace(" ", "") for merge in MERGES)]
CHAT = "{% for message in messages %}<|start|>{{ message['role'] }}: {{ message['content'] }}<|end|>{% endfor %}"
SIZES: dict[str, Any] = {
    "vocab_size": len(TOKENS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 1,
    "eos_token_id": 0,
}
MORE: dict[str, Any] = {
    "gemma3_text": {"sliding_window": 16, "tie_word_embeddings": True},
    "qwen3": {"head_dim": 128},  # transformers reads no other from a file
}
ARCHITECTURES = {"llama": "llama", "qwen3": "qwen3", "gemma3_text": "gemma3"}
Q8 = gguf.GGMLQuantizationType.Q8_0


def source(family: str = "llama", **settings: Any) -> Any:
    """Return a random model whose norms are not all one."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **MORE.get(family, {}), **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def quantised(model: Any) -> Any:
    """Round the matrices of a model to eight bits a weight, in place, and return it: what a Q8_0 file holds."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                rounded = gguf.quants.dequantize(gguf.quants.quantize(parameter.numpy(), Q8), Q8)
                parameter.copy_(torch.from_numpy(rounded))
    return model


def write_gguf(
    path: Path,
    model: Any,
    *,
    architecture: str | None = None,
    tokenizer: bool = True,
    pre: str = "default",
    eight_bits: bool = False,
    leave_out: str = "no tensor",
) -> Path:
    """Write a model as a GGUF file, with a tokenizer of bytes and a few merges, and a chat template."""
    config = model.config
    own = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(str(path), architecture or own)
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_dimension_count(config.head_dim)
    if own == "gemma3":
        writer.add_sliding_window(config.sliding_window)
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(TOKENS)
        writer.add_token_types([3, 3, *[1] * (len(TOKENS) - 2)])
        writer.add_token_merges(MERGES)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(0)
        writer.add_add_bos_token(False)
        writer.add_chat_template(CHAT)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[own.upper()], config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if leave_out in name or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        stem, _, suffix = name.rpartition(".")
        array = as_in_the_file(name, value, config)
        if eight_bits and array.ndim > 1:
            writer.add_tensor(f"{names.get_name(stem)}.{suffix}", gguf.quants.quantize(array, Q8), raw_dtype=Q8)
        else:
            writer.add_tensor(f"{names.get_name(stem)}.{suffix}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def as_in_the_file(name: str, value: torch.Tensor, config: Any) -> np.ndarray:
    """Order and offset weights as llama.cpp keeps them: interleaved rotary halves (Llama), 1 + norm (Gemma)."""
    if config.model_type == "gemma3_text" and "norm" in name:
        value = value + 1
    if config.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = value.reshape(heads, 2, config.head_dim // 2, config.hidden_size)
        value = halves.transpose(1, 2).reshape(value.shape)
    return np.ascontiguousarray(value.numpy())
