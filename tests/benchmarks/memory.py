"""Memory: the peak of tensors during a call, the peak of a process, and what is touched of a file that is mapped."""

from __future__ import annotations

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the most bytes that tensors made during the call held at one time (what was there before does not count)."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = call()
    del kept
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    now = highest = 0
    for event in events:
        now += event.nbytes()
        highest = max(highest, now)
    return highest


def peak_resident(call: Callable[[], object]) -> tuple[int, int]:
    """Return the most bytes that a fork of this process had in memory during the call, and how many more than before."""
    reader, writer = get_context("fork").Pipe(duplex=False)
    child = get_context("fork").Process(target=_measured, args=(call, writer))
    child.start()
    peak, above = reader.recv()
    child.join()
    return peak, above


def _measured(call: Callable[[], object], writer: Any) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _status("VmRSS")
    call()
    peak = _status("VmHWM")
    writer.send((peak, peak - before))


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024


def touched_bytes(path: Path) -> int:
    """Return how many bytes of a file are mapped and in this process's memory, in whole pages."""
    total, of_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0] and not line.split()[0].endswith(":"):
            of_file = line.endswith(str(path))
        elif of_file and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total
