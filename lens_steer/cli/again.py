"""`lens-steer again RUN`: an earlier run once more, by its own record, where nothing that it read has changed."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from lens_steer.cli.inputs import Repeated, repeating
from lens_steer.cli.options import DIRECTORY
from lens_steer.cli.runs import say
from lens_steer.errors import ArtifactError, LensSteerWarning
from lens_steer.invocation import invoked

_STARTS = (["lens-steer"], ["python", "-m", "lens_steer.cli"], ["python", "-m", "lens_steer"])


def again_app(app: App) -> Callable[..., None]:
    """Return the command `again` of a command line, which runs the commands of that."""

    def again(
        run: Annotated[Path, Parameter(validator=DIRECTORY)],
        /,
        *changes: Annotated[str, Parameter(allow_leading_hyphen=True)],
    ) -> None:
        """Repeat an earlier run by its record: same options, same seeds, on the same files and model.

        Refused where a file that it read has other content now, or the model other weights; other versions of the
        libraries are warned of. Relative paths are taken from where you are.

        Example: lens-steer again runs/rank --out runs/rank-again

        Example: lens-steer again runs/edit --seed 7

        Parameters
        ----------
        run:
            A folder that rank, fit, ablate, generate, evaluate, card or a study wrote.
        changes:
            Options of that command that replace its own, such as --out NEW (the next free name beside RUN when left
            out), --seed 7, --json or --force.

        """
        about = _record_of(run)
        words = changed(_words_of(run, about), changes)
        named = options_in(changes)
        if "--out" not in named:
            words = changed(words, ["--out", str(_free_place(run))])
        _warn_of_versions(run, about)
        command = shlex.join(["lens-steer", *words])
        if "--json" not in words:
            say(command)
        fingerprint = None if {"--model", "--dtype"} & named else about.get("fingerprint")
        with repeating(Repeated(run, about.get("inputs") or {}, fingerprint)), invoked(command=command):
            app(words)

    return again


def changed(words: Sequence[str], changes: Sequence[str]) -> list[str]:
    """Return the words of a command with some options replaced: all that follows one, up to the next, is its value."""
    replaced = options_in(changes)
    kept: list[str] = []
    leaves_out = False
    for word in words:
        if word.startswith("--"):
            leaves_out = word.partition("=")[0] in replaced
        if not leaves_out:
            kept.append(word)
    return [*kept, *changes]


def options_in(words: Sequence[str]) -> set[str]:
    """Return the names of the options among words, written with a value behind "=" or not."""
    return {word.partition("=")[0] for word in words if word.startswith("--")}


def _record_of(run: Path) -> Mapping[str, Any]:
    from lens_steer.interventions.intervention import Intervention
    from lens_steer.records import read_record
    from lens_steer.report.run_record import RunRecord
    from lens_steer.report.run_writing import FORMAT, RUN

    if (run / "intervention.json").is_file():
        about: Mapping[str, Any] = Intervention.load(run).provenance.get("run") or {}
        return about
    return read_record(run / RUN, RunRecord, form=FORMAT).model_dump()


def _words_of(run: Path, about: Mapping[str, Any]) -> list[str]:
    command = shlex.split(about.get("command") or "")
    for start in _STARTS:
        if command[: len(start)] == start and len(command) > len(start):
            return [word for word in command[len(start) :] if word not in ("--json", "--force")]
    raise ArtifactError(
        f"{run} was not made by a command of lens-steer"
        + (f", but by {about['command']}: repeat it there" if command else " that its record tells")
    )


def _free_place(run: Path) -> Path:
    place = run.resolve()
    names = (run.parent / f"{place.name}-{number}" for number in count(2))
    return next(name for name in names if not name.exists())


def _warn_of_versions(run: Path, about: Mapping[str, Any]) -> None:
    from lens_steer.report.run_writing import versions

    before, now = about.get("versions") or {}, versions()
    changes = [
        f"{name} {before[name]} then, {now[name]} now" for name in now if before.get(name, now[name]) != now[name]
    ]
    if changes:
        message = f"{run} was made with other versions ({'; '.join(changes)}): numbers may differ"
        warnings.warn(message, LensSteerWarning, stacklevel=2)
