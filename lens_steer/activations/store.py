"""Stores: a directory that one pass fills, by one process or several, and that an interrupted pass goes on in.

`manifest.json` says of which pass; what is done of it lies in tensor files, each whole or not there. Which texts a
shard holds follows from the texts, the tokenizer and the batch size of the first call, so that a pass that was killed
ends with the bytes of one that was not.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor

from lens_steer.activations.tensor_file import read_tensors, write_tensors
from lens_steer.directories import write_json
from lens_steer.errors import ArtifactError, LensSteerWarning, OutputError
from lens_steer.host.fingerprint import ModelFingerprint
from lens_steer.processes import process_number, wait_for_all
from lens_steer.records import Record, read_record

_FORMAT = 1
_MANIFEST, _LOCK = "manifest.json", ".lock"
# What a killed call leaves begins with a dot and one of these.
_OURS = (_MANIFEST, "activations.", "sketch.", "shard-", "pilot.", "part-")
_SHARD_BYTES = 2**26
_SHARD_BATCHES = 4
_MOST_SHARDS = 1024
_ROWS_PER_GROUP = 8


class ManifestRecord(Record):
    """What manifest.json holds: the settings of the pass, and the batch size that its shards were cut by."""

    format: int
    plan: dict[str, Any]
    batch: int | None


class Store:
    """An open store; see `open_store`."""

    def __init__(self, directory: Path, batch: int | None) -> None:
        self.directory = directory
        self.batch = batch

    def path(self, name: str) -> Path:
        """Return the place of a tensor file."""
        return self.directory / f"{name}.safetensors"

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write a tensor file, whole or not at all; OutputError where the disk refuses it."""
        write_tensors(self.path(name), tensors)

    def read(self, name: str) -> dict[str, Tensor]:
        """Return a tensor file, compared with its hashes; ArtifactError where it is damaged."""
        return read_tensors(self.path(name))

    def whole(self, name: str) -> bool:
        """Whether a tensor file is there undamaged. A damaged one is taken away, with a warning: it is to be redone."""
        path = self.path(name)
        if not path.exists():
            return False
        try:
            read_tensors(path)
        except ArtifactError as error:
            self.remove([name])
            warnings.warn(f"{error}; what it held is run again", LensSteerWarning, 4)
            return False
        return True

    def remove(self, names: Sequence[str]) -> None:
        """Take tensor files away."""
        for name in names:
            try:
                self.path(name).unlink(missing_ok=True)
            except OSError as error:
                raise OutputError(f"{self.path(name)} cannot be removed ({error.strerror})") from error

    def finished(self, result: str, check: Callable[[], object]) -> bool:
        """Whether the result is there, as the first process finds by `check`; what is not whole is taken away.

        One decides for all, as another process may already be at work when the next one looks.
        """
        if process_number() == 0:
            try:
                whole = bool(check())
            except ArtifactError:
                whole = False
            if not whole:
                (self.directory / result).unlink(missing_ok=True)
        wait_for_all("what was stored had been looked at")
        return (self.directory / result).is_file()


@contextmanager
def open_store(directory: Path, plan: Mapping[str, Any], batch: int | None) -> Iterator[Store]:
    """Open the store of a pass, new or begun, and lock it; several processes of one run share it.

    OutputError where the directory holds something else or another pass (what differs is named), or where another run
    is at work in it; ArtifactError where the manifest is damaged.
    """
    lock = None
    if process_number() == 0:
        lock = _locked(directory)
    try:
        if lock is not None:
            _prepare(directory, plan, batch)
        wait_for_all("the store is open")
        yield Store(directory, read_record(directory / _MANIFEST, ManifestRecord, form=_FORMAT).batch)
    finally:
        if lock is not None:
            lock.release()


def shards_of(batches: Sequence[Sequence[int]], bytes_per_row: int, groups: int) -> list[list[int]]:
    """Return the rows of every shard: whole batches, in their order, by nothing but these arguments.

    A shard is full at 64 MiB of values or four batches (more where that made more than 1,024 shards), but not before it
    has eight rows for each group of texts whose token sums it also holds: so sums take at most half the room of values.
    """
    most = max(_SHARD_BATCHES, -(-len(batches) // _MOST_SHARDS))
    shards: list[list[int]] = []
    taken = most
    for batch in batches:
        full = taken >= most or (bool(shards) and len(shards[-1]) * bytes_per_row >= _SHARD_BYTES)
        if not shards or (full and len(shards[-1]) >= _ROWS_PER_GROUP * groups):
            shards.append([])
            taken = 0
        shards[-1] += batch
        taken += 1
    return shards


def _locked(directory: Path) -> FileLock:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _require_ours(directory)
        lock = FileLock(directory / _LOCK, timeout=0)
        lock.acquire()
    except Timeout:
        raise OutputError(
            f"another run is at work in {directory}: wait until it ends, or give another directory"
        ) from None
    except OSError as error:
        raise OutputError(f"{directory} cannot be written ({error.strerror}): give another directory") from error
    return lock


def _leftovers(directory: Path) -> list[Path]:
    hidden = tuple(f".{name}" for name in _OURS)
    return [path for path in directory.iterdir() if path.name.startswith(hidden)]


def _require_ours(directory: Path) -> None:
    others = {*directory.iterdir()} - {*_leftovers(directory)} - {directory / _LOCK}
    if others and not (directory / _MANIFEST).is_file():
        raise OutputError(f"{directory} already holds other results: give another directory")


def _prepare(directory: Path, plan: Mapping[str, Any], batch: int | None) -> None:
    for path in _leftovers(directory):
        shutil.rmtree(path, ignore_errors=True)
    if not (directory / _MANIFEST).is_file():
        write_json(directory / _MANIFEST, {"format": _FORMAT, "plan": dict(plan), "batch": batch})
        return
    before = read_record(directory / _MANIFEST, ManifestRecord, form=_FORMAT).plan
    differences = [
        f"{key}: {before.get(key)!r} there, {plan.get(key)!r} here"
        for key in sorted({*plan, *before} - {"fingerprint"})
        if _as_json(plan.get(key)) != before.get(key)
    ]
    model = _difference(before.get("fingerprint"), plan["fingerprint"])
    if model:
        differences.append(f"another model, or this one under other edits: {model}")
    if differences:
        raise OutputError(
            f"{directory} holds activations of another call ({'; '.join(differences)}): give another directory"
        )


def _difference(before: Any, now: Mapping[str, Any]) -> str:
    try:
        return ModelFingerprint.rebuilt(before).difference(ModelFingerprint.rebuilt(now))
    except (KeyError, TypeError, AttributeError):
        return "the fingerprint of what lies there cannot be read"


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
