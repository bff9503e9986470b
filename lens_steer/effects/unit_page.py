"""Unit pages: all that can be said of one unit, from its weights, from texts, and from what happens without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from torch import nn

from lens_steer.activations.collect import collect
from lens_steer.activations.pooling import Pool
from lens_steer.activations.show import show_units
from lens_steer.directories import replace_file
from lens_steer.display.paper import standalone
from lens_steer.effects.unit_causes import unit_causes
from lens_steer.effects.unit_facts import UnitFacts
from lens_steer.effects.unit_neighbours import unit_neighbours
from lens_steer.effects.unit_page_html import page
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
from lens_steer.settings import require_settings
from lens_steer.statistics.intervals import require_confidence
from lens_steer.texts.contrast import ContrastSet, Row

_DRAWS = 20  # units like it: as few as carry a level of 5 %
_PREDICTIONS = 3


@dataclass(frozen=True, eq=False, repr=False)
class UnitPage(UnitFacts):
    """The facts of one unit as a page: displayed in Jupyter, and saved as one HTML file."""

    def plot(self) -> Any:
        """Return a figure: the changes that holding it at its mean makes, beside those of units of like scale."""
        from lens_steer.report.plots import plot

        return plot(self)

    def _repr_html_(self) -> str:
        return page(self)

    def save(self, path: str | Path) -> Path:
        """Write one self-contained HTML file, in place of what bears its name; it loads nothing."""
        text = standalone("Unit", page(self))
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
    require_settings(unit_page, locals())
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
