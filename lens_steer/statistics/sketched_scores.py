r"""AUROC and average precision from counts per cell, each with a bound on its error that holds whatever the values are.

Of two texts in different cells it is known which one lies higher. In a cell that holds one value (`Grid.single`) all
texts tie. In the other cells nothing is known of the order; s source and t target texts of a cell, with A source and B
target texts in higher cells, leave:

AUROC.
    The s t pairs of the cell count 0 to 1 each, and 1/2 in the estimate: its error is at most half of the share of
    pairs that lie within one such cell, sum(s t) / (2 n m); reached where in each all source texts lie above all target
    texts.

Average precision, (1 / n) times the sum, over source texts, of h / (h + f) with h source and f target texts at or above
the text.
    h is at most A + s and f at least B, so no term exceeds (A + s) / (A + s + B): reached where the cell's source texts
    tie above its target texts. The k-th source text from above has h >= A + k and f <= B + t, so its term is not below
    (A + k) / (A + k + B + t): reached where target texts lie above source texts that do not tie. Cells do not depend on
    one another, so the sums of both are sharp ends of what is possible; the estimate is their middle, its error at most
    half of their distance. The lower sum over k is s - (B + t) (psi(A + s + B + t + 1) - psi(A + B + t + 1)).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import digamma

from lens_steer.errors import ActivationError
from lens_steer.statistics.significance import delong_variance, mann_whitney_deviation
from lens_steer.statistics.ties import TieGroups


@dataclass(frozen=True, eq=False)
class SketchedScores:
    """Per unit, float64: scores and the bounds on their errors (beyond rounding, 1e-12).

    `variance` and `deviation` are DeLong's and Mann and Whitney's, of values rounded to their cells: texts of one cell
    tie.
    """

    auroc: Float[np.ndarray, " unit"]
    auroc_error: Float[np.ndarray, " unit"]
    average_precision: Float[np.ndarray, " unit"]
    average_precision_error: Float[np.ndarray, " unit"]
    variance: Float[np.ndarray, " unit"]
    deviation: Float[np.ndarray, " unit"]


def sketched_scores(
    source: Int[np.ndarray, "unit cell"], target: Int[np.ndarray, "unit cell"], single: Bool[np.ndarray, "unit cell"]
) -> SketchedScores:
    """Return the scores of counts per cell, in ascending order of the cells; every unit has the same texts.

    ActivationError where a side has no texts.
    """
    if len(source) and not (source[0].any() and target[0].any()):
        raise ActivationError("A side of the sketch has no texts; a contrast needs at least one on each side.")
    groups, tied = _tie_groups(source, target), single[:, ::-1][(source + target)[:, ::-1] > 0]
    n, m = groups.texts
    pairs = groups.total(np.where(tied, 0.0, groups.source * groups.target))
    lowest, highest = (groups.total(end) / n for end in _precision_ends(groups, tied))
    return SketchedScores(
        groups.wins / (2.0 * n * m),
        pairs / (2.0 * n * m),
        (lowest + highest) / 2,
        (highest - lowest) / 2,
        delong_variance(groups),
        mann_whitney_deviation(groups),
    )


def _tie_groups(source: Int[np.ndarray, "unit cell"], target: Int[np.ndarray, "unit cell"]) -> TieGroups:
    """Make a group of every cell that is not empty, from the highest down."""
    sides = [side[:, ::-1].astype(np.float64) for side in (source, target)]
    filled = (sides[0] + sides[1]) > 0
    cells = filled.sum(1)
    own, running = [side[filled] for side in sides], [np.cumsum(side, axis=1)[filled] for side in sides]
    texts = int(source[:1].sum()), int(target[:1].sum())
    return TieGroups(texts, np.cumsum(cells) - cells, own[0], own[1], running[0], running[1])


def _precision_ends(
    groups: TieGroups, tied: Bool[np.ndarray, " group"]
) -> tuple[Float[np.ndarray, " group"], Float[np.ndarray, " group"]]:
    """Return the least and the most that each cell's source texts add to n times the average precision."""
    s, hits, false_hits = groups.source, groups.hits, groups.false_hits
    above = hits - s
    known = s * hits / np.maximum(hits + false_hits, 1)
    highest = s * hits / np.maximum(hits + false_hits - groups.target, 1)
    lowest = s - false_hits * (digamma(hits + false_hits + 1) - digamma(above + false_hits + 1))
    return np.where(tied, known, np.minimum(lowest, highest)), np.where(tied, known, highest)
