"""Progress of long work: a bar on a terminal and in a notebook, a line a minute anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 60.0


def progress_bar(iterable: Iterable[Any], *, desc: str, unit: str, show: bool) -> Any:
    """Return `iterable` behind a bar that appears after two seconds; where no terminal shows one, behind lines."""
    watched = "ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty())
    if show and not watched:
        return ProgressLines(iterable, desc, unit)
    return tqdm(iterable, desc=desc, unit=unit, disable=not show, delay=2)


@dataclass
class _Log:
    """When a line was last written, whichever pass wrote it: of many short passes, too, one line a minute is heard."""

    last: float | None = None

    def due(self, now: float) -> bool:
        if self.last is None:
            self.last = now
        return now - self.last >= SECONDS_BETWEEN_LINES


_LOG = _Log()


@dataclass(eq=False)
class ProgressLines:
    """An iterable that writes a line a minute to stderr: how far it is, how fast, and how many minutes are left."""

    iterable: Iterable[Any]
    desc: str
    unit: str
    shown: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Any]:
        """Yield the items; a line is written between two of them."""
        began = monotonic()
        _LOG.due(began)
        for done, item in enumerate(self.iterable, 1):
            yield item
            now = monotonic()
            if _LOG.due(now) and sys.stderr is not None:
                sys.stderr.write(self._line(done, now - began) + "\n")
                sys.stderr.flush()
                _LOG.last = now

    def set_postfix(self, *, refresh: bool = False, **values: Any) -> None:
        """Set what the next line says beside the progress, as a bar's `set_postfix` does."""
        self.shown = values

    def _line(self, done: int, seconds: float) -> str:
        rate = done / max(seconds, 1e-9)
        total = len(self.iterable) if isinstance(self.iterable, Sized) else None
        parts = [f"{self.desc}: {self.unit} {done}" + ("" if total is None else f"/{total}"), _speed(rate, self.unit)]
        if total is not None:
            parts.append(_minutes((total - done) / rate) + " left")
        return ", ".join([*parts, *(f"{name} {value}" for name, value in self.shown.items())])


def _speed(rate: float, unit: str) -> str:
    return f"{rate:.3g} {unit}/s" if rate >= 1 else f"{1 / rate:.3g} s/{unit}"


def _minutes(seconds: float) -> str:
    return "less than a minute" if seconds < 60 else f"{seconds / 60:.0f} min"
