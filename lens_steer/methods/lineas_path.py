"""The gamma path of LinEAS: one intervention per penalty, from none to dense, and the choice of one of them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lens_steer.display.shown_result import shown_result
from lens_steer.errors import LensSteerWarning, SettingError
from lens_steer.interruption import keeps_on_interrupt, on_interrupt
from lens_steer.interventions.intervention import Intervention
from lens_steer.methods.descent_run import Outcome
from lens_steer.methods.heldout_losses import HeldoutLosses
from lens_steer.methods.lineas_problem import Problem

if TYPE_CHECKING:
    import pandas as pd

USUAL_SHARE = 0.1
"""The share of gamma_max that is taken where no held-out texts can choose it."""


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
        and of `HeldoutLosses` heldout_excess, excess_se, heldout_gain, gain_se; nan without held-out texts.
    interrupted:
        Whether Ctrl-C ended the path before its last gamma.

    """

    interventions: tuple[Intervention, ...]
    frame: pd.DataFrame
    interrupted: bool = False

    @classmethod
    def of(
        cls,
        steps: Sequence[PathStep],
        *,
        gamma_max: float,
        identity_loss: float,
        identity_heldout_cases: Float[np.ndarray, " case"],
        interrupted: bool = False,
    ) -> LinEASPath:
        """Make the path of the fits that were done, the losses without an edit beside theirs."""
        import pandas as pd

        heldout = HeldoutLosses.of([step.heldout_cases for step in steps], identity_heldout_cases)
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
                    "heldout_excess": float(heldout.excess[place]),
                    "excess_se": float(heldout.excess_se[place]),
                    "heldout_gain": float(heldout.gain[place]),
                    "gain_se": float(heldout.gain_se[place]),
                }
            )
        return cls(tuple(step.intervention for step in steps), pd.DataFrame(rows), interrupted)

    def best(self) -> Intervention:
        """Return the sparsest fit within one standard error of the smallest held-out loss that keeps half its gain.

        The standard error is that of the difference, on the same texts; the gain is over no edit. Where the smallest
        held-out loss is not one standard error below that without an edit, the fit nearest to a share of 0.1 is
        returned, with a warning. SettingError where the path has no held-out loss.
        """
        if self.frame["heldout_loss"].isna().all():
            raise SettingError("this path has no held-out loss to choose by: fit it with LinEAS(holdout=...)")
        names = ("heldout_excess", "excess_se", "heldout_gain", "gain_se")
        chosen = HeldoutLosses(*(self.frame[name].to_numpy() for name in names)).chosen()
        if chosen is None:
            chosen = nearest_to_usual(self.frame["gamma_share"].tolist())
            share = self.frame["gamma_share"][chosen]
            warnings.warn(
                f"the held-out texts do not show that any fit of this path is better than no edit: the one at "
                f"gamma_share={share:.2g} is returned; hold out more texts, or take one by nearest(units=...)",
                LensSteerWarning,
                2,
            )
        return self.interventions[chosen]

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


def require_one_way(**given: Sequence[float] | Sequence[int] | None) -> None:
    """Refuse a path that is asked for in two ways, or by values that are none: shares, gammas, or numbers of units."""
    asked = {name: list(values) for name, values in given.items() if values is not None}
    if len(asked) > 1:
        raise SettingError(f"LinEAS.path: {' and '.join(asked)} say the same in two ways: give one of them")
    for name, values in asked.items():
        lowest = 1 if name == "units" else 0
        if not values or not all(lowest <= value < math.inf for value in values):
            raise SettingError(f"LinEAS.path: {name}={values} are one or more numbers from {lowest} on")


def path_of(
    fits: Iterable[tuple[Outcome, float, dict[str, Any]]], problem: Problem, method: Any, *, total: str
) -> LinEASPath:
    """Make the path of fits as they come: outcome, gamma, and what the provenance says beside.

    Ctrl-C ends it and, where `on_interrupt` keeps, leaves those of the `total` that are done, with a warning.
    """
    keeps, interrupted = keeps_on_interrupt(), False
    steps: list[PathStep] = []
    try:
        with on_interrupt("raise"):
            for outcome, gamma, about in fits:
                edit = problem.intervention(method, outcome, gamma, **about)
                steps.append(PathStep(gamma, outcome.loss, problem.heldout_cases(outcome.parameters), edit))
    except KeyboardInterrupt:
        if not (keeps and steps):
            raise
        interrupted = True
        message = f"the path was interrupted after {len(steps)} of {total}: these are done"
        warnings.warn(message, LensSteerWarning, 3)
    return LinEASPath.of(
        steps,
        gamma_max=problem.gamma_max,
        identity_loss=problem.loss(problem.identity),
        identity_heldout_cases=problem.heldout_cases(problem.identity),
        interrupted=interrupted,
    )


def nearest_to_usual(shares: Sequence[float]) -> int:
    """Return which share of gamma_max is nearest, by its ratio, to the one that is taken where texts choose none."""
    distances = np.abs(np.log(np.maximum(shares, 1e-12) / USUAL_SHARE))
    return int(np.argmin(np.nan_to_num(distances)))


def default_shares(*, count: int = 8, smallest: float = 0.01) -> list[float]:
    """Return `count` shares of gamma_max, geometrically from 1 down to `smallest`."""
    return [float(smallest ** (place / (count - 1))) for place in range(count)]
