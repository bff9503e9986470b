"""How sure an AUROC is: intervals, p-values, and what to make of them when very many units are tested at once.

Tensors only; NaN activations are the caller's to find; results are float64 on the CPU. All refuse an empty side and
sides with different units (`ActivationError`).
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import elementwise
from scipy.stats import false_discovery_control, wilcoxon
from torch import Tensor

from lens_steer.errors import ActivationError, SettingError
from lens_steer.statistics.clusters import clustered_delong_variance
from lens_steer.statistics.design import Design
from lens_steer.statistics.relabelled import centred_rank_sums, exact_floats
from lens_steer.statistics.scores import group_auroc, midranks
from lens_steer.statistics.ties import TieGroups, descending_order, sorted_doubled_midranks, tie_groups
from lens_steer.statistics.unit_chunks import check_sides, map_units

# With fewer texts than this on both sides the exact law of the rank sum is cheap, and the normal one is rough.
_EXACT_BELOW = 20
# With this many differences or fewer, none of them zero or tied, the law of the signed ranks is exact (as in scipy).
_EXACT_DIFFERENCES = 50

Clusters = tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]]


@dataclass(frozen=True)
class AurocInterval:
    """Per unit the ends of a confidence interval for AUROC.

    `degenerate` marks units whose DeLong variance is zero or undefined: the interval is then Hanley and McNeil's.
    """

    low: Float[Tensor, "unit"]
    high: Float[Tensor, "unit"]
    degenerate: Bool[Tensor, "unit"]


def auroc_interval(
    source: Float[Tensor, "n unit"],
    target: Float[Tensor, "m unit"],
    auroc: Float[Tensor, "unit"],
    *,
    confidence: float,
    clusters: Clusters | None = None,
) -> AurocInterval:
    """Return a two-sided interval around each unit's `auroc`, which must be that of the same texts.

    DeLong's variance (Biometrics 1988), taken to the logit scale and back, so the interval stays inside (0, 1). Where
    that variance is zero (AUROC 0 or 1, all texts tied) or undefined (one text on a side) the logit scale has nothing
    to say; there the interval holds every AUROC that Hanley and McNeil's variance (Radiology 1982), evaluated at *that*
    AUROC, cannot tell from the observed one, with the mean of both counts so that source and target are treated alike
    (Newcombe, Stat Med 2006, method 5). A perfect unit so gets the high end 1 and a low end that falls short of it by
    about z^2 (n + m) / (4 n m). `clusters` number what is not independent on the source and the target side: the
    variance is then that between clusters (`clustered_delong_variance`), and n and m count clusters. Refuses a
    confidence outside (0, 1).
    """
    check_sides(source, target)
    if auroc.shape != source.shape[1:]:
        raise ActivationError(
            f"{auroc.numel()} AUROC values for {source.shape[1]} units; pass those of the same texts."
        )
    if clusters is None:
        variance = map_units(lambda s, t: delong_variance(tie_groups(s, t)), source, target)
    else:
        of = clusters
        variance = map_units(lambda s, t: clustered_delong_variance(s, t, *of), source, target)
    texts = source.shape[0], target.shape[0]
    return interval_of_variance(auroc, torch.from_numpy(variance), texts, confidence=confidence, clusters=clusters)


def interval_of_variance(
    auroc: Float[Tensor, "unit"],
    variance: Float[Tensor, "unit"],
    texts: tuple[int, int],
    *,
    confidence: float,
    clusters: Clusters | None = None,
) -> AurocInterval:
    """Return the interval of `auroc_interval` where DeLong's variance, that between clusters if there are, is known."""
    if not 0 < confidence < 1:
        raise SettingError(f"confidence must lie between 0 and 1, not {confidence}; 0.95 is usual.")
    n, m = texts
    z = float(torch.special.ndtri(torch.tensor((1 + confidence) / 2, dtype=torch.float64)))
    area = auroc.detach().to("cpu", torch.float64)
    # A variance that is not zero is at least 1 / (8 n^2 m^2): two placements half a text apart. Rounding is far
    # smaller.
    degenerate = variance < 1 / (16.0 * n * n * m * m)
    if clusters is not None:
        n, m = (len(np.unique(of_side)) for of_side in clusters)
    degenerate |= (min(n, m) == 1) | (area == 0) | (area == 1)
    half_width = z * variance.sqrt() / (area * (1 - area))
    low, high = torch.sigmoid(torch.logit(area) - half_width), torch.sigmoid(torch.logit(area) + half_width)
    low[degenerate], high[degenerate] = _hanley_mcneil_ends(area[degenerate], z, n, m)
    return AurocInterval(low, high, degenerate)


