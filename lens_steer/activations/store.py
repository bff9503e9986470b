"""Activations on disk: a safetensors file that stays memory-mapped, its JSON, the shards of an unfinished pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar, runtime_checkable

import torch
from pydantic import Field, RootModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lens_steer.activations.by_site import BySite
from lens_steer.activations.moments import TokenMoments
from lens_steer.activations.pooling import Pool
from lens_steer.directories import new_directory, replace_file, write_json
from lens_steer.errors import ArtifactError, OutputError
from lens_steer.host.fingerprint import ModelFingerprint
from lens_steer.host.sites import Site
from lens_steer.records import Record, read_record

FORMAT = 1
_DATA, _ABOUT = "activations.safetensors", "activations.json"
_PLAN, _SUMS = "plan.json", "sums.safetensors"
_OURS = (_DATA, _ABOUT, _PLAN, _SUMS, "shard-")  # what a killed call leaves begins with a dot and one of these
_ROWS = ("blocks", "hashes", "pairs")  # files of version 0.1 lack them: every text is a block of its own
_SHARD_SECONDS = 20.0
_Result = TypeVar("_Result")
_Count = Annotated[int, Field(ge=0)]
_Positive = Annotated[int, Field(ge=1)]


class PlanRecord(RootModel[dict[str, Any]]):
    """What plan.json holds: the settings of the pass whose shards lie beside it."""


class ActivationsRecord(Record):
    """What activations.json holds; a site is its name, layer, kind, width and number of heads."""

    format: int
    sites: Annotated[list[tuple[str, _Count, str, _Positive, _Positive]], Field(min_length=1)]
    concepts: Annotated[list[str], Field(min_length=1)]
    pool: Pool
    moments: bool
    lengths: list[_Count] | None
    groups: list[str | None] | None
    continuations: list[str] | None = None
    provenance: dict[str, Any]
    bytes: int


@runtime_checkable
class _Stored(Protocol):
    """What is written of activations: see `Activations`."""

    @property
    def sites(self) -> tuple[Site, ...]: ...
    @property
    def values(self) -> BySite[Tensor]: ...
    @property
    def labels(self) -> Tensor: ...
    @property
    def concepts(self) -> tuple[str, ...]: ...
    @property
    def pool(self) -> str: ...
    @property
    def moments(self) -> BySite[TokenMoments] | None: ...
    @property
    def lengths(self) -> tuple[int, ...] | None: ...
    @property
    def groups(self) -> tuple[str | None, ...] | None: ...
    @property
    def continuations(self) -> tuple[str, ...] | None: ...
    @property
    def blocks(self) -> Tensor: ...
    @property
    def hashes(self) -> Tensor | None: ...
    @property
    def pairs(self) -> Tensor | None: ...
    @property
    def provenance(self) -> Mapping[str, Any]: ...


def save_activations(activations: _Stored, directory: Path) -> Path:
    """Write activations into a new directory and return it; OutputError if it already holds something."""
    with new_directory(directory) as place:
        write_activations(activations, place)
    return directory


def write_activations(activations: _Stored, place: Path) -> None:
    """Write the two files of activations into an existing directory."""
    tensors = {f"values/{site}": activations.values[site].contiguous() for site in activations.sites}
    tensors["labels"] = activations.labels.contiguous()
    rows = {"blocks": activations.blocks, "hashes": activations.hashes, "pairs": activations.pairs}
    tensors |= {name: value.contiguous() for name, value in rows.items() if value is not None}
    if activations.moments is not None:
        for site in activations.sites:
            at = activations.moments[site]
            parts = {"count": at.count, "mean": at.mean, "std": at.std}
            tensors |= {f"{name}/{site}": value.contiguous() for name, value in parts.items()}
    replace_file(place / _DATA, lambda path: save_file(tensors, path))
    about = {
        "format": FORMAT,
        "sites": [[s.name, s.layer, s.kind, s.width, s.heads] for s in activations.sites],
        "concepts": activations.concepts,
        "pool": activations.pool,
        "moments": activations.moments is not None,
        "lengths": activations.lengths,
        "groups": activations.groups,
        "continuations": activations.continuations,
        "provenance": dict(activations.provenance),
        "bytes": (place / _DATA).stat().st_size,
    }
    write_json(place / _ABOUT, about)


def load_activations(directory: Path, build: Callable[..., _Result]) -> _Result:
    """Open saved activations and build the result; ArtifactError if they are missing, damaged or of another format.

    Every site is read once, for ArtifactError where a value is no finite number; none is kept in memory.
    """
    about = read_record(directory / _ABOUT, ActivationsRecord, form=FORMAT)
    data = directory / _DATA
    if not data.is_file() or data.stat().st_size != about.bytes:
        raise ArtifactError(f"{data} is damaged: it does not have the {about.bytes} bytes that were written")
    try:
        handle: Any = safe_open(data, "pt")
        labels: Tensor = handle.get_tensor("labels")
        rows: dict[str, Tensor] = {name: handle.get_tensor(name) for name in _ROWS if name in handle.keys()}  # noqa: SIM118
        sites = tuple(Site(*row) for row in about.sites)
        _check_shapes(handle, about, sites)
        for site in sites:
            _check_finite(handle, site, str(data), moments=about.moments)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{data} is damaged: {error}") from error

    def moments(site: Site) -> TokenMoments:
        return TokenMoments(*(handle.get_tensor(f"{part}/{site}") for part in ("count", "mean", "std")))

    return build(
        values=BySite(sites, lambda site: handle.get_tensor(f"values/{site}")),
        labels=labels,
        concepts=tuple(about.concepts),
        pool=about.pool,
        moments=BySite(sites, moments) if about.moments else None,
        lengths=None if about.lengths is None else tuple(about.lengths),
        groups=None if about.groups is None else tuple(about.groups),
        continuations=None if about.continuations is None else tuple(about.continuations),
        provenance=about.provenance,
        **rows,
    )


def _check_shapes(handle: Any, about: ActivationsRecord, sites: tuple[Site, ...]) -> None:
    """Raise ArtifactError where the two files do not fit; only the header of the larger one is read, and the labels."""
    labels = handle.get_tensor("labels")
    texts, concepts = labels.shape if labels.ndim == 2 else (-1, -1)
    expected = {"labels": ("I8", [texts, len(about.concepts)])}
    for site in sites:
        expected[f"values/{site}"] = ("F32", [texts, site.width])
        if about.moments:
            expected |= {f"{part}/{site}": ("F32", [concepts, 2, site.width]) for part in ("mean", "std")}
            expected[f"count/{site}"] = ("F32", [concepts, 2])
    expected |= {name: _row_shape(handle, name, texts, concepts) for name in _ROWS if name in handle.keys()}  # noqa: SIM118
    slices = {name: handle.get_slice(name) for name in expected}
    actual = {name: (piece.get_dtype(), list(piece.get_shape())) for name, piece in slices.items()}
    counts = [len(rows) for rows in (about.lengths, about.groups, about.continuations) if rows is not None]
    if actual != expected or any(count != texts for count in counts) or len({*sites}) < len(sites):
        raise ArtifactError(f"{_ABOUT} does not fit {_DATA}: the activations are damaged")
    if not bool(((labels >= -1) & (labels <= 1)).all()):
        raise ArtifactError(f"{_DATA} is damaged: labels are 1, 0 and -1")


def _check_finite(handle: Any, site: Site, where: str, *, moments: bool) -> None:
    values: Tensor = handle.get_tensor(f"values/{site}")
    bad = (~torch.isfinite(values)).nonzero()
    if len(bad):
        row, unit = bad[0].tolist()
        raise ArtifactError(
            f"{where}: {site.name}[{unit}] of text {row} is {float(values[row, unit])}, and {len(bad) - 1} more values "
            "there are no finite numbers: collect the activations anew"
        )
    if moments:  # of a side without a token there are none
        count, *parts = (handle.get_tensor(f"{part}/{site}") for part in ("count", "mean", "std"))
        if not all(bool(torch.isfinite(part[count > 0]).all()) for part in (count, *parts)):
            raise ArtifactError(f"{where}: token means of {site.name} are no finite numbers: collect them anew")


def _row_shape(handle: Any, name: str, texts: int, concepts: int) -> tuple[str, list[int]]:
    """Return the dtype and shape that blocks [text], hashes [text, form] or pairs [text, concept] must have."""
    forms = handle.get_slice("hashes").get_shape()[-1:] if name == "hashes" else []
    return "I64", [texts, *({"hashes": forms, "pairs": [concepts]}.get(name, []))]


class UnfinishedPass:
    """A pass that is being stored: shards of values, and the sums so far in one file that is replaced.

    What was computed before an interruption is not computed again. `plan` says of what the pass is; OutputError where
    the directory holds something else. Shards that the sums do not include, written when the call was killed between
    the two files, are dropped.
    """

    def __init__(self, directory: Path, plan: Mapping[str, Any]) -> None:
        self.directory = directory
        self._plan = directory / _PLAN
        self._last_write = time.monotonic()
        self._written = 0
        directory.mkdir(parents=True, exist_ok=True)
        leftovers = [path for path in directory.iterdir() if path.name.startswith(tuple(f".{name}" for name in _OURS))]
        if {*directory.iterdir()} == {*leftovers}:
            write_json(self._plan, dict(plan))
        elif not self._plan.is_file():
            raise OutputError(f"{directory} already holds other results: give another directory")
        else:
            self._compare(plan)
        for path in leftovers:
            path.unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        """Whether the whole pass is there."""
        return (self.directory / _ABOUT).is_file()

    def shards(self) -> Iterator[dict[str, Tensor]]:
        """Yield the tensors of every shard that the sums include, one at a time; the others are removed."""
        try:
            included = int(self._load(_SUMS)["shards"]) if (self.directory / _SUMS).is_file() else 0
        except (KeyError, ValueError, RuntimeError) as error:
            raise ArtifactError(f"{self.directory / _SUMS} is damaged ({error}): remove the directory") from error
        if len(self._shard_files()) < included:
            raise ArtifactError(f"a shard of {self.directory} is missing: remove the directory")
        for path in self._shard_files():
            number = int(path.stem.removeprefix("shard-"))
            if number < included:
                yield self._load(path.name)
            else:
                path.unlink()
        self._written = included

    def sums(self) -> dict[str, Tensor]:
        """Return the sums of all rows in the shards; empty at the start."""
        return self._load(_SUMS) if (self.directory / _SUMS).is_file() else {}

    @property
    def due(self) -> bool:
        """Whether enough time has passed for another shard."""
        return time.monotonic() - self._last_write >= _SHARD_SECONDS

    def write(self, values: dict[str, Tensor], sums: Mapping[str, Tensor]) -> None:
        """Write a shard of the values since the last one, then the sums of all."""
        replace_file(self.directory / f"shard-{self._written:08d}.safetensors", lambda path: save_file(values, path))
        self._written += 1
        tensors = {**sums, "shards": torch.tensor(self._written)}
        replace_file(self.directory / _SUMS, lambda path: save_file(tensors, path))
        self._last_write = time.monotonic()

    def finish(self, activations: _Stored) -> None:
        """Write the result and drop shards and sums."""
        write_activations(activations, self.directory)
        for path in (*self._shard_files(), self.directory / _SUMS):
            path.unlink(missing_ok=True)

    def _shard_files(self) -> list[Path]:
        return sorted(self.directory.glob("shard-*.safetensors"))

    def _load(self, name: str) -> dict[str, Tensor]:
        try:
            tensors: dict[str, Tensor] = load_file(self.directory / name)
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"{self.directory / name} is damaged ({error}): remove the directory") from error
        return tensors

    def _compare(self, plan: Mapping[str, Any]) -> None:
        before = read_record(self._plan, PlanRecord).root
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
                f"{self.directory} holds activations of another call ({'; '.join(differences)}): give another directory"
            )


def _difference(before: Any, now: Mapping[str, Any]) -> str:
    try:
        return ModelFingerprint.rebuilt(before).difference(ModelFingerprint.rebuilt(now))
    except (KeyError, TypeError, AttributeError):
        return "the fingerprint of what lies there cannot be read"


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
