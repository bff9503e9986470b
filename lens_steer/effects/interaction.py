"""Interaction: do two interventions add up, and does it matter which acts first, seen in the activations after them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from torch import nn

from lens_steer.activations.pooling import Pool
from lens_steer.display.shown_result import shown_result
from lens_steer.effects.combined import CombinedAt, Effect, Measures
from lens_steer.effects.downstream import reached
from lens_steer.effects.shifts import Untouched, deviations
from lens_steer.effects.text_groups import pooled_sides, tokenized_groups
from lens_steer.errors import SettingError, SiteError
from lens_steer.host.adapter import host_of
from lens_steer.host.guards import require_eval
from lens_steer.host.sites import Site, SitePattern, find_sites
from lens_steer.interventions.collisions import collisions
from lens_steer.interventions.compose import compose
from lens_steer.interventions.intervention import Intervention, require_interventions
from lens_steer.progress import progress_bar
from lens_steer.settings import require_settings
from lens_steer.statistics.intervals import require_confidence
from lens_steer.statistics.jackknife import jackknife_intervals
from lens_steer.texts.contrast import ContrastSet

if TYPE_CHECKING:
    import pandas as pd

Measure = Literal["moved", "towards", "curvature", "additivity", "excess", "commutation", "synergy"]
Side = Literal["source", "target"]


@dataclass(frozen=True, eq=False)
class Interaction:
    """What several interventions do alone and two by two, at every site that any of them can reach.

    The effect of an intervention on a text is e = h_edited - h_unedited, pooled over the text's tokens, each unit in
    its standard deviation over the unedited texts of both sides. Sizes are root mean squares over a site's units; those
    whose standard deviation is below a tenth of the site's median are left out.

    Attributes
    ----------
    frame:
        One row per site, side of the contrast, intervention or ordered pair, and measure. Columns: site, layer; side
        (source, target: whose texts); first, later (the later of a pair; None for an intervention alone); measure;
        value, the mean over texts; low, high, its interval.

        moved: size of e, in sd. towards: how far e goes from the source's mean to the target's, as a share of that way
        (1 arrives, below 0 leads away), cross-fitted; nan where source and target are not shown to differ. curvature:
        the size of e - 2 e(the same at half strength), in sd: how far two halves of one and the same edit are from
        adding up, because the blocks on the way are not linear.

        Of pairs alone: additivity, the size of e(pair) - e(first) - e(later), in sd: 0 where effects add up; at or
        below the pair's curvature the two get on no worse than halves of one edit do. excess: additivity - curvature.
        commutation: the size of e(pair) - e(the same two, the other way round), in sd: 0 where order does not matter.
        synergy: towards of the pair less that of either: below 0 they hinder each other.
    settings:
        names, contrast, pool, strength, confidence, the number of texts, and of each pair the number of units where the
        two collide.

    """

    frame: pd.DataFrame
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        worst = self.of("commutation").sort_values("value").iloc[-1]
        return (
            f"Interaction({', '.join(self.names)}: order matters most to {worst['first']} and {worst['later']}, by "
            f"{worst['value']:.3g} sd at {worst['site']})"
        )

    def _repr_html_(self) -> str:
        rows = self.of("commutation").sort_values("value", ascending=False, kind="stable")
        columns = ["value", "low", "high", "first", "later", "site"]
        return shown_result(repr(self), table=rows[columns].rename(columns={"value": "commutation"}))

    @property
    def names(self) -> tuple[str, ...]:
        """The interventions' names."""
        return tuple(self.frame["first"].unique())

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The pairs of names, each in one order."""
        return tuple(combinations(self.names, 2))

    def of(self, measure: Measure, *, side: Side = "source") -> pd.DataFrame:
        """Return the rows of one measure."""
        if measure not in get_args(Measure) or side not in get_args(Side):
            raise SettingError(
                f"measure is one of {', '.join(get_args(Measure))} and side source or target, not {measure!r}, {side!r}"
            )
        return self.frame[(self.frame["measure"] == measure) & (self.frame["side"] == side)]

    def matrix(
        self, measure: Measure = "commutation", *, site: str | None = None, side: Side = "source"
    ) -> pd.DataFrame:
        """Return first x later at one site, the last one unless named; alone on the diagonal, where it is measured.

        SettingError for a site that was not measured.
        """
        measured_sites = list(dict.fromkeys(self.frame["site"]))
        if site is not None and site not in measured_sites:
            raise SettingError(f"{site} was not measured; there are {', '.join(measured_sites)}")
        rows = self.of(measure, side=side)
        rows = rows[rows["site"] == (site or measured_sites[-1])]
        rows = rows.assign(later=rows["later"].fillna(rows["first"]))
        wide = rows.pivot(index="first", columns="later", values="value")
        return wide.reindex(index=list(self.names), columns=list(self.names))

    def plot(self) -> Any:
        """Return lines over the measured sites: what each does alone, both ways round, and what does not add up."""
        from lens_steer.report.plots import plot

        return plot(self)


def interaction(
    model: nn.Module,
    interventions: Mapping[str, Intervention] | Sequence[Intervention],
    contrast: ContrastSet,
    *,
    sites: SitePattern = "hook_resid_post",
    pool: Pool = "mean",
    strength: float = 1.0,
    confidence: float = 0.95,
    batch_size: int | None = None,
    check_model: bool = True,
    progress: bool = True,
) -> Interaction:
    """Measure how a set of interventions combines: each alone, and every pair in both orders.

    The texts pass once unedited, twice per intervention (at its strength and at half of it), and two or four times per
    pair: where two interventions collide at no unit (`collisions`) both orders are the same function.

    Parameters
    ----------
    model:
        A TransformerLens model.
    interventions:
        Two or more, named; a sequence takes its names from the methods. Edits of generated tokens act on the
        completions of pairs, and on plain texts behind BOS; those for prompts alone, or with a gate, need pairs.
    contrast:
        Held-out texts of the two sides. They decide what is a standard deviation, and which way is towards the target.
    sites:
        Where to measure, a pattern for `find_sites`. Sites before the first edit of all are dropped.
    pool:
        How a text's tokens become one value.
    strength:
        Of every intervention, before it is composed.
    confidence:
        Of the intervals, a delete-a-group jackknife over blocks of texts: equal texts and pairs are left out together.
        Standard deviations are held as they are. A single text of a side has no interval (nan).
    batch_size, progress:
        Texts per batch, chosen by length when None; whether to show a progress bar.
    check_model:
        As for `Intervention.on`.

    Raises
    ------
    SettingError
        Fewer than two interventions, or a confidence that is none.
    SiteError
        An edited site does not exist in this model, or no measured site comes at or after an edit.
    ActivationError
        A value is not finite (the site and the text are named).
    ModelError, ArtifactError, TokenError
        As `Intervention.on` and `tokenize` say.

    """
    require_settings(interaction, locals())
    require_confidence(confidence)
    named = _named(interventions)
    require_eval(model)
    edited = find_sites(model, list({site.name: None for edit in named.values() for site in edit.sites}))
    measured = reached(host_of(model), find_sites(model, sites), edited)
    if not measured:
        raise SiteError(f"none of the sites {sites!r} comes at or after the first edit, at {edited[0].name}")
    scaled = {name: intervention.scaled(strength) for name, intervention in named.items()}
    group, *_ = tokenized_groups(model, contrast, (), None)
    unedited = pooled_sides(model, group, measured, pool, batch_size, "the unedited model")
    untouched = Untouched(group, unedited, deviations(unedited))
    places = {site: CombinedAt(untouched, site, confidence=confidence) for site in measured}

    def effects(what: str, *edits: Intervention) -> list[dict[Site, Effect]]:
        """Return the effects of the edits one after the other, and of the same at half their strength."""
        runs = []
        for run in (edits, [edit.scaled(0.5) for edit in edits]):
            intervention = compose(*run) if len(run) > 1 else run[0]
            with intervention.on(model, check_model=check_model):
                values = pooled_sides(model, group, measured, pool, batch_size, f"the model edited by {what}")
            runs.append({site: place.effect(values) for site, place in places.items()})
        return runs

    alone = {name: effects(name, edit) for name, edit in scaled.items()}
    measures: dict[tuple[Site, str, str | None], Measures] = {}
    for name, (whole, half) in alone.items():
        measures |= {(site, name, None): place.alone(whole[site], half[site]) for site, place in places.items()}
    colliding = {}
    for one, other in progress_bar(list(combinations(scaled, 2)), desc="interaction", unit="pair", show=progress):
        runs = {(one, other): effects(f"{one}, then {other}", scaled[one], scaled[other])}
        colliding[f"{one}, {other}"] = apart = len(collisions(scaled[one], scaled[other], tol=0.0))
        runs[other, one] = effects(f"{other}, then {one}", scaled[other], scaled[one]) if apart else runs[one, other]
        for (first, later), (whole, half) in runs.items():
            turned = runs[later, first][0]
            for site, place in places.items():
                parts = {"one": alone[first][0][site], "other": alone[later][0][site], "turned": turned[site]}
                measures[site, first, later] = place.pair(whole[site], half[site], **parts)
    about = {
        "names": list(named),
        "contrast": contrast.name,
        "pool": pool,
        "strength": strength,
        "confidence": confidence,
        "texts": {side: len(tokens) for side, tokens in group.tokens.items()},
        "colliding_units": colliding,
    }
    return Interaction(_frame(measures, confidence), about)


def _frame(measures: Mapping[tuple[Site, str, str | None], Measures], confidence: float) -> pd.DataFrame:
    """Return all measures with their intervals, the source's texts first within a site."""
    import pandas as pd

    order = {site: place for place, site in enumerate(dict.fromkeys(site for site, *_ in measures))}
    rows = [
        (order[site], side, site.name, site.layer, first, later, measure, cases)
        for (site, first, later), of_run in measures.items()
        for (side, measure), cases in of_run.items()
    ]
    rows.sort(key=lambda row: (row[0], get_args(Side).index(row[1])))
    cases = np.stack([row[-1] for row in rows], axis=1)
    low, high = jackknife_intervals(cases, confidence=confidence)
    columns = ["site", "layer", "side", "first", "later", "measure"]
    frame = pd.DataFrame([(name, layer, side, *rest) for _, side, name, layer, *rest, _ in rows], columns=columns)
    return frame.assign(value=cases[0], low=low, high=high)


def _named(interventions: Mapping[str, Intervention] | Sequence[Intervention]) -> dict[str, Intervention]:
    """Name interventions after their methods where they have no names; the second AurA is "AurA 2"."""
    require_interventions(*(interventions.values() if isinstance(interventions, Mapping) else interventions))
    if isinstance(interventions, Mapping):
        named = dict(interventions)
    else:
        methods = [str(edit.provenance.get("method", "intervention")) for edit in interventions]
        counts = [methods[:place].count(method) + 1 for place, method in enumerate(methods)]
        names = [method if n == 1 else f"{method} {n}" for method, n in zip(methods, counts, strict=True)]
        named = dict(zip(names, interventions, strict=True))
    if len(named) < 2:
        raise SettingError(
            f"two or more interventions interact, not {len(named)}: downstream_shift judges a single one"
        )
    return named
