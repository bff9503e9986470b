"""Expert units: the units of the collected sites, ranked by how well they tell source from target."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int

from lens_steer.activations.activations import Activations
from lens_steer.activations.sketch import ActivationSketch
from lens_steer.display.shown_result import MOST_ROWS, shown_result
from lens_steer.errors import SettingError, UnitError
from lens_steer.host.units import Unit
from lens_steer.ranking.confounds import confounds
from lens_steer.ranking.halves import Mask, halves
from lens_steer.ranking.label_test import design_of
from lens_steer.ranking.layers import layer_profile
from lens_steer.ranking.measured import matching_holdout, require_finite
from lens_steer.ranking.overlap import expert_overlap, overlap_of_shuffled
from lens_steer.ranking.probe import probe_sites
from lens_steer.ranking.resolution import resolution, resolution_sentence
from lens_steer.ranking.site_columns import site_columns
from lens_steer.ranking.specificity import specificity
from lens_steer.ranking.streaming import sketch_frame
from lens_steer.ranking.subgroups import subgroup_auroc
from lens_steer.ranking.universal import with_universal
from lens_steer.settings import require_settings
from lens_steer.statistics.design import Design
from lens_steer.statistics.significance import (
    benjamini_hochberg,
    family_wise_p,
    permutation_null,
)
from lens_steer.texts.seen import seen_forms

if TYPE_CHECKING:
    import pandas as pd

_FEW = 3  # units of a concept that are shown beside those of others, and concepts that are named


@dataclass(frozen=True, eq=False)
class ExpertRanking:
    """Units in the order of their AUROC on the selection half (on all rows where nothing was held out).

    Attributes
    ----------
    frame:
        One row per concept and unit: concept, site, layer, kind, unit, width; auroc (all rows) with auroc_low,
        auroc_high (DeLong on the logit scale, between blocks where texts come in blocks; hanley_mcneil marks where that
        variance is zero); selection_auroc and heldout_auroc with heldout_low, heldout_high (chosen on one half,
        measured on the other); average_precision of the source; p_value (two-sided, of `test`), q_value
        (Benjamini-Hochberg within the concept), family_wise_p (only with permutations); wasserstein (order 1);
        source_mean, target_mean (of the pooled values); test: what p_value is (see `rank_experts`); tied: how many
        units share the AUROC that orders them, this one among them; top_share and universal (only with unrelated
        texts): how often, and whether, a unit is among its site's largest whatever the text (see `universal_units`).
        AUROC above 1/2: the unit is larger for the source; below: for the target.
    activations:
        What was ranked; of a sketch its texts, without their values.
    settings:
        holdout, confidence, permutations, seed.
    heldout:
        The other activations that the units were measured on, where such were given.

    """

    frame: pd.DataFrame
    activations: Activations
    settings: dict[str, Any] = field(default_factory=dict)
    heldout: Activations | None = None

    def __repr__(self) -> str:
        best = self.frame.groupby("concept", sort=False).head(1).to_dict("records")
        said = [self._best(row, is_one_of_several=len(best) > 1) for row in best[:_FEW]]
        more = f"; and of {len(best) - _FEW} more concepts" if len(best) > _FEW else ""
        return f"ExpertRanking({len(self.frame)} rows; best {'; '.join(said)}{more})"

    def _best(self, row: dict[Any, Any], *, is_one_of_several: bool) -> str:
        whose = f"of {row['concept']} " if is_one_of_several else ""
        tied = f", one of {row['tied']} units that tie" if row.get("tied", 1) > 1 else ""
        return f"{whose}{row['site']}[{row['unit']}]: {self._score} {row[self._score]:.3f}{tied}"

    @property
    def _score(self) -> str:
        """The column of texts that did not choose the order, where some were held out; else that of all texts."""
        return "heldout_auroc" if self.frame["heldout_auroc"].notna().any() else "auroc"

    @property
    def seen(self) -> Int[np.ndarray, " hash"]:
        """The hashes of the texts that chose the order: the selection halves (see `texts.seen`).

        Choosing by thresholds on held-out values (`units(min_auroc=...)`) makes the held-out texts choose too; they are
        not in here. Empty for activations without texts.
        """
        if self.activations.hashes is None:
            return np.empty(0, dtype=np.int64)
        forms = []
        for concept in self.activations.concepts:
            one = self.activations.concept(concept)
            if one.hashes is not None:
                forms.append(one.hashes[self._chose(one)].numpy())
        return seen_forms(np.concatenate(forms))

    def _repr_html_(self) -> str:
        texts = self.activations.labels.shape[0]
        heading = f"Expert units: {len(self.frame):,} ranked on {texts:,} texts"
        sentences, rest = [resolution_sentence(self.resolution())], ".frame, with all columns"
        concepts = self.frame["concept"].nunique()
        if concepts < 2:
            return shown_result(heading, sentences=sentences, table=self.frame[self._in_front[1:]], rest=rest)
        k = _FEW if concepts <= MOST_ROWS else 1
        rows = f"The best {f'{k} units' if k > 1 else 'unit'} of each of {concepts} concepts"
        return shown_result(heading, sentences=sentences, table=self.top(k)[self._in_front], rows=rows, rest=rest)

    @property
    def _in_front(self) -> list[str]:
        """The columns that say most, in front of them what orders the rows."""
        order = "selection_auroc" if self.frame["selection_auroc"].notna().any() else "auroc"
        held = [] if self._score == order else ["heldout_auroc", "heldout_low", "heldout_high"]
        return ["concept", order, "site", "unit", *held, "q_value"]

    def concept(self, name: str) -> ExpertRanking:
        """Return the ranking of one concept."""
        require_settings(ExpertRanking.concept, locals())
        activations = self.activations.concept(name)
        return replace(self, frame=self.frame[self.frame["concept"] == name], activations=activations)

    def top(self, k: int = 20) -> pd.DataFrame:
        """Return the rows of the k best units of each concept; all of a concept that has fewer.

        The columns that say most stand first: what orders the rows, the unit, its held-out AUROC, its q-value.
        """
        require_settings(ExpertRanking.top, locals())
        if k < 1:
            raise SettingError(f"k is a number of units, 1 or more, not {k}")
        rows = self.frame.groupby("concept", sort=False).head(k).reset_index(drop=True)
        return rows[[*self._in_front, *rows.columns.difference(self._in_front, sort=False)]]

    def units(
        self, k: int | None = None, *, min_auroc: float | None = None, max_q: float | None = None
    ) -> tuple[Unit, ...]:
        """Return units, best first: the k best, or all, of those that reach the thresholds (k or fewer).

        `min_auroc` is asked of the held-out value where there is one, `max_q` of a p-value on all texts. Both so look
        at the held-out texts: the held-out values of the units that are left flatter them, and other texts have to
        measure what they do. UnitError if no unit is left, or if the ranking holds several concepts; SettingError for a
        k below 1 or above the number of units.
        """
        require_settings(ExpertRanking.units, locals())
        if self.frame["concept"].nunique() > 1:
            raise UnitError(f"choose a concept first: ranking.concept(name), of {', '.join(self.activations.concepts)}")
        frame = self.frame
        if k is not None and not 1 <= k <= len(frame):
            raise SettingError(f"k is a number of units, 1 to the {len(frame)} that are ranked, not {k}")
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
        """Compare, per site, a linear probe on all units with the best single unit; see `probe_sites`.

        On the texts that the ranking held out, by the same halves; where it held out none, on a half of them.
        """
        share = self.settings.get("holdout")
        holdout = self.heldout if self.heldout is not None else share if isinstance(share, float) else 0.5
        return probe_sites(self.activations, holdout=holdout, seed=self.settings.get("seed", 0))

    def confounds(self, k: int = 20) -> pd.DataFrame:
        """Ask of the k best units of one concept what else they tell: see `confounds`."""
        require_settings(ExpertRanking.confounds, locals())
        require_finite(self.activations)
        return confounds(self.activations, self.units(min(k, len(self.frame))))

    def subgroups(self, k: int = 20, *, confidence: float = 0.95) -> pd.DataFrame:
        """Return the AUROC of the k best units of one concept inside every subgroup: see `subgroup_auroc`."""
        require_settings(ExpertRanking.subgroups, locals())
        require_finite(self.activations)
        units, one = self.units(min(k, len(self.frame))), self.activations.concept(self.frame["concept"].iloc[0])
        return subgroup_auroc(one, units, chose=self._chose(one).numpy(), confidence=confidence)

    def overlap(self, k: int = 100, *, permutations: int = 0, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
        """Compare the k best units of every pair of concepts: see `expert_overlap`.

        With permutations, also with what labels that mean nothing give: see `overlap_of_shuffled`.
        """
        require_settings(ExpertRanking.overlap, locals())
        table = expert_overlap(self.frame, k, confidence=confidence)
        if not permutations:
            return table
        chose = {name: self._chose(self.activations.concept(name)) for name in self.frame["concept"].unique()}
        return overlap_of_shuffled(table, self.frame, self.activations, chose, permutations=permutations, seed=seed)

    def layers(self, k: int = 100, *, confidence: float = 0.95) -> pd.DataFrame:
        """Count how many of the k best units of every concept lie in every layer: see `layer_profile`."""
        require_settings(ExpertRanking.layers, locals())
        return layer_profile(self.frame, k, confidence=confidence)

    def specificity(self, k: int = 20, *, confidence: float = 0.95) -> pd.DataFrame:
        """Ask which of the k best units of every concept are experts of that concept only: see `specificity`.

        On the texts that did not choose the units. SettingError where nothing was held out.
        """
        require_settings(ExpertRanking.specificity, locals())
        names, measured = self.frame["concept"].unique(), {}
        if self.heldout is None and not isinstance(self.settings.get("holdout"), float):
            raise SettingError("specificity is measured on texts that chose no unit: rank with holdout=0.5, or others")
        for name in names:
            if self.heldout is None:
                require_finite(self.activations)
                one = self.activations.concept(name)
                measured[name] = one.rows(~self._chose(one))
            else:
                measured[name] = self.heldout.concept(name)
        units = {name: self.concept(name).units(min(k, len(self.frame) // len(names))) for name in names}
        return specificity(measured, units, confidence=confidence)

    def resolution(self) -> pd.DataFrame:
        """Say per concept how small p- and q-values can become with so many texts, units and permutations."""
        return resolution(self.frame, self.activations, self.settings.get("permutations", 0))

    def _chose(self, one: Activations) -> Mask:
        """Which texts of one concept chose the order of its units."""
        share = self.settings.get("holdout")
        return halves(one, share, self.settings["seed"])[0] if isinstance(share, float) else one.labels[:, 0] >= 0

    def plot(self) -> Any:
        """Return a figure of the units' AUROC by layer."""
        from lens_steer.report.plots import plot

        return plot(self)


