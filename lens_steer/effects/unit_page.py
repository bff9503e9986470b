"""Unit pages: all that can be said of one unit, from its weights, from texts, and from what happens without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import nn

from lens_steer.activations.collect import collect
from lens_steer.activations.pooling import Pool
from lens_steer.activations.show import UnitView, show_units
from lens_steer.directories import replace_file
from lens_steer.effects.unit_causes import NEXT, unit_causes
from lens_steer.effects.unit_neighbours import unit_neighbours
from lens_steer.effects.unit_page_html import page, standalone
from lens_steer.effects.unit_tables import concept_table, edit_table, token_table, universality
from lens_steer.effects.unit_texts import (
    Contrasts,
    checked_tokens,
    concepts_of,
    in_two_halves,
    texts_of,
    top_texts,
    word_tokens,
)
from lens_steer.errors import SettingError
from lens_steer.host.adapter import host_of
from lens_steer.host.guards import require_eval
from lens_steer.host.unit_weights import site_weights
from lens_steer.host.units import Unit, unit_in
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.matched_units import matched_units
from lens_steer.statistics.intervals import require_confidence
from lens_steer.statistics.verdict import Change, Verdict
from lens_steer.texts.contrast import ContrastSet, Row

if TYPE_CHECKING:
    import pandas as pd

_DRAWS = 20  # units like it: as few as carry a level of 5 %
_PREDICTIONS = 3


@dataclass(frozen=True, eq=False)
class UnitPage:
    """What one unit reads, writes, tells and causes; displayed in Jupyter, and saved as one HTML file.

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
        said = [self._told(row) for row in self.concepts.to_dict("records")]
        confidence = float(self.settings.get("confidence", 0.95))
        for row in self.causes.to_dict("records"):
            what = "the next tokens of its top texts" if row["measure"] == NEXT else "the words, at the same places"
            change = Change.of(row, confidence=confidence)
            said.append(change.sentence(f"Holding {self.unit} at its mean", f"the log-probability of {what}") + ".")
            ends = (row["beyond_low"], row["beyond_high"])
            beside = Change(row["control"], row["change"], *ends, confidence)
            measure = f"change of the log-probability of {what}"
            said.append(beside.comparison(str(self.unit), f"{row['draws']} units of like scale", measure) + ".")
        if self.universal is not None:
            found = self.universal
            what = "It is a universal unit" if found["universal"] else "It was not shown to be a universal unit"
            share = f"{found['top_share']:.0%} of {found['texts']} unrelated texts"
            said.append(f"{what}: among the largest 0.1 % of its site in {share} (chance {found['chance']:.1%}).")
        return tuple(said)

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
        return f"UnitPage({self.unit}: held at its mean, {change} nats per next token of its top texts)"

    def plot(self) -> Any:
        """Return a figure: the changes that holding it at its mean makes, beside those of units of like scale."""
        from lens_steer.report.plots import plot

        return plot(self)

    def _repr_html_(self) -> str:
        return page(self)

    def save(self, path: str | Path) -> Path:
        """Write one self-contained HTML file, in place of what bears its name; it loads nothing."""
        text = standalone(self)
        replace_file(Path(path), lambda place: _write(place, text))
        return Path(path)


