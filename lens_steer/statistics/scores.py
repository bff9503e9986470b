"""AUROC and average precision of every unit, through one joint sort of both sides.

Everything a rank statistic needs is in the groups of tied values: how many source and target texts hold each value. One
sort per unit finds them, and AUROC, average precision, DeLong's variance and the tie correction of Mann-Whitney's test
are sums over them. Units are taken in chunks that fit the processor's cache, on as many threads as torch may use
(`torch.set_num_threads`).

Tensors only: no sites, no models. NaN is not looked for: the caller has checked that activations are finite. Results
are float64 on the CPU, wherever the input is.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_steer.errors import ActivationError

# Values per chunk: one megabyte of sort keys, which stays in a core's second-level cache.
_CHUNK_VALUES = 1 << 17
# With very many texts a chunk still takes a few neighbouring units, because a lone column is read one cache line per
# value.
_MIN_CHUNK_UNITS = 8

_FLOAT32_HOLDS = (torch.float32, torch.bfloat16, torch.float16)
_INDEX_BITS = 31
_INDEX_MASK = (1 << _INDEX_BITS) - 1


def auroc_and_average_precision(
    source: Float[Tensor, "n unit"], target: Float[Tensor, "m unit"]
) -> tuple[Float[Tensor, "unit"], Float[Tensor, "unit"]]:
    """Return `auroc` and `average_precision` of every unit for the price of one sort."""

    def both(above: Float[np.ndarray, "unit n"], below: Float[np.ndarray, "unit m"]) -> Float[np.ndarray, "2 unit"]:
        groups = tie_groups(above, below)
        return np.stack([group_auroc(groups), _group_average_precision(groups)])

    scores = _scores(both, source, target)
    return scores[0], scores[1]


def auroc(source: Float[Tensor, "n unit"], target: Float[Tensor, "m unit"]) -> Float[Tensor, "unit"]:
    """Return each unit's probability that a source text activates it more than a target text does, ties counting half.

    1 tells source from target perfectly, 0.5 not at all, and below 0.5 the unit fires for the target. Equals
    scikit-learn's `roc_auc_score` with the source as positive class. Refuses an empty side and sides with different
    units.
    """
    return _scores(lambda above, below: group_auroc(tie_groups(above, below))[None], source, target)[0]


def average_precision(source: Float[Tensor, "n unit"], target: Float[Tensor, "m unit"]) -> Float[Tensor, "unit"]:
    """Return each unit's average precision at finding the source texts.

    Chance level is the source's share of the texts. Tied texts are retrieved together, as in scikit-learn's
    `average_precision_score`; no interpolation. Refuses what `auroc` refuses.
    """
    return _scores(lambda above, below: _group_average_precision(tie_groups(above, below))[None], source, target)[0]


def midranks(values: Float[Tensor, "text unit"]) -> Float[Tensor, "text unit"]:
    """Return each text's rank within its unit, 1 for the smallest value; tied texts share the mean of their ranks."""
    if values.shape[0] == 0:
        raise ActivationError("Ranks need at least one text; these activations have none.")
    ranks = map_units(lambda chunk: doubled_midranks(chunk).T / 2, values)
    return torch.from_numpy(ranks)


@dataclass(frozen=True)
class TieGroups:
    """Texts of equal value, from the highest value down, unit after unit in flat arrays.

    `source` and `target` count each group's own texts, `hits` the source texts and `false_hits` the target texts at or
    above its value; `first` is where each unit's groups begin. `texts` is (source texts, target texts) of one unit.
    Counts are float64, exact to 2^53.
    """

    texts: tuple[int, int]
    first: Int[np.ndarray, "unit"]
    source: Float[np.ndarray, "group"]
    target: Float[np.ndarray, "group"]
    hits: Float[np.ndarray, "group"]
    false_hits: Float[np.ndarray, "group"]

    def total(self, per_group: Float[np.ndarray, "group"]) -> Float[np.ndarray, "unit"]:
        """Sum a quantity over each unit's groups."""
        return np.asarray(np.add.reduceat(per_group, self.first))


def tie_groups(source: Float[np.ndarray, "unit n"], target: Float[np.ndarray, "unit m"]) -> TieGroups:
    """Group the texts of each unit by value."""
    order, last = descending_order(np.concatenate([source, target], axis=1))
    units, texts = order.shape
    ends = np.flatnonzero(last)
    groups_per_unit = np.count_nonzero(last, axis=1)
    first = np.cumsum(groups_per_unit) - groups_per_unit
    hits = np.cumsum(order < source.shape[1], axis=1, dtype=np.int32).ravel()[ends].astype(np.float64)
    reached = (ends + 1 - np.repeat(np.arange(units) * texts, groups_per_unit)).astype(np.float64)
    false_hits = reached - hits
    sides = (source.shape[1], target.shape[1])
    return TieGroups(sides, first, _increments(hits, first), _increments(false_hits, first), hits, false_hits)


