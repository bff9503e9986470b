"""Statistics unit by unit, in chunks of units that fit the processor's cache, on as many threads as torch may use.

Torch tensors (text, unit) come in, numpy arrays (unit, text) reach the statistic: each unit's values lie side by side.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_steer.errors import ActivationError

# Values per chunk: one megabyte of sort keys, which stays in a core's second-level cache.
_CHUNK_VALUES = 1 << 17
# With very many texts a chunk still takes a few neighbouring units, because a lone column is read one cache line per
# value.
_MIN_CHUNK_UNITS = 8

_FLOAT32_HOLDS = (torch.float32, torch.bfloat16, torch.float16)


def check_sides(source: Float[Tensor, "n unit"], target: Float[Tensor, "m other_unit"]) -> None:
    """Refuse an empty side, and sides that do not hold the same units."""
    if source.shape[0] == 0 or target.shape[0] == 0:
        empty = "source" if source.shape[0] == 0 else "target"
        raise ActivationError(f"The {empty} side has no texts; a contrast needs at least one on each side.")
    if source.shape[1] != target.shape[1]:
        raise ActivationError(
            f"Source has {source.shape[1]} units and target {target.shape[1]}; collect both at the same site."
        )


def map_units(
    statistic: Callable[..., np.ndarray], *sides: Tensor, texts: Int[np.ndarray, " chosen"] | None = None
) -> np.ndarray:
    """Apply `statistic` to chunks of units, several at once, and join its results along their last axis.

    `sides` are (text, unit) tensors over the same units; `texts` are the rows to take of each, in their order (None:
    all). `statistic` takes one contiguous (unit, text) array for each side, not to be written to, float32, or float64
    where a side needs it.
    """
    dtype = torch.float32 if all(side.dtype in _FLOAT32_HOLDS for side in sides) else torch.float64
    units = sides[0].shape[1]
    step = max(_MIN_CHUNK_UNITS, _CHUNK_VALUES // sum(side.shape[0] for side in sides))

    def chunk(start: int) -> np.ndarray:
        columns = (side[:, start : start + step].detach().to("cpu", dtype).numpy() for side in sides)
        if texts is not None:
            columns = (column[texts] for column in columns)
        return statistic(*(np.ascontiguousarray(column.T) for column in columns))

    starts = range(0, max(units, 1), step)
    _keep_freed_memory()
    threads = min(torch.get_num_threads(), len(starts))
    if threads == 1:
        return np.concatenate([chunk(start) for start in starts], axis=-1)
    with ThreadPoolExecutor(threads) as pool:
        return np.concatenate(list(pool.map(chunk, starts)), axis=-1)


def _keep_freed_memory() -> None:
    """Let the C library keep what a chunk frees for the next chunk.

    glibc hands freed memory back to the system above a threshold that follows the largest block freed so far, up to 32
    MB. Chunks need a few megabytes again and again; below the threshold, fetching them anew costs more than the sort.
    The block is never touched.
    """
    np.empty(30 << 20, dtype=np.uint8)
