"""The gamma path of LinEAS: one intervention per penalty, from none to dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lens_steer.interventions.intervention import Intervention

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class LinEASPath:
    """Interventions along falling gamma, and their table.

    Attributes
    ----------
    interventions:
        One per row of the frame.
    frame:
        gamma, gamma_ratio (gamma / gamma_max), support (units moved), share (of all units of the edited sites),
        sites_used, loss, identity_loss, heldout_loss (nan without held-out texts).

    """

    interventions: tuple[Intervention, ...]
    frame: pd.DataFrame

    @classmethod
    def of(
        cls, steps: Sequence[tuple[float, float, float, Intervention]], *, gamma_max: float, identity_loss: float
    ) -> LinEASPath:
        """Make the path of (gamma, loss, held-out loss, intervention) rows."""
        import pandas as pd

        rows = []
        for gamma, loss, heldout, intervention in steps:
            support = intervention.support()
            rows.append(
                {
                    "gamma": gamma,
                    "gamma_ratio": gamma / gamma_max,
                    "support": int(support["kept"].sum()),
                    "share": support["kept"].sum() / support["units"].sum(),
                    "sites_used": int((support["kept"] > 0).sum()),
                    "loss": loss,
                    "identity_loss": identity_loss,
                    "heldout_loss": heldout,
                }
            )
        return cls(tuple(intervention for *_, intervention in steps), pd.DataFrame(rows))

    def plot(self) -> Any:
        """Return a figure of support and loss along gamma."""
        from lens_steer.report.plots import plot

        return plot(self)


def default_gammas(gamma_max: float, *, count: int = 8, ratio: float = 0.01) -> list[float]:
    """Return `count` gammas, geometrically from gamma_max down to `ratio` of it."""
    return [float(gamma_max * ratio ** (place / (count - 1))) for place in range(count)]
