"""Choices of as many units: by what they can be made, how alike two are, and how alike chance would make them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

import lens_steer as ls

Choice = tuple[ls.Unit, ...]
LINEAS, AUROC, MEANS = "LinEAS", "AUROC", "mean difference"
GRADIENT, LAYERS = "gradient", "gradient by layer"
RANDOM, RANDOM_ALIKE = "random", "random in LinEAS's layers"
ALL = "all units"
REAL, SHUFFLED = "other texts", "shuffled labels"
_CHANCE_DRAWS = 2000


def best_units(scores: pd.DataFrame, score: str, k: int, sites: Sequence[ls.Site]) -> Choice:
    """Return the k units with the largest `score`, best first; `scores` has columns site, unit and the score."""
    known = {site.name: site for site in sites}
    best = scores.sort_values(score, ascending=False, kind="stable").head(k)
    return tuple(ls.Unit(known[site], int(unit)) for site, unit in zip(best["site"], best["unit"], strict=True))


def best_sites(scores: pd.DataFrame, score: str, k: int, sites: Sequence[ls.Site]) -> Choice:
    """Return k units from the sites with the largest norm of `score`: all units of one, then of the next.

    Layers are chosen so by IRepair (arXiv 2502.07072), with the gradient of its loss; of the last site that is needed
    the units with the largest score are taken.
    """
    norms = scores[score].pow(2).groupby(scores["site"]).sum()
    ordered = scores.assign(_norm=scores["site"].map(norms)).sort_values(["_norm", score], ascending=False)
    return best_units(ordered.assign(_place=range(len(ordered), 0, -1)), "_place", k, sites)


def random_alike(choice: Choice, sites: Sequence[ls.Site], *, seed: int) -> Choice:
    """Draw random units, as many at every site as the choice has there."""
    drawn: list[ls.Unit] = []
    for place, site in enumerate(sites):
        if count := sum(unit.site == site for unit in choice):
            drawn += ls.random_units((site,), count, seed=seed + place)
    return tuple(drawn)


def agreement(first: Choice, second: Choice, sites: Sequence[ls.Site], *, seed: int = 0) -> dict[str, float]:
    """Return how alike two choices are, and how alike as many random units would be.

    Keys: units, other_units, common; share (of the first choice that is in the second), jaccard (common of all that
    either holds); of both the mean over random choices of as many units anywhere (share_chance, jaccard_chance), and of
    as many units at every site (share_chance_in_sites, jaccard_chance_in_sites): alike beyond that is a matter of
    units, not of layers. nan where a choice is empty.
    """
    groups = [(sum(u.site == s for u in first), sum(u.site == s for u in second), s.width) for s in sites]
    one, other, width = (sum(column) for column in zip(*groups, strict=True))
    common = len(set(first) & set(second))
    table: dict[str, float] = {"units": one, "other_units": other, "common": common}
    table |= _shares(np.array([common]), one, other, "")
    random = np.random.default_rng([seed, one, other])
    for name, parts in (("_chance", [(one, other, width)]), ("_chance_in_sites", groups)):
        drawn = [random.hypergeometric(b, w - b, a, _CHANCE_DRAWS) for a, b, w in parts]
        table |= _shares(np.sum(drawn, axis=0), one, other, name)
    return table


def _shares(common: np.ndarray, one: int, other: int, name: str) -> dict[str, float]:
    if not one or not other:
        return {f"share{name}": float("nan"), f"jaccard{name}": float("nan")}
    return {
        f"share{name}": float(np.mean(common / one)),
        f"jaccard{name}": float(np.mean(common / (one + other - common))),
    }


def unit_scores(lineas: ls.LinEAS, model: Any, texts: ls.ContrastSet, sites: Sequence[ls.Site]) -> pd.DataFrame:
    """Return what units can be chosen by, on the texts of a fit: site, layer, unit, width and one column a criterion.

    AUROC counts in both directions (its distance from 1/2), since a residual unit has no preferred sign.
    """
    activations = ls.collect(model, texts, [site.name for site in sites], pool=lineas.pool, progress=False)
    ranked = ls.rank_experts(activations, holdout=None).frame
    scores = lineas.sensitivity(model, texts).rename(columns={"norm": GRADIENT})
    scores = scores[["site", "layer", "unit", "width", GRADIENT]].merge(
        ranked[["site", "unit", "auroc", "source_mean", "target_mean"]], on=["site", "unit"]
    )
    scores[AUROC] = (scores["auroc"] - 0.5).abs()
    scores[MEANS] = (scores["source_mean"] - scores["target_mean"]).abs()
    return scores


def choices_like(selected: Choice, scores: pd.DataFrame, sites: Sequence[ls.Site], *, seed: int) -> dict[str, Choice]:
    """Return LinEAS's choice and as many units by every other criterion, by name."""
    k = len(selected)
    return {
        LINEAS: selected,
        **{name: best_units(scores, name, k, sites) for name in (AUROC, MEANS, GRADIENT)},
        LAYERS: best_sites(scores, GRADIENT, k, sites),
        RANDOM: ls.random_units(tuple(sites), k, seed=seed),
        RANDOM_ALIKE: random_alike(selected, sites, seed=seed),
    }


