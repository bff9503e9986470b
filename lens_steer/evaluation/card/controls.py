"""Controls: the edit among random edits of its size, and beside the same fit on shuffled labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lens_steer.evaluation.card.effect import worse_share
from lens_steer.evaluation.card.judges import Judged, Judges
from lens_steer.evaluation.card.measured import Item, Measured
from lens_steer.evaluation.card.trial import Trial, Tried, by_prompt
from lens_steer.interventions.intervention import Intervention
from lens_steer.statistics.intervals import AgainstDraws, against_draws, perplexity_of, share, share_change_interval
from lens_steer.statistics.verdict import Change, Verdict


@dataclass(frozen=True, eq=False)
class Controls:
    """Random edits as they were tried: their misses by the first scorer, and their neutral losses."""

    tried: tuple[Tried, ...]
    judged: tuple[Judged, ...]


def try_controls(trial: Trial, judges: Judges, edits: Sequence[Intervention]) -> Controls:
    """Try every random edit as the edit itself was tried."""
    tried = tuple(trial.run(edit) for edit in edits)
    return Controls(tried, tuple(judges.judge(one) for one in tried))


def random_item(trial: Trial, judges: Judges, before: Judged, after: Tried, judged: Judged, controls: Controls) -> Item:
    """Say where the edit lies among random edits, by misses and by cost, and how many prompts those make worse."""
    ones = np.ones(len(trial.laid_out))
    of = by_prompt(trial, ones)
    drawn: dict[str, Any] = trial.drawn
    counts = after.losses.counts.astype(float)
    losses = np.array([one.losses.sums for one in controls.tried])
    cost = against_draws(
        perplexity_of, (after.losses.sums, counts), (losses, np.broadcast_to(counts, losses.shape)), **drawn
    )
    of_draws = perplexity_of(losses, np.broadcast_to(counts, losses.shape), 1)
    rows = [
        _percentile("cost", after.losses.perplexity(), of_draws),
        _difference("cost", "perplexity", after.losses.perplexity(), of_draws, cost, trial.confidence),
    ]
    sentences = [_sentence(cost, after.losses.perplexity(), of_draws, "perplexity of neutral texts", "number")]
    if judges.scorers:
        misses = np.array([by_prompt(trial, one.misses[0]) for one in controls.judged])
        own = by_prompt(trial, judged.misses[0])
        effect = against_draws(share, (own, of), (misses, np.broadcast_to(of, misses.shape)), **drawn)
        shares = misses.sum(1) / of.sum()
        value = float(own.sum() / of.sum())
        worse = [
            worse_share(trial, before.misses[0], one.misses[0], judges.scorers[0].name).value for one in controls.judged
        ]
        rows = [
            _percentile("effect", value, shares),
            _difference("effect", "share of texts", value, shares, effect, trial.confidence),
            *rows,
            Measured("random", "made worse by random edits", float(np.mean(worse)), of=judges.scorers[0].name,
                     unit="share of prompts", interval=False),
        ]  # fmt: skip
        sentences.insert(0, _sentence(effect, value, shares, f"misses by {judges.scorers[0].name}", "share"))
    return Item(tuple(rows), tuple(sentences))


def _percentile(of: str, value: float, draws: np.ndarray) -> Measured:
    """The share of random edits that have at least as much of it (half of those that have just as much)."""
    above = float((draws > value).mean() + (draws == value).mean() / 2)
    return Measured(
        "random", f"random edits with more {'misses' if of == 'effect' else 'cost'}", above, null=0.5, of=of,
        unit=f"share of {len(draws)} random edits", interval=False,
    )  # fmt: skip


def _difference(
    of: str, unit: str, value: float, draws: np.ndarray, against: AgainstDraws, confidence: float
) -> Measured:
    ends = against.interval.low, against.interval.high
    what = "misses" if of == "effect" else "cost"
    return Measured.change(
        "random", f"{what} against random edits", float(draws.mean()), value, ends, of=of, unit=unit,
        confidence=confidence,
    )  # fmt: skip


def _sentence(against: AgainstDraws, value: float, draws: np.ndarray, measure: str, style: Any) -> str:
    change = Change(
        float(draws.mean()), value, against.interval.low, against.interval.high, against.interval.confidence
    )
    comparison = change.comparison("The edit", f"{len(draws)} random edits of its size", measure, style=style)
    if change.verdict is Verdict.CANNOT_JUDGE:
        return f"{comparison}: 20 draws and two prompts are needed."
    return f"{comparison}."


def shuffled_item(trial: Trial, judges: Judges, judged: Judged, shuffled: Judged) -> Item:
    """Compare the edit with the same fit on shuffled labels, prompt by prompt."""
    rows, sentences = [], []
    of = by_prompt(trial, np.ones(len(trial.laid_out)))
    for place, scorer in enumerate(judges.scorers):
        control, own = (by_prompt(trial, one.misses[place]) for one in (shuffled, judged))
        bounds = share_change_interval(control, of, own, of, **trial.drawn)
        row = Measured.change(
            "shuffled", "misses against shuffled labels", control.sum() / of.sum(), own.sum() / of.sum(), bounds,
            of=scorer.name, unit="share of texts", confidence=trial.confidence,
        )  # fmt: skip
        rows.append(row)
        comparison = row.as_change.comparison(
            "The edit", "the same fit on shuffled labels", f"misses by {scorer.name}", style="share"
        )
        sentences.append(f"{comparison}.")
    return Item(tuple(rows), tuple(sentences))
