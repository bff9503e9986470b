"""What a unit can be scored by, one column a score: how well it tells, how far it moves, what it does.

Attributions ask of pairs of texts: source texts as clean, target texts as corrupted. In a paired contrast they are its
pairs. In a plain one they are drawn, beginnings of texts of the same number of words that otherwise have nothing to do
with each other: a pair differs in all it says, and only what the mean over pairs keeps is the concept's. Beginnings
differ in their numbers of tokens too, so the last tokens stand for each other, as many as the shortest has; a patched
unit is as in the source text there, and as in the target text before. The metric is the probability, or its log, that a
word of the concept follows the last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

import lens_steer as ls
from analyses.selection import moved_by

AUROC, PRECISION, MEANS, PROBE = "AUROC", "average precision", "mean difference", "probe weight"
LINEAS, LINEAS_GRADIENT = "LinEAS weight", "LinEAS gradient"
CNA, GRADIENT, INTEGRATED, RELP, BARE = "CNA", "gradient", "integrated", "RelP", "bare gradient"
CHEAP = (AUROC, PRECISION, MEANS, PROBE, LINEAS, LINEAS_GRADIENT, CNA, GRADIENT, INTEGRATED, RELP, BARE)
EXACT = "exact effect"
"""On the pairs that the cheap scores see; the most that a score of those pairs can know of other pairs."""
SHUFFLED = {AUROC: "AUROC, shuffled labels", MEANS: "mean difference, shuffled labels"}
SIGNED = (AUROC, MEANS, CNA, GRADIENT, INTEGRATED, RELP, EXACT)
"""Scores that have a direction; the table of scores holds it in a column of its own, `signed_name`."""
ATTRIBUTED = {CNA: "cna", GRADIENT: "attribution", INTEGRATED: "integrated", RELP: "relp"}
_UNIT = ["site", "unit"]


def signed_name(score: str) -> str:
    """Return the column of a score with its sign: positive where the source has, or would bring, more of it."""
    return f"{score}, signed"


@dataclass(frozen=True)
class LogConceptProbability:
    """Log (nats) of `ls.ConceptProbability`: a place where the concept's words are rare counts as much as another."""

    words: tuple[str, ...]

    def bind(self, model: Any, pairs: int) -> Any:
        """Find the words' tokens; TokenError as there."""
        probability = ls.ConceptProbability(self.words).bind(model, pairs)
        return lambda logits, rows: probability(logits, rows).clamp_min(1e-30).log()


@dataclass(frozen=True)
class ConceptPairs:
    """Clean and corrupted prompts, their last tokens that are compared, and what is asked of the next one."""

    clean: tuple[Any, ...]
    corrupted: tuple[Any, ...]
    places: tuple[int, ...]
    metric: Any

    def attribute(self, model: Any, sites: Any, method: Any, **settings: Any) -> ls.Attribution:
        """Attribute the metric's difference between the two to units."""
        settings = {"level": "unit", "positions": self.places, "progress": False, **settings}
        return ls.attribute(model, self.clean, self.corrupted, self.metric, sites=sites, method=method, **settings)


def concept_pairs(model: Any, texts: ls.ContrastSet, metric: Any, *, most: int, words: int, seed: int) -> ConceptPairs:
    """Return the pairs of a paired contrast, or draw pairs of beginnings of `words` words, `most` at most.

    Raises
    ------
    LensSteerError
        Fewer than two pairs of different texts are left, or a row is a conversation.

    """
    drawn = texts.subsample(min(most, len(texts.source), len(texts.target)), seed=seed)
    sides = [_texts(side, None if texts.paired else words) for side in (drawn.source, drawn.target)]
    pairs = [pair for pair in zip(*sides, strict=False) if pair[0] != pair[1]]
    lengths = [min(len(_ids(model, text)) for text in pair) for pair in pairs]
    enough = 1 if texts.paired else words
    kept = [pair for pair, length in zip(pairs, lengths, strict=True) if length >= enough]
    if len(kept) < 2:
        raise ls.LensSteerError(
            f"{len(kept)} pairs of texts have {enough} tokens or more: give more texts, or lower context_words"
        )
    shortest = min(length for length in lengths if length >= enough)
    clean, corrupted = zip(*kept, strict=True)
    return ConceptPairs(clean, corrupted, tuple(range(-shortest, 0)), metric)


