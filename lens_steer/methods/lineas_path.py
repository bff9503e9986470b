"""The gamma path of LinEAS: one intervention per penalty, from none to dense, and the choice of one of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lens_steer.display.shown_result import shown_result
from lens_steer.errors import SettingError
from lens_steer.interventions.intervention import Intervention
from lens_steer.statistics.jackknife import jackknife_errors

if TYPE_CHECKING:
    import pandas as pd


class PathStep(NamedTuple):
    """The fit at one gamma: its loss, its held-out losses, and its maps.

    `heldout_cases` holds the held-out loss of all texts and then of all but one group each time; empty without
    held-out texts.
    """

    gamma: float
    loss: float
    heldout_cases: Float[np.ndarray, " case"]
    intervention: Intervention

    @property
    def heldout_loss(self) -> float:
        """The held-out loss of all texts; nan where there are none."""
        return float(self.heldout_cases[0]) if len(self.heldout_cases) else math.nan


@dataclass(frozen=True, eq=False, repr=False)
class LinEASPath:
    """Interventions along falling gamma, and their table.

    Attributes
    ----------
    interventions:
        One per row of the frame.
    frame:
        gamma, gamma_share (gamma / gamma_max; nan where gamma_max is 0, because source and target do not differ),
        support (units moved), share (of all units of the edited sites), sites_used, loss, identity_loss, heldout_loss,
        heldout_excess (over the smallest held-out loss of the path) and excess_se (the standard error of that
        difference, by the jackknife over blocks of held-out texts); nan without held-out texts.
    interrupted:
        Whether Ctrl-C ended the path before its last gamma.

    """

    interventions: tuple[Intervention, ...]
    frame: pd.DataFrame
    interrupted: bool = False

    @classmethod
    def of(
        cls, steps: Sequence[PathStep], *, gamma_max: float, identity_loss: float, interrupted: bool = False
    ) -> LinEASPath:
        """Make the path of the fits that were done."""
        import pandas as pd

        excess, errors = heldout_excess([step.heldout_cases for step in steps])
        rows = []
        for place, step in enumerate(steps):
            support = step.intervention.support()
            rows.append(
                {
                    "gamma": step.gamma,
                    "gamma_share": step.gamma / gamma_max if gamma_max > 0 else math.nan,
                    "support": int(support["kept"].sum()),
                    "share": support["kept"].sum() / support["units"].sum(),
                    "sites_used": int((support["kept"] > 0).sum()),
                    "loss": step.loss,
                    "identity_loss": identity_loss,
                    "heldout_loss": step.heldout_loss,
                    "heldout_excess": float(excess[place]),
                    "excess_se": float(errors[place]),
                }
            )
        return cls(tuple(step.intervention for step in steps), pd.DataFrame(rows), interrupted)

    def best(self) -> Intervention:
        """Return the sparsest fit whose held-out loss is within one standard error of the smallest.

        The standard error is that of the difference, on the same texts. SettingError where the path has no held-out
        loss.
        """
        if self.frame["heldout_loss"].isna().all():
            raise SettingError("this path has no held-out loss to choose by: fit it with LinEAS(holdout=...)")
        return self.interventions[within_one_error(self.frame["heldout_excess"], self.frame["excess_se"])]

    def nearest(self, *, units: int) -> Intervention:
        """Return the fit whose support is nearest to `units`, the sparser of two as near."""
        distances = (self.frame["support"] - units).abs()
        return self.interventions[int(np.argmin(distances.to_numpy()))]

    def __repr__(self) -> str:
        ended = ", interrupted" if self.interrupted else ""
        return f"LinEASPath({len(self.frame)} fits, {self.frame['support'].max()} units at most{ended})"

    def _repr_html_(self) -> str:
        return shown_result("LinEAS along gamma", facts=[("ended", "by Ctrl-C" * self.interrupted)], table=self.frame)

    def plot(self) -> Any:
        """Return a figure of support and loss along gamma."""
        from lens_steer.report.plots import plot

        return plot(self)


def heldout_excess(
    cases: Sequence[Float[np.ndarray, " case"]],
) -> tuple[Float[np.ndarray, " step"], Float[np.ndarray, " step"]]:
    """Return how far every step's held-out loss lies above the smallest, and the standard error of the difference."""
    if not cases or not len(cases[0]):
        nothing = np.full(len(cases), math.nan)
        return nothing, nothing
    losses = np.stack(cases)
    differences = losses - losses[int(np.nanargmin(losses[:, 0]))]
    return differences[:, 0], jackknife_errors(differences[:, 1:].T)


def within_one_error(excess: Iterable[float], errors: Iterable[float]) -> int:
    """Return the first step, from the sparsest, whose excess is at most its standard error.

    Where the error is nan (texts of one block say nothing of how they vary), only the smallest loss itself is near.
    """
    near = [over <= (0.0 if math.isnan(error) else error) for over, error in zip(excess, errors, strict=True)]
    return near.index(True)


def default_shares(*, count: int = 8, smallest: float = 0.01) -> list[float]:
    """Return `count` shares of gamma_max, geometrically from 1 down to `smallest`."""
    return [float(smallest ** (place / (count - 1))) for place in range(count)]
