"""Two processes as a launcher starts them, without the cost of two imports: forks that wait for each other by gloo."""

from __future__ import annotations

import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from typing import Any

from tqdm import tqdm

from lens_steer import processes


def leave_shared_locks() -> None:
    """Let a fork's progress bars wait for nobody: a fork killed with tqdm's shared lock would block its parent's."""
    tqdm.set_lock(threading.RLock())


def together(work: Callable[[int], Any], *, count: int = 2, patience: float = 60.0) -> list[int]:
    """Run `work` as each of some processes; return their exit codes: 0, 1 for an exception, -9 for a kill."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("fork")
    started = [context.Process(target=_one, args=(work, number, count, port, patience)) for number in range(count)]
    for one in started:
        one.start()
    for one in started:
        one.join(timeout=patience + 30)
    assert all(one.exitcode is not None for one in started), "a process hangs"
    return [int(one.exitcode or 0) for one in started]


def _one(work: Callable[[int], Any], number: int, count: int, port: int, patience: float) -> None:
    leave_shared_locks()
    where = {"RANK": number, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_RANK": number}
    os.environ.update({name: str(value) for name, value in where.items()})
    processes.PATIENCE = timedelta(seconds=patience)
    try:
        work(number)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)
