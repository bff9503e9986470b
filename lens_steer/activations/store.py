"""Activations on disk: a safetensors file that stays memory-mapped, its JSON, the shards of an unfinished pass."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, RootModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lens_steer.activations.moments import TokenMoments
from lens_steer.activations.pooling import Pool
from lens_steer.directories import new_directory, replace_file, write_json
from lens_steer.errors import ArtifactError, OutputError
from lens_steer.host.sites import Site
from lens_steer.records import Record, read_record

if TYPE_CHECKING:
    from lens_steer.activations.activations import Activations

FORMAT = 1
_DATA, _ABOUT = "activations.safetensors", "activations.json"
_SHARD_SECONDS = 20.0
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
    groups: list[str] | None
    provenance: dict[str, Any]
    bytes: int


def save_activations(activations: Activations, directory: Path) -> Path:
    """Write activations into a new directory and return it; OutputError if it already holds something."""
    with new_directory(directory) as place:
        write_activations(activations, place)
    return directory


def write_activations(activations: Activations, place: Path) -> None:
    """Write the two files of activations into an existing directory."""
    tensors = {f"values/{site}": activations.values[site].contiguous() for site in activations.sites}
    tensors["labels"] = activations.labels.contiguous()
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
        "provenance": dict(activations.provenance),
        "bytes": (place / _DATA).stat().st_size,
    }
    write_json(place / _ABOUT, about)


def load_activations(directory: Path) -> Activations:
    """Open saved activations; ArtifactError if they are missing, damaged or of another format."""
    from lens_steer.activations.activations import Activations, BySite

    about = read_record(directory / _ABOUT, ActivationsRecord, form=FORMAT)
    data = directory / _DATA
    if not data.is_file() or data.stat().st_size != about.bytes:
        raise ArtifactError(f"{data} is damaged: it does not have the {about.bytes} bytes that were written")
    try:
        handle: Any = safe_open(data, "pt")
        labels: Tensor = handle.get_tensor("labels")
        sites = tuple(Site(*row) for row in about.sites)
        _check_shapes(handle, about, sites)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{data} is damaged: {error}") from error

    def moments(site: Site) -> TokenMoments:
        return TokenMoments(*(handle.get_tensor(f"{part}/{site}") for part in ("count", "mean", "std")))

    return Activations(
        values=BySite(sites, lambda site: handle.get_tensor(f"values/{site}")),
        labels=labels,
        concepts=tuple(about.concepts),
        pool=about.pool,
        moments=BySite(sites, moments) if about.moments else None,
        lengths=None if about.lengths is None else tuple(about.lengths),
        groups=None if about.groups is None else tuple(about.groups),
        provenance=about.provenance,
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
    slices = {name: handle.get_slice(name) for name in expected}
    actual = {name: (piece.get_dtype(), list(piece.get_shape())) for name, piece in slices.items()}
    counts = [len(rows) for rows in (about.lengths, about.groups) if rows is not None]
    if actual != expected or any(count != texts for count in counts) or len({*sites}) < len(sites):
        raise ArtifactError(f"{_ABOUT} does not fit {_DATA}: the activations are damaged")
    if not bool(((labels >= -1) & (labels <= 1)).all()):
        raise ArtifactError(f"{_DATA} is damaged: labels are 1, 0 and -1")


class Progress:
    """The shards of a pass that is being stored: what was computed before an interruption is not computed again."""

    def __init__(self, directory: Path, plan: Mapping[str, Any]) -> None:
        self.directory = directory
        self._plan = directory / "plan.json"
        self._began = time.monotonic()
        if not directory.exists() or not any(directory.iterdir()):
            directory.mkdir(parents=True, exist_ok=True)
            write_json(self._plan, dict(plan))
        elif not self._plan.is_file():
            raise OutputError(f"{directory} already holds other results: give another directory")
        else:
            self._compare(plan)

    @property
    def finished(self) -> bool:
        """Whether the whole pass is there."""
        return (self.directory / _ABOUT).is_file()

    @property
    def shards(self) -> list[tuple[int, Path]]:
        """(first batch that is not in it, file) of every shard, in order."""
        found = [(int(path.stem.split("-")[1]), path) for path in self.directory.glob("shard-*.safetensors")]
        return sorted(found)

    def read(self) -> tuple[int, list[dict[str, Tensor]]]:
        """Return how many batches are done, and the shards' tensors."""
        shards = self.shards
        try:
            return (shards[-1][0] if shards else 0), [load_file(path) for _, path in shards]
        except (SafetensorError, OSError) as error:
            raise ArtifactError(f"a shard in {self.directory} is damaged ({error}): remove the directory") from error

    @property
    def due(self) -> bool:
        """Whether enough time has passed for another shard."""
        return time.monotonic() - self._began >= _SHARD_SECONDS

    def write(self, batches_done: int, tensors: dict[str, Tensor]) -> None:
        """Write the shard of everything since the last one."""
        replace_file(self.directory / f"shard-{batches_done:08d}.safetensors", lambda path: save_file(tensors, path))
        self._began = time.monotonic()

    def finish(self, activations: Activations) -> None:
        """Write the result and drop the shards."""
        write_activations(activations, self.directory)
        for _, path in self.shards:
            path.unlink()

    def _compare(self, plan: Mapping[str, Any]) -> None:
        before = read_record(self._plan, PlanRecord).root
        different = [key for key in {*plan, *before} if _as_json(plan.get(key)) != before.get(key)]
        if different:
            details = "; ".join(
                f"{key}: {before.get(key)!r} there, {plan.get(key)!r} here" for key in sorted(different)
            )
            raise OutputError(f"{self.directory} holds activations of another call ({details}): give another directory")


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
