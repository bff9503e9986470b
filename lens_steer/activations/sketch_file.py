"""Sketches on disk: the counts and moments of every site, and who is who among the texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor

from lens_steer.activations.activations import Activations
from lens_steer.activations.by_site import BySite
from lens_steer.activations.pooling import Pool
from lens_steer.activations.tensor_file import read_tensors, write_tensors
from lens_steer.directories import write_json
from lens_steer.errors import ArtifactError, LensSteerError
from lens_steer.host.sites import Site
from lens_steer.records import Record, read_record
from lens_steer.statistics.sketches import Grid, Sketch

_FORMAT = 1
_DATA, _ABOUT = "sketch.safetensors", "sketch.json"
_PARTS = ("counts", "texts", "mean", "squares", "low", "high")
_TABLES = ("labels", "blocks", "hashes")
_Count = Annotated[int, Field(ge=0)]
_Positive = Annotated[int, Field(ge=1)]


class SketchRecord(Record):
    """What sketch.json holds; a site is its name, layer, kind, width and number of heads."""

    format: int
    sites: Annotated[list[tuple[str, _Count, str, _Positive, _Positive]], Field(min_length=1)]
    concepts: Annotated[list[str], Field(min_length=1)]
    pool: Pool
    holdout: float | None
    seed: int
    provenance: dict[str, Any]


@runtime_checkable
class _Sketched(Protocol):
    """What is written of a sketch: see `ActivationSketch`."""

    @property
    def sketches(self) -> BySite[Sketch]: ...
    @property
    def texts(self) -> Activations: ...
    @property
    def holdout(self) -> float | None: ...
    @property
    def seed(self) -> int: ...


def write_sketch(sketch: _Sketched, place: Path) -> None:
    """Write the two files of a sketch into an existing directory."""
    texts = sketch.texts
    tables = {name: value for name in _TABLES if (value := getattr(texts, name)) is not None}
    write_tensors(
        place / _DATA, {**sketch_tensors({site.name: sketch.sketches[site] for site in texts.sites}), **tables}
    )
    about = {
        "format": _FORMAT,
        "sites": [[s.name, s.layer, s.kind, s.width, s.heads] for s in texts.sites],
        "concepts": texts.concepts,
        "pool": texts.pool,
        "holdout": sketch.holdout,
        "seed": sketch.seed,
        "provenance": dict(texts.provenance),
    }
    write_json(place / _ABOUT, about)


def read_sketch(directory: Path) -> tuple[BySite[Sketch], Activations, float | None, int]:
    """Return sketches, texts, held-out share and seed; ArtifactError where they are missing or damaged."""
    about = read_record(directory / _ABOUT, SketchRecord, form=_FORMAT)
    data = directory / _DATA
    tensors = read_tensors(data)
    sites = tuple(Site(*row) for row in about.sites)
    sketches = sketches_of(tensors, sites, str(data))
    try:
        labels = tensors["labels"]
        texts = Activations(
            values=valueless(sites, len(labels)),
            labels=labels,
            concepts=tuple(about.concepts),
            pool=about.pool,
            provenance=about.provenance,
            blocks=tensors["blocks"],
            hashes=tensors.get("hashes"),
        )
    except (LookupError, LensSteerError) as error:
        raise ArtifactError(f"{data} is damaged: {error}") from error
    if {sketch.groups for sketch in sketches.values()} != {4 * len(about.concepts)}:
        raise ArtifactError(f"{_ABOUT} does not fit {_DATA}: the sketch is damaged")
    return BySite(sites, lambda site: sketches[site.name]), texts, about.holdout, about.seed


def valueless(sites: tuple[Site, ...], texts: int) -> BySite[Tensor]:
    """Return values of torch's meta device, which holds none."""
    return BySite(sites, lambda site: torch.empty(texts, site.width, device="meta"))


def sketch_tensors(sketches: Mapping[str, Sketch]) -> dict[str, Tensor]:
    """Return the tensors of sketches by site name, grid included."""
    return {
        f"{part}/{name}": sketch.grid.cuts if part == "cuts" else getattr(sketch, part)
        for name, sketch in sketches.items()
        for part in ("cuts", *_PARTS)
    }


def sketches_of(
    tensors: Mapping[str, Tensor], sites: tuple[Site, ...], where: str, place: torch.device | None = None
) -> dict[str, Sketch]:
    """Return the sketches that `sketch_tensors` wrote, on a device; ArtifactError where they are not of these sites."""
    sketches = {}
    for site in sites:
        try:
            cuts = tensors[f"cuts/{site}"].to(place)
            sketch = Sketch(Grid(cuts), len(tensors[f"texts/{site}"]))
            for part in _PARTS:
                empty, value = getattr(sketch, part), tensors[f"{part}/{site}"]
                if empty.shape != value.shape or empty.dtype != value.dtype or len(cuts) != site.width:
                    raise ArtifactError(f"{where} is damaged: {part} of {site} has another shape")
                # A copy: what is mapped from the file is not to be counted into.
                setattr(sketch, part, value.to(place).clone())
        except LookupError as error:
            raise ArtifactError(f"{where} is damaged: there is no {error}") from error
        sketches[site.name] = sketch
    return sketches