def group_auroc(groups: TieGroups) -> Float[np.ndarray, "unit"]:
    """Return AUROC: the area under the ROC curve, one trapezium per tie group."""
    n, m = groups.texts
    return groups.total(groups.target * (2 * groups.hits - groups.source)) / (2.0 * n * m)


def _group_average_precision(groups: TieGroups) -> Float[np.ndarray, "unit"]:
    precision = groups.hits / (groups.hits + groups.false_hits)
    return groups.total(groups.source * precision) / groups.texts[0]


def descending_order(
    values: Float[np.ndarray, "unit text"],
) -> tuple[Int[np.ndarray, "unit text"], Bool[np.ndarray, "unit text"]]:
    """Return each unit's texts from the highest value down, and where runs of equal values end (-0.0 equals 0.0)."""
    last = np.ones(values.shape, dtype=np.bool_)
    if values.dtype == np.float64:
        order = np.argsort(-values, axis=1)
        ranked = np.take_along_axis(values, order, axis=1)
        np.not_equal(ranked[:, 1:], ranked[:, :-1], out=last[:, :-1])
        return order, last
    # Value and text index fit one integer, and integers sort several times faster than an indirect sort.
    keys = np.left_shift(_descending_integers(values), np.int64(_INDEX_BITS), dtype=np.int64)
    keys |= np.arange(values.shape[1])
    keys.sort(axis=1)
    np.greater((keys[:, 1:] ^ keys[:, :-1]).view(np.uint64), _INDEX_MASK, out=last[:, :-1])
    return keys & _INDEX_MASK, last


def doubled_midranks(values: Float[np.ndarray, "unit text"]) -> Int[np.ndarray, "unit text"]:
    """Return twice the midrank of each text, an integer; rank 1 is the smallest value."""
    order, last = descending_order(values)
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, sorted_doubled_midranks(last), axis=1)
    return ranks


def sorted_doubled_midranks(last: Bool[np.ndarray, "unit text"]) -> Int[np.ndarray, "unit text"]:
    """Return twice the midranks in the sorted order itself, from `descending_order`'s marks of where ties end."""
    ends = np.flatnonzero(last)
    sizes = np.diff(ends, prepend=-1)
    texts = last.shape[1]
    return np.repeat(2 * (texts - ends % texts) + sizes - 1, sizes).reshape(last.shape)


def _descending_integers(values: Float[np.ndarray, "unit text"]) -> Int[np.ndarray, "unit text"]:
    """Map float32 to integers in the opposite order.

    The bits of a float without its sign grow with its size; the sign is put back as an integer's, so that both zeros
    become 0.
    """
    bits = values.view(np.int32)
    flip = ~(bits >> 31)
    integers = bits & np.int32(0x7FFFFFFF)
    integers ^= flip
    integers -= flip
    return integers


def _increments(running: Float[np.ndarray, "group"], first: Int[np.ndarray, "unit"]) -> Float[np.ndarray, "group"]:
    """Undo a running count that starts anew at every unit."""
    own = np.diff(running, prepend=0.0)
    own[first] = running[first]
    return own


def check_sides(source: Float[Tensor, "n unit"], target: Float[Tensor, "m other_unit"]) -> None:
    """Refuse an empty side, and sides that do not hold the same units."""
    if source.shape[0] == 0 or target.shape[0] == 0:
        empty = "source" if source.shape[0] == 0 else "target"
        raise ActivationError(f"The {empty} side has no texts; a contrast needs at least one on each side.")
    if source.shape[1] != target.shape[1]:
        raise ActivationError(
            f"Source has {source.shape[1]} units and target {target.shape[1]}; collect both at the same site."
        )


def map_units(statistic: Callable[..., np.ndarray], *sides: Tensor) -> np.ndarray:
    """Apply `statistic` to chunks of units, several at once, and join its results along their last axis.

    `sides` are (text, unit) tensors over the same units. `statistic` takes one contiguous (unit, text) array for each,
    not to be written to, float32, or float64 where a side needs it.
    """
    dtype = torch.float32 if all(side.dtype in _FLOAT32_HOLDS for side in sides) else torch.float64
    units = sides[0].shape[1]
    step = max(_MIN_CHUNK_UNITS, _CHUNK_VALUES // sum(side.shape[0] for side in sides))

    def chunk(start: int) -> np.ndarray:
        columns = (side[:, start : start + step].detach().to("cpu", dtype).numpy() for side in sides)
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


def _scores(
    statistic: Callable[..., np.ndarray], source: Float[Tensor, "n unit"], target: Float[Tensor, "m unit"]
) -> Float[Tensor, "score unit"]:
    check_sides(source, target)
    return torch.from_numpy(map_units(statistic, source, target))
