"""What run.json holds: the schema that a run folder is read through."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from lens_steer.records import FileName, Record, Time


class OrderRecord(Record):
    """The names of a run folder's parts, in the order in which a report shows them."""

    tables: list[FileName]
    figures: list[FileName]
    tokens: list[FileName]
    interventions: list[FileName]


class ContrastRecord(Record):
    """The name of a contrast, the hash of its texts, and how many they are."""

    name: str
    data: str = ""
    texts: int | dict[str, int]
    concepts: list[str] = Field(default_factory=list)


class ModelRecord(Record):
    """A model's provenance, whatever it holds beside the name."""

    model_config = ConfigDict(extra="allow")

    model: str = ""


class RunRecord(Record):
    """What run.json holds."""

    format: int
    name: str
    summary: Annotated[list[str], Field(min_length=1)]
    captions: dict[str, str]
    order: OrderRecord
    model: ModelRecord = Field(default_factory=ModelRecord)
    fingerprint: dict[str, Any] = Field(default_factory=dict)
    contrast: ContrastRecord | None = None
    seed: int | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    command: str | None = None
    inputs: dict[str, str] = Field(default_factory=dict)
    time: Time | None = None
    seen: str | None = None
    sha256: dict[str, str] = Field(default_factory=dict)
