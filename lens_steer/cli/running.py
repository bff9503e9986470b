"""Running a command: its errors and warnings as one line each, and the exit status that goes with them.

What the statuses mean stands in `exit_status`.
"""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NoReturn, TextIO

from cyclopts import App, CycloptsError, Parameter, UnknownCommandError

from lens_steer.cli.exit_status import MODEL, Terminated, cause_of, exit_status_help
from lens_steer.cli.help_text import FilledHelp
from lens_steer.cli.reporting import failed_as_json, tell
from lens_steer.errors import LensSteerError, LensSteerWarning
from lens_steer.interruption import on_interrupt

Command = Callable[[list[str]], Any]


@contextmanager
def _raising_on_sigterm() -> Iterator[None]:
    """Raise `Terminated` in the main thread when SIGTERM comes; in another thread signals are not ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: Any) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)


def app_of(name: str, help_text: str | None = None, **settings: Any) -> App:
    """Return a command line whose errors are raised, for `run` to report."""
    return App(
        name=name,
        help=help_text,
        version=lambda: f"lens-steer {version('lens-steer')}",
        help_format="plaintext",
        help_formatter=FilledHelp(),
        help_epilogue=exit_status_help(),
        default_parameter=Parameter(negative=()),
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
        **settings,
    )


def run(command: Command, name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit with its status."""
    sys.exit(status_of(command, name, sys.argv[1:] if arguments is None else arguments))


def status_of(command: Command, name: str, arguments: Sequence[str]) -> int:
    """Run a command line and return its exit status; what went wrong is one line on standard error."""
    with warnings.catch_warnings(), on_interrupt("raise"), _raising_on_sigterm():
        warnings.showwarning = _show_warning
        warnings.simplefilter("default", LensSteerWarning)
        try:
            command(list(arguments))
        except CycloptsError as error:
            named = [] if isinstance(error, UnknownCommandError) else list(arguments)[:1]
            asked = " ".join([name, *[word for word in named if not word.startswith("-")]])
            if "--json" in arguments:
                failed_as_json(" ".join(list(arguments)[:1]), error)
            return _fail(name, f"{str(error).rstrip('.')}. See `{asked} --help`.", error)
        except LensSteerError as error:
            return _fail(name, str(error), error)
        except OSError as error:  # a full disk, a connection that broke: no command foresees where
            return _fail(name, f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", error)
        except Terminated as error:
            return _fail(name, "terminated; nothing unfinished was published", error)
        except KeyboardInterrupt as error:
            return _fail(name, "interrupted; nothing unfinished was published", error)
        except (MemoryError, RuntimeError) as error:
            if cause_of(error) is not MODEL:
                raise
            return _fail(name, f"out of memory ({error}): lower --batch-size, or give fewer texts", error)
    return 0


def _fail(name: str, message: str, error: BaseException) -> int:
    sys.stderr.write(f"{name}: {' '.join(message.split())}\n")
    return cause_of(error).status


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Write lens_steer's own warnings as one line, without the place in the source that a user cannot mend."""
    if issubclass(category, LensSteerWarning):
        tell(warnings=[" ".join(str(message).split())])
        sys.stderr.write(f"warning: {' '.join(str(message).split())}\n")
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))
