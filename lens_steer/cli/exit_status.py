"""The exit statuses of the command line, by cause: one table, which --help prints and README tells."""

from __future__ import annotations

from typing import NamedTuple

from cyclopts import CycloptsError

from lens_steer.errors import (
    ActivationError,
    ArtifactError,
    ContrastError,
    LensSteerError,
    MapError,
    MicroworldError,
    ModelError,
    OutputError,
    ProcessError,
    SettingError,
    SetupError,
    SiteError,
    TokenError,
    UnitError,
)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a batch system or `kill` sends: unwinds as Ctrl-C does."""


class Cause(NamedTuple):
    """An exit status, its name, and the errors that end a command with it."""

    status: int
    name: str
    errors: tuple[type[BaseException], ...]


DONE = Cause(0, "done", ())
DEFECT = Cause(1, "a defect of lens_steer, or an error without a status of its own", (LensSteerError,))
USAGE = Cause(2, "usage: options that are unknown, missing, or out of range", (CycloptsError, SettingError))
INPUT = Cause(
    3,
    "input: texts, units, prompts or a saved result that cannot be used",
    (ContrastError, TokenError, UnitError, ActivationError, ArtifactError, MicroworldError),
)
MODEL = Cause(4, "model: it cannot be loaded, edited or held in memory", (ModelError, SiteError, MapError, MemoryError))
OUTPUT = Cause(5, "output: the place is occupied, not writable or full", (OutputError, OSError))
SETUP = Cause(6, "setup: `doctor` found a fault, or one of several processes ended", (SetupError, ProcessError))
TERMINATED = Cause(143, "terminated (SIGTERM)", (Terminated,))
INTERRUPTED = Cause(130, "interrupted (Ctrl-C)", (KeyboardInterrupt,))
CAUSES = (DONE, USAGE, INPUT, MODEL, OUTPUT, SETUP, TERMINATED, INTERRUPTED, DEFECT)
"""The first whose errors hold an error is its cause."""


def cause_of(error: BaseException | None) -> Cause:
    """Return why a command ended."""
    if error is None:
        return DONE
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported for the sake of its name
        return MODEL
    return next((cause for cause in CAUSES if isinstance(error, cause.errors)), DEFECT)


def exit_status_help() -> str:
    """Return the table as every --help prints it."""
    rows = sorted(CAUSES, key=lambda cause: cause.status)
    return "Exit status:\n" + "\n".join(f"  {cause.status:>3}  {cause.name}" for cause in rows)
