"""Streaming ranking: what counts per unit say of how units tell source from target, and how sure that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lens_steer.activations.activations import Activations
from lens_steer.activations.sketch import HALVES, ActivationSketch
from lens_steer.errors import SettingError
from lens_steer.host.sites import Site
from lens_steer.statistics.significance import AurocInterval, interval_of_variance, normal_p
from lens_steer.statistics.sketched_scores import SketchedScores, sketched_scores
from lens_steer.statistics.sketches import Sketch

if TYPE_CHECKING:
    import pandas as pd


def sketch_frame(sketch: ActivationSketch, concept: str, holdout: object, confidence: float, seed: int) -> pd.DataFrame:
    """Return one row per unit of a concept, as `rank_experts` has them, from a sketch.

    Beside auroc, selection_auroc, heldout_auroc and average_precision stand bounds, auroc_error and so on: the exact
    value lies no farther away, whatever the activations are (see `statistics.sketched_scores`). Intervals are DeLong's
    of values rounded to their cells, widened by the bound. p_value is the normal one of Mann and Whitney's test on
    values so rounded: the grid knows no labels, so it is a test like any other. Where texts of the concept come in
    blocks, which a sketch does not know, intervals and p-values are nan. Counts, means, standard deviations, minima and
    maxima of both sides are exact; wasserstein is nan.

    SettingError where `holdout` and `seed` are not those of the sketch, nor `holdout` None: halves are fixed in the
    pass.
    """
    import pandas as pd

    if holdout is not None and (holdout != sketch.holdout or (seed != sketch.seed)):
        made = f"holdout={sketch.holdout}, seed={sketch.seed}"
        raise SettingError(
            f"the sketch was made with {made}: rank it so, or with holdout=None, or collect it anew with "
            f"reduce=Sketching(holdout=..., seed=...)"
        )
    one = sketch.texts.concept(concept)
    largest = _largest_blocks(one)
    rows = [
        pd.DataFrame(_rank_site(sketch, concept, site, holdout is not None, confidence, largest))
        for site in sketch.sites
    ]
    return pd.concat(rows, ignore_index=True)


def _rank_site(
    sketch: ActivationSketch, concept: str, site: Site, halved: bool, confidence: float, largest: tuple[int, int, int]
) -> dict[str, Any]:
    sides, independent = [sketch.side(site, concept, label) for label in (1, 0)], largest[2] == 1
    scores = _scores(*sides)
    interval = _interval(scores, sides, confidence, largest)
    chosen = sides
    nothing = np.full(site.width, np.nan)
    selection, held, held_interval = None, None, None
    if halved:
        chosen, measured = ([sketch.side(site, concept, label, [half]) for label in (1, 0)] for half in HALVES)
        selection, held = _scores(*chosen), _scores(*measured)
        held_interval = _interval(held, measured, confidence, largest)
    columns = {
        "auroc": scores.auroc,
        "auroc_error": scores.auroc_error,
        "auroc_low": interval.low,
        "auroc_high": interval.high,
        "hanley_mcneil": interval.degenerate,
        "selection_auroc": nothing if selection is None else selection.auroc,
        "selection_error": nothing if selection is None else selection.auroc_error,
        "heldout_auroc": nothing if held is None else held.auroc,
        "heldout_error": nothing if held is None else held.auroc_error,
        "heldout_low": held_interval.low if held_interval else nothing,
        "heldout_high": held_interval.high if held_interval else nothing,
        "average_precision": scores.average_precision,
        "average_precision_error": scores.average_precision_error,
        "p_value": normal_p(torch.from_numpy(scores.deviation)) if independent else nothing,
        "wasserstein": nothing,
    }
    for name, side in zip(("source", "target"), sides, strict=True):
        deviation = (side.squares[0] / side.texts[0]).sqrt()
        columns |= {f"{name}_mean": side.mean[0], f"{name}_std": deviation}
        columns |= {f"{name}_min": side.low[0], f"{name}_max": side.high[0]}
    columns["distance"] = _distance(*chosen)
    counts = {f"{name}_texts": int(side.texts[0]) for name, side in zip(("source", "target"), sides, strict=True)}
    about = {"site": site.name, "layer": site.layer, "kind": site.kind, "unit": range(site.width), "width": site.width}
    values = {name: torch.as_tensor(column).cpu().numpy() for name, column in columns.items()}
    return {**about, **values, **counts, "test": "mann_whitney" if independent else "none"}


def _scores(source: Sketch, target: Sketch) -> SketchedScores:
    single = source.grid.single.cpu().numpy()
    return sketched_scores(source.counts[0].cpu().numpy(), target.counts[0].cpu().numpy(), single)


def _largest_blocks(one: Activations) -> tuple[int, int, int]:
    """Return the most source texts, target texts, and texts that a block of one concept holds."""
    _, block = np.unique(one.blocks.numpy(), return_inverse=True)
    source, target = (np.bincount(block[one.labels[:, 0].numpy() == label], minlength=len(block)) for label in (1, 0))
    return int(source.max()), int(target.max()), int((source + target).max())


def _interval(
    scores: SketchedScores, sides: list[Sketch], confidence: float, largest: tuple[int, int, int]
) -> AurocInterval:
    """Return DeLong's interval, wider by the bound on the error, and as wide as blocks of that size may make it."""
    texts = int(sides[0].texts[0]), int(sides[1].texts[0])
    variance, clusters = torch.from_numpy(scores.variance), None
    if largest[2] > 1:
        fewest = [-(-size // most) for size, most in zip(texts, largest[:2], strict=True)]
        clusters = np.arange(fewest[0]), np.arange(fewest[1])
        fewer = max(n / max(n - 1, 1) * (1 - 1 / size) for n, size in zip(fewest, texts, strict=True))
        variance = variance * largest[2] * fewer
    area = torch.from_numpy(scores.auroc)
    inner = interval_of_variance(area, variance, texts, confidence=confidence, clusters=clusters)
    error = torch.from_numpy(scores.auroc_error)
    return AurocInterval((inner.low - error).clamp(min=0), (inner.high + error).clamp(max=1), inner.degenerate)


def _distance(source: Sketch, target: Sketch) -> torch.Tensor:
    """Source mean minus target mean, in standard deviations within the sides; 0 where nothing varies."""
    spread = ((source.squares[0] / source.texts[0] + target.squares[0] / target.texts[0]) / 2).sqrt()
    return torch.nan_to_num((source.mean[0] - target.mean[0]) / spread, nan=0.0)
