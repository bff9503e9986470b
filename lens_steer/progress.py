"""Progress of long work: a bar on a terminal and in a notebook, a line every half minute anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import repeat
from time import monotonic
from typing import Any

from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 30.0
_WHOLE: ContextVar[tuple[str, Any] | None] = ContextVar("whole", default=None)  # unit and bar of what parts are of

_HEARD: ContextVar[str | None] = ContextVar("heard", default=None)


@contextmanager
def heard(name: str) -> Iterator[None]:
    """Where no terminal shows bars, let hidden ones inside write their lines too, behind this name."""
    token = _HEARD.set(name)
    try:
        yield
    finally:
        _HEARD.reset(token)


def progress_bar(iterable: Iterable[Any], *, desc: str, unit: str, show: bool) -> Any:
    """Return `iterable` behind a bar that appears after two seconds; where no terminal shows one, behind lines.

    Inside `one_bar` of the same unit it is a part of that.
    """
    whole = _WHOLE.get()
    if whole is not None and whole[0] == unit:
        return _Part(iterable, whole[1])
    return _bar(iterable, desc, unit, show)


@contextmanager
def one_bar(total: int | None, *, desc: str, unit: str, show: bool) -> Iterator[Any]:
    """Show the bars of `unit` inside as one, of `total` steps at most, and yield it; None where nobody knows how many.

    Steps that a part was allowed and did not take count as taken, so that what is left is what may still come.
    """
    bar = _bar(repeat(None) if total is None else range(total), desc, unit, show)
    token = _WHOLE.set((unit, bar))
    try:
        yield bar
    finally:
        _WHOLE.reset(token)
        bar.close()


@dataclass(eq=False)
class _Part:
    """An iterable whose steps are told to the bar of the whole."""

    iterable: Iterable[Any]
    whole: Any

    def __iter__(self) -> Iterator[Any]:
        begun = reported = 0
        length = len(self.iterable) if isinstance(self.iterable, Sized) else None
        try:
            for begun, item in enumerate(self.iterable, 1):
                yield item
                self.whole.update(1)
                reported = begun
        finally:  # a loop that is left has done the step in which it was left
            self.whole.update((begun if length is None or self.whole.total is None else length) - reported)

    def set_postfix(self, *, refresh: bool = False, **values: Any) -> None:
        self.whole.set_postfix(refresh=refresh, **values)


def _bar(iterable: Iterable[Any], desc: str, unit: str, show: bool) -> Any:
    watched = "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())
    log = _HEARD.get()
    if not watched and (show or log is not None):
        return ProgressLines(iterable, desc if log is None else f"{log}: {desc}", unit)
    return tqdm(iterable, desc=desc, unit=unit, disable=not show, delay=2)


@dataclass
class _Log:
    """When a line was last written, whichever pass wrote it: many short passes are heard too."""

    last: float | None = None

    def due(self, now: float) -> bool:
        if self.last is None:
            self.last = now
        return now - self.last >= SECONDS_BETWEEN_LINES


_LOG = _Log()


@dataclass(eq=False)
class ProgressLines:
    """An iterable that tells stderr every half minute how far it is, how fast, and how many minutes are left."""

    iterable: Iterable[Any]
    desc: str
    unit: str
    shown: dict[str, Any] = field(default_factory=dict)
    done: int = 0

    def __post_init__(self) -> None:
        self._began = monotonic()
        _LOG.due(self._began)

    @property
    def total(self) -> int | None:
        """How many steps there are; None where nobody knows."""
        return len(self.iterable) if isinstance(self.iterable, Sized) else None

    def __iter__(self) -> Iterator[Any]:
        """Yield the items; a line is written between two of them."""
        self._began = monotonic()
        _LOG.due(self._began)
        for item in self.iterable:
            yield item
            self.update(1)

    def update(self, steps: int) -> None:
        """Count steps as done; a line is written where one is due."""
        self.done += steps
        now = monotonic()
        if _LOG.due(now) and sys.stderr is not None:
            sys.stderr.write(self._line(self.done, now - self._began) + "\n")
            sys.stderr.flush()
            _LOG.last = now

    def close(self) -> None:
        """End; there is nothing to take off the screen."""

    def set_postfix(self, *, refresh: bool = False, **values: Any) -> None:
        """Set what the next line says beside the progress, as a bar's `set_postfix` does."""
        self.shown = values

    def _line(self, done: int, seconds: float) -> str:
        rate = done / max(seconds, 1e-9)
        total = self.total
        parts = [f"{self.desc}: {self.unit} {done}" + ("" if total is None else f"/{total}"), _speed(rate, self.unit)]
        if total is not None:
            parts.append(_minutes((total - done) / rate) + " left")
        return ", ".join([*parts, *(f"{name} {value}" for name, value in self.shown.items())])


def _speed(rate: float, unit: str) -> str:
    return f"{rate:.3g} {unit}/s" if rate >= 1 else f"{1 / rate:.3g} s/{unit}"


def _minutes(seconds: float) -> str:
    return "less than a minute" if seconds < 60 else f"{seconds / 60:.0f} min"
