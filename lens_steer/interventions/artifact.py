"""Interventions on disk: safetensors for the maps, JSON for everything a reader wants to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import ConfigDict, Field, FiniteFloat
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lens_steer.directories import new_directory, sha256_of, write_json
from lens_steer.errors import ArtifactError, LensSteerError
from lens_steer.host.fingerprint import SiteReading
from lens_steer.host.scope import Scope
from lens_steer.host.sites import Site
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.map_kinds import build_map
from lens_steer.interventions.row_gate import RowGate
from lens_steer.records import Record, read_record

FORMAT = 1
_MAPS, _ABOUT = "maps.safetensors", "intervention.json"


class Content(NamedTuple):
    """What an artifact holds."""

    edits: tuple[Edit, ...]
    provenance: Mapping[str, Any]
    fingerprint: Mapping[str, SiteReading]
    strengths: tuple[float, float] | None


class MapRecord(Record):
    """What `ActivationMap.spec` says; the settings of a kind are checked where the kind is made again."""

    model_config = ConfigDict(extra="allow")

    kind: str
    strength: float = 1.0
    seed: Annotated[int, Field(ge=0)] = 0
    width: Annotated[int, Field(ge=1)] = 1
    parts: list[MapRecord] = Field(default_factory=list, min_length=1)
    map: MapRecord | None = None


class GateRecord(Record):
    """What `RowGate.spec` says."""

    site: Site
    tokens: Scope
    threshold: float
    side: str
    similarity: str


class EditRecord(Record):
    """One edit; its tensors are in the other file."""

    site: Site
    map: MapRecord
    scope: Scope
    gate: GateRecord | None = None


class InterventionRecord(Record):
    """What intervention.json holds."""

    format: int
    edits: Annotated[list[EditRecord], Field(min_length=1)]
    strengths: tuple[FiniteFloat, FiniteFloat] | None
    provenance: dict[str, Any]
    fingerprint: dict[str, SiteReading]
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
    about = read_record(directory / _ABOUT, InterventionRecord, form=FORMAT)
    maps = directory / _MAPS
    if not maps.is_file():
        raise ArtifactError(f"{maps} is missing: the artifact is not complete")
    if sha256_of(maps) != about.sha256:
        raise ArtifactError(f"{maps} is damaged: its bytes are not those that were saved (sha256 differs)")
    try:
        tensors = load_file(maps)
        edits = tuple(_edit(number, row, tensors) for number, row in enumerate(about.edits))
        return Content(edits, about.provenance, about.fingerprint, about.strengths)
    except (SafetensorError, LensSteerError, LookupError, TypeError, ValueError, RuntimeError) as error:
        # The tensors are as they were saved, so that intervention.json does not fit them.
        raise ArtifactError(f"{directory / _ABOUT} is damaged: it does not fit {_MAPS} ({error})") from error


def _row(edit: Edit) -> dict[str, Any]:
    row = {"site": asdict(edit.site), "map": edit.map.spec(), "scope": asdict(edit.scope)}
    return row if edit.gate is None else {**row, "gate": edit.gate.spec()}


def _edit(number: int, row: EditRecord, tensors: Mapping[str, Tensor]) -> Edit:
    prefix = f"{number}."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    gate = None
    if row.gate is not None:
        gate = RowGate.rebuilt(row.gate.model_dump(), tensors[f"gate.{number}.direction"])
    return Edit(row.site, build_map(row.map.model_dump(exclude_unset=True), own), row.scope, gate)
