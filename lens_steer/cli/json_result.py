"""What `--json` writes: the schema of a command's result, the same for every command."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, JsonValue

from lens_steer.directories import plain
from lens_steer.records import Record

SCHEMA_VERSION = 1
Row = dict[str, JsonValue]


class FailureResult(Record):
    """Why a command failed."""

    cause: str = Field(description="The cause, as the table of exit statuses in --help has it.")
    message: str = Field(description="The line that stands on stderr.")


class JsonResult(Record):
    """The result of one command; numbers that are not finite are null."""

    schema_version: Literal[1] = Field(description="Of this schema; another number where a key changes its meaning.")
    lens_steer: str = Field(description="Version of lens_steer.")
    command: str = Field(description="The command, such as rank.")
    status: int = Field(description="The exit status; see --help.")
    error: FailureResult | None = Field(description="Null where the command did what it was asked.")
    warnings: list[str] = Field(description="The warnings that stand on stderr.")
    findings: list[str] = Field(description="The sentences that the intervals allow.")
    verdicts: dict[str, str] = Field(
        description="Measure -> lower, higher, not shown or cannot be judged; of lint, card and doctor a sentence."
    )
    values: dict[str, JsonValue] = Field(description="Single values, by name.")
    tables: dict[str, list[Row]] = Field(description="The tables that are printed or written, row by row.")
    written: list[str] = Field(description="Files and directories that were written.")


def rows_of(table: Any) -> list[Row]:
    """Return a DataFrame as rows; what is missing is None."""
    rows: list[Row] = plain(table.astype(object).where(table.notna(), None).to_dict("records"))
    return rows
