"""The gamma path of LinEAS: one intervention per penalty, from none to dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from lens_steer.interventions.intervention import Intervention

if TYPE_CHECKING:
    import pandas as pd


class PathStep(NamedTuple):
    """The fit at one gamma: its loss, its held-out loss (nan without held-out texts), and its maps."""

    gamma: float
    loss: float
    heldout_loss: float
    intervention: Intervention


@dataclass(frozen=True, eq=False)
class LinEASPath:
    """Interventions along falling gamma, and their table.

    Attributes
    ----------
    interventions:
        One per row of the frame.
    frame:
        gamma, gamma_ratio (gamma / gamma_max; nan where gamma_max is 0, because source and target do not differ),
        support (units moved), share (of all units of the edited sites), sites_used, loss, identity_loss, heldout_loss
        (nan without held-out texts).
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

        rows = []
        for step in steps:
            support = step.intervention.support()
            rows.append(
                {
                    "gamma": step.gamma,
                    "gamma_ratio": step.gamma / gamma_max if gamma_max > 0 else float("nan"),
                    "support": int(support["kept"].sum()),
                    "share": support["kept"].sum() / support["units"].sum(),
                    "sites_used": int((support["kept"] > 0).sum()),
                    "loss": step.loss,
                    "identity_loss": identity_loss,
                    "heldout_loss": step.heldout_loss,
                }
            )
        return cls(tuple(step.intervention for step in steps), pd.DataFrame(rows), interrupted)

    def plot(self) -> Any:
        """Return a figure of support and loss along gamma."""
        from lens_steer.report.plots import plot

        return plot(self)


def default_gammas(gamma_max: float, *, count: int = 8, ratio: float = 0.01) -> list[float]:
    """Return `count` gammas, geometrically from gamma_max down to `ratio` of it."""
    return [float(gamma_max * ratio ** (place / (count - 1))) for place in range(count)]
