"""Loading: from a hub name, a directory, or a model in hand to a TransformerLens model that is ready to study."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from safetensors import SafetensorError
from torch import nn

from lens_steer.errors import ModelError
from lens_steer.host.adapter import host_of, require_causal
from lens_steer.host.gguf import hosting_pair, read_gguf_tokenizer
from lens_steer.host.known_models import KNOWN_MODELS
from lens_steer.host.model_cache import cached_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_model(
    model: str | Path | nn.Module,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | str = torch.float32,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Return a TransformerLens model, in eval mode and with frozen weights.

    Parameters
    ----------
    model:
        A hub name, a local directory, a GGUF file (dequantised here; `convert_gguf` does it once and for all),
        "microworld" (the embedded model), "smollm2" or "gemma3-270m" (of the model cache, where `lens-steer get` puts
        them; a directory of that name comes first), a Hugging Face model, a `TransformerBridge` or a
        `HookedTransformer`. What is already a TransformerLens model is returned itself. A Hugging Face model stays the
        same object and is switched to eager attention, eval mode and frozen weights; of one that peft wraps, the base
        model with its adapter layers is hosted.
    device, dtype:
        Where and in which precision (a torch dtype or its name) the weights are kept; a model in hand is moved to
        `device`, and stays where it is when that is None. It keeps its own dtype.
    tokenizer:
        Needed with a Hugging Face model that does not say where its tokenizer lies.
    revision, trust_remote_code:
        Passed to the hub; no remote code runs unless it is asked for, and nothing is ever installed (a multimodal
        model gets no image processor). The revision is recorded in provenance.

    Raises
    ------
    ModelError
        There is no such model, device or dtype; the model does not continue texts (encoders, encoder-decoders),
        TransformerLens cannot host it, or a Hugging Face model is already wrapped by a bridge.

    """
    place = None if device is None else checked_device(device)
    precision = _checked_dtype(dtype)
    if not isinstance(model, nn.Module | str | Path):
        raise ModelError(f"a model is a hub name, a directory, a GGUF file or a model in hand, not {model!r}")
    if isinstance(model, nn.Module):
        loaded = _wrap(model, device=place, dtype=precision, tokenizer=tokenizer)
    elif str(model).lower().endswith(".gguf"):
        read, own = hosting_pair(Path(model).expanduser(), dtype=precision, tokenizer=tokenizer)
        loaded = _wrap(read, device=place, dtype=precision, tokenizer=own)
    else:
        loaded = _boot(
            _resolve(model),
            device=None if place is None else str(place),
            dtype=precision,
            tokenizer=tokenizer,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )
        host_of(loaded).revision = revision or ""
    loaded.eval()
    for parameter in loaded.parameters():
        parameter.requires_grad_(False)
    return loaded


