"""Effect: how much of the concept an edit leaves, how many texts miss, how many prompts it makes worse."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from lens_steer.evaluation.card.judges import Judged, Judges
from lens_steer.evaluation.card.measured import Item, Measured
from lens_steer.evaluation.card.trial import Trial, by_prompt
from lens_steer.statistics.intervals import share, share_change_interval

WORSE = 0.1
"""A prompt is made worse where its misses rise by more than this."""


def effect_item(trial: Trial, judges: Judges, before: Judged, after: Judged) -> Item:
    """Compare the continuations of the unedited and the edited model, by every scorer."""
    rows, sentences = [], []
    for place, scorer in enumerate(judges.scorers):
        concept = _change("concept", before.scores[place], after.scores[place], trial, scorer.name)
        misses = _change("misses", before.misses[place], after.misses[place], trial, scorer.name)
        rows += [misses, concept, worse_share(trial, before.misses[place], after.misses[place], scorer.name)]
        sentences.append(_sentence(misses, concept, scorer.name))
    unreadable = _change(
        "unreadable",
        before.unreadable.astype(float),
        after.unreadable.astype(float),
        trial,
        judges.readability.name,
    )
    sentences.append(unreadable.sentence("The edit", f"the share of texts {judges.readability.name}") + ".")
    return Item((*rows, unreadable), tuple(sentences))


def worse_share(
    trial: Trial, before: np.ndarray, after: np.ndarray, of: str, *, item: str = "effect", null: float = math.nan
) -> Measured:
    """Return the share of prompts whose misses rise by more than a tenth, with Clopper and Pearson's interval."""
    rise = (by_prompt(trial, after) - by_prompt(trial, before)) / trial.samples
    worse = int((rise > WORSE).sum())
    ends = stats.binomtest(worse, len(rise)).proportion_ci(trial.confidence, method="exact")
    return Measured(
        item, "made worse", worse / len(rise), float(ends.low), float(ends.high), null, of,
        unit="share of prompts", confidence=trial.confidence,
    )  # fmt: skip


def _change(measure: str, before: np.ndarray, after: np.ndarray, trial: Trial, of: str) -> Measured:
    """Return the change of a mean over texts that have a value, prompts drawn again with all their samples."""
    columns = []
    for values in (before, after):
        judged = ~np.isnan(values)
        columns += [by_prompt(trial, np.where(judged, values, 0.0)), by_prompt(trial, judged.astype(float))]
    old, new = (float(share(columns[place], columns[place + 1], 0)) for place in (0, 2))
    bounds = share_change_interval(*columns, **trial.drawn)
    return Measured.change(
        "effect", measure, old, new, bounds, of=of, unit="share of texts", confidence=trial.confidence
    )


def _sentence(misses: Measured, concept: Measured, scorer: str) -> str:
    missed = misses.sentence(f"By {scorer}, the edit", "misses (the concept is still there, or the text unreadable)")
    if (misses.before, misses.after) == (concept.before, concept.after):
        return f"{missed}; every text can be read."
    shown = concept.sentence("it", "the concept in texts that can be read")
    return f"{missed}; {shown}."
