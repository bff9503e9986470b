"""Interventions on disk: safetensors for the maps, JSON for everything a reader wants to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lens_steer.directories import new_directory, read_json, sha256_of, write_json
from lens_steer.errors import ArtifactError, LensSteerError
from lens_steer.host.fingerprint import SiteReading
from lens_steer.host.scope import Scope
from lens_steer.host.sites import Site
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.map_kinds import build_map
from lens_steer.interventions.row_gate import RowGate

FORMAT = 1
_MAPS, _ABOUT = "maps.safetensors", "intervention.json"


class Content(NamedTuple):
    """What an artifact holds."""

    edits: tuple[Edit, ...]
    provenance: Mapping[str, Any]
    fingerprint: Mapping[str, SiteReading]
    strengths: tuple[float, float] | None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class _SiteRow(_Strict):
    name: str
    layer: int = Field(ge=0)
    kind: str
    width: int = Field(gt=0)
    heads: int = Field(gt=0)


class _EditRow(_Strict):
    site: _SiteRow
    map: dict[str, Any]
    scope: dict[str, Any]
    gate: dict[str, Any] | None = None


class _About(_Strict):
    """The JSON of an artifact."""

    format: int
    edits: list[_EditRow] = Field(min_length=1)
    strengths: list[FiniteFloat] | None = Field(min_length=2, max_length=2)
    provenance: dict[str, Any]
    fingerprint: dict[str, dict[str, Any]]
    sha256: str


def save_artifact(directory: Path, content: Content) -> Path:
    """Write an intervention into a new directory and return it; OutputError if it already holds something."""
    with new_directory(directory) as place:
        tensors: dict[str, Tensor] = {}
        for number, edit in enumerate(content.edits):
            tensors |= {f"{number}.{name}": value for name, value in edit.map.tensors().items()}
            if edit.gate is not None:
                tensors[f"gate.{number}.direction"] = edit.gate.direction
        # Copies, because edits may share a map or a gate, and safetensors refuses what shares memory.
        save_file({name: value.contiguous().clone() for name, value in tensors.items()}, place / _MAPS)
        about = {
            "format": FORMAT,
            "edits": [_row(edit) for edit in content.edits],
            "strengths": content.strengths,
            "provenance": dict(content.provenance),
            "fingerprint": {name: asdict(reading) for name, reading in content.fingerprint.items()},
            "sha256": sha256_of(place / _MAPS),
        }
        write_json(place / _ABOUT, about)
    return directory


def read_artifact(directory: Path) -> Content:
    """Read an intervention; ArtifactError if its parts are missing, damaged, foreign or of another format."""
    raw = read_json(directory / _ABOUT)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        version = raw.get("format") if isinstance(raw, dict) else None
        raise ArtifactError(f"{directory} has format {version}, this version of lens_steer reads {FORMAT}")
    try:
        about = _About.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ArtifactError(f"{directory / _ABOUT} is damaged: {where}: {first['msg']}") from error
    maps = directory / _MAPS
    if not maps.is_file():
        raise ArtifactError(f"{maps} is missing: the artifact is not complete")
    if sha256_of(maps) != about.sha256:
        raise ArtifactError(f"{maps} is damaged: its bytes are not those that were saved (sha256 differs)")
    try:
        tensors = load_file(maps)
        edits = tuple(_edit(number, row, tensors) for number, row in enumerate(about.edits))
        fingerprint = TypeAdapter(dict[str, SiteReading]).validate_python(about.fingerprint)
    # Whatever a map, a scope or a gate says of values that were changed.
    except (SafetensorError, LensSteerError, LookupError, TypeError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{directory} is damaged: {error}") from error
    strengths = None if about.strengths is None else (about.strengths[0], about.strengths[1])
    return Content(edits, about.provenance, fingerprint, strengths)


def _row(edit: Edit) -> dict[str, Any]:
    row = {"site": asdict(edit.site), "map": edit.map.spec(), "scope": asdict(edit.scope)}
    return row if edit.gate is None else {**row, "gate": edit.gate.spec()}


def _edit(number: int, row: _EditRow, tensors: Mapping[str, Tensor]) -> Edit:
    prefix = f"{number}."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    gate = None if row.gate is None else RowGate.rebuilt(row.gate, tensors[f"gate.{number}.direction"])
    return Edit(Site(**row.site.model_dump()), build_map(row.map, own), Scope.rebuilt(row.scope), gate)
