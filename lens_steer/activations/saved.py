"""Activations on disk: a safetensors file that stays memory-mapped, and its JSON; a store has its values in shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar, runtime_checkable

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lens_steer.activations.by_site import BySite
from lens_steer.activations.moments import TokenMoments
from lens_steer.activations.pooling import Pool
from lens_steer.activations.stored_values import StoredValues
from lens_steer.activations.tensor_file import file_digest
from lens_steer.directories import new_directory, replace_file, write_json
from lens_steer.errors import ArtifactError
from lens_steer.host.sites import Site
from lens_steer.records import Record, read_record

FORMAT = 1
_DATA, _ABOUT = "activations.safetensors", "activations.json"
_ROWS = ("blocks", "hashes", "pairs")  # files of version 0.1 lack them: every text is a block of its own
_Result = TypeVar("_Result")
_Count = Annotated[int, Field(ge=0)]
_Positive = Annotated[int, Field(ge=1)]


class ActivationsRecord(Record):
    """What activations.json holds; a site is its name, layer, kind, width and number of heads.

    `shards` are the digests of the files that hold the values, where those are not in the file beside this one.
    """

    format: int
    sites: Annotated[list[tuple[str, _Count, str, _Positive, _Positive]], Field(min_length=1)]
    concepts: Annotated[list[str], Field(min_length=1)]
    pool: Pool
    moments: bool
    lengths: list[_Count] | None
    groups: list[str | None] | None
    continuations: list[str] | None = None
    provenance: dict[str, Any]
    shards: Annotated[list[str], Field(min_length=1)] | None = None
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


def write_activations(activations: _Stored, place: Path, shards: Sequence[Path] | None = None) -> None:
    """Write the two files of activations into an existing directory; without values where `shards` there hold them."""
    tensors = {} if shards else {f"values/{site}": activations.values[site].contiguous() for site in activations.sites}
    tensors["labels"] = activations.labels.contiguous()
    rows = {name: getattr(activations, name) for name in _ROWS}
    if shards is not None and isinstance(activations.values, StoredValues):
        rows["rows"] = activations.values.rows
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
        "shards": None if shards is None else [file_digest(path) for path in shards],
        "bytes": (place / _DATA).stat().st_size,
    }
    write_json(place / _ABOUT, about)


def load_activations(directory: Path, build: Callable[..., _Result]) -> _Result:
    """Open saved activations and build the result; ArtifactError if they are missing, damaged or of another format.

    Every site is read once, for ArtifactError where a value is no finite number; none is kept in memory. Of a store
    only the headers are read, and each site's values are compared with their hashes when they are used.
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
            _check_finite(handle, site, str(data), moments=about.moments, values=about.shards is None)
        values = _in_file(handle, sites) if about.shards is None else _in_shards(directory, handle, about.shards, sites)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{data} is damaged: {error}") from error

    def moments(site: Site) -> TokenMoments:
        return TokenMoments(*(handle.get_tensor(f"{part}/{site}") for part in ("count", "mean", "std")))

    return build(
        values=values,
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


def _in_file(handle: Any, sites: tuple[Site, ...]) -> BySite[Tensor]:
    return BySite(sites, lambda site: handle.get_tensor(f"values/{site}"))


def _in_shards(directory: Path, handle: Any, digests: Sequence[str], sites: tuple[Site, ...]) -> BySite[Tensor]:
    paths = shard_paths(directory, len(digests))
    for path, digest in zip(paths, digests, strict=True):
        if file_digest(path) != digest:
            raise ArtifactError(f"{path} is damaged, or of another pass: collect(..., store=) runs what it held again")
    return StoredValues(sites, paths, handle.get_tensor("rows"))


def shard_paths(directory: Path, count: int) -> list[Path]:
    """Return where the shards of a store lie."""
    return [directory / f"shard-{number:08d}.safetensors" for number in range(count)]


def _check_shapes(handle: Any, about: ActivationsRecord, sites: tuple[Site, ...]) -> None:
    """Raise ArtifactError where the two files do not fit; only the header of the larger one is read, and the labels."""
    labels = handle.get_tensor("labels")
    texts, concepts = labels.shape if labels.ndim == 2 else (-1, -1)
    expected = {"labels": ("I8", [texts, len(about.concepts)])}
    for site in sites:
        if about.shards is None:
            expected[f"values/{site}"] = ("F32", [texts, site.width])
        if about.moments:
            expected |= {f"{part}/{site}": ("F32", [concepts, 2, site.width]) for part in ("mean", "std")}
            expected[f"count/{site}"] = ("F32", [concepts, 2])
    if about.shards is not None:
        expected["rows"] = ("I64", [texts])
    expected |= {name: _row_shape(handle, name, texts, concepts) for name in _ROWS if name in handle.keys()}  # noqa: SIM118
    slices = {name: handle.get_slice(name) for name in expected}
    actual = {name: (piece.get_dtype(), list(piece.get_shape())) for name, piece in slices.items()}
    counts = [len(rows) for rows in (about.lengths, about.groups, about.continuations) if rows is not None]
    if actual != expected or any(count != texts for count in counts) or len({*sites}) < len(sites):
        raise ArtifactError(f"{_ABOUT} does not fit {_DATA}: the activations are damaged")
    if not bool(((labels >= -1) & (labels <= 1)).all()):
        raise ArtifactError(f"{_DATA} is damaged: labels are 1, 0 and -1")


def _check_finite(handle: Any, site: Site, where: str, *, moments: bool, values: bool) -> None:
    at: Tensor = handle.get_tensor(f"values/{site}") if values else torch.zeros(0, site.width)
    bad = (~torch.isfinite(at)).nonzero()
    if len(bad):
        row, unit = bad[0].tolist()
        raise ArtifactError(
            f"{where}: {site.name}[{unit}] of text {row} is {float(at[row, unit])}, and {len(bad) - 1} more values "
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
