"""Progress bars: in a notebook and on a terminal, never in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


def progress_bar(iterable: Iterable[Any], *, desc: str, unit: str, show: bool) -> Any:
    """Return `iterable` behind a bar that appears after two seconds, where somebody can see it."""
    watched = "ipykernel" in sys.modules or sys.stderr.isatty()
    return tqdm(iterable, desc=desc, unit=unit, disable=not (show and watched), delay=2)