def moved_by(edit: ls.Intervention, activations: ls.Activations) -> dict[ls.Site, Any]:
    """Return how far an edit of LinEAS moves the source's tokens (root mean square), by edited site: [unit] each."""
    sizes = {}
    for one in edit.edits:
        mean, std = (read(one.site, "source") for read in (activations.token_mean, activations.token_std))
        assert isinstance(one.map, ls.DiagonalAffine)  # LinEAS makes no other
        slope = one.map.scale - 1
        sizes[one.site] = ((slope * mean + one.map.shift).square() + (slope * std).square()).sqrt()
    return sizes


def losses(
    lineas: ls.LinEAS,
    model: Any,
    fits: Sequence[ls.ContrastSet],
    held: ls.ContrastSet,
    refits: Mapping[tuple[str, int], ls.Intervention],
) -> pd.DataFrame:
    """Return choice, draw, units, layers, and the loss on the fit's and on held-out texts."""
    untouched = lineas.loss_of(model, held)
    rows = []
    for (name, draw), edit in refits.items():
        support = edit.support()
        rows.append(
            {
                "choice": name,
                "draw": draw,
                "units": int(support["kept"].sum()),
                "layers": int((support.groupby("layer")["kept"].sum() > 0).sum()),
                "fit_loss": lineas.loss_of(model, fits[draw], edit),
                "heldout_loss": lineas.loss_of(model, held, edit),
                "heldout_identity_loss": untouched,
            }
        )
    return pd.DataFrame(rows)


def stability(
    supports: Sequence[ls.Intervention], nulls: Sequence[ls.Intervention], sites: Sequence[ls.Site], seed: int
) -> pd.DataFrame:
    """Compare the units of every two draws, and of every draw with those that shuffled labels select."""
    pairs = [(REAL, a, b, supports[a], supports[b]) for a, b in combinations(range(len(supports)), 2)]
    pairs += [(SHUFFLED, draw, draw, supports[draw], null) for draw, null in enumerate(nulls)]
    return pd.DataFrame(
        [
            {
                "against": what,
                "draw": a,
                "other_draw": b,
                **agreement(one.units(), other.units(), sites, seed=seed),
                "layers_jaccard": _layers_jaccard(one, other),
            }
            for what, a, b, one, other in pairs
        ]
    )


def _layers_jaccard(one: ls.Intervention, other: ls.Intervention) -> float:
    layers = [{unit.site.layer for unit in edit.units()} for edit in (one, other)]
    either = layers[0] | layers[1]
    return len(layers[0] & layers[1]) / len(either) if either else float("nan")


def overlap(choices: Sequence[Mapping[str, Choice]], sites: Sequence[ls.Site], seed: int) -> pd.DataFrame:
    """Compare LinEAS's units with every other choice on the same texts."""
    return pd.DataFrame(
        [
            {"choice": name, "draw": draw, **agreement(named[LINEAS], units, sites, seed=seed)}
            for draw, named in enumerate(choices)
            for name, units in named.items()
            if name in (AUROC, MEANS, GRADIENT, LAYERS)
        ]
    )


def kept_by_layer(path: pd.DataFrame, edits: Sequence[ls.Intervention]) -> pd.DataFrame:
    """Return the support of every edit of a path, with its gamma."""
    parts = [
        edit.support().assign(gamma=gamma, gamma_share=ratio)
        for gamma, ratio, edit in zip(path["gamma"].tolist(), path["gamma_share"].tolist(), edits, strict=True)
    ]
    return pd.concat(parts, ignore_index=True)


def kept_units(
    supports: Sequence[ls.Intervention], nulls: Sequence[ls.Intervention], scores: pd.DataFrame
) -> pd.DataFrame:
    """Return every unit that any draw keeps, with how many draws do, with true labels and with shuffled ones."""
    table = scores.copy()
    for column, edits in (("draws_kept", supports), ("shuffled_draws_kept", nulls)):
        counts = Counter((unit.site.name, unit.index) for edit in edits for unit in edit.units())
        table[column] = [counts[key] for key in zip(table["site"], table["unit"], strict=True)]
    kept = table[table["draws_kept"] > 0]
    return kept.sort_values(["draws_kept", GRADIENT], ascending=False, ignore_index=True)