def read_tokenizer(source: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a hub name, a directory or a GGUF file; ModelError where there is none."""
    if str(source).lower().endswith(".gguf"):
        return read_gguf_tokenizer(Path(source))
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise ModelError(f"no tokenizer can be read from {source}: {error}") from error
    return tokenizer


def checked_device(device: str | torch.device) -> torch.device:
    """Return a device of this machine; ModelError where there is none of that name."""
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise ModelError(f"no device is named {device!r}; there are cpu, cuda (or cuda:1), mps") from None
    backends = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not backends.get(place.type, False):
        usable = ", ".join(name for name, usable in backends.items() if usable)
        raise ModelError(f"the device {str(place)!r} cannot be used by this torch on this machine; usable: {usable}")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"there is no {place}: this machine has {torch.cuda.device_count()} CUDA devices")
    return place


def _checked_dtype(dtype: torch.dtype | str) -> torch.dtype:
    known = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(known, torch.dtype) or not known.is_floating_point:
        raise ModelError(f"weights cannot be kept as {dtype!r}: give float32, bfloat16 or float16, or torch's own")
    return known


def _resolve(name: str | Path) -> str:
    if name == "microworld":
        from lens_steer.microworld.checkpoint import embedded_checkpoint

        return str(embedded_checkpoint())
    path = Path(name).expanduser()
    if isinstance(name, str) and name in KNOWN_MODELS and not path.is_dir():
        return str(cached_model(name))
    if isinstance(name, Path) or path.is_dir() or str(name).startswith((".", "/", "~")):
        if (path / "adapter_config.json").is_file() and not (path / "config.json").is_file():
            raise ModelError(
                f"{path} is a peft adapter, not a model: load it on its base model with peft "
                f"(AutoPeftModelForCausalLM.from_pretrained({str(path)!r}).merge_and_unload()) and pass that model"
            )
        if not (path / "config.json").is_file():
            why = "it has no config.json" if path.is_dir() else "there is no such directory"
            raise ModelError(f"{path} is not a model directory: {why}")
        return str(path)
    return str(name)


def _boot(name: str, **settings: Any) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    try:
        if "hf_model" not in settings:
            _require_safetensors(name, settings["revision"])
        with _without_processors():
            model = TransformerBridge.boot_transformers(name, **settings)
    except OSError as error:
        raise ModelError(
            f"no model {name!r}: neither a local directory that can be loaded nor reachable on the hub ({error})"
        ) from error
    except SafetensorError as error:
        raise ModelError(f"{name!r} has damaged or half-written weights ({error}): fetch it again") from error
    except torch.OutOfMemoryError:
        raise
    except (
        ValueError,
        RuntimeError,
        NotImplementedError,
        ImportError,
        LookupError,
        AttributeError,
        TypeError,
    ) as error:
        raise ModelError(f"{name!r} cannot be hosted by TransformerLens: {type(error).__name__}: {error}") from error
    host_of(model)
    return model


@contextmanager
def _without_processors() -> Iterator[None]:
    """Keep TransformerLens from looking for the image or audio processor of a model, which texts do not need.

    It would ask the hub, and install torchvision with pip where that is missing. Version 3.9 does both in the middle of
    booting, and only where transformers' own loading of a processor fails: there that loading gives nothing instead.
    """
    from transformers import AutoProcessor

    stand_ins: dict[str, Callable[..., Any]] = {
        "load_modality_processor": lambda *_, **__: None,
        "_ensure_torchvision": lambda: False,
    }
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("transformer_lens.")]
    replaced = [(vars(module), name) for module in modules for name in stand_ins if name in vars(module)]
    originals = [names[name] for names, name in replaced]
    for names, name in replaced:
        names[name] = stand_ins[name]
    try:
        with patch.object(AutoProcessor, "from_pretrained", lambda *_, **__: None):
            yield
    finally:
        for (names, name), original in zip(replaced, originals, strict=True):
            names[name] = original


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


def _wrap(
    model: nn.Module, *, device: torch.device | None, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase | None
) -> Any:
    if {"TransformerBridge", "HookedTransformer"} & {base.__name__ for base in type(model).__mro__}:
        host_of(model)
        return model if device is None else _moved(model, device)
    if any(type(module).__module__.startswith("transformer_lens") for module in model.modules()):
        raise ModelError("this Hugging Face model already lives in a TransformerBridge: pass that bridge instead")
    plain = _without_peft(model)
    config = getattr(plain, "config", None)
    if config is None:
        raise ModelError(f"{type(model).__name__} is neither a TransformerLens nor a Hugging Face model")
    require_causal(plain)
    if not getattr(config, "architectures", None):  # of a model made from its config; transformers sets it on saving
        config.architectures = [type(plain).__name__]
    source = str(getattr(config, "_name_or_path", "") or "")
    if tokenizer is None:
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError) as error:
            raise ModelError(
                "this Hugging Face model does not say where its tokenizer lies: pass tokenizer="
            ) from error
    if device is not None:
        plain = _moved(plain, device)
    # TransformerLens would otherwise take CUDA for the model's place wherever there is one.
    place = None if getattr(plain, "hf_device_map", None) else str(next(plain.parameters()).device)
    # The label only names the model; a bare word that TransformerLens knows would pull in that model's own settings.
    label = source if source and Path(source).is_dir() else f"local/{config.model_type}"
    return _boot(label, device=place, dtype=dtype, tokenizer=tokenizer, hf_model=plain)


def _moved(model: nn.Module, device: torch.device) -> nn.Module:
    try:
        return model.to(device)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ModelError(f"this model cannot be moved to {device}: {error}") from error


def _without_peft(model: Any) -> Any:
    """Return the model inside a peft wrapper; ModelError where its adapter is no layer but tokens before the text."""
    if not (hasattr(model, "get_base_model") and hasattr(model, "peft_config")):
        return model
    if any(getattr(config, "is_prompt_learning", False) for config in model.peft_config.values()):
        raise ModelError(
            "this peft model puts learned tokens before every text, which the hosted model would not see: "
            "its base model, get_base_model(), can be passed without them"
        )
    return model.get_base_model()
