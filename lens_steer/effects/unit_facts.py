"""Facts of a unit: what a unit page tells, as tables, scores with intervals, and the sentences that these allow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from lens_steer.activations.show import UnitView
from lens_steer.effects.unit_causes import NEXT
from lens_steer.host.units import Unit
from lens_steer.statistics.verdict import Change, Verdict

if TYPE_CHECKING:
    import pandas as pd

_FINE = 1000.0  # what one unit does is small


@dataclass(frozen=True, eq=False)
class UnitFacts:
    """What one unit reads, writes, tells and causes.

    Attributes
    ----------
    unit:
        The unit.
    tokens:
        Which tokens it reads and writes by its weights, most and least. Columns: part (the projection that reads, or
        "writes"), direction ("most", "least"), rank, token, value (reading: its input, bias left out, were the stream
        this token's embedding alone; writing: logits per unit of activation, see `tokens_written`), z (value in
        standard deviations over the vocabulary; `settings["chance_z"]` is what the largest of as many normal numbers
        passes in 5 % of cases).
    notes:
        What has no such weights, and why.
    concepts:
        Per concept its AUROC with interval on all rows given (above 1/2: larger in the source), average precision, the
        means of its pooled activation, and place: how many of its site's units have as high an AUROC, it included.
    edits:
        What each intervention does to it: edit (the intervention's name), map, scope, scale, shift (nan where the map
        is not diagonal). One row says "not edited" where none does.
    causes:
        Holding it at its token mean: per measure ("next tokens": mean log-probability of the next tokens of its top
        texts, nats; "words": of all given words together, at the same places) texts, before, after, change with low and
        high (jackknife over texts), verdict; control: the mean change where one of `draws` units of like scale is held
        in its place; beyond, beyond_low, beyond_high, beyond_verdict, rank_p: the unit's change less theirs (see
        `against_draws`).
    next_tokens:
        What follows the largest activation of every top text: rank (of the text), position, at (the token there), next
        (that the text has), kl (unedited || held), and the tokens whose probability falls and rises most: direction,
        token, before, after.
    nearest:
        See `unit_neighbours`.
    texts:
        The top texts, token by token.
    by_contrast:
        Contrast -> the histogram of its sides, and its own top texts; empty where `texts` shows those.
    universal:
        top_share, chance, universal and the number of unrelated texts (see `universal_units`); None without any.
    controls:
        Measure -> the mean change of every control.
    settings:
        model, pool, confidence, seed, chance_z, words, and mean (the token mean at which the unit is held).

    """

    unit: Unit
    tokens: pd.DataFrame
    notes: tuple[str, ...]
    concepts: pd.DataFrame
    edits: pd.DataFrame
    causes: pd.DataFrame
    next_tokens: pd.DataFrame
    nearest: pd.DataFrame
    texts: UnitView
    by_contrast: Mapping[str, UnitView] = field(default_factory=dict)
    universal: Mapping[str, Any] | None = None
    controls: Mapping[str, Float[np.ndarray, " draw"]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def frame(self) -> pd.DataFrame:
        """The scores with their intervals, one row each: measure, of, value, low, high, verdict.

        auroc (of a concept; the verdict is beside 1/2), change, and beyond (of "next tokens" and "words").
        """
        import pandas as pd

        rows = [
            ("auroc", row.concept, row.auroc, row.auroc_low, row.auroc_high, row.verdict)
            for row in self.concepts.itertuples()
        ]
        for row in self.causes.itertuples():
            rows.append(("change", row.measure, row.change, row.low, row.high, row.verdict))
            rows.append(("beyond", row.measure, row.beyond, row.beyond_low, row.beyond_high, row.beyond_verdict))
        return pd.DataFrame(rows, columns=["measure", "of", "value", "low", "high", "verdict"])

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the intervals let one say."""
        lines = [self._told(row) for row in self.concepts.to_dict("records")]
        confidence = float(self.settings.get("confidence", 0.95))
        for row in self.causes.to_dict("records"):
            what = "the next tokens of its top texts" if row["measure"] == NEXT else "the words, at the same places"
            measure = f"log-probability of {what} (in thousandths of a nat)"
            keys = ("before", "after", "low", "high", "change", "control", "beyond_low", "beyond_high")
            before, after, low, high, change, control, below, above = (_FINE * float(row[key]) for key in keys)
            moved = Change(before, after, low, high, confidence)
            lines.append(moved.sentence(f"Holding {self.unit} at its mean", f"the {measure}") + ".")
            beside = Change(control, change, below, above, confidence)
            like = f"{row['draws']} units of like scale"
            lines.append(beside.comparison(str(self.unit), like, f"change of the {measure}") + ".")
        if self.universal is not None:
            universal = self.universal
            what = "It is a universal unit" if universal["universal"] else "It was not shown to be a universal unit"
            share = f"{universal['top_share']:.0%} of {universal['texts']} unrelated texts"
            lines.append(f"{what}: among the largest 0.1 % of its site in {share} (chance {universal['chance']:.1%}).")
        return tuple(lines)

    def _told(self, row: Mapping[Any, Any]) -> str:
        values = f"AUROC {row['auroc']:.3f} [{row['auroc_low']:.3f}, {row['auroc_high']:.3f}]"
        match row["verdict"]:
            case Verdict.HIGHER | Verdict.LOWER:
                side = "source" if row["verdict"] == Verdict.HIGHER else "target"
                return f"{self.unit} is larger in the {side} of {row['concept']!r} ({values})."
            case _:
                return f"{self.unit} was not shown to tell the sides of {row['concept']!r} ({values})."

    def __repr__(self) -> str:
        row = self.causes.iloc[0]
        change = f"{row['change']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        return f"{type(self).__name__}({self.unit}: held at its mean, {change} nats per next token of its top texts)"
