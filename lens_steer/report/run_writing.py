"""Run folders written: a study on disk, with everything that is needed to repeat it.

run.json, tables/*.parquet, figures/*.json, interventions/NAME/, tokens/*.json, card.json.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lens_steer.activations.show import UnitView
from lens_steer.directories import new_directory, sha256_of, write_json
from lens_steer.errors import SettingError
from lens_steer.evaluation.card.card import EditCard
from lens_steer.evaluation.card.record import content_of
from lens_steer.evaluation.shown_generation import GeneratedView
from lens_steer.host.adapter import host_of
from lens_steer.host.fingerprint import model_fingerprint
from lens_steer.invocation import invocation
from lens_steer.report.token_view import TokenView
from lens_steer.texts.contrast import ContrastSet, LabelledTexts

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    from torch import nn

    from lens_steer.interventions.intervention import Intervention

FORMAT = 1
RUN = "run.json"
CARD = "card.json"
SUFFIXES = {"tables": ".parquet", "figures": ".json", "tokens": ".json", "interventions": ""}
_PACKAGES = ("lens-steer", "transformer-lens", "transformers", "torch", "numpy", "scikit-learn")
_LONG_TEXT = 200  # characters: of a longer setting the command line of a repetition shows the beginning


@runtime_checkable
class Findings(Protocol):
    """What a run folder holds of a study; see `Study` for its parts."""

    @property
    def frames(self) -> Mapping[str, pd.DataFrame]:
        """Tables by name."""

    @property
    def figures(self) -> Mapping[str, go.Figure]:
        """Plotly figures by name."""

    @property
    def summary(self) -> Sequence[str]:
        """Sentences, the title first."""

    @property
    def interventions(self) -> Mapping[str, Intervention]:
        """Fitted interventions by name."""

    @property
    def captions(self) -> Mapping[str, str]:
        """One sentence per part."""

    @property
    def tokens(self) -> Mapping[str, TokenView | UnitView | GeneratedView]:
        """Texts token by token, by name."""

    @property
    def card(self) -> EditCard | None:
        """The card of an edit, if there is one."""


def save_study(
    study: Findings,
    out: Path,
    *,
    name: str,
    model: nn.Module,
    contrast: ContrastSet | LabelledTexts | None,
    seed: int | None,
    settings: Mapping[str, Any],
    csv: bool = False,
    seen: str | None = None,
) -> Path:
    """Write a study as a new run folder and return it.

    `csv`: each table also as NAME.csv, for people. `seen`: the packed hashes of the texts that chose what is in it, by
    which they are known again (see `texts.seen`).
    """
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
        "fingerprint": model_fingerprint(model).content(),
        "seen": seen,
        **circumstances(name, contrast, seed, settings),
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
            tokens = view if isinstance(view, TokenView) else TokenView.of(view)
            write_json(place / "tokens" / f"{title}.json", tokens.content())
        for title, intervention in study.interventions.items():
            intervention.save(place / "interventions" / title)
        if study.card is not None:
            write_json(place / CARD, content_of(study.card))
        parts = [path for part in ("tables", "figures", "tokens") for path in sorted((place / part).iterdir())]
        write_json(place / RUN, {**about, "sha256": {str(path.relative_to(place)): sha256_of(path) for path in parts}})
    return out


def circumstances(
    name: str, contrast: ContrastSet | LabelledTexts | None, seed: int | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a run is repeated by: texts, seed, settings, versions, command and its files; and when it ran."""
    return {
        "contrast": _contrast(contrast),
        "seed": seed,
        "settings": recorded(settings),
        "versions": versions(),
        "command": invocation().command or command_line() or python_call(name, seed, settings),
        "inputs": dict(invocation().inputs),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def recorded(value: Any) -> Any:
    """Return a setting as run.json keeps it: contrasts by name and hash of their texts, objects by type and fields."""
    if isinstance(value, ContrastSet | LabelledTexts):
        return _contrast(value)
    if isinstance(value, Mapping):
        return {str(name): recorded(part) for name, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [recorded(part) for part in value]
    if is_dataclass(value) and not isinstance(value, type):
        parts = {part.name: getattr(value, part.name) for part in fields(value) if not part.name.startswith("_")}
        return {"type": type(value).__name__, **recorded(parts)}
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, PurePath):
        return str(value)
    return value.item() if hasattr(value, "item") else getattr(value, "name", repr(value))


def python_call(name: str, seed: int | None, settings: Mapping[str, Any]) -> str:
    """Return the call that a notebook would make again; model, contrast and long settings stand in run.json."""
    shown = {option: repr(value) for option, value in {"seed": seed, **settings}.items()}
    short = (f"{option}={text if len(text) <= _LONG_TEXT else '...'}" for option, text in shown.items())
    return f"{name}.run({', '.join(['model', 'contrast', *short])})"


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