def _texts(rows: Sequence[Any], words: int | None) -> tuple[str, ...]:
    begun: tuple[Any, ...] = tuple(rows) if words is None else ls.beginnings(rows, words=words)
    flat = [" ".join(row) if isinstance(row, tuple) else row for row in begun]
    if not all(isinstance(row, str) for row in flat):
        raise ls.LensSteerError("conversations cannot be paired token by token: give texts")
    return tuple(flat)


def _ids(model: Any, text: str) -> list[int]:
    return list(model.tokenizer(text, add_special_tokens=False).input_ids)


def concept_words(
    model: Any, texts: ls.ContrastSet, given: Sequence[str] | None, scorer: ls.Scorer, *, most: int = 20
) -> tuple[str, ...]:
    """Return the words that stand for a concept: those given, or the scorer's, or those that tell the source texts.

    The last are `ls.distinctive_words` that are single tokens of the model.

    Raises
    ------
    LensSteerError
        No word tells source from target, or none of them is a single token.

    """
    if given is None and isinstance(scorer, ls.WordList):
        given = scorer.words
    if given is not None:
        return tuple(given)
    telling = ls.distinctive_words(texts.source, texts.target)
    words = [word for word in telling if any(_reads(model, space + word, word) for space in ("", " "))]
    if not words:
        raise ls.LensSteerError("no single-token word tells source texts from target texts: give metric_words=")
    return tuple(words[:most])


def _reads(model: Any, text: str, word: str) -> bool:
    ids = _ids(model, text)
    return len(ids) == 1 and model.tokenizer.decode(ids).strip().casefold() == word.casefold()


def telling_scores(activations: ls.Activations, *, seed: int) -> Any:
    """Return site, layer, unit, width and what says how well each unit tells the two sides, all as sizes.

    AUROC counts in both directions, as its distance from 1/2; average precision in the concept's. The probe is a ridge
    regression of the label on all units of a site, each in its own standard deviations, with a penalty of one per text.
    """
    null = activations.shuffled(seed)
    tables: list[Any] = []
    for used, names in ((activations, {AUROC: AUROC, MEANS: MEANS}), (null, SHUFFLED)):
        ranked: Any = ls.rank_experts(used, holdout=None).frame
        columns = {
            names[AUROC]: (ranked["auroc"] - 0.5).abs(),
            names[MEANS]: (ranked["source_mean"] - ranked["target_mean"]).abs(),
        }
        extra = {}
        if used is activations:
            extra = {
                PRECISION: ranked["average_precision"],
                signed_name(AUROC): ranked["auroc"] - 0.5,
                signed_name(MEANS): ranked["source_mean"] - ranked["target_mean"],
            }
        tables.append(ranked[_UNIT].assign(**columns, **extra))
    places = [
        pd.DataFrame({"site": site.name, "layer": site.layer, "unit": range(site.width), "width": site.width})
        for site in activations.sites
    ]
    weights = np.concatenate([ridge_weights(activations.source[s], activations.target[s]) for s in activations.sites])
    table: Any = pd.concat(places, ignore_index=True).assign(**{PROBE: np.abs(weights)})
    for scores in tables:
        table = table.merge(scores, on=_UNIT)
    return table


def ridge_weights(source: Float[torch.Tensor, "n unit"], target: Float[torch.Tensor, "m unit"]) -> np.ndarray:
    """Return the weights [unit] of a ridge regression of the side, 1 or -1, by a system of as many rows as texts."""
    values = torch.cat([source, target]).double()
    labels = torch.cat([torch.ones(len(source)), -torch.ones(len(target))]).double()
    centred = values - values.mean(0)
    scaled = centred / centred.std(0).clamp_min(1e-12)
    gram = scaled @ scaled.T / scaled.shape[1]
    dual = torch.linalg.solve(gram + torch.eye(len(gram), dtype=gram.dtype), labels - labels.mean())
    return np.asarray(scaled.T @ dual / scaled.shape[1])


def lineas_weights(edit: ls.Intervention, activations: ls.Activations) -> pd.DataFrame:
    """Return site, unit and how far an edit of LinEAS moves the unit (see `moved_by`): 0 where it has no edit."""
    sizes = moved_by(edit, activations)
    tables = [
        pd.DataFrame({"site": site.name, "unit": range(site.width), LINEAS: sizes.get(site, torch.zeros(site.width))})
        for site in activations.sites
    ]
    return pd.concat(tables, ignore_index=True)


def attributions(model: Any, pairs: ConceptPairs, sites: Any, names: Sequence[str]) -> Any:
    """Return site, unit and, by each of these methods of `ATTRIBUTED`, the attribution's size and its signed value."""
    table: Any = None
    for name in names:
        frame: Any = pairs.attribute(model, sites, ATTRIBUTED[name]).frame
        table = frame[_UNIT].copy() if table is None else table
        table[name], table[signed_name(name)] = frame["value"].abs(), frame["value"]
    return table


