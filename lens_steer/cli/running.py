"""Running a command: its errors and warnings as one line each, and the exit status that goes with them."""

from __future__ import annotations

import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NoReturn, TextIO

from cyclopts import App, CycloptsError, Parameter

from lens_steer.errors import LensSteerError, LensSteerWarning
from lens_steer.interruption import on_interrupt

Command = Callable[[list[str]], Any]
WRONG, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which a batch system or `kill` sends: unwinds as Ctrl-C does."""


@contextmanager
def _raising_on_sigterm() -> Iterator[None]:
    """Raise `_Terminated` in the main thread when SIGTERM comes; in another thread signals are not ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(*_: Any) -> NoReturn:
        raise _Terminated

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
        default_parameter=Parameter(negative=()),
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
        **settings,
    )


def run(command: Command, name: str, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line and exit: status 1 for a user's mistake, 2 for wrong usage, 130 on Ctrl-C, 143 on SIGTERM."""
    sys.exit(status_of(command, name, sys.argv[1:] if arguments is None else arguments))


def status_of(command: Command, name: str, arguments: Sequence[str]) -> int:
    """Run a command line and return its exit status; what went wrong is one line on standard error."""
    with warnings.catch_warnings(), on_interrupt("raise"), _raising_on_sigterm():
        warnings.showwarning = _show_warning
        warnings.simplefilter("default", LensSteerWarning)
        try:
            command(list(arguments))
        except CycloptsError as error:
            asked = " ".join([name, *[word for word in list(arguments)[:1] if not word.startswith("-")]])
            return _fail(name, f"{error} See `{asked} --help`.", USAGE)
        except LensSteerError as error:
            return _fail(name, str(error), WRONG)
        except OSError as error:  # a full disk, a connection that broke: no command foresees where
            return _fail(name, f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", WRONG)
        except _Terminated:
            return _fail(name, "terminated; nothing unfinished was kept", TERMINATED)
        except KeyboardInterrupt:
            return _fail(name, "interrupted; nothing unfinished was kept", INTERRUPTED)
    return 0


def _fail(name: str, message: str, status: int) -> int:
    sys.stderr.write(f"{name}: {' '.join(message.split())}\n")
    return status


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
        sys.stderr.write(f"warning: {' '.join(str(message).split())}\n")
    else:
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))
