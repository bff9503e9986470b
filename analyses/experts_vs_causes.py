"""Are the experts of a concept causes of it, and which cheap score finds the units that are?

Per unit stand side by side how well it tells the concept (AUROC, average precision, mean difference, a probe's weight),
how far LinEAS moves it, what attribution estimates (gradient, integrated gradients, RelP, CNA) and what patching it
does. Cheap scores see one half of the texts, the effect is measured on pairs of the other half: the exact effect of the
first half stands beside them as the most that any score of those texts could know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

import lens_steer as ls
from analyses.causal_scores import (
    AUROC,
    CHEAP,
    EXACT,
    RELP,
    LogConceptProbability,
    all_scores,
    clamped,
    concept_pairs,
    concept_words,
    drawn_units,
    effect_cases,
    exact_effects,
    signed_name,
    steered,
)
from analyses.controls import Choice, matched, random_choices, require_matched_to, require_sizes
from analyses.experiment import Experiment, measured
from analyses.experts_vs_causes_findings import ABLATED, CLAMPED, RANDOM, captions, figures, summary
from analyses.measurements import HeldOut, Measurements
from analyses.score_agreement import CAUSE, tables
from analyses.selection import best_units
from lens_steer.progress import progress_bar

CHOICES = (*CHEAP, EXACT)


@measured()
def run(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    out: str | Path | None,
    seed: int = 0,
    sites: str | Sequence[str] = "mlp.hook_post",
    pool: Literal["max", "mean", "last", "first"] = "mean",
    metric: Literal["log-probability", "probability"] = "log-probability",
    metric_words: Sequence[str] | None = None,
    context_words: int = 12,
    pairs: int = 100,
    units: int = 200,
    tops: int = 10,
    ks: tuple[int, ...] = (16, 64),
    clamp: float = 2.0,
    draws: int = 20,
    matched_to: tuple[str, ...] = (AUROC, RELP, EXACT),
    fit_texts: int = 32,
    gamma_share: float = 0.1,
    steps: int | None = None,
    **measurement: Any,
) -> ls.Study:
    """Score every unit, patch some of them exactly, and edit the best units of every score.

    Frames: `scores` (per unit: every score as a size, some with their sign too; for the measured ones `effect`, its
    interval and `steered`), `effect_cases` (the effects without each group of pairs), `correlations` (of every score
    with the size of the effect on other pairs), `signed` (the same with signs), `differences` (the best cheap score
    and every other), `by_layer`, `precision`, `steering` (of each score with what clamping the unit alone does),
    `effects` (units of every score ablated or clamped), `against_controls`, `relp_against_auroc`, `words`, `texts`.

    Correlations, precision and steering are over the units that were drawn at random from all layers: those that were
    measured because a score puts them on top would favour the scores that chose them. Units are not independent cases,
    as all were patched in the same pairs: intervals are over pairs and over the units drawn (`score_agreement`); those
    of `steering` over the units alone.

    A unit that varies widely has large effects of both signs in single pairs, so also a large mean over few of them:
    sizes of scores and of effects then agree though neither is of the concept. The mean difference of shuffled labels
    tells how well; signs agree across pairs only where units of the concept are known.

    Parameters
    ----------
    model, contrast:
        Scores see one half of the contrast (split by `seed`), effects are measured on the other.
    out:
        The new run folder; None writes nothing.
    seed:
        Of the split, the pairs, the units drawn, and the generations.
    sites, pool:
        Where units are scored, and how a text's tokens become one value.
    metric:
        Of the concept's words as the next token. Probabilities are led by the few places where these are likely.
    metric_words:
        The concept's words, single tokens; by default the scorer's, if it has any, or
        those that tell the source texts of the training half.
    context_words:
        How long the drawn pairs are, in words; pairs of a paired contrast are taken whole.
    pairs:
        Pairs of texts of each half, at most; with few, a drawn pair's own difference hides the concept's.
    units:
        Units drawn and patched exactly, as many of every layer; all where it reaches their number.
    tops:
        Units of the top of every score that are patched beside them.
    ks:
        How many units of every score are ablated and clamped.
    clamp:
        How far beyond the source's token mean a unit is clamped, in its standard deviations.
    draws:
        Of random and of matched units.
    matched_to:
        The scores beside whose units matched ones are drawn.
    fit_texts, gamma_share, steps:
        LinEAS's texts a side, its penalty as a share of gamma_max, and its gradients, at most.
    **measurement:
        See `Measurement`.

    Raises
    ------
    LensSteerError
        A k below 1 or above half of the units; no such score in `matched_to`; no words or pairs (see `concept_pairs`).

    """
    experiment = Experiment.begin("experts_vs_causes", run, locals())
    places = ls.find_sites(model, sites)
    _check(ks, units, draws, matched_to, sum(site.width for site in places))
    train, held = experiment.halves
    words = concept_words(model, train, metric_words, experiment.scorer)
    asked = ls.ConceptProbability(words) if metric == "probability" else LogConceptProbability(words)
    cut: dict[str, Any] = {"most": pairs, "words": context_words, "seed": seed}
    ours, others = (concept_pairs(model, half, asked, **cut) for half in (train, held))
    activations = ls.collect(model, train, [site.name for site in places], pool=pool, progress=False)
    lineas = ls.LinEAS(sites=sites, pool=pool, steps=steps, seed=seed, gamma_share=gamma_share, progress=False)
    scores: Any = all_scores(model, train, activations, lineas, ours, experiment.fit_texts(fit_texts)[0])
    scores["drawn"] = drawn_units(scores, units, seed=seed)
    known = {site.name: site for site in places}
    top = {unit for name in CHEAP for unit in best_units(scores, name, tops, places)}
    every = [ls.Unit(known[site], int(unit)) for site, unit in zip(scores["site"], scores["unit"], strict=True)]
    judged = [unit for unit, drawn in zip(every, scores["drawn"], strict=True) if drawn or unit in top]
    exact: Any = exact_effects(model, ours, judged, sites).frame.rename(columns={"value": signed_name(EXACT)})
    exact[EXACT] = exact[signed_name(EXACT)].abs()
    patched = exact_effects(model, others, judged, sites)
    measured_effects: Any = patched.frame.rename(columns={"value": CAUSE})
    drawn = [unit for unit, one in zip(every, scores["drawn"], strict=True) if one]
    for effects_of_units in (
        exact[["site", "unit", EXACT, signed_name(EXACT)]],
        measured_effects[["site", "unit", CAUSE, "low", "high", "verdict"]],
        steered(model, others, drawn, activations, clamp),
    ):
        scores = scores.merge(effects_of_units, on=["site", "unit"], how="left")
    cases = effect_cases(patched)
    heldout = experiment.heldout()
    effects = _Effects.of(
        experiment, heldout, activations, _orders(scores, places, activations, ks, draws, matched_to, seed), clamp
    )
    frames = {
        "scores": scores,
        "effect_cases": cases,
        **tables(scores, cases, seed=seed),
        "effects": effects.changes(),
        "against_controls": effects.against(),
        "relp_against_auroc": effects.relp_against_auroc(),
        "words": pd.DataFrame({"word": words}),
        "texts": heldout.texts,
    }
    return experiment.keep(
        ls.Study(
            frames=frames,
            figures=figures(experiment.concept, frames),
            summary=summary(experiment.concept, frames, heldout.neutral_name),
            captions=captions(len(ours.clean), len(others.clean), len(ours.places), clamp, heldout),
        )
    )


def _check(ks: Sequence[int], units: int, draws: int, matched_to: Sequence[str], total: int) -> None:
    require_sizes(ks, total)
    if units < 3 or draws < 1:
        raise ls.LensSteerError(f"units={units}, draws={draws}: three units and one draw of controls are the fewest")
    require_matched_to(matched_to, CHOICES)


_Orders = Mapping[tuple[str, int], Sequence[Choice]]
"""(choice or control, k) -> its draws of k units."""


def _orders(
    scores: Any,
    sites: Sequence[ls.Site],
    activations: ls.Activations,
    ks: Sequence[int],
    draws: int,
    matched_to: Sequence[str],
    seed: int,
) -> _Orders:
    """A score that puts fewer than k units above 0 chooses no k; the exact effect chooses among those that have it."""
    orders: dict[tuple[str, int], Sequence[Choice]] = {}
    for k in ks:
        for name in CHOICES:
            if int((scores[name] > 0).sum()) < k:
                continue
            chosen = best_units(scores, name, k, sites)
            orders[name, k] = (chosen,)
            if name in matched_to:
                orders[matched(name), k] = ls.matched_units(chosen, activations, draws=draws, seed=seed)
        orders[RANDOM, k] = random_choices(sites, k, draws=draws, seed=seed)
    return orders


@dataclass(frozen=True, eq=False)
class _Effects:
    """The choices of units, ablated where source texts begin and clamped where target texts do."""

    orders: _Orders
    measurements: Measurements

    @classmethod
    def of(
        cls,
        experiment: Experiment,
        heldout: HeldOut,
        activations: ls.Activations,
        orders: _Orders,
        clamp: float,
    ) -> _Effects:
        m = experiment.measurement
        begun = ls.beginnings(experiment.held.target, words=m.prompt_words, most=m.most_prompts)
        steered_from = heldout if m.prompts is not None else replace(heldout, prompts=tuple(begun))
        acts: tuple[tuple[str, HeldOut, Any], ...] = (
            (ABLATED, heldout, lambda units: ls.ablate(units, mode="target_mean", activations=activations)),
            (CLAMPED, steered_from, lambda units: clamped(units, activations, clamp)),
        )
        edits = [
            (where, _called(act, choice, k), draw, edit(units))
            for act, where, edit in acts
            for (choice, k), drawn in orders.items()
            for draw, units in enumerate(drawn)
        ]
        return cls(
            orders,
            Measurements.of(
                (
                    where.measure(edit, name, draw=draw)
                    for where, name, draw, edit in progress_bar(edits, desc="evaluate", unit="edit", show=True)
                ),
                seed=experiment.seed,
            ),
        )

    def changes(self) -> pd.DataFrame:
        """Return every choice and control against the unedited model."""
        return pd.DataFrame(
            [
                {"act": act, "choice": choice, "k": k, "draws": len(drawn), **row}
                for act in (ABLATED, CLAMPED)
                for (choice, k), drawn in self.orders.items()
                for row in self.measurements.changes(_called(act, choice, k))
            ]
        )

    def against(self) -> pd.DataFrame:
        """Hold every choice against the draws of its controls; the intervals of one act and control hold at once."""
        chosen = [(choice, k) for choice, k in self.orders if choice in CHOICES]
        return pd.DataFrame(
            [
                {"act": act, "choice": choice, "control": control, "k": k, **row}
                for act in (ABLATED, CLAMPED)
                for choice, k in chosen
                for control in (RANDOM, matched(choice))
                if (control, k) in self.orders
                for row in self.measurements.against(
                    _called(act, choice, k), _called(act, control, k), confidence=1 - 0.05 / len(chosen)
                )
            ]
        )

    def relp_against_auroc(self) -> pd.DataFrame:
        """Hold k units of RelP (after) against as many or more of AUROC (before); intervals of an act hold at once."""
        ks = sorted({k for _, k in self.orders})
        cases = [(k, other) for k in ks for other in ks if k <= other and {(RELP, k), (AUROC, other)} <= {*self.orders}]
        columns = ["act", "k", "of_auroc", "measure", "before", "after", "change", "low", "high", "confidence"]
        return pd.DataFrame(
            [
                {"act": act, "k": k, "of_auroc": other, **row}
                for act in (ABLATED, CLAMPED)
                for k, other in cases
                for row in self.measurements.between(
                    _called(act, AUROC, other), _called(act, RELP, k), confidence=1 - 0.05 / len(cases)
                )
            ],
            columns=columns,
        )


def _called(act: str, choice: str, k: int) -> str:
    return f"{act}, {k} {choice}"


if __name__ == "__main__":
    ls.study_command(run)()
