"""Interventions on disk: safetensors for the maps, JSON for everything a reader wants to know."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lens_steer.directories import new_directory, read_json, sha256_of, write_json
from lens_steer.errors import ArtifactError
from lens_steer.host.fingerprint import SiteReading
from lens_steer.host.scope import Scope
from lens_steer.host.sites import Site
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import build_map
from lens_steer.interventions.row_gate import RowGate

FORMAT = 1
_MAPS, _ABOUT = "maps.safetensors", "intervention.json"


def save_intervention(intervention: Intervention, directory: Path) -> Path:
    """Write an intervention into a new directory and return it; OutputError if it already holds something."""
    with new_directory(directory) as place:
        tensors: dict[str, Tensor] = {}
        edits: list[dict[str, Any]] = []
        for number, edit in enumerate(intervention.edits):
            tensors |= {f"{number}.{name}": value.contiguous() for name, value in edit.map.tensors().items()}
            row = {"site": asdict(edit.site), "map": edit.map.spec(), "scope": asdict(edit.scope)}
            if edit.gate is not None:
                row["gate"] = edit.gate.spec()
                # A copy, because several edits may have one gate and safetensors refuses what shares memory.
                tensors[f"gate.{number}.direction"] = edit.gate.direction.clone()
            edits.append(row)
        save_file(tensors, place / _MAPS)
        about = {
            "format": FORMAT,
            "edits": edits,
            "strengths": intervention.strengths,
            "provenance": dict(intervention.provenance),
            "fingerprint": {name: asdict(reading) for name, reading in intervention.fingerprint.items()},
            "sha256": sha256_of(place / _MAPS),
        }
        write_json(place / _ABOUT, about)
    return directory


def load_intervention(directory: Path) -> Intervention:
    """Read an intervention; ArtifactError if its parts are missing, damaged, foreign or of another format."""
    about = read_json(directory / _ABOUT)
    if about.get("format") != FORMAT:
        raise ArtifactError(f"{directory} has format {about.get('format')}, this version of lens_steer reads {FORMAT}")
    maps = directory / _MAPS
    if not maps.is_file():
        raise ArtifactError(f"{maps} is missing: the artifact is not complete")
    if sha256_of(maps) != about["sha256"]:
        raise ArtifactError(f"{maps} is damaged: its bytes are not those that were saved (sha256 differs)")
    try:
        tensors = load_file(maps)
        edits = tuple(_edit(number, row, tensors) for number, row in enumerate(about["edits"]))
    except (SafetensorError, KeyError, TypeError) as error:
        raise ArtifactError(f"{directory} is damaged: {error}") from error
    fingerprint = {
        name: SiteReading(reading["mean"], reading["spread"], tuple(reading["token_means"]), tuple(reading["sample"]))
        for name, reading in about["fingerprint"].items()
    }
    low, high = about["strengths"]
    return Intervention(edits, about["provenance"], fingerprint, (low, high))


def _edit(number: int, row: dict[str, Any], tensors: dict[str, Tensor]) -> Edit:
    prefix = f"{number}."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    gate = RowGate.rebuilt(row["gate"], tensors[f"gate.{number}.direction"]) if "gate" in row else None
    return Edit(Site(**row["site"]), build_map(row["map"], own), Scope.rebuilt(row["scope"]), gate)
