"""Expert units: the units of the collected sites, ranked by how well they tell source from target."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor

from lens_steer.activations.activations import Activations
from lens_steer.errors import SettingError, UnitError
from lens_steer.host.sites import Site
from lens_steer.host.units import Unit
from lens_steer.statistics.scores import auroc, auroc_and_average_precision
from lens_steer.statistics.significance import (
    auroc_interval,
    benjamini_hochberg,
    family_wise_p,
    mann_whitney_p,
    permutation_null,
)
from lens_steer.statistics.wasserstein import wasserstein

if TYPE_CHECKING:
    import pandas as pd

_FEWEST_TEXTS = 2  # per side and half: below, an AUROC says nothing


@dataclass(frozen=True, eq=False)
class ExpertRanking:
    """Units in the order of their AUROC on the selection half (on all rows where nothing was held out).

    Attributes
    ----------
    frame:
        One row per concept and unit: concept, site, layer, kind, unit, width; auroc (all rows) with auroc_low,
        auroc_high (DeLong on the logit scale; hanley_mcneil marks where its variance is zero); selection_auroc and
        heldout_auroc with heldout_low, heldout_high (chosen on one half, measured on the other); average_precision of
        the source; p_value (Mann-Whitney, two-sided), q_value (Benjamini-Hochberg within the concept), family_wise_p
        (only with permutations); wasserstein (order 1); source_mean, target_mean (of the pooled values).
        AUROC above 1/2: the unit is larger for the source; below: for the target.
    activations:
        What was ranked.
    settings:
        holdout, confidence, permutations, seed.

    """

    frame: pd.DataFrame
    activations: Activations
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        best = self.frame.iloc[0]
        score = f"{self._score} {best[self._score]:.3f}"
        return f"ExpertRanking({len(self.frame)} rows; best {best.site}[{best.unit}]: {score})"

    @property
    def _score(self) -> str:
        """The unbiased column: held out where there is one."""
        return "heldout_auroc" if self.frame["heldout_auroc"].notna().any() else "auroc"

    def concept(self, name: str) -> ExpertRanking:
        """Return the ranking of one concept."""
        activations = self.activations.concept(name)
        return replace(self, frame=self.frame[self.frame["concept"] == name], activations=activations)

    def top(self, k: int = 20) -> pd.DataFrame:
        """Return the rows of the k best units of each concept."""
        return self.frame.groupby("concept", sort=False).head(k).reset_index(drop=True)

    def units(
        self, k: int | None = None, *, min_auroc: float | None = None, max_q: float | None = None
    ) -> tuple[Unit, ...]:
        """Return units, best first: the k best, or all, of those that reach the thresholds.

        `min_auroc` is asked of the held-out value where there is one. UnitError if no unit is left, or if the ranking
        holds several concepts.
        """
        if self.frame["concept"].nunique() > 1:
            raise UnitError(f"choose a concept first: ranking.concept(name), of {', '.join(self.activations.concepts)}")
        frame = self.frame
        if min_auroc is not None:
            frame = frame[frame[self._score] >= min_auroc]
        if max_q is not None:
            frame = frame[frame["q_value"] <= max_q]
        if frame.empty:
            best = self.frame[self._score].max()
            raise UnitError(f"no unit reaches {self._score} >= {min_auroc} and q <= {max_q}; the best has {best:.3f}")
        sites = {site.name: site for site in self.activations.sites}
        rows = frame if k is None else frame.head(k)
        return tuple(Unit(sites[site], int(unit)) for site, unit in zip(rows["site"], rows["unit"], strict=True))

    def probes(self) -> pd.DataFrame:
        """Compare, per site, a linear probe on all units with the best single unit; see `probe_sites`."""
        from lens_steer.ranking.probe import probe_sites

        return probe_sites(self.activations, seed=self.settings.get("seed", 0))

    def confounds(self, k: int = 20) -> pd.DataFrame:
        """Ask of the k best units what else they tell: see `confounds`."""
        from lens_steer.ranking.confounds import confounds

        return confounds(self, k)

    def plot(self) -> Any:
        """Return a figure of the units' AUROC by layer."""
        from lens_steer.report.plots import plot

        return plot(self)


