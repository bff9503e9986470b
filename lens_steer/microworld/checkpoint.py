"""The trained model on disk: where the embedded one lies, how a folder is checked and read.

A checkpoint is a Hugging Face folder in GPT-2's layout: config.json, model.safetensors and a fast tokenizer. Siblings
trained without normalisation carry `"microworld_norm": false` in their configuration and must be read
by `read_checkpoint`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from lens_steer.errors import MicroworldError
from lens_steer.microworld.english import english

FILES = ("config.json", "model.safetensors", "tokenizer.json")


class Config(BaseModel):
    """What a checkpoint's config.json says of its tensors."""

    model_type: str
    n_layer: int = Field(default=0, ge=0, le=1000)
    vocab_size: int = 0
    n_embd: int = 0


class Vocabulary(BaseModel):
    """The part of a tokenizer that maps words to token ids."""

    vocab: dict[str, int]


class Tokenizer(BaseModel):
    """What is read of a checkpoint's tokenizer.json."""

    model: Vocabulary


def embedded_checkpoint() -> Path:
    """The folder of the embedded checkpoint, checked."""
    return check_checkpoint(Path(__file__).parent / "embedded")


def check_checkpoint(folder: Path | str) -> Path:
    """The folder, when it holds an intact checkpoint of this grammar; otherwise an error that names the damage."""
    folder = Path(folder)
    remedy = "Restore the folder, or train it anew with `python -m tools.microworld.train --out DIR`."
    for name in FILES:
        if not (folder / name).is_file():
            raise MicroworldError(f"The checkpoint {folder} is damaged: {name} is missing. {remedy}")
    try:
        config = Config.model_validate_json((folder / "config.json").read_bytes(), strict=True)
        tokenizer = Tokenizer.model_validate_json((folder / "tokenizer.json").read_bytes(), strict=True)
    except (ValidationError, OSError) as error:
        raise MicroworldError(
            f"The checkpoint {folder} is damaged: its JSON cannot be read ({error}). {remedy}"
        ) from error
    if config.model_type != "gpt2":
        raise MicroworldError(f"The checkpoint {folder} has model type {config.model_type!r}, not 'gpt2'. {remedy}")
    if tokenizer.model.vocab != english().ids:
        raise MicroworldError(
            f"The checkpoint {folder} was trained on another vocabulary than this grammar's. {remedy}"
        )
    _check_tensors(folder, config, remedy)
    return folder


def _check_tensors(folder: Path, config: Config, remedy: str) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(folder / "model.safetensors"), "pt") as tensors:
            names = set(tensors.keys())
            shape = tuple(tensors.get_slice("transformer.wte.weight").get_shape())
    except (SafetensorError, OSError) as error:
        raise MicroworldError(
            f"The checkpoint {folder} is damaged: model.safetensors cannot be read ({error}). {remedy}"
        ) from error
    layers = {f"transformer.h.{layer}.mlp.c_proj.weight" for layer in range(config.n_layer)}
    if not layers <= names or shape != (config.vocab_size, config.n_embd):
        raise MicroworldError(f"The checkpoint {folder} is damaged: its tensors do not fit its config.json. {remedy}")


def read_checkpoint(folder: Path | str, *, device: str = "cpu") -> Any:
    """The checkpoint as a transformers GPT2LMHeadModel, eval mode, float32, without norms where it was trained so."""
    import torch
    from transformers import GPT2LMHeadModel

    folder = check_checkpoint(folder)
    model: Any = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    if not getattr(model.config, "microworld_norm", True):
        remove_norms(model)
    return model.to(device).eval()


def remove_norms(model: Any) -> None:
    """Replace every normalisation of a GPT-2 by the identity."""
    from torch import nn

    for block in model.transformer.h:
        block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
    model.transformer.ln_f = nn.Identity()
