"""The result of an attribution: what each part causes, with intervals over pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from jaxtyping import Bool, Float

from lens_steer.display.shown_result import shown_result
from lens_steer.effects.attribution.parts import Level
from lens_steer.errors import SettingError
from lens_steer.statistics.correlations import pearson, spearman
from lens_steer.statistics.jackknife import jackknife_intervals

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Attribution:
    """What every part of a model causes of a metric's difference between corrupted and clean prompts.

    Attributes
    ----------
    frame:
        One row per part. Columns: site, layer, kind; position (place among the compared ones), head or unit, after the
        level; value: by how much the metric of the *corrupted* run rises when the part takes its *clean* activation,
        mean over pairs, in the metric's unit (measured, or estimated by the method); low, high, its interval over
        pairs, and verdict; difference: how far the part differs, clean less corrupted: of a unit the mean over pairs
        and positions, signed; of other parts the length of the vector, mean over pairs; exact: whether value was
        measured by patching. With `reliability` also second_order (the next term of the estimate, in the metric's
        unit), ratio (its size over that of the first), flagged (ratio above the limit).

        Every interval is one part's: of many parts that do nothing, a twentieth has an interval of 95 % beside 0.
    cases:
        Site's name -> values of its parts [case, part], on all pairs and then with one group of pairs left out each.
    settings:
        method, level, metric, clean and corrupted (the metric's means), pairs, blocks, positions, rules, steps,
        confidence, flag_above, pairs_hash.

    """

    frame: pd.DataFrame
    cases: Mapping[str, Float[np.ndarray, "case part"]]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        best = self.top(1).iloc[0]
        method, level = self.settings["method"], self.level
        return (
            f"Attribution({method} of {len(self.frame)} parts by {level} over {self.settings['pairs']} pairs: the most "
            f"by {best['site']}{'' if level == 'site' else f'[{best[level]}]'}, {best['value']:+.3g} "
            f"[{best['low']:+.3g}, {best['high']:+.3g}] of {self.gap:+.3g})"
        )

    def _repr_html_(self) -> str:
        """Show what this is and the ten strongest parts."""
        rows = self.top(len(self.frame)).drop(columns=["layer", "kind"])
        rows.insert(0, "value", rows.pop("value"))
        return shown_result(repr(self), table=rows, rest=".top(k) and .frame")

    @property
    def level(self) -> Level:
        """What a part is."""
        return cast("Level", self.settings["level"])

    @property
    def gap(self) -> float:
        """The metric's mean in the clean runs less that in the corrupted ones: what all parts together make good."""
        return float(self.settings["clean"] - self.settings["corrupted"])

    def top(self, k: int = 20) -> pd.DataFrame:
        """Return the rows of the k largest effects, of either sign."""
        order = self.frame["value"].abs().sort_values(ascending=False, kind="stable").index
        return self.frame.loc[order[:k]].reset_index(drop=True)

    def agreement(self, exact: Attribution) -> pd.DataFrame:
        """Return how well this estimate follows another of the same parts and pairs, mostly that of method "patch".

        One row per kind of site and measure. Columns: kind, measure (pearson, spearman), value, low, high (a jackknife
        over blocks of pairs, as both are means over the same ones, cut at 1), parts. Parts that are the same in
        all clean and corrupted runs are left out: there every method says 0. nan where fewer than three parts, or no
        spread, are left.

        Raises
        ------
        SettingError
            The two are of other parts or other pairs.

        """
        import pandas as pd

        rows = []
        for (kind, measure), values in self.correlations(exact).items():
            ends = jackknife_intervals(values[:, None], confidence=self.settings["confidence"])[:, 0]
            low, high = ends.clip(-1, 1)
            rows.append((kind, measure, values[0], low, high, int(self._differing(exact, kind).sum())))
        return pd.DataFrame(rows, columns=["kind", "measure", "value", "low", "high", "parts"])

    def correlations(self, exact: Attribution) -> dict[tuple[str, str], Float[np.ndarray, " case"]]:
        """Return the correlations of `agreement` by kind and measure, with every case of the jackknife.

        Two estimates of the same parts are compared by the differences of theirs, case by case. SettingError as there.
        """
        same = [self.settings.get(key) == exact.settings.get(key) for key in ("pairs_hash", "level", "confidence")]
        if not all(same) or not self._parts.equals(exact._parts):
            raise SettingError("the two attributions are of other pairs, parts or levels: give both the same ones")
        bounds = {}
        for kind in dict.fromkeys(self.frame["kind"]):
            differs = self._differing(exact, kind)
            ours, theirs = (attribution._cases_of(kind)[:, differs] for attribution in (self, exact))
            for measure, correlate in (("pearson", pearson), ("spearman", spearman)):
                bounds[kind, measure] = np.array([correlate(*both) for both in zip(ours, theirs, strict=True)])
        return bounds

    def _differing(self, exact: Attribution, kind: str) -> Bool[np.ndarray, " part"]:
        """Mark the parts of a kind that differ between clean and corrupted runs."""
        differs = [
            attribution.frame.loc[attribution.frame["kind"] == kind, "difference"] != 0 for attribution in (self, exact)
        ]
        return np.asarray(differs[0] | differs[1], dtype=np.bool_)

    def _cases_of(self, kind: str) -> Float[np.ndarray, "case part"]:
        sites = dict.fromkeys(self.frame.loc[self.frame["kind"] == kind, "site"])
        return np.concatenate([self.cases[site] for site in sites], axis=1)

    @property
    def _parts(self) -> pd.DataFrame:
        return self.frame[["site", *([] if self.level == "site" else [self.level])]]

    def plot(self) -> Any:
        """Return a heat map (by site, position or head) or the strongest units as bars."""
        from lens_steer.report.plots import plot

        return plot(self)
