"""Processes: which one of several this is, and how they wait for one another.

`torchrun` and `accelerate launch` start them and say so in the environment; torch.distributed (gloo) lets them wait.
Nothing but waiting goes through it: what they share lies in files.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from lens_steer.errors import ProcessError

PATIENCE = timedelta(minutes=30)
_LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_GROUP: list[Any] = []


def process_count() -> int:
    """How many processes work on this run; 1 where no launcher started several."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in _LAUNCHED) else 1


def process_number() -> int:
    """Which of the processes this is, from 0 (torch's rank)."""
    return int(os.environ["RANK"]) if process_count() > 1 else 0


def is_mine(number: int) -> bool:
    """Whether the piece of work of this number, from 0, is this process's.

    Pieces are dealt to and fro (0, 1, 1, 0, 0, ... for two): where they shrink from the first to the last, as batches
    sorted by length do, every process has as much to do.
    """
    in_turn, place = divmod(number, process_count())
    return process_number() == (place if in_turn % 2 == 0 else process_count() - 1 - place)


def own_device() -> str | None:
    """Return the CUDA device of this process where several share a machine; None where the choice is free."""
    import torch

    if process_count() == 1 or not torch.cuda.is_available():
        return None
    return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"


def wait_for_all(what: str) -> None:
    """Wait until every process is here, which is when all have done `what`.

    ProcessError where one has ended before, or does not come within half an hour.
    """
    if process_count() == 1:
        return
    import torch.distributed as dist

    try:
        if not _GROUP:
            if not dist.is_initialized():
                dist.init_process_group("gloo", timeout=PATIENCE)
            # A group of our own: the default one may be of NCCL, which cannot say who is missing.
            _GROUP.append(dist.new_group(backend="gloo", timeout=PATIENCE))
        dist.monitored_barrier(_GROUP[0], timeout=PATIENCE, wait_all_ranks=True)
    except (RuntimeError, ValueError) as error:
        raise ProcessError(
            f"process {process_number()} of {process_count()} waited for the others until {what}, and not all came "
            f"({' '.join(str(error).split())[:200]}): start the same command again, what is stored is not run again"
        ) from error
