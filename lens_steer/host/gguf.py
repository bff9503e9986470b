"""GGUF files: the quantised checkpoints of llama.cpp, dequantised into plain Hugging Face models.

Reading is transformers' own (`gguf_file=`) with the `gguf` package. What comes out is float: the file's 4-bit weights
multiplied out, not the full-precision checkpoint that they were rounded from.
"""

from __future__ import annotations

import logging
import shutil
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from lens_steer.directories import new_directory, require_free_place, sha256_of
from lens_steer.errors import ModelError
from lens_steer.host.origin import record_origin
from lens_steer.settings import require_settings

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_MAGIC = b"GGUF"


@dataclass(frozen=True)
class GGUFHeader:
    """What a GGUF file says of itself.

    `quantization` is what the file calls its mixture of tensor types, such as "Q4_K_M", else the type that most weights
    have, such as "Q4_1" or "F32"; `pre_tokenizer` llama.cpp's name of how texts are cut before byte pairs are merged.
    """

    architecture: str
    name: str
    quantization: str
    pre_tokenizer: str
    has_tokenizer: bool


def require_gguf_package(what: str) -> None:
    """ModelError where the `gguf` package, with which `what` is read, is missing."""
    if find_spec("gguf") is None:
        raise ModelError(f"{what} is a GGUF file, which the gguf package reads: pip install 'lens-steer[gguf]'")


def read_header(path: str | Path) -> GGUFHeader:
    """Return what a GGUF file says of itself, after checking that it holds every tensor it announces.

    ModelError where there is no such file, it is damaged or no GGUF file, or the `gguf` package is missing.
    """
    file = Path(path)
    require_gguf_package(file.name)
    try:
        with file.open("rb") as opened:
            if opened.read(len(_MAGIC)) != _MAGIC:
                raise ModelError(f"{path} is no GGUF file: it does not begin with {_MAGIC.decode()}")
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    from gguf import GGUFReader

    with _damage_named(file):
        reader = GGUFReader(str(file))

        def field(name: str) -> Any:
            entry = reader.fields.get(name)
            return "" if entry is None else entry.contents()

        return GGUFHeader(
            architecture=str(field("general.architecture")),
            name=str(field("general.name")),
            quantization=_quantization(reader, field("general.file_type")),
            pre_tokenizer=str(field("tokenizer.ggml.pre")),
            has_tokenizer="tokenizer.ggml.tokens" in reader.fields,
        )


def _quantization(reader: Any, file_type: Any) -> str:
    from gguf import LlamaFileType

    if file_type in set(LlamaFileType):
        return str(LlamaFileType(file_type).name).removeprefix("MOSTLY_").removeprefix("ALL_")
    weights: Counter[str] = Counter()
    for tensor in reader.tensors:
        weights[tensor.tensor_type.name] += int(tensor.n_elements)
    return weights.most_common(1)[0][0] if weights else "none"


