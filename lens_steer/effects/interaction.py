"""Interaction: do two interventions add up, and does it matter which acts first, seen in the activations after them?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.activations.pooling import Pool
from lens_steer.effects.distances import Sides, Untouched, pooled_sides, tokenized_groups
from lens_steer.effects.downstream import reached
from lens_steer.errors import SettingError, SiteError
from lens_steer.host.adapter import host_of
from lens_steer.host.guards import require_eval
from lens_steer.host.sites import Site, SitePattern, find_sites
from lens_steer.interventions.collisions import collisions
from lens_steer.interventions.compose import compose
from lens_steer.interventions.intervention import Intervention
from lens_steer.progress import progress_bar
from lens_steer.texts.contrast import ContrastSet

if TYPE_CHECKING:
    import pandas as pd

Measure = Literal["moved", "towards", "additivity", "commutation", "synergy"]
Side = Literal["source", "target"]

_RESAMPLES = 2000


@dataclass(frozen=True, eq=False)
class Interaction:
    """What several interventions do alone and two by two, at every site that any of them can reach.

    The effect of an intervention on a text is e = h_edited - h_unedited, pooled over the text's tokens, each unit in
    its standard deviation over the unedited texts of both sides. Sizes are root mean squares over a site's units.

    Attributes
    ----------
    frame:
        One row per site, side of the contrast, intervention or ordered pair, and measure. Columns: site, layer; side
        (source, target: whose texts); first, later (the later of a pair; None for an intervention alone); measure;
        value, the mean over texts; low, high, its interval.

        moved: size of e, in sd. towards: how far e goes from the source's mean to the target's, as a share of that way
        (1 arrives, below 0 leads away). Of pairs alone: additivity, the size of e(pair) - e(first) - e(later), in sd: 0
        where effects add up. commutation: the size of e(pair) - e(the same two, the other way round), in sd: 0 where
        order does not matter. synergy: towards of the pair less that of either: below 0 they hinder each other.
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
        there = list(dict.fromkeys(self.frame["site"]))
        if site is not None and site not in there:
            raise SettingError(f"{site} was not measured; there are {', '.join(there)}")
        rows = self.of(measure, side=side)
        rows = rows[rows["site"] == (site or there[-1])]
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
    seed: int = 0,
    batch_size: int | None = None,
    check_model: bool = True,
    progress: bool = True,
) -> Interaction:
    """Measure how a set of interventions combines: each alone, and every pair in both orders.

    The texts pass once unedited, once per intervention, and once or twice per pair: where two interventions collide at
    no unit (`collisions`) both orders are the same function.

    Parameters
    ----------
    model:
        A TransformerLens model.
    interventions:
        Two or more, named; a sequence takes its names from the methods. They edit whole texts here, so the scope
        "generated" does nothing (`Intervention.on` warns).
    contrast:
        Held-out texts of the two sides. They decide what is a standard deviation, and which way is towards the target.
    sites:
        Where to measure, a pattern for `find_sites`. Sites before the first edit of all are dropped.
    pool:
        How a text's tokens become one value.
    strength:
        Of every intervention, before it is composed.
    confidence, seed:
        Of the intervals: percentiles over texts drawn again with replacement. Standard deviations and the way from
        source to target are held as they are. A single text has no interval (nan).
    batch_size, progress:
        Texts per batch, chosen by length when None; whether to show a progress bar.
    check_model:
        As for `Intervention.on`.

    Raises
    ------
    SettingError
        Fewer than two interventions.
    SiteError
        An edited site does not exist in this model, or no measured site comes at or after an edit.
    ActivationError
        A value is not finite (the site and the text are named).
    ModelError, ArtifactError, TokenError
        As `Intervention.on` and `tokenize` say.

    """
    import pandas as pd

    named = _named(interventions)
    require_eval(model)
    edited = find_sites(model, list({site.name: None for each in named.values() for site in each.sites}))
    measured = reached(host_of(model), find_sites(model, sites), edited)
    if not measured:
        raise SiteError(f"none of the sites {sites!r} comes at or after the first edit, at {edited[0].name}")
    scaled = {name: intervention.scaled(strength) for name, intervention in named.items()}
    group, *_ = tokenized_groups(model, contrast, (), None)

    def values(what: str, intervention: Intervention) -> Sides:
        with intervention.on(model, check_model=check_model):
            return pooled_sides(model, group, measured, pool, batch_size, what)

    ruler = _Ruler(pooled_sides(model, group, measured, pool, batch_size, "the unedited model"))
    alone = {name: ruler.effects(values(f"the model edited by {name}", each)) for name, each in scaled.items()}
    found: dict[tuple[Site, str, str | None], Measures] = {}
    for name in alone:
        found |= {(site, name, None): ruler.measure(site, alone[name][site]) for site in measured}
    colliding = {}
    pairs = list(combinations(scaled, 2))
    for one, other in progress_bar(pairs, desc="interaction", unit="pair", show=progress):
        first, later = scaled[one], scaled[other]
        there = back = ruler.effects(values(f"the model edited by {one}, then {other}", compose(first, later)))
        colliding[f"{one}, {other}"] = apart = len(collisions(first, later, tol=0.0))
        if apart:
            back = ruler.effects(values(f"the model edited by {other}, then {one}", compose(later, first)))
        for site in measured:
            added = {side: alone[one][site][side] + alone[other][site][side] for side in there[site]}
            found[site, one, other] = ruler.measure(site, there[site], added=added, turned=back[site])
            found[site, other, one] = ruler.measure(site, back[site], added=added, turned=there[site])
    order = {site.name: place for place, site in enumerate(measured)}
    frame = pd.concat([_frame(found, side, confidence, seed) for side in get_args(Side)])
    frame = frame.sort_values("site", key=lambda names: names.map(order), kind="stable", ignore_index=True)
    about = {
        "names": list(named),
        "contrast": contrast.name,
        "pool": pool,
        "strength": strength,
        "confidence": confidence,
        "texts": {side: len(tokens) for side, tokens in group.tokens.items()},
        "colliding_units": colliding,
    }
    return Interaction(frame, about)