def rank_experts(
    activations: Activations | ActivationSketch,
    *,
    holdout: float | Activations | None = 0.5,
    confidence: float = 0.95,
    permutations: int = 0,
    unrelated: Activations | None = None,
    seed: int = 0,
) -> ExpertRanking:
    """Rank the units of `activations` by how well each tells source texts from target texts.

    Of units with one AUROC those come first whose sides differ more on the selecting texts, in standard deviations.

    Texts of one block (copies, one prompt, one group, a pair) are never parted, and never count as independent. In
    p_value a block of one side is one observation, the mean of its texts. The column `test` says which test it is:
    "mann_whitney" compares the sides' observations (exact for fewer than 20 a side); "van_elteren" compares them inside
    blocks that hold both sides, and weighs these together; "signed_rank" is Wilcoxon's test on the differences within
    pairs, of a paired contrast (pairs of one block are averaged). Permutations exchange the same observations.

    Parameters
    ----------
    activations:
        From `collect`; of one concept or of many. A sketch (`collect(..., reduce="sketch")`) gives the columns that
        `sketch_frame` names, with bounds on their errors.
    holdout:
        The share of each side's texts that is held out, in whole blocks: units are ordered by the rest, and
        `heldout_auroc` is measured on them. They are the texts of the second part of `contrast.split(holdout, seed)`,
        whatever other concepts there are. Or other activations of the same sites to measure on; or None to hold nothing
        out.
    confidence:
        Of the intervals of `auroc` and `heldout_auroc`.
    permutations:
        Label permutations for `family_wise_p`: how often the best of all units reaches a unit's AUROC by chance.
    unrelated:
        Activations of texts that have to do with none of the concepts, pooled alike: they name universal units.
    seed:
        Of the split and the permutations.

    Raises
    ------
    SettingError
        A share outside 0..1.
    ContrastError
        Too few texts or blocks on a side to hold some out.
    ActivationError
        A value is not a finite number; the held-out or the unrelated activations lack a site, are of another width or
        pool, or (held-out ones) lack a concept or hold texts that are ranked.

    References
    ----------
    AUROC of a unit as its expertise: arXiv 2407.12824; average precision: arXiv 2110.02802.

    """
    require_settings(rank_experts, locals())
    import pandas as pd

    share = float(holdout) if isinstance(holdout, int | float) else "none" if holdout is None else "other activations"
    settings = {"holdout": share, "confidence": confidence, "permutations": permutations, "seed": seed}
    if isinstance(activations, ActivationSketch):
        if permutations:
            raise SettingError(
                "a sketch cannot be relabelled, for it keeps no text's value: collect(...) without reduce=, or "
                "permutations=0; units times p_value bounds the family-wise p there (Bonferroni)"
            )
        frames = [
            _in_order(_with_q(sketch_frame(activations, name, holdout, confidence, seed), name))
            for name in activations.concepts
        ]
        ranked = pd.concat(frames, ignore_index=True)
        if unrelated is not None:
            ranked = with_universal(ranked, activations.texts, unrelated)
        return ExpertRanking(ranked, activations.texts, settings)
    require_finite(activations)
    other = matching_holdout(activations, holdout) if isinstance(holdout, Activations) else None
    frames = []
    for concept in activations.concepts:
        one = activations.concept(concept)
        heldout: Activations | Mask | None = None if other is None else other.concept(concept)
        if isinstance(holdout, int | float):
            _, heldout = halves(one, holdout, seed, remedy="give more texts or groups, or set holdout=None")
        design = design_of(one)
        rows = [site_columns(site, one, heldout, confidence, design) for site in one.sites]
        frame = _with_q(pd.concat([pd.DataFrame(row) for row in rows], ignore_index=True), concept)
        if permutations:
            frame["family_wise_p"] = _family_wise(one, frame, permutations, seed, design)
        frames.append(_in_order(frame))
    ranked = pd.concat(frames, ignore_index=True)
    if unrelated is not None:
        ranked = with_universal(ranked, activations, unrelated)
    return ExpertRanking(ranked, activations, settings, other)


def _with_q(frame: pd.DataFrame, concept: str) -> pd.DataFrame:
    """Name the concept, and correct its p-values for the number of units."""
    frame.insert(0, "concept", concept)
    known = bool(frame["p_value"].notna().all())
    frame["q_value"] = benjamini_hochberg(torch.tensor(frame["p_value"].to_numpy())).numpy() if known else np.nan
    return frame


def _in_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Put one concept's units in order, best first, and count which tie."""
    order = "selection_auroc" if frame["selection_auroc"].notna().any() else "auroc"
    frame["tied"] = frame.groupby(order)[order].transform("size")
    return frame.sort_values([order, "distance"], ascending=False).drop(columns="distance")


def _family_wise(activations: Activations, frame: pd.DataFrame, permutations: int, seed: int, design: Design) -> Any:
    is_source = activations.labels[:, 0] == 1
    # Site by site, so that a store's values pass through memory one site at a time; the seed alone makes the labels.
    largest = [
        permutation_null(activations.values[site], is_source, permutations=permutations, seed=seed, design=design)
        for site in activations.sites
    ]
    return family_wise_p(torch.tensor(frame["auroc"].to_numpy()), torch.stack(largest).amax(0)).numpy()
