"""Cost: what an edit does to neutral texts, and to the form of what is written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lens_steer.evaluation.card.measured import Item, Measured
from lens_steer.evaluation.card.readability import repeated, words_in
from lens_steer.evaluation.card.trial import Trial, Tried, by_prompt
from lens_steer.evaluation.perplexity import text_divergences
from lens_steer.interventions.intervention import Intervention
from lens_steer.statistics.intervals import change_interval, mean_change, perplexity_change, share

_TAIL = 0.99


def cost_item(trial: Trial, edit: Intervention, after: Tried) -> Item:
    """Measure perplexity, the divergence of the next token, repetition and length."""
    before, confidence = trial.unedited, trial.confidence
    columns = (before.losses.sums, after.losses.sums, before.losses.counts.astype(float))
    perplexity = Measured.change(
        "cost", "perplexity", before.losses.perplexity(), after.losses.perplexity(),
        change_interval(perplexity_change, *columns, **trial.drawn), of="neutral texts", unit="perplexity",
        confidence=confidence,
    )  # fmt: skip
    divergences = text_divergences(
        trial.model, trial.neutral, intervention=edit, chat=trial.pairs_chat, batch_size=trial.batch_size,
        progress=False,
    )  # fmt: skip
    ends = change_interval(share, divergences.sums, divergences.counts.astype(float), **trial.drawn)
    mean = Measured(
        "cost", "divergence", divergences.mean, *ends, 0.0, "neutral texts, mean over tokens", unit="nats per token",
        confidence=confidence,
    )  # fmt: skip
    tail = Measured(
        "cost", "divergence, 99th percentile", float(np.quantile(np.concatenate(divergences.tokens), _TAIL)), null=0.0,
        of="neutral texts, over tokens", unit="nats", interval=False,
    )  # fmt: skip
    forms = [
        _form("repetition", "share of trigrams that stood in the text before", repeated, trial, after),
        _form("length", "words per continuation", lambda text: float(len(words_in(text))), trial, after),
    ]
    sentences = [
        perplexity.sentence("The edit", "the perplexity of neutral texts", "number") + ".",
        f"The law of the next token moves by {divergences.mean:.3g} nats per token (KL) in the mean, at one token in a "
        f"hundred by {tail.value:.3g} or more.",
        forms[0].sentence("The edit", "repetition")
        + "; "
        + forms[1].sentence("it", "the number of words", "number")
        + ".",
    ]
    return Item((perplexity, mean, tail, *forms), tuple(sentences))


def _form(measure: str, unit: str, of_text: Callable[[str], float], trial: Trial, after: Tried) -> Measured:
    before, edited = (
        by_prompt(trial, np.array([of_text(text) for text in tried.texts])) / trial.samples
        for tried in (trial.unedited, after)
    )
    bounds = change_interval(mean_change, before, edited, **trial.drawn)
    return Measured.change(
        "cost", measure, float(before.mean()), float(edited.mean()), bounds, of="continuations", unit=unit,
        confidence=trial.confidence,
    )  # fmt: skip
