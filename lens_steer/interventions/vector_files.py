"""Files of steering vectors, one vector per layer, as other libraries write and read them.

GGUF control vectors (`general.architecture` "controlvector", tensors `direction.N`): repeng writes them, llama.cpp adds
them. Both count layers from 0 and add `direction.N` to the output of layer N; llama.cpp has no place for layer 0.
safetensors: tensors whose names end in the number of their layer, or are hook names (`blocks.N.hook_resid_post`). JSON
and npz: the layer's number, or such a name, and the vector; JSON also as `layer_activations` (with `layer_type`) or
`directions` of an object, as steering-vectors and repeng name them. Nothing is unpickled.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lens_steer.directories import read_json, replace_file
from lens_steer.errors import ArtifactError, SettingError
from lens_steer.host.gguf import read_header, require_gguf_package

ARCHITECTURE = "controlvector"
SCHEMA = "1"
DECODER_BLOCK = "decoder_block"
RESIDUAL = "hook_resid_post"
_HOOK = re.compile(r"blocks\.(\d+)\.(.+)")
_NUMBERED = re.compile(r"(?:[A-Za-z_][A-Za-z_.]*[._])?(-?\d+)")
_PICKLES = {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib"}


@dataclass(frozen=True)
class LayerVectors:
    """A vector per layer, and what its source says of them.

    `kind` is that of the hook points that the source names, None where it names none; `layer_type` is what
    steering-vectors calls the place, its "decoder_block" being the output of a layer; `about` goes into the provenance.
    Negative layers count from the last.
    """

    by_layer: Mapping[int, Float[np.ndarray, " unit"]]
    kind: str | None
    layer_type: str
    about: Mapping[str, Any]


def vectors_in(source: Any) -> LayerVectors:
    """Read the vectors of a file, of a dict, or of another library's object in hand; ArtifactError where that fails.

    What was read before is returned as it is.
    """
    if isinstance(source, LayerVectors):
        return source
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        suffix = path.suffix.lower()
        if suffix in _PICKLES:
            raise ArtifactError(
                f"{path}: {suffix} files can run code when opened, so none is; where it was made, write its vectors "
                "with safetensors.torch.save_file({str(layer): vector, ...}, ...), or hand over the dict of arrays"
            )
        if suffix not in _READERS:
            raise ArtifactError(f"{path}: vectors are read from {', '.join(_READERS)}, a dict or an object")
        if not path.is_file():
            raise ArtifactError(f"{path} does not exist, or is no file")
        return _READERS[suffix](path)
    # By their names, so that neither library has to be there.
    for held in ("layer_activations", "directions"):
        if isinstance(getattr(source, held, None), Mapping):
            about = {"made_by": type(source).__module__.split(".")[0]}
            return _named(getattr(source, held), about["made_by"], getattr(source, "layer_type", DECODER_BLOCK), about)
    if not isinstance(source, Mapping):
        raise ArtifactError(
            f"vectors cannot be read from {type(source).__name__}: give a file, a dict {{layer: vector}}, or a "
            "ControlVector or SteeringVector"
        )
    return _named(source, "the dict", DECODER_BLOCK, {})


def _named(given: Mapping[Any, Any], what: str, layer_type: str, about: Mapping[str, Any]) -> LayerVectors:
    """Vectors by layer from vectors by name or number."""
    by_layer: dict[int, Float[np.ndarray, " unit"]] = {}
    kinds = set()
    for name, value in given.items():
        hook, numbered = _HOOK.fullmatch(str(name)), _NUMBERED.fullmatch(str(name))
        match = hook or numbered
        if match is None:
            raise ArtifactError(
                f"{what}: {name!r} names no layer; vectors are named 3, direction.3, blocks.3.KIND, ..."
            )
        layer = int(match[1])
        if layer in by_layer:
            raise ArtifactError(f"{what} has two vectors for layer {layer}")
        if hook is not None:
            kinds.add(hook[2])
        by_layer[layer] = _vector(value, f"{what}, {name!r}")
    if not by_layer:
        raise ArtifactError(f"{what} holds no vector")
    if len(kinds) > 1:
        raise ArtifactError(f"{what} has vectors of several kinds of sites, {', '.join(sorted(kinds))}: give one")
    return LayerVectors(by_layer, kinds.pop() if kinds else None, layer_type, about)


def _vector(value: Any, what: str) -> Float[np.ndarray, " unit"]:
    if hasattr(value, "detach"):
        value = value.detach().to("cpu").float()
    try:
        vector = np.array(value, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{what} is no vector of numbers: {error}") from error
    if vector.ndim == 2 and vector.shape[0] == 1:
        vector = vector[0]
    if vector.ndim != 1 or not vector.size:
        raise ArtifactError(f"{what} is no vector: it has shape {tuple(vector.shape)}")
    if not np.isfinite(vector).all():
        raise ArtifactError(f"{what} holds values that are not finite")
    return vector


def _from_gguf(path: Path) -> LayerVectors:
    header = read_header(path)
    if header.architecture != ARCHITECTURE:
        raise ArtifactError(
            f"{path} is a GGUF file of the architecture {header.architecture!r}, not a control vector: load_model "
            "reads models"
        )
    from gguf import GGMLQuantizationType, GGUFReader

    reader = GGUFReader(str(path))
    directions = {}
    for tensor in reader.tensors:
        if not tensor.name.startswith("direction."):
            continue
        if tensor.tensor_type not in (GGMLQuantizationType.F32, GGMLQuantizationType.F16):
            raise ArtifactError(f"{path}: {tensor.name} is {tensor.tensor_type.name}; control vectors are F32")
        directions[str(tensor.name)] = tensor.data
    hint = reader.fields.get(f"{ARCHITECTURE}.model_hint")
    about = {} if hint is None else {"model_hint": str(hint.contents())}
    return _named(directions, str(path), DECODER_BLOCK, {"file": path.name, **about})


def _from_safetensors(path: Path) -> LayerVectors:
    try:
        with safe_open(str(path), framework="pt") as file:  # numpy knows no bfloat16
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            written = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path} is damaged, or no safetensors file: {error}") from error
    schema = written.get("lens_steer_vectors", SCHEMA)
    if schema != SCHEMA:
        raise ArtifactError(f"{path} has schema {schema}, this version of lens_steer reads {SCHEMA}")
    about = {name: written[name] for name in ("model_hint", "made_by") if name in written}
    return _named(tensors, str(path), written.get("layer_type", DECODER_BLOCK), {"file": path.name, **about})


def _from_json(path: Path) -> LayerVectors:
    content = read_json(path)
    if not isinstance(content, dict):
        raise ArtifactError(f'{path} is no JSON object {{"layer": [numbers], ...}}')
    held = next((content[name] for name in ("layer_activations", "directions") if name in content), content)
    if not isinstance(held, dict):
        raise ArtifactError(f"{path} holds no vectors by layer")
    about = {"model_hint": str(content["model_type"])} if "model_type" in content and held is not content else {}
    layer_type = str(content.get("layer_type", DECODER_BLOCK)) if held is not content else DECODER_BLOCK
    return _named(held, str(path), layer_type, {"file": path.name, **about})


def _from_npz(path: Path) -> LayerVectors:
    try:
        with np.load(path) as arrays:
            held = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise ArtifactError(f"{path} is damaged, or no npz file of plain arrays: {error}") from error
    return _named(held, str(path), DECODER_BLOCK, {"file": path.name})


_READERS: dict[str, Callable[[Path], LayerVectors]] = {
    ".gguf": _from_gguf,
    ".safetensors": _from_safetensors,
    ".json": _from_json,
    ".npz": _from_npz,
}


def write_gguf(path: Path, by_layer: Mapping[int, Float[np.ndarray, " unit"]], model_hint: str) -> None:
    """Write a control vector; SettingError where layer 0 has one that is not zero, for which llama.cpp has no place."""
    require_gguf_package(path.name)
    if 0 in by_layer and by_layer[0].any():
        raise SettingError(
            "llama.cpp adds no control vector to the output of layer 0 and refuses a file that has one: write "
            ".safetensors, or fit with later layers"
        )
    later = {layer: vector for layer, vector in by_layer.items() if layer > 0}
    if not later:
        raise SettingError("there is no vector for a layer after 0, and a control vector needs one")
    from gguf import GGUFWriter

    def write(place: Path) -> None:
        writer = GGUFWriter(str(place), ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(later))
        for layer, vector in later.items():
            writer.add_tensor(f"direction.{layer}", vector)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    replace_file(path, write)


def write_safetensors(
    path: Path, by_layer: Mapping[int, Float[np.ndarray, " unit"]], model_hint: str, method: str
) -> None:
    """Write tensors `blocks.N.hook_resid_post`, float32, [unit], to be added to the output of layer N from 0."""
    tensors = {f"blocks.{layer}.{RESIDUAL}": vector for layer, vector in by_layer.items()}
    about = {"lens_steer_vectors": SCHEMA, "layer_type": DECODER_BLOCK, "model_hint": model_hint, "made_by": method}
    replace_file(path, lambda place: save_file(tensors, place, metadata=about))
