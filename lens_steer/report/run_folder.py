"""Run folders: a study on disk, with everything that is needed to repeat it.

run.json, tables/*.parquet, figures/*.json, interventions/NAME/, tokens/*.json.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import ConfigDict, Field

from lens_steer.activations.show import UnitView
from lens_steer.directories import new_directory, read_json, sha256_of, write_json
from lens_steer.errors import ArtifactError, SettingError
from lens_steer.host.adapter import host_of
from lens_steer.interventions.intervention import Intervention
from lens_steer.records import FileName, Record, Time, read_record
from lens_steer.report.study import Study
from lens_steer.report.token_view import TokenView
from lens_steer.texts.contrast import ContrastSet, LabelledTexts

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from torch import nn

FORMAT = 1
_RUN = "run.json"
_PACKAGES = ("lens-steer", "transformer-lens", "transformers", "torch", "numpy", "scikit-learn")
_Read = TypeVar("_Read")


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
    contrast: ContrastRecord | None = None
    seed: int | None = None
    settings: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    command: str | None = None
    time: Time | None = None
    sha256: dict[str, str] = Field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class RunFolder:
    """A run folder that was read: its study, and what run.json says of the run (`about`)."""

    path: Path
    study: Study
    about: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.about["name"])


def save_study(
    study: Study,
    out: Path,
    *,
    name: str,
    model: nn.Module,
    contrast: ContrastSet | LabelledTexts | None,
    seed: int | None,
    settings: Mapping[str, Any],
    csv: bool = False,
) -> Path:
    """Write a study as a new run folder and return it; `csv`: each table also as NAME.csv, for people."""
    order = {
        "tables": list(study.frames),
        "figures": list(study.figures),
        "tokens": list(study.tokens),
        "interventions": list(study.interventions),
    }
    about = {
        "format": FORMAT,
        "name": name,
        "summary": list(study.summary),
        "captions": dict(study.captions),
        "order": order,
        "model": host_of(model).provenance,
        "contrast": _contrast(contrast),
        "seed": seed,
        "settings": dict(settings),
        "versions": versions(),
        "command": command_line(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with new_directory(out) as place:
        for part in ("tables", "figures", "tokens", "interventions"):
            (place / part).mkdir()
        for title, frame in study.frames.items():
            _write_table(place / "tables" / f"{title}.parquet", title, frame)
            if csv:
                frame.to_csv(place / f"{title}.csv", index=False)
        for title, figure in study.figures.items():
            (place / "figures" / f"{title}.json").write_text(figure.to_json(), encoding="utf-8")
        for title, view in study.tokens.items():
            tokens = TokenView.of(view) if isinstance(view, UnitView) else view
            write_json(place / "tokens" / f"{title}.json", tokens.content())
        for title, intervention in study.interventions.items():
            intervention.save(place / "interventions" / title)
        parts = [path for part in ("tables", "figures", "tokens") for path in sorted((place / part).iterdir())]
        write_json(place / _RUN, {**about, "sha256": {str(path.relative_to(place)): sha256_of(path) for path in parts}})
    return out


def _contrast(contrast: ContrastSet | LabelledTexts | None) -> dict[str, Any] | None:
    if contrast is None:
        return None
    about: dict[str, Any] = {"name": contrast.name, "data": contrast.data_hash}
    if isinstance(contrast, ContrastSet):
        return about | {"texts": {"source": len(contrast.source), "target": len(contrast.target)}}
    return about | {"texts": len(contrast.texts), "concepts": list(contrast.concepts)}


def versions() -> dict[str, str]:
    """Return the versions that a result can depend on."""
    return {"python": ".".join(map(str, sys.version_info[:3])), **{name: version(name) for name in _PACKAGES}}


def command_line() -> str | None:
    """Return the command that runs, or None in a notebook or a bare interpreter, where there is none."""
    if "ipykernel" in sys.modules or sys.argv[0] in ("", "-c"):
        return None
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    script = Path(sys.argv[0]).name
    if spec is not None:
        start = f"python -m {spec.name.removesuffix('.__main__')}"
    else:
        start = f"python {script}" if script.endswith(".py") else script
    return shlex.join([*start.split(), *sys.argv[1:]])


def _write_table(path: Path, name: str, frame: pd.DataFrame) -> None:
    import pandas as pd
    import pyarrow as pa

    # Unnamed whole numbers are row numbers, also after rows were chosen or tables put one below the other.
    rows = frame.index.names == [None] and pd.api.types.is_integer_dtype(frame.index.dtype)
    plain = (frame.reset_index(drop=True) if rows else frame.reset_index()).rename(columns=str)
    try:
        plain.to_parquet(path, index=False)
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise SettingError(f"the table {name!r} cannot be written as parquet: {error}") from error


def read_run(folder: str | Path) -> RunFolder:
    """Read a run folder; ArtifactError if it is none, of another format, or a file in it is damaged (named)."""
    place = Path(folder)
    if (place / "intervention.json").is_file():
        return _fitted(place)
    about = read_record(place / _RUN, RunRecord, form=FORMAT)
    try:
        study = Study(
            frames=dict(_parts(place, "tables", about, _table)),
            figures=dict(_parts(place, "figures", about, _figure)),
            summary=about.summary,
            interventions=dict(_parts(place, "interventions", about, Intervention.load)),
            captions=about.captions,
            tokens=dict(_parts(place, "tokens", about, lambda path: read_record(path, TokenView))),
        )
    except SettingError as error:
        raise ArtifactError(f"{place / _RUN} is damaged: {error}") from error
    return RunFolder(place, study, about.model_dump(exclude_unset=True))


def _fitted(place: Path) -> RunFolder:
    """The folder of an intervention, such as `lens-steer fit` writes: its provenance says how it came about."""
    edit = Intervention.load(place)
    given = edit.provenance
    method = str(given.get("method", "intervention"))
    kept = int(edit.support()["kept"].sum())
    found = f"{method} moves {kept:,} units; edited sites: {len(edit.sites)}"
    study = Study({}, {}, [found], {method: edit})
    model = {name: given[name] for name in ("model", "revision", "host", "weights", "dtype") if name in given}
    return RunFolder(place, study, {"name": f"fit {method}", "model": model})


_SUFFIXES = {"tables": ".parquet", "figures": ".json", "tokens": ".json", "interventions": ""}


def _parts(place: Path, part: str, about: RunRecord, read: Callable[[Path], _Read]) -> Iterator[tuple[str, _Read]]:
    for name in getattr(about.order, part):
        path = place / part / f"{name}{_SUFFIXES[part]}"
        if not path.exists():
            raise ArtifactError(f"{path} is missing: the run folder is not complete")
        written = about.sha256.get(str(path.relative_to(place)))
        if written is not None and sha256_of(path) != written:
            raise ArtifactError(f"{path} is damaged: its bytes are not those that were saved (sha256 differs)")
        yield name, read(path)


def _table(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_parquet(path)
    except Exception as error:  # pyarrow and pandas raise what they stumble over in a damaged file
        raise ArtifactError(f"{path} is damaged: {error}") from error


def _figure(path: Path) -> go.Figure:
    import plotly.io as pio

    content = read_json(path)
    try:
        figure: go.Figure = pio.from_json(path.read_text(encoding="utf-8"))
    except Exception as error:  # plotly raises what its validators stumble over
        raise ArtifactError(f"{path} is no figure: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} is no figure")
    return figure


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
