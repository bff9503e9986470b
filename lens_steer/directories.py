"""Result directories: written whole or not at all, never over something else."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lens_steer.errors import ArtifactError, OutputError


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Give a fresh place to write into, which becomes `path` when the block ends without an exception.

    OutputError if `path` already holds something.
    """
    require_free(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield place
        # mkdtemp makes a private folder; a result is as readable as its neighbours.
        place.chmod(0o777 & ~_umask())
        if path.is_dir():
            path.rmdir()
        os.replace(place, path)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def require_free(path: Path) -> None:
    """Raise OutputError if `path` is a file or a directory that holds something."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise OutputError(f"{path} already holds other results: give another directory, or move these away")


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file beside its final name and rename it, so that a half-written one never bears that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        write(Path(name))
        Path(name).chmod(0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, content: Any) -> None:
    """Write JSON that a person can read and compare; a number that is not finite, which JSON lacks, becomes null."""
    text = json.dumps(_plain(content), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    replace_file(path, lambda place: _write_text(place, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON; ArtifactError where the file is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist: this is not a directory that lens_steer wrote") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error


def sha256_of(path: Path) -> str:
    """Return the hash of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, set | frozenset):
        return [_plain(inner) for inner in sorted(value)]
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, str | bool | int | None):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _plain(value.item()) if hasattr(value, "item") else str(value)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