def attributed(model: Any, pairs: ConceptPairs, sites: Any) -> Any:
    """Return site, unit and the size of every cheap attribution; the bare gradient is that at the last token."""
    table = attributions(model, pairs, sites, tuple(ATTRIBUTED))
    last: Any = pairs.attribute(model, sites, "cna", positions=[-1]).frame
    difference = last["difference"].to_numpy()
    known = difference != 0  # a product of means, so its quotient is the mean gradient
    table[BARE] = np.where(known, np.abs(last["value"] / np.where(known, difference, 1.0)), 0.0)
    return table


def drawn_units(table: pd.DataFrame, n: int, *, seed: int) -> Any:
    """Mark n random units [row], as many at every site as its share of all, rounded; all where n reaches them."""
    random = np.random.default_rng(seed)
    marked = np.zeros(len(table), dtype=bool)
    for rows in table.groupby("site", sort=False).indices.values():
        count = min(len(rows), max(1, round(n * len(rows) / len(table))))
        marked[random.choice(rows, count, replace=False)] = True
    return marked


def exact_effects(model: Any, pairs: ConceptPairs, units: Sequence[ls.Unit], sites: Any) -> ls.Attribution:
    """Patch each unit exactly; intervals over pairs."""
    return pairs.attribute(model, sites, "patch", units=units)


def effect_cases(effects: ls.Attribution) -> pd.DataFrame:
    """Return case, site, unit and effect: on all pairs (case 0), and without each group of the jackknife's."""
    parts = effects.frame.groupby("site", sort=False)["unit"]
    tables = [
        pd.DataFrame(effects.cases[str(site)], columns=units.to_numpy())
        .melt(var_name="unit", value_name="effect", ignore_index=False)
        .assign(site=site)
        for site, units in parts
    ]
    table = pd.concat(tables).rename_axis("case").reset_index()
    return table[["case", *_UNIT, "effect"]]


def clamped(units: Sequence[ls.Unit], activations: ls.Activations, by: float) -> ls.Intervention:
    """Hold units beyond their mean over source tokens, `by` of its standard deviations away from the target's mean."""
    edits = []
    for site in activations.sites:
        indices = [unit.index for unit in units if unit.site == site]
        if not indices:
            continue
        source, target, std = (
            activations.token_mean(site, "source"),
            activations.token_mean(site, "target"),
            activations.token_std(site, "source"),
        )
        held = source + by * std * (source - target).sign()
        scale, shift = torch.ones(site.width), torch.zeros(site.width)
        scale[indices], shift[indices] = 0.0, held[indices].float()
        edits.append(ls.Edit(site, ls.DiagonalAffine(scale, shift)))
    return ls.Intervention(tuple(edits), {"method": f"clamp {by:g}", "units": [str(unit) for unit in units]})


def steered(
    model: Any, pairs: ConceptPairs, units: Sequence[ls.Unit], activations: ls.Activations, by: float
) -> pd.DataFrame:
    """Return site, unit and the change of the metric in target prompts when a unit alone is clamped at all tokens."""
    last = activations.sites[-1].name

    def probability() -> float:
        """The mean metric of the corrupted runs, which every attribution tells; edits that are on act in them."""
        return float(pairs.attribute(model, last, "patch", level="site").settings["corrupted"])

    before, rows = probability(), []
    for unit in units:
        with clamped([unit], activations, by).on(model):
            rows.append({"site": unit.site.name, "unit": unit.index, "steered": probability() - before})
    return pd.DataFrame(rows)


def all_scores(
    model: Any,
    texts: ls.ContrastSet,
    activations: ls.Activations,
    lineas: ls.LinEAS,
    pairs: ConceptPairs,
    fit: ls.ContrastSet,
) -> Any:
    """Return every cheap score of every unit, from the training half alone."""
    names = [site.name for site in activations.sites]
    sensitivity: Any = lineas.sensitivity(model, fit).rename(columns={"norm": LINEAS_GRADIENT})
    table: Any = telling_scores(activations, seed=lineas.seed)
    for scores in (
        lineas_weights(replace(lineas, progress=False).fit(model, fit), activations),
        sensitivity[[*_UNIT, LINEAS_GRADIENT]],
        attributed(model, pairs, names),
    ):
        table = table.merge(scores, on=_UNIT)
    return table
