"""How sure an AUROC is: intervals, p-values, and what to make of them when very many units are tested at once.

Tensors only; NaN activations are the caller's to find; results are float64 on the CPU. All refuse an empty side and
sides with different units (`ActivationError`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_steer.errors import ActivationError, SettingError
from lens_steer.statistics.scores import (
    TieGroups,
    check_sides,
    descending_order,
    doubled_midranks,
    group_auroc,
    map_units,
    sorted_doubled_midranks,
    tie_groups,
)

# With fewer texts than this on both sides the exact law of the rank sum is cheap, and the normal one is rough.
_EXACT_BELOW = 20


@dataclass(frozen=True)
class AurocInterval:
    """Per unit the ends of a confidence interval for AUROC.

    `degenerate` marks units whose DeLong variance is zero or undefined: the interval is then Hanley and McNeil's.
    """

    low: Float[Tensor, "unit"]
    high: Float[Tensor, "unit"]
    degenerate: Bool[Tensor, "unit"]


def auroc_interval(
    source: Float[Tensor, "n unit"], target: Float[Tensor, "m unit"], auroc: Float[Tensor, "unit"], *, confidence: float
) -> AurocInterval:
    """Return a two-sided interval around each unit's `auroc`, which must be that of the same texts.

    DeLong's variance (Biometrics 1988), taken to the logit scale and back, so the interval stays inside (0, 1). Where
    that variance is zero (AUROC 0 or 1, all texts tied) or undefined (one text on a side) the logit scale has nothing
    to say; there the interval holds every AUROC that Hanley and McNeil's variance (Radiology 1982), evaluated at *that*
    AUROC, cannot tell from the observed one, with the mean of both counts so that source and target are treated alike
    (Newcombe, Stat Med 2006, method 5). A perfect unit so gets the high end 1 and a low end that falls short of it by
    about z^2 (n + m) / (4 n m). Refuses a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise SettingError(f"confidence must lie between 0 and 1, not {confidence}; 0.95 is usual.")
    check_sides(source, target)
    if auroc.shape != source.shape[1:]:
        raise ActivationError(
            f"{auroc.numel()} AUROC values for {source.shape[1]} units; pass those of the same texts."
        )
    n, m = source.shape[0], target.shape[0]
    z = float(torch.special.ndtri(torch.tensor((1 + confidence) / 2, dtype=torch.float64)))
    area = auroc.detach().to("cpu", torch.float64)
    variance = torch.from_numpy(map_units(lambda s, t: _delong_variance(tie_groups(s, t)), source, target))
    # A variance that is not zero is at least 1 / (8 n^2 m^2): two placements half a text apart. Rounding is far
    # smaller.
    degenerate = (variance < 1 / (16.0 * n * n * m * m)) | (min(n, m) == 1)
    half_width = z * variance.sqrt() / (area * (1 - area))
    low, high = torch.sigmoid(torch.logit(area) - half_width), torch.sigmoid(torch.logit(area) + half_width)
    low[degenerate], high[degenerate] = _hanley_mcneil_ends(area[degenerate], z, n, m)
    return AurocInterval(low, high, degenerate)


def _delong_variance(groups: TieGroups) -> Float[np.ndarray, "unit"]:
    """Variance of AUROC from the spread of each side's placements among the other; one text has no spread to go by."""
    n, m = groups.texts
    mean = np.repeat(group_auroc(groups), np.diff(groups.first, append=len(groups.hits)))
    source_placement = 1 - (groups.false_hits - groups.target / 2) / m
    target_placement = (groups.hits - groups.source / 2) / n
    source_squares = groups.total(groups.source * (source_placement - mean) ** 2)
    target_squares = groups.total(groups.target * (target_placement - mean) ** 2)
    return source_squares / (max(n - 1, 1) * n) + target_squares / (max(m - 1, 1) * m)


