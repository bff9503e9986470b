"""Other contrasts: what else the edit changes in what is written, corrected for looking at many."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lens_steer.errors import ContrastError
from lens_steer.evaluation.card.judges import MICROWORLD, Judged
from lens_steer.evaluation.card.measured import Item, Measured
from lens_steer.evaluation.card.trial import Trial, Tried, by_prompt
from lens_steer.evaluation.oracle_scorer import OracleScorer
from lens_steer.evaluation.reading import as_scorer, read_continuations
from lens_steer.evaluation.scorers import ConceptClassifier, Scorer
from lens_steer.microworld.contrasts import CONCEPTS
from lens_steer.microworld.oracle import Oracle
from lens_steer.statistics.intervals import confidence_of_each, share, share_change_interval
from lens_steer.statistics.verdict import Verdict
from lens_steer.texts.contrast import ContrastSet


def other_scorers(
    given: Sequence[ContrastSet | Scorer] | None, contrast: ContrastSet, seed: int
) -> tuple[tuple[Scorer, ...], tuple[str, ...]]:
    """Return a scorer for every other contrast, and why some have none.

    A contrast of the microworld is read by the oracle, any other by a classifier that is trained on it. None: every
    value of the microworld where the contrast is one of its own, nothing elsewhere.
    """
    if given is None:
        return (_values_beside(contrast) if contrast.name.startswith(MICROWORLD) else ()), ()
    scorers: list[Scorer] = []
    refused = []
    for other in given:
        if not isinstance(other, ContrastSet):
            scorers.append(as_scorer(other))
        elif other.name.startswith(MICROWORLD):
            scorers.append(OracleScorer(other.name.removeprefix(MICROWORLD)))
        else:
            try:
                scorers.append(ConceptClassifier.fit(other, seed=seed))
            except ContrastError as error:
                refused.append(str(error))
    return tuple(scorers), tuple(refused)


def _values_beside(contrast: ContrastSet) -> tuple[Scorer, ...]:
    own = OracleScorer(contrast.name.removeprefix(MICROWORLD))
    names = {(concept.attribute, concept.value): name for name, concept in reversed(CONCEPTS.items())}
    return tuple(OracleScorer(name) for at, name in reversed(names.items()) if at != (own.attribute, own.value))


def others_item(trial: Trial, scorers: Sequence[Scorer], after: Tried, before: Judged, edited: Judged) -> Item:
    """Measure the change of every other scorer on the same continuations; unreadable ones take no part."""
    confidence = confidence_of_each(trial.confidence, len(scorers))
    read = [
        _read_all(scorers, trial.laid_out, tried.texts, judged.unreadable)
        for tried, judged in ((trial.unedited, before), (after, edited))
    ]
    rows = []
    for place, scorer in enumerate(scorers):
        columns = []
        for scores in (trials[place] for trials in read):
            has_value = ~np.isnan(scores)
            columns += [by_prompt(trial, np.where(has_value, scores, 0.0)), by_prompt(trial, has_value.astype(float))]
        old, new = (float(share(columns[side], columns[side + 1], 0)) for side in (0, 2))
        bounds = share_change_interval(*columns, confidence=confidence, seed=trial.seed)
        rows.append(
            Measured.change("others", "other concept", old, new, bounds, of=scorer.name, unit="mean score",
                            confidence=confidence)
        )  # fmt: skip
    return Item(tuple(rows), (_sentence(rows, trial.confidence),))


def _read_all(
    scorers: Sequence[Scorer], prompts: Sequence[str], texts: Sequence[str], unreadable: np.ndarray
) -> list[np.ndarray]:
    """Return the scores of every scorer; the oracle reads a text once for all of its values."""
    oracles = [scorer for scorer in scorers if isinstance(scorer, OracleScorer)]
    oracle = Oracle()
    beliefs = [oracle.posterior(text, after=prompt) for prompt, text in zip(prompts, texts)] if oracles else []
    of_scorers = []
    for scorer in scorers:
        if isinstance(scorer, OracleScorer):
            values = [belief[scorer.attribute][scorer.value] if belief.readable else np.nan for belief in beliefs]
            scores = np.array(values)
        else:
            scores = read_continuations(scorer, prompts, texts).scores
        of_scorers.append(np.where(unreadable, np.nan, scores))
    return of_scorers


def _sentence(rows: Sequence[Measured], confidence: float) -> str:
    moved = [row for row in rows if row.as_change.verdict in (Verdict.LOWER, Verdict.HIGHER)]
    known = [row for row in rows if row.as_change.verdict is not Verdict.CANNOT_JUDGE]
    if not known:
        return f"What the edit does to {len(rows)} other concepts cannot be judged on these texts."
    looked = f"of {len(rows)} other concepts (intervals that hold together at {100 * confidence:.4g} %)"
    if not moved:
        return f"The edit was not shown to change any {looked}."
    changes = ", ".join(
        f"{row.of} {'falls' if row.value < 0 else 'rises'} from {100 * row.before:.1f} % to {100 * row.after:.1f} %"
        for row in sorted(moved, key=lambda row: -abs(row.value))
    )
    return f"The edit changes {len(moved)} {looked}: {changes}."
