"""Strengths: how much of an intervention acts, one number for all rows of a forward pass or one for each."""

from __future__ import annotations

import math
import warnings
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lens_steer.errors import LensSteerWarning, SettingError
from lens_steer.host.clock import ForwardPass

Strength = float | Sequence[float] | Tensor
"""One strength, or one per row: a sequence of numbers or a tensor [text]."""


def as_strengths(strength: Strength) -> float | tuple[float, ...]:
    """Return a strength as a number or a tuple of numbers; SettingError if one is not finite or there is none."""
    try:
        values = torch.as_tensor(strength, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise SettingError(f"strength is a number or a list of one number per row, not {strength!r}") from None
    if values.ndim > 1 or values.numel() == 0:
        raise SettingError(f"strength is a number or a list of one number per row, not {tuple(values.shape)} of them")
    if not bool(torch.isfinite(values).all()):
        raise SettingError(f"a strength is a finite number, not {strength}")
    return float(values) if values.ndim == 0 else tuple(values.tolist())


def rows_of(forward: ForwardPass | None, activation: Tensor) -> Sequence[int]:
    """Return the number of each row's text in the call it is of, or its place in the batch where there is none."""
    rows = None if forward is None else forward.rows
    return range(len(activation)) if rows is None or len(rows) != len(activation) else rows


@dataclass(frozen=True)
class RowGroup:
    """Rows at one strength: their places in the batch, and the numbers of their texts."""

    places: Int[Tensor, " row"]
    rows: Sequence[int]


class RowStrengths:
    """One strength per row: row r of a pass, or text r where lens_steer runs the texts of a call, is at `values[r]`."""

    def __init__(self, values: tuple[float, ...]) -> None:
        self.values = values
        # Of the passes under way, for the edits of a pass share it.
        self._groups: weakref.WeakKeyDictionary[ForwardPass, dict[float, RowGroup]] = weakref.WeakKeyDictionary()

    def groups(self, activation: Tensor, forward: ForwardPass | None) -> dict[float, RowGroup]:
        """Return strength -> the rows at it; SettingError if there are other rows than strengths."""
        if forward is not None and forward in self._groups:
            return self._groups[forward]
        rows = rows_of(forward, activation)
        count = len(self.values)
        if isinstance(rows, range) and len(rows) != count:
            raise SettingError(
                f"the intervention is on with {count} strengths, and this forward pass has {len(rows)} rows: give one "
                "strength per row, or one number for all"
            )
        if max(rows) >= count:
            raise SettingError(
                f"the intervention is on with {count} strengths, and text {max(rows)} (counted from 0) has none: give "
                "one strength per text, or one number for all"
            )
        places: dict[float, list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(self.values[row], []).append(place)
        groups = {
            value: RowGroup(torch.tensor(members, device=activation.device), [rows[place] for place in members])
            for value, members in places.items()
        }
        if forward is not None:
            self._groups[forward] = groups
        return groups

    def nonzero(self, activation: Tensor, forward: ForwardPass | None) -> Bool[Tensor, " text"] | None:
        """Return which rows are at a strength other than 0; None if all are."""
        idle = self.groups(activation, forward).get(0.0)
        if idle is None:
            return None
        at_work = torch.ones(len(activation), dtype=torch.bool, device=activation.device)
        return at_work.index_fill(0, idle.places, False)


def warn_if_far(strengths: float | tuple[float, ...], measured: tuple[float, float] | None, *, stacklevel: int) -> None:
    """Warn of strengths that lie farther outside the measured range than the range is wide.

    Where none was measured the range is from 0, no edit, to 1, the edit as it was fitted; so that those are meant which
    lie below -1 (the full way in the other direction) or above 2.
    """
    low, high = sorted(measured or (0.0, 1.0))
    width = high - low or 1.0

    def beyond(value: float) -> float:
        return max(low - value, value - high)

    farthest = max(strengths if isinstance(strengths, tuple) else (strengths,), key=beyond)
    # Rounding in a bound that was computed is no reason to speak.
    if beyond(farthest) <= width or math.isclose(beyond(farthest), width):
        return
    what = (
        f"the range that was measured to be of use, {low:g} to {high:g} (`intervention.strengths`)"
        if measured
        else "0 to 1, from no edit to the edit as it was fitted, and no other range was measured"
    )
    warnings.warn(f"strength {farthest:g} lies far outside {what}: look at the texts", LensSteerWarning, stacklevel)
