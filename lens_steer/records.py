"""Records: JSON files that are read through a schema, so that a damaged one is named and never half understood.

A schema is a pydantic model or a dataclass; it stands beside the code that writes the file.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from lens_steer.directories import read_json
from lens_steer.errors import ArtifactError, LensSteerError

Schema = TypeVar("Schema")
_adapter: Any = cache(TypeAdapter)  # made once per schema


class Record(BaseModel):
    """A JSON object with known keys of known types; further keys are let be, as a later version may write them."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


def read_record(path: Path, schema: type[Schema], *, form: int | None = None) -> Schema:
    """Read a JSON file through a schema, in which 1 is no text and "1" no number.

    Raises
    ------
    ArtifactError
        The file is missing, is no JSON, is of another format than `form`, or a value has the wrong type or is out of
        range; its place in the file is named.

    """
    content = read_json(path)
    if form is not None:
        written = content.get("format") if isinstance(content, dict) else None
        if written != form or isinstance(written, bool):
            raise ArtifactError(f"{path} has format {written}, this version of lens_steer reads {form}")
    try:
        # Through text, in which a JSON list is a tuple's or a set's strict form too.
        record: Schema = _adapter(schema).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the whole"
        raise ArtifactError(f"{path} is damaged: {place}: {first['msg']}") from error
    except (LensSteerError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: {error}") from error
    return record


def _time(text: str) -> str:
    datetime.fromisoformat(text)
    return text


FileName = Annotated[str, StringConstraints(pattern=r"^[^./\\\p{C}][^/\\\p{C}]*$")]
"""The name of a file or folder beside the JSON that names it."""
Time = Annotated[str, AfterValidator(_time)]
"""A point in time as ISO 8601 has it."""