def delong_variance(groups: TieGroups) -> Float[np.ndarray, "unit"]:
    """Variance of AUROC from the spread of each side's placements among the other; one text has no spread to go by."""
    n, m = groups.texts
    source_squares = _squares(groups, groups.source, groups.target_above, 2.0 * n * m - groups.wins, n) / (4.0 * m * m)
    target_squares = _squares(groups, groups.target, groups.source_above, groups.wins, m) / (4.0 * n * n)
    return source_squares / (max(n - 1, 1) * n) + target_squares / (max(m - 1, 1) * m)


def _squares(
    groups: TieGroups,
    texts_of_group: Float[np.ndarray, "group"],
    placement: Float[np.ndarray, "group"],
    total: Float[np.ndarray, "unit"],
    texts: int,
) -> Float[np.ndarray, "unit"]:
    """Sum a side's squared distances of doubled placements from their mean; `total` is the sum of these placements.

    Doubled placements are integers, and about the integer below their mean the sum of squares is one too: exact to
    2^53, so that nothing is lost where the spread is small.
    """
    middle, rest = np.divmod(total, texts)
    squares = placement * placement
    squares *= texts_of_group
    about_middle = groups.total(squares) - middle * (2 * total - middle * texts)
    return np.asarray(np.maximum(about_middle - rest * rest / texts, 0))


def _hanley_mcneil_ends(
    area: Float[Tensor, "unit"], z: float, n: int, m: int
) -> tuple[Float[Tensor, "unit"], Float[Tensor, "unit"]]:
    observed = area.numpy()
    others = (n + m) / 2 - 1

    def outside(candidate: Float[np.ndarray, "unit"], of: Float[np.ndarray, "unit"]) -> Float[np.ndarray, "unit"]:
        """Above 0 where the candidate's variance tells it from the observed area."""
        excess = 1 + others * ((1 - candidate) / (2 - candidate) + candidate / (1 + candidate))
        variance = candidate * (1 - candidate) * excess / (n * m)
        return np.asarray((of - candidate) ** 2 - z * z * variance)

    ends = []
    for limit in (0.0, 1.0):
        # An area of exactly 0 or 1 is its own limit.
        inner = observed != limit
        end = np.full_like(observed, limit)
        bracket = (np.full(int(inner.sum()), limit), observed[inner])
        # At the other limit the variance is zero as well: the root lies between the two, so it is sought from inside.
        bracket = (bracket[0], np.clip(bracket[1], 1e-12, 1 - 1e-12))
        end[inner] = elementwise.find_root(outside, bracket, args=(observed[inner],)).x
        ends.append(torch.from_numpy(end))
    return ends[0], ends[1]


def mann_whitney_p(source: Float[Tensor, "n unit"], target: Float[Tensor, "m unit"]) -> Float[Tensor, "unit"]:
    """Return each unit's two-sided p-value for "source and target texts activate it alike" (Mann and Whitney 1947).

    With fewer than 20 texts on both sides it is exact, given the unit's ties: the law of the rank sum over all ways of
    choosing the source texts, twice the smaller tail. Otherwise it is normal with tie correction and continuity
    correction, scipy's `mannwhitneyu(method="asymptotic")`; a unit with all texts tied has p = 1.
    """
    check_sides(source, target)
    if mann_whitney_is_exact(source.shape[0], target.shape[0]):
        return torch.from_numpy(map_units(_exact_p, source, target))
    return normal_p(torch.from_numpy(map_units(lambda s, t: mann_whitney_deviation(tie_groups(s, t)), source, target)))


