"""Orders of units, the best first: by what tells a concept, by what moves it, and by what causes it, on training texts.

Scores have their signs here: a unit comes first that the source has more of, or that brings more of the concept when it
is as in a source text. LinEAS's weights have none. What a score does not put above 0 it does not order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

import lens_steer as ls
from analyses.causal_scores import (
    AUROC,
    CNA,
    EXACT,
    GRADIENT,
    LINEAS,
    RELP,
    ConceptPairs,
    LogConceptProbability,
    attributions,
    concept_pairs,
    concept_words,
    exact_effects,
    lineas_weights,
    signed_name,
    telling_scores,
)
from analyses.controls import Choice
from analyses.experiment import Experiment
from analyses.selection import best_units

_COLUMNS: Mapping[str, str] = {
    AUROC: signed_name(AUROC),
    LINEAS: LINEAS,
    RELP: signed_name(RELP),
    CNA: signed_name(CNA),
    GRADIENT: signed_name(GRADIENT),
}
ORDERS = (*_COLUMNS, EXACT)
"""By which scores units are ordered. The exact effect orders those that were patched: the first of every other."""
_UNIT = ["site", "unit"]


@dataclass(frozen=True, eq=False)
class UnitOrders:
    """Units by every score.

    Attributes
    ----------
    orders:
        Score -> units, best first.
    scores:
        The table of all units' scores; the exact effect is nan where a unit was not patched.
    activations:
        Token means of texts of the training half (pool "mean").
    pairs:
        Those of the training half on which attributions were made: source texts as clean, target texts as corrupted.
    words:
        That stand for the concept in the metric.

    """

    orders: Mapping[str, Choice]
    scores: pd.DataFrame
    activations: ls.Activations
    pairs: ConceptPairs
    words: tuple[str, ...]

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        sites: str | Sequence[str],
        *,
        metric_words: Sequence[str] | None,
        context_words: int,
        pairs: int,
        patched: int,
        fit_texts: int,
        gamma_share: float,
        steps: int | None,
    ) -> UnitOrders:
        """Score all units, and patch the first `patched` of every order."""
        model, train, seed = experiment.model, experiment.train, experiment.seed
        places = ls.find_sites(model, sites)
        names = [site.name for site in places]
        words = concept_words(model, train, metric_words, experiment.scorer)
        metric = LogConceptProbability(words)
        drawn = concept_pairs(model, train, metric, most=pairs, words=context_words, seed=seed)
        activations = ls.collect(model, train, names, pool="mean", progress=False)
        lineas = ls.LinEAS(sites=sites, pool="mean", steps=steps, seed=seed, gamma_share=gamma_share, progress=False)
        edit = lineas.fit(model, experiment.fit_texts(fit_texts)[0])
        methods = (CNA, GRADIENT, RELP)
        scores: Any = telling_scores(activations, seed=seed)
        for table in (lineas_weights(edit, activations), attributions(model, drawn, names, methods)):
            scores = scores.merge(table, on=_UNIT)
        orders = {name: _ordered(scores, column, places) for name, column in _COLUMNS.items()}
        first = list(dict.fromkeys(unit for order in orders.values() for unit in order[:patched]))
        exact: Any = exact_effects(model, drawn, first, names).frame.rename(columns={"value": signed_name(EXACT)})
        scores = scores.merge(exact[[*_UNIT, signed_name(EXACT)]], on=_UNIT, how="left")
        orders[EXACT] = _ordered(scores, signed_name(EXACT), places)
        return cls(orders, scores, activations, drawn, words)

    @property
    def sites(self) -> tuple[ls.Site, ...]:
        """Where the units lie."""
        return self.activations.sites

    def others(self, units: Sequence[ls.Unit]) -> Choice:
        """Return all units of the sites but these."""
        kept = set(units)
        every = (ls.Unit(site, index) for site in self.sites for index in range(site.width))
        return tuple(unit for unit in every if unit not in kept)


def _ordered(scores: Any, column: str, sites: Sequence[ls.Site]) -> Choice:
    return best_units(scores, column, int((scores[column] > 0).sum()), sites)
