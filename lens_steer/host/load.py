"""Loading: from a hub name, a directory, or a model in hand to a TransformerLens model that is ready to study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lens_steer.errors import ModelError
from lens_steer.host.adapter import host_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_model(
    model: str | Path | nn.Module,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Return a TransformerLens model, in eval mode and with frozen weights.

    Parameters
    ----------
    model:
        A hub name, a local directory, "microworld" (the embedded model), a Hugging Face model, a `TransformerBridge` or
        a `HookedTransformer`. What is already a TransformerLens model is returned itself.
    device, dtype:
        Where and in which precision the weights are kept. A model that was passed in keeps its own dtype.
    tokenizer:
        Needed with a Hugging Face model that does not say where its tokenizer lies.
    revision, trust_remote_code:
        Passed to the hub; no remote code runs unless it is asked for.

    Raises
    ------
    ModelError
        There is no such model, or a Hugging Face model is already wrapped by a bridge.

    """
    if isinstance(model, nn.Module):
        loaded = _wrap(model, device=device, dtype=dtype, tokenizer=tokenizer)
    else:
        loaded = _boot(
            _resolve(model),
            device=device,
            dtype=dtype,
            tokenizer=tokenizer,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
    loaded.eval()
    for parameter in loaded.parameters():
        parameter.requires_grad_(False)
    return loaded


def _resolve(name: str | Path) -> str:
    if name == "microworld":
        from lens_steer.microworld.checkpoint import embedded_checkpoint

        return str(embedded_checkpoint())
    if isinstance(name, Path) or str(name).startswith((".", "/", "~")):
        path = Path(name).expanduser()
        if not (path / "config.json").is_file():
            raise ModelError(f"{path} is not a model directory: it has no config.json")
        return str(path)
    return str(name)


def _boot(name: str, **settings: Any) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    try:
        if "hf_model" not in settings:
            _require_safetensors(name, settings["revision"])
        model = TransformerBridge.boot_transformers(name, **settings)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no model {name!r}: neither a local directory that can be loaded nor reachable on the hub ({error})"
        ) from error
    host_of(model)
    return model


def _require_safetensors(name: str, revision: str | None) -> None:
    """Refuse a checkpoint that has its weights in pickles only, before anything would unpickle them."""
    from transformer_lens.supported_models import MODEL_ALIASES
    from transformers.utils.hub import cached_file

    place = next((official for official, aliases in MODEL_ALIASES.items() if name in aliases), name)
    cached_file(place, "config.json", revision=revision)
    for weights in ("model.safetensors", "model.safetensors.index.json"):
        if cached_file(place, weights, revision=revision, _raise_exceptions_for_missing_entries=False) is not None:
            return
    raise ModelError(
        f"{name!r} has no model.safetensors; lens_steer reads no pickles (pytorch_model.bin): if you trust the file, "
        "convert it once with transformers (from_pretrained, then save_pretrained)"
    )


def _wrap(model: nn.Module, *, device: Any, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase | None) -> Any:
    if {"TransformerBridge", "HookedTransformer"} & {base.__name__ for base in type(model).__mro__}:
        host_of(model)
        return model if device is None else model.to(device)
    if any(type(module).__module__.startswith("transformer_lens") for module in model.modules()):
        raise ModelError("this Hugging Face model already lives in a TransformerBridge: pass that bridge instead")
    config = getattr(model, "config", None)
    if config is None:
        raise ModelError(f"{type(model).__name__} is neither a TransformerLens nor a Hugging Face model")
    source = str(getattr(config, "_name_or_path", "") or "")
    if tokenizer is None:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ModelError(
                "this Hugging Face model does not say where its tokenizer lies: pass tokenizer="
            ) from error
    # The label only names the model; a bare word that TransformerLens knows would pull in that model's own settings.
    label = source if source and Path(source).is_dir() else f"local/{config.model_type}"
    return _boot(label, device=device, dtype=dtype, tokenizer=tokenizer, hf_model=model)