def unit_page(
    model: nn.Module,
    unit: Unit | str,
    *,
    contrasts: Contrasts = (),
    texts: Sequence[Row] = (),
    interventions: Mapping[str, Intervention] | Sequence[Intervention] = (),
    words: Sequence[str] = (),
    unrelated: Sequence[Row] = (),
    pool: Pool = "max",
    top: int = 10,
    confidence: float = 0.95,
    batch_size: int | None = None,
    seed: int = 0,
) -> UnitPage:
    """Find out what one unit reads, writes, tells and causes.

    Parameters
    ----------
    model:
        A TransformerLens model.
    unit:
        As it is printed, or a Unit.
    contrasts:
        The concepts that it is asked about: a contrast, several, or one table of many.
    texts:
        Texts whose top ones are shown and ablated on; the contrasts' when left out. At least two, of two tokens and
        more each.
    interventions:
        Edits whose scale and shift of this unit are told, by name or in a list.
    words:
        The concept's words, whose log-probability is measured too; each one token, with a space before it or without.
    unrelated:
        Texts that have to do with nothing, to tell whether the unit is universal.
    pool:
        How a text's tokens become one value, for AUROC, correlation and universality.
    top:
        Texts and tokens of each kind that are told.
    confidence:
        Of the intervals.
    batch_size:
        Texts per batch; chosen by length when None.
    seed:
        Of the draws of controls.

    Raises
    ------
    UnitError, SiteError
        The unit cannot be read or does not exist; its site cannot be edited, or is that of a mixture of experts.
    ContrastError, TokenError
        There are fewer than two texts; a text has fewer than two tokens; a word is not one token.
    SettingError
        `top` below 1, or a confidence that is none.

    """
    require_eval(model)
    require_confidence(confidence)
    if top < 1:
        raise SettingError(f"unit_page: top is 1 or more, not {top}")
    here = unit_in(model, unit)
    concepts = concepts_of(contrasts)
    base = texts_of(concepts, texts)
    tokens = checked_tokens(model, base)
    word_ids = word_tokens(words, host_of(model).tokenizer)
    named = _named(interventions)
    # Of one contrast alone the top texts are its own, and so are the activations that tell its AUROC.
    alone = isinstance(base, ContrastSet)
    table = base if isinstance(base, ContrastSet) else in_two_halves(base)
    collected = collect(model, table, [here.site.name], pool=pool, batch_size=batch_size, progress=False)
    view = show_units(model, base, [here], top=top, batch_size=batch_size)
    weights = site_weights(model, here.site)
    draws = matched_units([here], collected, draws=_DRAWS, seed=seed)
    causes = unit_causes(
        model,
        here,
        [one for (one,) in draws],
        top_texts(view, base, tokens),
        collected,
        words=word_ids,
        predictions=_PREDICTIONS,
        confidence=confidence,
        seed=seed,
    )
    read, notes, chance = token_table(model, weights, here, top)
    return UnitPage(
        unit=here,
        tokens=read,
        notes=notes,
        concepts=concept_table(
            here,
            [
                collected if alone else collect(model, one, [here.site.name], pool=pool, batch_size=batch_size)
                for one in concepts
            ],
            confidence,
        ),
        edits=edit_table(host_of(model), here, named),
        causes=causes.frame,
        next_tokens=causes.next_tokens,
        nearest=unit_neighbours(here, weights, collected.values[here.site], most=top),
        texts=view,
        by_contrast={}
        if alone
        else {one.name: show_units(model, one, [here], top=min(top, 3), batch_size=batch_size) for one in concepts},
        universal=universality(model, here, unrelated, pool, batch_size),
        controls=causes.controls,
        settings={
            "model": PurePath(host_of(model).provenance["model"]).name,
            "pool": pool,
            "confidence": confidence,
            "seed": seed,
            "chance_z": chance,
            "words": tuple(words),
            "mean": float(collected.token_mean(here.site, "all")[here.index]),
        },
    )


def _write(place: Path, text: str) -> None:
    place.write_text(text, encoding="utf-8")


def _named(interventions: Mapping[str, Intervention] | Sequence[Intervention]) -> dict[str, Intervention]:
    if isinstance(interventions, Mapping):
        return dict(interventions)
    if isinstance(interventions, Intervention):
        raise SettingError("interventions is a list or a mapping of names: write a single one as [intervention]")
    names = [str(one.provenance.get("method", "intervention")) for one in interventions]
    return {
        name if names.count(name) == 1 else f"{name} {number}": one
        for number, (name, one) in enumerate(zip(names, interventions, strict=True), start=1)
    }