def _hanley_mcneil_ends(
    area: Float[Tensor, "unit"], z: float, n: int, m: int
) -> tuple[Float[Tensor, "unit"], Float[Tensor, "unit"]]:
    def outside(candidate: Float[Tensor, "unit"]) -> Bool[Tensor, "unit"]:
        others = (n + m) / 2 - 1
        excess = 1 + others * ((1 - candidate) / (2 - candidate) + candidate / (1 + candidate))
        variance = candidate * (1 - candidate) * excess / (n * m)
        return (area - candidate) ** 2 > z * z * variance

    ends = []
    for limit in (torch.zeros_like(area), torch.ones_like(area)):
        far, near = limit, area.clone()
        for _ in range(60):
            middle = (far + near) / 2
            far, near = torch.where(outside(middle), middle, far), torch.where(outside(middle), near, middle)
        # An area of exactly 0 or 1 is its own limit, and no step moves it.
        ends.append(torch.where(area == limit, limit, near))
    return ends[0], ends[1]


def mann_whitney_p(source: Float[Tensor, "n unit"], target: Float[Tensor, "m unit"]) -> Float[Tensor, "unit"]:
    """Return each unit's two-sided p-value for "source and target texts activate it alike" (Mann and Whitney 1947).

    With fewer than 20 texts on both sides it is exact, given the unit's ties: the law of the rank sum over all ways of
    choosing the source texts, twice the smaller tail. Otherwise it is normal with tie correction and continuity
    correction, scipy's `mannwhitneyu(method="asymptotic")`; a unit with all texts tied has p = 1.
    """
    check_sides(source, target)
    if source.shape[0] < _EXACT_BELOW and target.shape[0] < _EXACT_BELOW:
        return torch.from_numpy(map_units(_exact_p, source, target))
    deviation = torch.from_numpy(map_units(lambda s, t: _standard_deviations(tie_groups(s, t)), source, target))
    both_tails: Tensor = torch.special.erfc(deviation / 2**0.5)
    return both_tails.clamp(max=1)


def _standard_deviations(groups: TieGroups) -> Float[np.ndarray, "unit"]:
    """How far Mann and Whitney's U lies from its mean, in standard deviations."""
    n, m = groups.texts
    texts = n + m
    size = groups.source + groups.target
    ties = groups.total(size * (size * size - 1)) / (texts * (texts - 1))
    spread = np.sqrt(np.maximum(n * m / 12 * (texts + 1 - ties), 0))
    away = np.abs(group_auroc(groups) - 0.5) * (n * m) - 0.5
    # All texts tied: U cannot vary, and is where it must be. The tie sum is then exact, and so is the zero.
    return np.divide(away, spread, out=np.full_like(away, -np.inf), where=spread > 0)


def _exact_p(source: Float[np.ndarray, "unit n"], target: Float[np.ndarray, "unit m"]) -> Float[np.ndarray, "unit"]:
    n = source.shape[1]
    order, last = descending_order(np.concatenate([source, target], axis=1))
    ranks = sorted_doubled_midranks(last)
    rank_sum = np.sum(ranks, axis=1, where=order < n)
    # Units with ties at the same places share one law: without ties there is a single one, and few if values are
    # clipped.
    patterns, pattern_of_unit = np.unique(ranks, axis=0, return_inverse=True)
    by_pattern = np.argsort(pattern_of_unit, kind="stable")
    same_pattern = np.split(by_pattern, np.cumsum(np.bincount(pattern_of_unit))[:-1])
    p = np.empty(len(order))
    for pattern, units in zip(patterns, same_pattern, strict=False):
        counts = _rank_sum_counts(pattern, n)
        below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
        p[units] = 2 * np.minimum(below, above)[rank_sum[units]] / below[-1]
    return np.minimum(p, 1)


def _rank_sum_counts(ranks: Int[np.ndarray, "text"], chosen: int) -> Float[np.ndarray, "rank_sum"]:
    """Count the ways of choosing that many texts by the sum of their ranks; whole numbers, exact in float64."""
    ways = np.zeros((chosen + 1, int(np.sort(ranks)[::-1][:chosen].sum()) + 1))
    ways[0, 0] = 1
    for rank in ranks.tolist():
        if rank < ways.shape[1]:
            ways[1:, rank:] += ways[:-1, : ways.shape[1] - rank]
    return np.asarray(ways[chosen])


