"""Alternating repetitions, so that a machine whose speed drifts still gives a fair ratio."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any

import torch

THREADS = 2


def ratio(ours: Callable[[], Any], theirs: Callable[[], Any], *, repeats: int = 15) -> tuple[float, float, float]:
    """Return (median of ours / theirs over neighbouring runs, median seconds of ours, of theirs)."""
    ours()
    theirs()
    pairs = []
    for number in range(repeats):
        order = (ours, theirs) if number % 2 == 0 else (theirs, ours)
        seconds = {call: _seconds(call) for call in order}
        pairs.append((seconds[ours], seconds[theirs]))
    return median(a / b for a, b in pairs), median(a for a, _ in pairs), median(b for _, b in pairs)


@contextmanager
def two_threads() -> Iterator[None]:
    """Compute with two threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seconds(call: Callable[[], Any]) -> float:
    start = perf_counter()
    call()
    return perf_counter() - start