def rank_experts(
    activations: Activations,
    *,
    holdout: float | Activations | None = 0.5,
    confidence: float = 0.95,
    permutations: int = 0,
    seed: int = 0,
) -> ExpertRanking:
    """Rank the units of `activations` by how well each tells source texts from target texts.

    Parameters
    ----------
    activations:
        From `collect`; of one concept or of many.
    holdout:
        The share of each side's texts that is held out: units are ordered by the rest, and `heldout_auroc` is measured
        on them. Or other activations of the same sites to measure on; or None to hold nothing out.
    confidence:
        Of the intervals of `auroc` and `heldout_auroc`.
    permutations:
        Label permutations for `family_wise_p`: how often the best of all units reaches a unit's AUROC by chance.
    seed:
        Of the split and the permutations.

    Raises
    ------
    SettingError
        A share outside 0..1, or too few texts on a side to hold some out.
    ActivationError
        The held-out activations have other sites or concepts.

    References
    ----------
    AUROC of a unit as its expertise: arXiv 2407.12824; average precision: arXiv 2110.02802.

    """
    import pandas as pd

    frames = []
    for place, concept in enumerate(activations.concepts):
        one = activations if len(activations.concepts) == 1 else activations.concept(concept)
        selection, heldout = _split(one, holdout, seed + place)
        rows = [_rank_site(site, one, selection, heldout, confidence) for site in one.sites]
        frame = pd.concat([pd.DataFrame(row) for row in rows], ignore_index=True)
        frame.insert(0, "concept", concept)
        frame["q_value"] = benjamini_hochberg(torch.tensor(frame["p_value"].to_numpy())).numpy()
        if permutations:
            frame["family_wise_p"] = _family_wise(one, frame, permutations, seed + place)
        order = "selection_auroc" if heldout is not None else "auroc"
        frames.append(frame.sort_values(order, ascending=False, kind="stable"))
    share = holdout if isinstance(holdout, float) else "none" if holdout is None else "other activations"
    settings = {"holdout": share, "confidence": confidence, "permutations": permutations, "seed": seed}
    return ExpertRanking(pd.concat(frames, ignore_index=True), activations, settings)


def _split(
    activations: Activations, holdout: float | Activations | None, seed: int
) -> tuple[Activations, Activations | None]:
    if holdout is None:
        return activations, None
    if isinstance(holdout, Activations):
        other = holdout if len(holdout.concepts) == 1 else holdout.concept(activations.concepts[0])
        return activations, other
    kept, held = split_rows(activations.labels[:, 0], holdout, seed)
    return activations.rows(kept), activations.rows(held)


def split_rows(label: Tensor, share: float, seed: int) -> tuple[Bool[Tensor, " text"], Bool[Tensor, " text"]]:
    """Return the masks of the rows that are kept and held out, the same share on each side; SettingError if too few."""
    if not 0 < share < 1:
        raise SettingError(f"holdout is a share between 0 and 1, or None; got {share}")
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(label), dtype=torch.bool)
    for side in (1, 0):
        rows = (label == side).nonzero()[:, 0]
        count = round(len(rows) * share)
        if min(count, len(rows) - count) < _FEWEST_TEXTS:
            raise SettingError(
                f"{len(rows)} {'source' if side else 'target'} texts are too few to hold out {share:.0%} of them: "
                "give more texts, or hold out none (rank_experts: holdout=None)"
            )
        held[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return ~held & (label >= 0), held


def _rank_site(
    site: Site, whole: Activations, selection: Activations, heldout: Activations | None, confidence: float
) -> dict[str, Any]:
    source, target = whole.source[site], whole.target[site]
    area, precision = auroc_and_average_precision(source, target)
    interval = auroc_interval(source, target, area, confidence=confidence)
    nothing = torch.full((site.width,), torch.nan, dtype=torch.float64)
    held = held_low = held_high = nothing
    if heldout is not None:
        sides = heldout.source[site], heldout.target[site]
        held = auroc(*sides)
        bounds = auroc_interval(*sides, held, confidence=confidence)
        held_low, held_high = bounds.low, bounds.high
    columns = {
        "auroc": area,
        "auroc_low": interval.low,
        "auroc_high": interval.high,
        "hanley_mcneil": interval.degenerate,
        "selection_auroc": nothing if heldout is None else auroc(selection.source[site], selection.target[site]),
        "heldout_auroc": held,
        "heldout_low": held_low,
        "heldout_high": held_high,
        "average_precision": precision,
        "p_value": mann_whitney_p(source, target),
        "wasserstein": wasserstein(source, target),
        "source_mean": source.mean(0),
        "target_mean": target.mean(0),
    }
    about = {"site": site.name, "layer": site.layer, "kind": site.kind, "unit": range(site.width), "width": site.width}
    return {**about, **{name: value.numpy() for name, value in columns.items()}}


def _family_wise(activations: Activations, frame: pd.DataFrame, permutations: int, seed: int) -> Any:
    values = torch.cat([activations.values[site] for site in activations.sites], dim=1)
    null = permutation_null(values, activations.labels[:, 0] == 1, permutations=permutations, seed=seed)
    return family_wise_p(torch.tensor(frame["auroc"].to_numpy()), null).numpy()
