"""Result directories: written whole or not at all, never over something else.

Whatever the operating system refuses (no permission, a full disk, a place below a file) is an `OutputError`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError

from lens_steer.errors import ArtifactError, OutputError
from lens_steer.settings import require_settings

# pathlib raises ValueError for a null byte, RuntimeError for links that go in a circle (Python 3.12 and before).
_UNWRITABLE = (OSError, SafetensorError, ValueError, RuntimeError)
_OURS = ("run.json", "intervention.json", "run/run.json")  # a directory that holds one of them is a result
_OUR_SUFFIXES = (".html", ".htm", ".gguf", ".safetensors")
_REPLACED: ContextVar[Path | None] = ContextVar("replaced", default=None)


@contextmanager
def replacing(path: str | Path | None) -> Iterator[None]:
    """Let the result that lies at `path` be replaced inside, each part when its successor is complete.

    Raises
    ------
    OutputError
        What lies there is no result of lens_steer.

    """
    place = None if path is None else Path(path).resolve()
    empty = place is not None and place.is_dir() and not any(place.iterdir())
    if place is not None and place.exists() and not (empty or is_result(place)):
        raise OutputError(f"{path} is no result that lens_steer wrote, so that it is not replaced: move it away")
    token = _REPLACED.set(place)
    try:
        yield
    finally:
        _REPLACED.reset(token)


def is_result(place: Path) -> bool:
    """Return whether what lies at a place looks like a result of lens_steer, which `replacing` would replace."""
    if place.is_file():
        return place.suffix.lower() in _OUR_SUFFIXES
    return any((place / name).is_file() for name in _OURS)


def _may_be_replaced(path: Path) -> bool:
    replaced = _REPLACED.get()
    return replaced is not None and (path == replaced or replaced in path.parents)


def require_new_file(path: str | Path) -> None:
    """Raise OutputError where there is something at `path` already; see `replacing`."""
    if Path(path).exists() and not (Path(path).is_file() and _may_be_replaced(Path(path).resolve())):
        raise OutputError(f"{path} already exists: give another name, or move it away")


@contextmanager
def new_directory(path: str | Path) -> Iterator[Path]:
    """Give a fresh place to write into, which becomes `path` when the block ends without an exception.

    Raises
    ------
    OutputError
        `path` already holds something, or the place cannot be written, before, in or after the block.

    """
    require_free_place(path)
    final = Path(path).resolve()
    with _refused_as_output(path):
        final.parent.mkdir(parents=True, exist_ok=True)
        place = _beside(final)
        # Not tempfile.mkdtemp, whose folders are private: a result is as readable as the umask has it.
        place.mkdir()
    try:
        with _refused_as_output(path, also=(SafetensorError,)):
            yield place
            _share_as(place)
            _put_in_place(place, final)
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise


def _put_in_place(place: Path, final: Path) -> None:
    """Rename a complete directory to its final name, where an empty one may stand, or an old one to be replaced."""
    if not (final.is_dir() and any(final.iterdir()) and _may_be_replaced(final)):
        if final.is_dir():
            final.rmdir()
        os.replace(place, final)
        return
    old = _beside(final)
    os.replace(final, old)
    try:
        os.replace(place, final)
    except BaseException:
        os.replace(old, final)
        raise
    shutil.rmtree(old, ignore_errors=True)


def require_free_place(path: str | Path) -> None:
    """Check, before the work is done, that results can be written to `path`; nothing is left behind.

    A hidden directory of that name is made where the first missing parent would stand, and taken away again.

    Raises
    ------
    OutputError
        `path` is a file, a directory that holds something, or a place that cannot be written.

    """
    require_settings(require_free_place, locals())
    with _refused_as_output(path):
        final = Path(path).resolve()
        occupied = (final.exists() and not final.is_dir()) or (final.is_dir() and any(final.iterdir()))
        if occupied and not _may_be_replaced(final):
            raise OutputError(f"{path} already holds other results: give another place, or move these away")
        if final == Path.cwd() or os.path.ismount(final):
            raise OutputError(f"{path} cannot be replaced by a new directory: give a directory below it")
        existing = next(parent for parent in final.parents if parent.exists())
        trial = _beside(existing / final.relative_to(existing).parts[0])
        trial.mkdir()
        try:
            # Inside the trial, so that another process that makes the same parents meets no half of them.
            (trial / final.relative_to(existing)).mkdir(parents=True)
        finally:
            shutil.rmtree(trial, ignore_errors=True)


def replace_file(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file in a hidden directory beside `path` and rename it, so that a half-written one never bears that name.

    The directory takes in whatever a library writes on its way (safetensors a private file that it renames), so what a
    kill leaves has a known name. OutputError where the place cannot be written.
    """
    with _refused_as_output(path, also=(SafetensorError,)):
        path.parent.mkdir(parents=True, exist_ok=True)
        place = _beside(path)
        place.mkdir()
        try:
            write(place / path.name)
            _share_as(place)
            os.replace(place / path.name, path)
        finally:
            shutil.rmtree(place, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON that a person can read and compare; numbers that are not finite are written as null."""
    text = json.dumps(plain(content), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    # A lone surrogate has no UTF-8: it is written as "?", as everything around it is worth keeping.
    replace_file(path, lambda place: _write_bytes(place, text.encode("utf-8", errors="replace")))


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def read_json(path: Path) -> Any:
    """Read JSON; ArtifactError where the file is missing or damaged, or holds numbers that are not finite."""
    try:
        return json.loads(path.read_bytes().decode("utf-8"), parse_constant=_refuse_constant, parse_float=_finite)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path} does not exist: this is not a directory that lens_steer wrote") from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError, ArtifactError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error


def sha256_of(path: Path) -> str:
    """Return the hash of a file's bytes, in hexadecimal; ArtifactError where the file cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from error


@contextmanager
def _refused_as_output(path: str | Path, also: tuple[type[Exception], ...] = _UNWRITABLE) -> Iterator[None]:
    """Raise OutputError for what the operating system refuses: OSError, and `also`."""
    refusals: tuple[type[Exception], ...] = (OSError, *also)
    try:
        yield
    except refusals as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise OutputError(f"{path} cannot be written ({reason}): give another directory") from error


def _share_as(directory: Path) -> None:
    """Make the files of a directory as readable as itself, so as the umask has it: safetensors writes private ones."""
    mode = directory.stat().st_mode & 0o666
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o666 != mode:
            path.chmod(mode)


def _beside(path: Path) -> Path:
    """A hidden name beside `path` that nothing has."""
    return path.with_name(f".{path.name}-{uuid4().hex[:12]}")


def plain(value: Any) -> Any:
    """Return the same content in what JSON has: text keys, lists, finite numbers or null; other objects as text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=repr)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    # Scalars of numpy and torch become numbers, arrays lists.
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)


def _refuse_constant(name: str) -> float:
    raise ArtifactError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ArtifactError(f"{text} is beyond the range of numbers")
    return number