def mann_whitney_is_exact(n: int, m: int) -> bool:
    """Whether `mann_whitney_p` of so many source and target texts goes by the exact law of the rank sum."""
    return n < _EXACT_BELOW and m < _EXACT_BELOW


def normal_p(deviation: Float[Tensor, "unit"]) -> Float[Tensor, "unit"]:
    """Return the two-sided p-value of a normal deviation, given without its sign; 1 for 0 and below."""
    both_tails: Tensor = torch.special.erfc(deviation / 2**0.5)
    return both_tails.clamp(max=1)


def mann_whitney_deviation(groups: TieGroups) -> Float[np.ndarray, "unit"]:
    """How far Mann and Whitney's U lies from its mean, in standard deviations, less half a step for continuity."""
    n, m = groups.texts
    texts = n + m
    ties: Float[np.ndarray, unit] | float = 0.0
    if groups.tied:
        size = groups.source + groups.target
        ties = groups.total(size * (size * size - 1)) / (texts * (texts - 1))
    spread = np.sqrt(np.maximum(n * m / 12 * (texts + 1 - ties), 0))
    away = np.abs(group_auroc(groups) - 0.5) * (n * m) - 0.5
    # All texts tied: U cannot vary, and is where it must be. The tie sum is then exact, and so is the zero.
    return np.divide(away, spread, out=np.full_like(away, -np.inf), where=spread > 0)


def _exact_p(source: Float[np.ndarray, "unit n"], target: Float[np.ndarray, "unit m"]) -> Float[np.ndarray, "unit"]:
    n = source.shape[1]
    order, last, _ = descending_order(np.concatenate([source, target], axis=1))
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
    ranks = np.sort(ranks)
    most = int(ranks[::-1][:chosen].sum())
    ways = np.zeros((chosen + 1, most + 1))
    ways[0, 0] = 1
    # Of the smallest ranks no more are chosen than there are, and their sum reaches no further than all of them.
    for text, (rank, reached) in enumerate(zip(ranks.tolist(), np.cumsum(ranks).tolist(), strict=True), 1):
        count, end = min(text, chosen), min(reached, most) + 1
        if rank < end:
            ways[1 : count + 1, rank:end] += ways[:count, : end - rank]
    return np.asarray(ways[chosen])


def design_p(values: Float[Tensor, "text unit"], design: Design) -> Float[Tensor, "unit"]:
    """Return each unit's two-sided p-value for "labels mean nothing", by what the design may exchange.

    Observations (`Design`) are compared inside their strata. One stratum is Mann and Whitney's test; several are van
    Elteren's (1960): rank sums less their mean, weighted by 1 / (texts of the stratum + 1), normal with tie and
    continuity correction. 1 where no stratum holds both sides.
    """
    means = values if design.simple else _means(values, design)
    is_source = torch.from_numpy(design.is_source)
    if design.simple:
        is_source = is_source[torch.from_numpy(design.observation)]
    strata = [torch.from_numpy(rows) for rows in ([np.arange(len(means))] if design.simple else design.strata)]
    if len(strata) == 1:
        part, side = means[strata[0]], is_source[strata[0]]
        return mann_whitney_p(part[side], part[~side])
    away = torch.zeros(values.shape[1], dtype=torch.float64)
    variance, step = torch.zeros_like(away), 0.0
    for rows in strata:
        ranks, side, size = midranks(means[rows]), is_source[rows], len(rows)
        n, weight = int(side.sum()), 1 / (size + 1)
        away += weight * (ranks[side].sum(0) - n * (size + 1) / 2)
        spread = ((ranks - (size + 1) / 2) ** 2).sum(0)
        variance += weight**2 * n * (size - n) / (size * (size - 1)) * spread
        step = max(step, weight / 2)
    z = torch.where(variance > 0, (away.abs() - step) / variance.sqrt().clamp(min=1e-300), -torch.inf)
    return normal_p(z)


