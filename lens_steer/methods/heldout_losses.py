"""Which fit of a LinEAS path the held-out losses choose: the sparsest that they cannot tell from the best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lens_steer.statistics.jackknife import jackknife_errors

_KEPT_GAIN = 0.5  # of the best fit's gain over no edit: few texts hold even a useless fit within one standard error


@dataclass(frozen=True)
class HeldoutLosses:
    """The held-out losses of the fits of a path, from the sparsest, beside the smallest and beside no edit's.

    Attributes
    ----------
    excess, excess_se:
        How far a fit's loss lies above the smallest of the path, and the standard error of that difference, on the
        same texts, by the jackknife over blocks; nan without held-out texts, and the error with those of one block.
    gain, gain_se:
        How far it lies below the loss without an edit, and the standard error of that difference.

    """

    excess: Float[np.ndarray, " fit"]
    excess_se: Float[np.ndarray, " fit"]
    gain: Float[np.ndarray, " fit"]
    gain_se: Float[np.ndarray, " fit"]

    @classmethod
    def of(cls, cases: Sequence[Float[np.ndarray, " case"]], identity: Float[np.ndarray, " case"]) -> HeldoutLosses:
        """Compare fits by their losses on all held-out texts and then on all but one group each time."""
        if not cases or not len(identity):
            return cls(*np.full((4, len(cases)), math.nan))
        losses = np.stack(cases)
        excess = losses - losses[int(np.nanargmin(losses[:, 0]))]
        gain = identity - losses
        return cls(excess[:, 0], jackknife_errors(excess[:, 1:].T), gain[:, 0], jackknife_errors(gain[:, 1:].T))

    @property
    def best(self) -> int:
        """The fit of the smallest loss."""
        return int(np.nanargmin(self.excess))

    def chosen(self) -> int | None:
        """Return the sparsest fit within one standard error of the smallest loss that keeps half of its gain.

        None where the smallest loss is not itself more than one standard error below that without an edit: then the
        texts say nothing of which fit is better. An error of nan, of texts of one block, counts as none.
        """
        within, shown = np.nan_to_num(self.excess_se), np.nan_to_num(self.gain_se)
        if not self.gain[self.best] > shown[self.best]:
            return None
        near = (self.excess <= within) & (self.gain >= _KEPT_GAIN * self.gain[self.best])
        return int(np.argmax(near))
