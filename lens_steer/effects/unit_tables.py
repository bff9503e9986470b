"""The tables of a unit page: tokens by weights, AUROC by concept, what edits do to it, whether it is universal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.activations.pooling import Pool
from lens_steer.errors import ContrastError
from lens_steer.host.adapter import Host, host_of
from lens_steer.host.unit_weights import SiteWeights, tokens_read, tokens_written
from lens_steer.host.units import Unit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.ranking.experts import rank_experts
from lens_steer.ranking.universal import universal_units
from lens_steer.statistics.verdict import verdict_of
from lens_steer.texts.contrast import LabelledTexts, Row

if TYPE_CHECKING:
    import pandas as pd

_CONCEPT_COLUMNS = ("concept", "auroc", "auroc_low", "auroc_high", "average_precision", "source_mean", "target_mean")


def token_table(
    model: nn.Module, weights: SiteWeights, unit: Unit, most: int
) -> tuple[pd.DataFrame, tuple[str, ...], float]:
    """Return the tokens that a unit reads and writes, why some are missing, and the z that chance reaches in 5 %."""
    import pandas as pd

    values: dict[str, Tensor] = dict(tokens_read(model, weights, unit.index))
    written = tokens_written(model, weights, unit.index)
    if written is not None:
        values["writes"] = written
    tokenizer = host_of(model).tokenizer
    known = min(len(tokenizer), host_of(model).vocabulary)
    rows = []
    for part, of_tokens in values.items():
        numbers = of_tokens[:known].double()
        spread = numbers.std(correction=0)
        z = (numbers - numbers.mean()) / spread if spread > 0 else torch.full_like(numbers, torch.nan)
        for direction, sign in (("most", 1), ("least", -1)):
            for rank, token in enumerate((sign * numbers).topk(min(most, known)).indices.tolist()):
                rows.append((part, direction, rank, tokenizer.decode([token]), float(numbers[token]), float(z[token])))
    notes = (
        f"What it reads cannot be said: {weights.no_reads}." if weights.no_reads else "",
        f"What it writes cannot be said: {weights.no_writes}." if weights.no_writes else "",
    )
    frame = pd.DataFrame(rows, columns=["part", "direction", "rank", "token", "value", "z"])
    return frame, tuple(note for note in notes if note), float(stats.norm.isf(0.05 / (2 * known)))


def concept_table(unit: Unit, collected: Sequence[Activations], confidence: float) -> pd.DataFrame:
    """Return how the unit tells each concept, by the activations of its texts."""
    import pandas as pd

    frames = []
    for activations in collected:
        ranked = rank_experts(activations, holdout=None, confidence=confidence).frame
        own = ranked[ranked["unit"] == unit.index]
        place = int((ranked["auroc"] >= float(own["auroc"].iloc[0])).sum())
        frames.append(own[list(_CONCEPT_COLUMNS)].assign(place=place))
    if not frames:
        return pd.DataFrame(columns=[*_CONCEPT_COLUMNS, "place", "verdict"])
    frame = pd.concat(frames, ignore_index=True)
    ends = zip(frame["auroc_low"], frame["auroc_high"], strict=True)
    return frame.assign(verdict=[verdict_of(low, high, reference=0.5).value for low, high in ends])


def edit_table(host: Host, unit: Unit, interventions: Mapping[str, Intervention]) -> pd.DataFrame:
    """Return what each intervention does to the unit."""
    import pandas as pd

    rows: list[tuple[Any, ...]] = []
    for name, intervention in interventions.items():
        held = False
        for edit in intervention.edits:
            if edit.site.width != unit.site.width or host.canonical(edit.site.name) != host.canonical(unit.site.name):
                continue
            if not bool(edit.map.moved(0.0)[unit.index]):
                continue
            held, diagonal = True, isinstance(edit.map, DiagonalAffine)
            scale, shift = (
                (float(edit.map.scale[unit.index]), float(edit.map.shift[unit.index]))
                if isinstance(edit.map, DiagonalAffine)
                else (np.nan, np.nan)
            )
            kind = "diagonal" if diagonal else type(edit.map).__name__
            rows.append((name, kind, str(edit.scope), scale, shift))
        if not held:
            rows.append((name, "not edited", "", 1.0, 0.0))
    return pd.DataFrame(rows, columns=["edit", "map", "scope", "scale", "shift"])


def universality(
    model: nn.Module, unit: Unit, unrelated: Sequence[Row], pool: Pool, batch_size: int | None
) -> dict[str, Any] | None:
    """Return how often the unit stands out on unrelated texts; None without any."""
    if not len(unrelated):
        return None
    if len(unrelated) < 2:
        raise ContrastError("unrelated needs two texts or more: one shows nothing of what texts have in common")
    labels = (np.arange(len(unrelated)) % 2).astype(np.int8)[:, None]
    table = LabelledTexts(tuple(unrelated), labels, ("half",))
    collected = collect(model, table, [unit.site.name], pool=pool, batch_size=batch_size, progress=False)
    row = universal_units(collected).iloc[unit.index]
    return {**{name: row[name] for name in ("top_share", "chance", "universal")}, "texts": len(unrelated)}
