"""Tensor files: safetensors with the SHA-256 of every tensor beside it, so that a part is checked without the rest.

A file is mapped into memory: reading one tensor, or some columns of it, touches the header and those bytes only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lens_steer.directories import replace_file
from lens_steer.errors import ArtifactError

_Result = TypeVar("_Result")
_EVERYTHING = slice(None)
_HASHES = "sha256"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a file under its final name, whole or not at all; OutputError where the place cannot be written."""
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    hashes = {name: _sha256(value) for name, value in kept.items()}
    # One entry: safetensors writes several in no fixed order, and equal content is to be equal bytes.
    replace_file(path, lambda place: save_file(kept, place, metadata={_HASHES: json.dumps(hashes, sort_keys=True)}))


def read_tensors(path: Path, names: Iterable[str] | None = None, *, verify: bool = True) -> dict[str, Tensor]:
    """Return some tensors of a file, or all; ArtifactError where one is missing or is not what was written."""

    def read(handle: Any) -> dict[str, Tensor]:
        hashes = _hashes(handle)
        tensors = {name: handle.get_tensor(name) for name in (handle.keys() if names is None else names)}
        for name, value in tensors.items():
            if verify and _sha256(value) != hashes.get(name):
                raise ArtifactError(f"{path} is damaged: {name} is not what was written")
        return tensors

    return _opened(path, read)


def read_columns(path: Path, name: str, columns: slice = _EVERYTHING) -> Tensor:
    """Return some columns of a matrix, unchecked: its hash is of the whole. ArtifactError where it cannot be read."""
    matrix: Tensor = _opened(path, lambda handle: handle.get_slice(name)[:, columns])
    return matrix


def file_digest(path: Path) -> str:
    """Return one hash for the hashes of all tensors; only the header is read. ArtifactError where it cannot be."""
    return hashlib.sha256(json.dumps(_opened(path, _hashes), sort_keys=True).encode()).hexdigest()


def _opened(path: Path, read: Callable[[Any], _Result]) -> _Result:
    try:
        with safe_open(path, "pt") as handle:
            return read(handle)
    # An index out of bounds, or a tensor that is not there, is an error of safetensors or a LookupError.
    except (SafetensorError, OSError, LookupError, ValueError, RuntimeError, TypeError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error


def _hashes(handle: Any) -> dict[str, str]:
    hashes: dict[str, str] = json.loads((handle.metadata() or {}).get(_HASHES, "{}"))
    return hashes


def _sha256(value: Tensor) -> str:
    digest = hashlib.sha256(f"{value.dtype} {list(value.shape)}".encode())
    digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