def benjamini_hochberg(p: Float[Tensor, "unit"]) -> Float[Tensor, "unit"]:
    """Return q-values: the smallest false discovery rate at which each unit is found (Benjamini and Hochberg 1995).

    Holds for units that are independent or positively dependent. Refuses p-values outside 0 to 1, NaN among them.
    """
    values = p.detach().to("cpu", torch.float64)
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise SettingError("p-values must lie between 0 and 1; drop the units that have none.")
    ascending, order = values.sort()
    scaled = ascending * len(ascending) / torch.arange(1, len(ascending) + 1)
    smallest_so_far = scaled.flip(0).cummin(0).values.flip(0) if len(scaled) else scaled
    return torch.empty_like(values).scatter_(0, order, smallest_so_far.clamp(max=1))


def permutation_null(
    values: Float[Tensor, "text unit"], is_source: Bool[Tensor, "text"], *, permutations: int, seed: int
) -> Float[Tensor, "permutation"]:
    """Return, for each random relabelling of the texts, the largest max(AUROC, 1 - AUROC) over all units.

    Relabelling keeps the two counts and the dependence between units; it presumes that texts are exchangeable, so not
    paired rows. Each unit is ranked once, and all relabellings are one matrix product over its ranks. The same seed
    gives the same relabellings whatever the units. Refuses fewer than one permutation, no units, and labels that do not
    fit the texts or leave a side empty.
    """
    if permutations < 1:
        raise SettingError(
            f"permutations must be at least 1, not {permutations}; 1000 resolves p-values down to 0.001."
        )
    texts, n = len(is_source), int(is_source.sum())
    if texts != values.shape[0] or n in (0, texts) or values.shape[1] == 0:
        raise ActivationError(
            f"A permutation null needs units and texts of both labels: got {texts} labels, {n} of them source, "
            f"for activations of shape {tuple(values.shape)}."
        )
    # Centred ranks sum to zero over all texts, so either side's sum will do. Doubled they are integers, and as long as
    # the partial sums stay below 2^24 the float32 product is exact.
    smaller = min(n, texts - n)
    dtype = np.float32 if smaller * texts < 1 << 24 else np.float64
    labels = np.repeat([True, False], [smaller, texts - smaller])
    relabelled = np.random.default_rng(seed).permuted(np.tile(labels, (permutations, 1)), axis=1).astype(dtype)

    def largest(chunk: Float[np.ndarray, "unit text"]) -> Float[np.ndarray, "permutation 1"]:
        centred = (doubled_midranks(chunk) - (texts + 1)).astype(dtype)
        return np.asarray(np.abs(np.matmul(relabelled, centred.T)).max(axis=1, keepdims=True))

    doubled = map_units(largest, values).max(axis=1).astype(np.float64)
    return torch.from_numpy(0.5 + doubled / (2 * n * (texts - n)))


def family_wise_p(auroc: Float[Tensor, "unit"], null: Float[Tensor, "permutation"]) -> Float[Tensor, "unit"]:
    """Return each unit's two-sided p-value, corrected for all units looked at (Westfall and Young 1993, single step).

    The share of relabellings, the observed labels counted as one, whose largest AUROC of `permutation_null` reaches the
    unit's. Refuses an empty null.
    """
    if len(null) == 0:
        raise SettingError("The permutation null is empty; make one with permutation_null(..., permutations=1000).")
    observed = (auroc.detach().to("cpu", torch.float64) - 0.5).abs() + 0.5
    # Equal rank sums must count as reached whatever the rounding; distinct ones are at least 1 / (2 n m) apart.
    ascending = null.detach().to("cpu", torch.float64).sort().values
    reached = len(null) - torch.searchsorted(ascending, observed - 1e-12)
    return (1 + reached.double()) / (1 + len(null))