def read_gguf(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the plain Hugging Face model of a GGUF file, dequantised, and its tokenizer.

    The model's config says under `lens_steer_origin` which file it came from: its name, SHA-256 and quantisation.

    Raises
    ------
    ModelError
        The file is damaged, transformers cannot read its architecture, a weight of that architecture is missing in it,
        or it has no tokenizer and none is given; or the `gguf` package is missing.

    """
    file = Path(path).expanduser()
    header = read_header(file)
    _require_readable(file, header)
    if tokenizer is None:
        tokenizer = _tokenizer_of(file, header)
    from transformers import AutoConfig, AutoModelForCausalLM

    place = _place(file)
    with _damage_named(file), _without_reports():
        config = AutoConfig.from_pretrained(**place)
        if type(config) not in AutoModelForCausalLM._model_mapping:
            raise ModelError(f"{file} holds a model of the architecture {header.architecture!r}: it continues no texts")
        load: Any = AutoModelForCausalLM.from_pretrained
        read, report = load(**place, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True)
    _require_every_weight(file, header, report)
    model = _rebuilt(read)
    record_origin(model.config, file=file.name, quantization=header.quantization, sha256=sha256_of(file))
    return model, tokenizer


def read_gguf_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a GGUF file, with its chat template; ModelError where it has none or is damaged."""
    file = Path(path).expanduser()
    return _tokenizer_of(file, read_header(file))


def _tokenizer_of(file: Path, header: GGUFHeader) -> PreTrainedTokenizerBase:
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    if not header.has_tokenizer:
        raise ModelError(f"{file} has no tokenizer in it: give that of the model it was made from (tokenizer=)")
    with _damage_named(file):
        tokenizer: Any = AutoTokenizer.from_pretrained(**_place(file))
    if header.pre_tokenizer == "smollm":
        # transformers cuts the texts of every such file as GPT-2 does; these single out each digit first.
        digits = pre_tokenizers.Digits(individual_digits=True)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    read: PreTrainedTokenizerBase = tokenizer
    return read


def convert_gguf(
    path: str | Path,
    out: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Path:
    """Write a GGUF file as a plain Hugging Face directory, which transformers and `load_model` read; return it.

    safetensors in `dtype` (bfloat16 takes half the place and rounds once more), the config without a quantisation, and
    the tokenizer with its chat template.

    Raises
    ------
    ModelError
        As for `read_gguf`.
    OutputError
        `out` already holds something, or cannot be written.

    """
    require_settings(convert_gguf, locals())
    require_free_place(out)
    model, tokens = read_gguf(path, dtype=dtype, tokenizer=tokenizer)
    with new_directory(out) as place:
        model.save_pretrained(place)
        tokens.save_pretrained(place)
        for weights in place.glob("*.safetensors"):  # written for the user's eyes only; as readable as the rest
            shutil.copymode(place / "config.json", weights)
    return Path(out)


def hosting_pair(
    path: Path, *, dtype: torch.dtype, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return model and tokenizer as TransformerLens takes them: both named after the file, the tokenizer adding BOS.

    TransformerLens would read a tokenizer that adds none once more, from its name.
    """
    from transformers import AutoTokenizer

    model, plain = read_gguf(path, dtype=dtype, tokenizer=tokenizer)
    model.config._name_or_path = str(path)
    if tokenizer is None and plain.bos_token is not None:
        with TemporaryDirectory() as folder:
            plain.save_pretrained(folder)
            plain = AutoTokenizer.from_pretrained(folder, add_bos_token=True)
    if tokenizer is None:
        plain.name_or_path = str(path)
    return model, plain


def _require_readable(file: Path, header: GGUFHeader) -> None:
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    # As llama.cpp writes them: qwen2_moe is qwen2moe there.
    readable = sorted(set(GGUF_SUPPORTED_ARCHITECTURES) - {"general", "tokenizer"})
    if _letters(header.architecture) not in map(_letters, readable):
        raise ModelError(
            f"{file} holds a model of the architecture {header.architecture!r}, which this transformers cannot read "
            f"from GGUF; it reads {', '.join(readable)}: give its Hugging Face directory instead"
        )


def _require_every_weight(file: Path, header: GGUFHeader, report: dict[str, Any]) -> None:
    """Refuse what transformers would draw at random."""
    strange = {
        "lacks": sorted(report["missing_keys"]),
        "has in another shape": sorted(str(name) for name, *_ in report["mismatched_keys"]),
    }
    for what, names in strange.items():
        if names:
            raise ModelError(
                f"{file} {what} {len(names)} weights of the architecture {header.architecture!r} as this transformers "
                f"reads it, first {names[0]}: give its Hugging Face directory instead"
            )


def _letters(architecture: str) -> str:
    return architecture.replace("_", "").replace("-", "")


def _place(file: Path) -> dict[str, str]:
    """How transformers is told of a GGUF file."""
    return {"pretrained_model_name_or_path": str(file.absolute().parent), "gguf_file": file.name}


def _rebuilt(read: Any) -> Any:
    """Return the same model without its mark of a quantised one, with which transformers would not save it."""
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = type(read).from_pretrained(None, config=config, state_dict=read.state_dict(), dtype=read.dtype)
    model.generation_config = read.generation_config
    model.config._name_or_path = ""
    return model


@contextmanager
def _without_reports() -> Iterator[None]:
    """Keep transformers from writing tables about what is refused here in one line."""
    from transformers.utils import logging as reports

    before = reports.get_verbosity()
    reports.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        reports.set_verbosity(before)


# What the readers of a damaged file trip over: they believe every number in it.
_TRIPPED = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


@contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    """Raise ModelError for whatever a damaged file makes its readers trip over."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except _TRIPPED as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"{file} is damaged or only half there ({reason}): fetch it again") from error