Effect = Mapping[str, Float[Tensor, "text unit"]]
"""Side -> what an edit adds to every text at a site, in standard deviations; constant units are left out."""
Measures = Mapping[tuple[str, str], Float[Tensor, " text"]]
"""(side, measure) -> its value on every text."""


class _Ruler:
    """The unedited values: what effects are counted from, in which unit, and which way leads to the target."""

    def __init__(self, unedited: Sides) -> None:
        self._unedited = unedited
        untouched = Untouched(unedited)
        self._sd = {site: untouched.deviation(site) for site in unedited["source"]}

    def effects(self, edited: Sides) -> dict[Site, Effect]:
        """Return the effect at every site."""
        return {
            site: {
                side: self._in_sd(edited[side][site] - pooled[site], site) for side, pooled in self._unedited.items()
            }
            for site in self._sd
        }

    def measure(
        self, site: Site, effect: Effect, *, added: Effect | None = None, turned: Effect | None = None
    ) -> Measures:
        """Return the measures of an edit alone, or of a pair: `added` is the sum of its parts, `turned` its reverse."""
        measures = {}
        for side, of_texts in effect.items():
            measures[side, "moved"] = _size(of_texts)
            measures[side, "towards"] = self._towards(of_texts, site)
            if added is not None and turned is not None:
                measures[side, "additivity"] = _size(of_texts - added[side])
                measures[side, "commutation"] = _size(of_texts - turned[side])
                measures[side, "synergy"] = self._towards(of_texts - added[side], site)
        return measures

    def _in_sd(self, values: Float[Tensor, "text unit"], site: Site) -> Float[Tensor, "text unit"]:
        sd = self._sd[site]
        return (values.double() / sd)[:, ~sd.isnan()]

    def _towards(self, of_texts: Float[Tensor, "text unit"], site: Site) -> Float[Tensor, " text"]:
        source, target = (self._unedited[side][site].double().mean(0, keepdim=True) for side in ("source", "target"))
        way = self._in_sd(target - source, site)[0]
        return of_texts @ way / way.square().sum()


def _size(of_texts: Float[Tensor, "text unit"]) -> Float[Tensor, " text"]:
    return of_texts.square().mean(1).sqrt()


def _frame(
    found: Mapping[tuple[Site, str, str | None], Measures], side: Side, confidence: float, seed: int
) -> pd.DataFrame:
    """Return the rows of one side: means over its texts with their intervals, all on the same draws."""
    import pandas as pd

    rows, columns = [], []
    for (site, first, later), measures in found.items():
        for (of_side, measure), of_texts in measures.items():
            if of_side == side:
                rows.append((site.name, site.layer, side, first, later, measure))
                columns.append(of_texts.numpy())
    values = np.stack(columns, axis=1)
    frame = pd.DataFrame(rows, columns=["site", "layer", "side", "first", "later", "measure"])
    low, high = _mean_intervals(values, confidence, seed)
    return frame.assign(value=values.mean(0), low=low, high=high)


def _mean_intervals(
    values: Float[np.ndarray, "text column"], confidence: float, seed: int
) -> Float[np.ndarray, "2 column"]:
    """Return the percentile intervals of all columns' means when texts are drawn again with replacement."""
    texts = len(values)
    if texts < 2:
        return np.full((2, values.shape[1]), np.nan)
    # `change_interval` takes one column a call; here are hundreds, and one product of matrices draws them all.
    draws = np.random.default_rng(seed).multinomial(texts, np.full(texts, 1 / texts), size=_RESAMPLES)
    tail = (1 - confidence) / 2
    return np.asarray(np.quantile(draws @ values / texts, [tail, 1 - tail], axis=0))


def _named(interventions: Mapping[str, Intervention] | Sequence[Intervention]) -> dict[str, Intervention]:
    """Name interventions after their methods where they have no names; the second AurA is "AurA 2"."""
    if isinstance(interventions, Mapping):
        named = dict(interventions)
    else:
        methods = [str(each.provenance.get("method", "intervention")) for each in interventions]
        counts = [methods[:place].count(method) + 1 for place, method in enumerate(methods)]
        names = [method if n == 1 else f"{method} {n}" for method, n in zip(methods, counts, strict=True)]
        named = dict(zip(names, interventions, strict=True))
    if len(named) < 2:
        raise SettingError(
            f"two or more interventions interact, not {len(named)}: downstream_shift judges a single one"
        )
    return named