def _means(values: Float[Tensor, "text unit"], design: Design) -> Float[Tensor, "observation unit"]:
    """Average the texts of every observation; float32, so that the mean of equal values is that value."""
    index = torch.from_numpy(design.observation)
    sums = torch.zeros(len(design.stratum), values.shape[1], dtype=torch.float64)
    sums.index_add_(0, index, values.detach().to("cpu", torch.float64))
    return (sums / torch.bincount(index, minlength=len(sums))[:, None]).float()


def signed_rank_p(differences: Float[Tensor, "pair unit"]) -> Float[Tensor, "unit"]:
    """Return each unit's two-sided p-value for "within pairs, source and target are alike" (Wilcoxon 1945).

    `scipy.stats.wilcoxon`: pairs without a difference are left out; exact for 50 pairs or fewer where none is left out
    or tied, else normal with tie and continuity correction. 1 where no pair differs.
    """
    moved = differences.detach().to("cpu", torch.float64).numpy()
    sizes = np.sort(np.abs(moved), axis=0)
    plain = (sizes[:1] > 0).all(0) & (np.diff(sizes, axis=0) > 0).all(0) & (len(moved) <= _EXACT_DIFFERENCES)
    p = np.ones(moved.shape[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # units without a difference are nan here, and 1 below
        for units, method in ((plain, "exact"), (~plain, "asymptotic")):
            if units.any():
                p[units] = wilcoxon(moved[:, units], axis=0, method=method, correction=True).pvalue
    return torch.from_numpy(np.nan_to_num(p, nan=1.0).clip(max=1.0))


def benjamini_hochberg(p: Float[Tensor, "unit"]) -> Float[Tensor, "unit"]:
    """Return q-values: the smallest false discovery rate at which each unit is found (Benjamini and Hochberg 1995).

    Holds for units that are independent or positively dependent. Refuses p-values outside 0 to 1, NaN among them.
    """
    values = p.detach().to("cpu", torch.float64)
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise SettingError("p-values must lie between 0 and 1; drop the units that have none.")
    return torch.from_numpy(np.asarray(false_discovery_control(values.numpy())))


def permutation_null(
    values: Float[Tensor, "text unit"],
    is_source: Bool[Tensor, "text"],
    *,
    permutations: int,
    seed: int,
    design: Design | None = None,
) -> Float[Tensor, "permutation"]:
    """Return, for each random relabelling of the texts, the largest max(AUROC, 1 - AUROC) over all units.

    Relabelling keeps the dependence between units, and exchanges what the design may exchange: blocks as wholes, and
    inside blocks of both sides their texts. Without a design all texts are exchangeable. Each unit is ranked once, and
    all relabellings are one matrix product over its ranks. The same seed gives the same relabellings whatever the
    units. Refuses fewer than one permutation, no units, and labels that do not fit the texts or leave a side empty.
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
    if design is None or design.simple:
        smaller = min(n, texts - n)
        labels = np.tile(np.repeat([True, False], [smaller, texts - smaller]), (permutations, 1))
        labels = np.random.default_rng(seed).permuted(labels, axis=1)
    else:
        labels = design.relabelled(permutations, seed)
    counts = labels.sum(1)
    relabelled = exact_floats(labels)

    def largest(chunk: Float[np.ndarray, "unit text"]) -> Float[np.ndarray, "permutation 1"]:
        # Centred ranks sum to zero over all texts, so either side's sum will do.
        return np.asarray(np.abs(centred_rank_sums(chunk, relabelled)).max(axis=1, keepdims=True))

    doubled = map_units(largest, values).max(axis=1).astype(np.float64)
    return torch.from_numpy(0.5 + doubled / (2 * counts * (texts - counts)))


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
