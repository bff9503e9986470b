"""What every command shares around its own work: `--json`, `--force`, and the record of the files that it reads."""

from __future__ import annotations

import inspect
import json as json_format
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from lens_steer.cli.exit_status import cause_of
from lens_steer.cli.inputs import input_hashes, require_unchanged
from lens_steer.cli.option_words import in_options
from lens_steer.directories import is_result, plain, replacing
from lens_steer.errors import OutputError
from lens_steer.invocation import invoked

if TYPE_CHECKING:
    import pandas as pd

Json = Annotated[
    bool,
    Parameter(
        negative=(),
        show_default=False,
        help="Write the result to stdout as one JSON object (version 1; `lens-steer schema` describes it): status, "
        "error, warnings, findings, verdicts, values, tables, written. Everything else goes to stderr.",
    ),
]
Force = Annotated[
    bool,
    Parameter(
        negative=(),
        show_default=False,
        help="Replace an earlier result at --out, once the new one is complete; nothing that lens_steer did not write.",
    ),
]


@dataclass
class _Collected:
    """What a command has told so far."""

    findings: list[str] = field(default_factory=list)
    verdicts: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    written: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


_COLLECTED: ContextVar[_Collected | None] = ContextVar("collected", default=None)


def tell(
    *,
    findings: Iterable[str] = (),
    verdicts: Mapping[str, str] | None = None,
    values: Mapping[str, Any] | None = None,
    tables: Mapping[str, pd.DataFrame] | None = None,
    written: Path | None = None,
    warnings: Iterable[str] = (),
) -> None:
    """Add to what `--json` writes; without `--json` nothing happens."""
    collected = _COLLECTED.get()
    if collected is None:
        return
    from lens_steer.cli.json_result import rows_of

    collected.findings += findings
    collected.verdicts |= {name: str(verdict) for name, verdict in (verdicts or {}).items()}
    collected.values |= values or {}
    collected.tables |= {name: rows_of(table) for name, table in (tables or {}).items()}
    collected.written += [] if written is None else [str(written)]
    collected.warnings += warnings


@contextmanager
def as_json(command: str) -> Iterator[None]:
    """Write what is told inside as one JSON object to stdout, also where it fails; all other output goes to stderr."""
    stdout, collected = sys.stdout, _Collected()
    token = _COLLECTED.set(collected)
    failure: BaseException | None = None
    try:
        with redirect_stdout(sys.stderr):
            yield
    except BaseException as error:
        failure = error
        raise
    finally:
        _COLLECTED.reset(token)
        stdout.write(_text(command, collected, failure))


def failed_as_json(command: str, error: BaseException) -> None:
    """Write the result of a command that failed before it began."""
    sys.stdout.write(_text(command, _Collected(), error))


def _text(command: str, collected: _Collected, failure: BaseException | None) -> str:
    from lens_steer.cli.json_result import SCHEMA_VERSION, JsonResult

    cause = cause_of(failure)
    message = " ".join(str(failure).split()) or cause.name
    result = JsonResult.model_validate(
        {
            "schema_version": SCHEMA_VERSION,
            "lens_steer": version("lens-steer"),
            "command": command,
            "status": cause.status,
            "error": None if failure is None else {"cause": cause.name, "message": message},
            **plain(vars(collected)),
        }
    )
    return json_format.dumps(result.model_dump(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def with_shared_options(command: Callable[..., None], *, replaces: bool = True) -> Callable[..., None]:
    """Return a command with `--json`, and where it has `--out` with `--force`, unless it `replaces` nothing."""
    signature = inspect.signature(command)
    shared: dict[str, Any] = {"json": Json}
    if "out" in signature.parameters and replaces:
        shared["force"] = Force

    @wraps(command)
    def whole(*given: Any, json: bool = False, force: bool = False, **options: Any) -> None:
        with ExitStack() as around:
            if json:
                around.enter_context(as_json(command.__name__.strip("_")))
            bound = signature.bind(*given, **options)
            bound.apply_defaults()
            around.enter_context(reading(bound.arguments))
            around.enter_context(in_options(command))
            if "force" in shared:
                around.enter_context(forced(bound.arguments["out"], force=force))
            command(*given, **options)

    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in shared.items()
    ]
    whole.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    whole.__annotations__ = {**command.__annotations__, **shared}
    return whole


@contextmanager
def forced(out: Path | None, *, force: bool) -> Iterator[None]:
    """Let --force replace the result at `out`; without it, let the refusal say that there is --force."""
    try:
        with replacing(out if force else None):
            yield
    except OutputError as error:
        if force or out is None or not is_result(out):
            raise
        raise OutputError(f"{error}; --force replaces it") from error


@contextmanager
def reading(options: Mapping[str, Any]) -> Iterator[None]:
    """Let the run inside record the files that its options name; where it repeats one, they must be the same."""
    inputs = input_hashes({name: value for name, value in options.items() if name != "out"})
    require_unchanged(inputs)
    with invoked(inputs=inputs):
        yield
