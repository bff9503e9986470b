"""Specificity: is an expert of one concept an expert of that concept only?"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from lens_steer.activations.activations import Activations
from lens_steer.errors import SettingError
from lens_steer.host.units import Unit
from lens_steer.statistics.intervals import confidence_of_each
from lens_steer.statistics.scores import auroc
from lens_steer.statistics.significance import auroc_interval

if TYPE_CHECKING:
    import pandas as pd


def specificity(
    measured: dict[str, Activations], units: dict[str, tuple[Unit, ...]], *, confidence: float = 0.95
) -> pd.DataFrame:
    """Ask of the chosen units of every concept what they tell of the other concepts.

    Parameters
    ----------
    measured:
        Concept -> its texts, which chose none of its units.
    units:
        Concept -> its units, best first.
    confidence:
        Of all intervals of the table at once.

    Returns
    -------
    DataFrame
        One row per concept and unit: concept, site, layer, unit; auroc of its own concept with low and high; other,
        the concept that it tells best beside its own, either way round, with other_auroc, other_low, other_high;
        specific: its own AUROC was shown to lie above 1/2, and above what it reads for every other concept, either way
        round (two intervals that do not meet). For labels that mean nothing no unit is specific, but with a probability
        of 1 - confidence for the whole table.

    Raises
    ------
    SettingError
        One concept alone, or a confidence outside 0..1.

    """
    import pandas as pd

    if len(units) < 2:
        raise SettingError("specificity is against other concepts: rank two or more, LabelledTexts.of(contrasts)")
    looks = sum(map(len, units.values())) * len(measured)
    of_each = confidence_of_each(confidence, looks)
    rows = []
    for concept, chosen in units.items():
        ends = {name: _intervals(texts, chosen, of_each) for name, texts in measured.items()}
        others = [name for name in measured if name != concept]
        for place, unit in enumerate(chosen):
            area, low, high = (float(values[place]) for values in ends[concept])
            away = [abs(float(ends[name][0][place]) - 0.5) for name in others]
            other = others[int(np.argmax(away))]
            reach = [max(float(ends[name][2][place]), 1 - float(ends[name][1][place])) for name in others]
            about = {"concept": concept, "site": unit.site.name, "layer": unit.site.layer, "unit": unit.index}
            nearest = (float(values[place]) for values in ends[other])
            about |= {"auroc": area, "low": low, "high": high, "other": other}
            about |= dict(zip(("other_auroc", "other_low", "other_high"), nearest, strict=True))
            rows.append({**about, "specific": low > 0.5 and max(reach) < low})
    return pd.DataFrame(rows)


def _intervals(texts: Activations, units: tuple[Unit, ...], confidence: float) -> tuple[torch.Tensor, ...]:
    """Return AUROC, low and high of every unit, between blocks."""
    values = torch.stack([texts.values[unit.site][:, unit.index] for unit in units], dim=1)
    label, blocks = texts.labels[:, 0].numpy(), texts.blocks.numpy()
    source, target = values[label == 1], values[label == 0]
    area = auroc(source, target)
    clusters = blocks[label == 1], blocks[label == 0]
    between = auroc_interval(source, target, area, confidence=confidence, clusters=clusters)
    return area, between.low, between.high
