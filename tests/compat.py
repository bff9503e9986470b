"""A HookedTransformer beside the bridge: fixtures that need transformer-lens 3.9 and skip, saying so, on 4.x."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lens_steer.host.load import load_model
from lens_steer.microworld.checkpoint import embedded_checkpoint, read_checkpoint
from tests.families import make_tokenizer

_TINY: dict[str, Any] = {
    "n_layers": 2,
    "d_model": 32,
    "d_head": 8,
    "n_heads": 4,
    "d_mlp": 48,
    "d_vocab": 64,
    "n_ctx": 64,
    "act_fn": "gelu",
    "normalization_type": "LN",
    "device": "cpu",
    "seed": 0,
}


def hooked_transformer_classes() -> tuple[Any, Any]:
    """Return HookedTransformer and its config class, or skip the test."""
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError as error:
        pytest.skip(f"transformer-lens 4 has no HookedTransformer ({str(error).splitlines()[0][:80]})")
    return HookedTransformer, HookedTransformerConfig


def make_hooked_tiny(*, tokenizer: bool = True, **settings: Any) -> Any:
    """Return a random HookedTransformer with the tiny families' vocabulary."""
    hooked, config = hooked_transformer_classes()
    model = hooked(config(**_TINY | settings), tokenizer=make_tokenizer() if tokenizer else None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not name.endswith(".w"):
                std = 0.1 if ".b_" in name else 0.3
                parameter.copy_(std * torch.randn(parameter.shape, generator=generator))
    return load_model(model)


def make_hooked_tinytalk(models: Path, *, folded: bool = False) -> Any:
    """Return tinytalk-neo as a HookedTransformer, through transformer_lens' own converter.

    `folded` processes the weights as `HookedTransformer.from_pretrained` does by default.
    """
    hooked, config = hooked_transformer_classes()
    from transformer_lens.pretrained.weight_conversions import convert_neo_weights

    place = models / "tinytalk-neo"
    original = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)
    theirs = original.config
    cfg = config(
        n_layers=theirs.num_layers,
        d_model=theirs.hidden_size,
        n_heads=theirs.num_heads,
        d_head=theirs.hidden_size // theirs.num_heads,
        d_mlp=theirs.intermediate_size,
        d_vocab=theirs.vocab_size,
        n_ctx=theirs.max_position_embeddings,
        eps=theirs.layer_norm_epsilon,
        act_fn=theirs.activation_function,
        normalization_type="LN",
        attn_types=list(theirs.attention_layers),
        use_local_attn=True,
        window_size=theirs.window_size,
        use_attn_scale=False,
        model_name="tinytalk-neo",
        device="cpu",
    )
    model = hooked(cfg, tokenizer=AutoTokenizer.from_pretrained(place))
    weights = convert_neo_weights(original, cfg)
    model.load_and_process_state_dict(
        weights, fold_ln=folded, center_writing_weights=folded, center_unembed=folded, fold_value_biases=folded
    )
    return load_model(model)


def make_hooked_embedded() -> Any:
    """Return the embedded model as a HookedTransformer, through transformer_lens' own converter for GPT-2."""
    hooked, config = hooked_transformer_classes()
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights

    original = read_checkpoint(embedded_checkpoint())
    theirs = original.config
    cfg = config(
        n_layers=theirs.n_layer,
        d_model=theirs.n_embd,
        n_heads=theirs.n_head,
        d_head=theirs.n_embd // theirs.n_head,
        d_mlp=4 * theirs.n_embd,
        d_vocab=theirs.vocab_size,
        n_ctx=theirs.n_positions,
        eps=theirs.layer_norm_epsilon,
        act_fn=theirs.activation_function,
        normalization_type="LN",
        model_name="microworld",
        device="cpu",
    )
    model = hooked(cfg, tokenizer=AutoTokenizer.from_pretrained(embedded_checkpoint()))
    model.load_and_process_state_dict(
        convert_gpt2_weights(original, cfg),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return load_model(model)


@pytest.fixture(scope="session")
def hooked_tiny() -> Any:
    """A random HookedTransformer, 2 layers of 32."""
    return make_hooked_tiny()


@pytest.fixture(scope="session")
def hooked_tinytalk(shared: Path) -> Any:
    """tinytalk-neo as a HookedTransformer with the checkpoint's own weights."""
    return make_hooked_tinytalk(shared / "models")


@pytest.fixture(scope="session")
def folded_tinytalk(shared: Path) -> Any:
    """tinytalk-neo as a HookedTransformer, norms folded and weights centred."""
    return make_hooked_tinytalk(shared / "models", folded=True)
