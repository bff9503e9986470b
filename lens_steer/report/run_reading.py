"""Run folders read: the parts of a study and what run.json says of it; whatever is damaged is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lens_steer.directories import read_json, sha256_of
from lens_steer.errors import ArtifactError
from lens_steer.evaluation.card.record import CardRecord, card_of
from lens_steer.interventions.intervention import Intervention
from lens_steer.records import read_record
from lens_steer.report.run_record import RunRecord
from lens_steer.report.run_writing import CARD, FORMAT, RUN, SUFFIXES
from lens_steer.report.token_view import TokenView

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_Read = TypeVar("_Read")


def read_folder(place: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the arguments of a `Study` and what run.json says of the run, or the same of an intervention's own folder.

    Raises
    ------
    ArtifactError
        It is neither, of another format, or a file in it is missing or damaged (named).

    """
    if (place / "intervention.json").is_file():
        return _fitted(Intervention.load(place))
    about = read_record(place / RUN, RunRecord, form=FORMAT)
    return _read_parts(place, about), about.model_dump(exclude_unset=True)


def _read_parts(place: Path, about: RunRecord) -> dict[str, Any]:
    return {
        "frames": dict(_parts(place, "tables", about, _table)),
        "figures": dict(_parts(place, "figures", about, _figure)),
        "summary": about.summary,
        "interventions": dict(_parts(place, "interventions", about, Intervention.load)),
        "captions": about.captions,
        "tokens": dict(_parts(place, "tokens", about, lambda path: read_record(path, TokenView))),
        "card": card_of(read_record(place / CARD, CardRecord)) if (place / CARD).exists() else None,
    }


def _fitted(edit: Intervention) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments of a `Study` of an intervention's own folder, and what stands in the place of run.json."""
    given = edit.provenance
    method = str(given.get("method", "intervention"))
    support = edit.support()
    moved = support[support["kept"] > 0]
    units, sites = int(moved["kept"].sum()), moved["site"].nunique()
    count = f"{method} moves {units:,} unit{'s' * (units != 1)} at {sites} of {len(edit.sites)} site"
    count += "s" * (len(edit.sites) != 1)
    parts = {"figures": {}, "frames": {}, "summary": [count], "interventions": {method: edit}}
    model = {name: given[name] for name in ("model", "revision", "host", "weights", "dtype") if name in given}
    run = given.get("run")
    return parts, {**(run if isinstance(run, Mapping) else {}), "name": f"fit {method}", "model": model}


def _parts(place: Path, part: str, about: RunRecord, read: Callable[[Path], _Read]) -> Iterator[tuple[str, _Read]]:
    for name in getattr(about.order, part):
        path = place / part / f"{name}{SUFFIXES[part]}"
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

    from lens_steer.report.figures.picture import PicturedFigure

    content = read_json(path)
    try:
        figure = PicturedFigure(pio.from_json(path.read_text(encoding="utf-8")))
    except Exception as error:  # plotly raises what its validators stumble over
        raise ArtifactError(f"{path} is no figure: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise ArtifactError(f"{path} is no figure")
    return figure


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
