"""The files that a command reads, by their hashes; and what must be unchanged where `again` repeats a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from lens_steer.directories import sha256_of
from lens_steer.errors import ContrastError, ModelError

_RESULTS = ("intervention.json", "run.json")  # either holds the hashes of what lies beside it


@dataclass(frozen=True)
class Repeated:
    """A run that is repeated: its place, its files' hashes by name, and what its model looked like (None: any)."""

    place: Path
    inputs: Mapping[str, str]
    fingerprint: Mapping[str, Any] | None


_REPEATED: ContextVar[Repeated | None] = ContextVar("repeated", default=None)


@contextmanager
def repeating(run: Repeated) -> Iterator[None]:
    """Let `require_unchanged` and `require_same_model` compare with this run inside."""
    token = _REPEATED.set(run)
    try:
        yield
    finally:
        _REPEATED.reset(token)


def input_hashes(options: Any) -> dict[str, str]:
    """Return name -> SHA-256 of the files among the values of options; of a directory, of the result that it holds.

    The model is known by its fingerprint.
    """
    if isinstance(options, Path | str):
        return {str(options): sha256_of(file) for file in _files(options)}
    parts: Iterator[Any] = iter(())
    if isinstance(options, Mapping):
        parts = iter(options.values())
    elif is_dataclass(options) and not isinstance(options, type):
        parts = (getattr(options, part.name) for part in fields(options) if part.name not in ("model", "out"))
    elif isinstance(options, list | tuple):
        parts = iter(options)
    return {name: value for part in parts for name, value in input_hashes(part).items()}


def _files(named: Path | str) -> list[Path]:
    try:
        place = Path(named)
        if place.is_file():
            return [place]
        return [place / name for name in _RESULTS if (place / name).is_file()][:1] if named != "" else []
    except (OSError, ValueError):  # a text that is no file's name
        return []


def require_unchanged(inputs: Mapping[str, str]) -> None:
    """Refuse files that are others than those of the run that is repeated; ContrastError names them."""
    run = _REPEATED.get()
    changed = [name for name, value in inputs.items() if run and run.inputs.get(name, value) != value]
    if run and changed:
        raise ContrastError(
            f"{', '.join(changed)} changed since {run.place} was made: give back the old content, or run the command "
            "itself for a new result"
        )


def require_same_model(model: Any) -> None:
    """Refuse another model than that of the run that is repeated."""
    run = _REPEATED.get()
    if run is None or run.fingerprint is None:
        return
    from lens_steer.host.fingerprint import ModelFingerprint, model_fingerprint

    try:
        before = ModelFingerprint.rebuilt(run.fingerprint)
    except (KeyError, TypeError, AttributeError):
        raise ModelError(f"{run.place} does not say what its model was: it cannot be repeated") from None
    if difference := before.difference(model_fingerprint(model)):
        raise ModelError(
            f"the model is not that of {run.place}, whatever its name ({difference}): give --model to run on another"
        )
