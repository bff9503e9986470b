"""Steerable: whether the contrast has one direction in the stream behind the edit, said before any effect."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.errors import ContrastError
from lens_steer.evaluation.card.measured import Item, Measured
from lens_steer.host.sites import Site
from lens_steer.interventions.intervention import Intervention
from lens_steer.ranking.halves import halves
from lens_steer.ranking.probe import probe_scores
from lens_steer.statistics.distances import varying
from lens_steer.statistics.intervals import confidence_of_each
from lens_steer.statistics.scores import auroc
from lens_steer.statistics.significance import auroc_interval
from lens_steer.statistics.steerability import cosine_interval, cosine_null, separation
from lens_steer.statistics.verdict import Verdict, verdict_of
from lens_steer.texts.contrast import ContrastSet

_MOST_LAYERS = 3
_TOL = 1e-5


def steerable_item(
    model: nn.Module, edit: Intervention, contrast: ContrastSet, *, confidence: float, seed: int, batch_size: int | None
) -> Item:
    """Measure cosine, d' and a probe in the unedited stream behind edited layers; all intervals hold at once."""
    at_work = [one.site.layer for one in edit.edits if one.map.moved(_TOL).any()]
    layers = sorted(set(at_work or [site.layer for site in edit.sites]))
    chosen = sorted({layers[round(place)] for place in np.linspace(0, len(layers) - 1, _MOST_LAYERS)})
    names = [f"blocks.{layer}.hook_resid_post" for layer in chosen]
    activations = collect(model, contrast, names, pool="mean", batch_size=batch_size, progress=False)
    of_each = confidence_of_each(confidence, len(names))
    rows = [row for site in activations.sites for row in _at(activations, site, contrast.paired, of_each, seed)]
    return Item(tuple(rows), (_sentence(rows),))


def _at(activations: Activations, site: Site, paired: bool, confidence: float, seed: int) -> list[Measured]:
    source, target = (side[site].double().numpy() for side in (activations.source, activations.target))
    both = np.concatenate([source, target])
    spread = both.std(0)
    counted = varying(spread)
    source, target = ((side[:, counted] - both.mean(0)[counted]) / spread[counted] for side in (source, target))
    pairs = min(len(source), len(target))
    order = np.arange(pairs) if paired else np.random.default_rng(seed).permutation(pairs)
    cosine = cosine_interval(source[:pairs] - target[order], confidence=confidence)
    null = cosine_null(source[:pairs], target[order], paired=paired, confidence=confidence, seed=seed)
    blocks = activations.blocks.numpy()
    apart = separation(source, target, blocks=(blocks[: len(source)], blocks[len(source) :]), confidence=confidence)
    how = "pairs" if paired else "random pairs"
    return [
        Measured("steerable", "mean cosine of differences", cosine.estimate, cosine.low, cosine.high, null, site.name,
                 unit=f"cosine, {how}; null: shuffled sides", confidence=confidence),
        Measured("steerable", "d'", apart.estimate, apart.low, apart.high, 0.0, site.name,
                 unit="standard deviations", confidence=confidence),
        _probe(activations, site, confidence, seed),
    ]  # fmt: skip


def _probe(activations: Activations, site: Site, confidence: float, seed: int) -> Measured:
    value, low, high = (float("nan"),) * 3
    try:
        train, test = (activations.rows(half) for half in halves(activations, 0.5, seed))
    except ContrastError:
        pass  # too few texts for two halves
    else:
        source, target = test.source[site], test.target[site]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            score = probe_scores(train, train.values[site], torch.cat([source, target]), seed)
        sides = score[: len(source)], score[len(source) :]
        area = auroc(*sides)
        ends = auroc_interval(*sides, area, confidence=confidence)
        value, low, high = float(area), float(ends.low), float(ends.high)
    return Measured("steerable", "probe, held-out AUROC", value, low, high, 0.5, site.name,
                    unit="AUROC", confidence=confidence)  # fmt: skip


def _sentence(rows: list[Measured]) -> str:
    """Say of each measure at how many layers it was shown to lie above its null."""
    lines = []
    for measure in dict.fromkeys(row.measure for row in rows):
        places = [row for row in rows if row.measure == measure]
        best = max(places, key=lambda row: row.low - row.null if row.low == row.low else -np.inf)
        verdict = verdict_of(best.low, best.high, reference=best.null)
        value = f"{best.value:.2f} [{best.low:.2f}, {best.high:.2f}], null {best.null:.2f}"
        match verdict:
            case Verdict.HIGHER:
                lines.append(f"{measure} {value} ({best.of})")
            case Verdict.CANNOT_JUDGE:
                lines.append(f"{measure} cannot be judged on so few texts")
            case _:
                lines.append(f"{measure} was not shown to differ from its null ({value})")
    return "In the stream behind the edit: " + "; ".join(lines) + "."
