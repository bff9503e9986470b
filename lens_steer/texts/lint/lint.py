"""All checks of a contrast's texts, and the order in which they are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import numpy as np
from jaxtyping import Int

from lens_steer.errors import SettingError
from lens_steer.texts.blocks import Row
from lens_steer.texts.lint.copies import check_copies
from lens_steer.texts.lint.finding import ContrastLint, Severity
from lens_steer.texts.lint.frames import check_frames
from lens_steer.texts.lint.material import Material
from lens_steer.texts.lint.rows import check_rows, check_sizes
from lens_steer.texts.lint.sides import check_sides


def lint_of(
    name: str, source: Sequence[Row], target: Sequence[Row], blocks: Int[np.ndarray, " text"], seed: int = 0
) -> ContrastLint:
    """Return what all checks find in two sides, worst first.

    `blocks` number what belongs together among source, target and whatever comes after them; `seed` is of the
    relabellings by which differences between the sides are judged: shuffled sides show one in at most 5 % of cases.
    """
    if seed < 0:
        raise SettingError(f"seed must be 0 or more, not {seed}")
    rows = (*source, *target)
    material = Material(rows, len(source), blocks[: len(rows)])
    sides = check_sides(material, seed)
    findings = [
        *check_sizes(material),
        *check_copies(material),
        *sides.findings,
        *check_frames(material),
        *check_rows(material),
    ]
    worst = get_args(Severity)
    ordered = tuple(sorted(findings, key=lambda finding: worst.index(finding.severity)))
    return ContrastLint(name, material.sizes, material.independent, ordered, sides.judged)
