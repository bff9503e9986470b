"""Strengths: effect and cost at several strengths, and the largest within the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lens_steer.evaluation.card.measured import Item, Measured
from lens_steer.evaluation.card.trial import Trial
from lens_steer.evaluation.scorers import Scorer
from lens_steer.evaluation.strength_choice import choose_strength
from lens_steer.interventions.budget import Budget
from lens_steer.interventions.intervention import Intervention


def strength_item(
    trial: Trial, edit: Intervention, scorer: Scorer, *, strengths: Sequence[float], budget: Budget
) -> Item:
    """Choose a strength on one half of prompts and texts, report it on the other."""
    choice = choose_strength(
        trial.model,
        replace(edit, strengths=None),  # what lies outside the measured range is asked here on purpose
        prompts=trial.prompts,
        scorer=scorer,
        neutral=trial.neutral,
        prompt_groups=trial.prompt_groups,
        neutral_groups=trial.neutral_groups,
        strengths=strengths,
        budget=budget,
        samples=trial.samples,
        confidence=trial.confidence,
        batch_size=trial.batch_size,
        progress=False,
        **trial.sampling,
    )
    rows = []
    for row in choice.frame.to_dict("records"):
        at = f"strength {row['strength']:g}"
        rows += [
            Measured("strength", "cost", row["cost"], null=budget.of_no_edit, of=at, unit=budget.kind, interval=False),
            Measured("strength", "concept", row["effect"], of=at, unit=f"mean score of {scorer.name}"),
        ]
    within = [row["strength"] for row in choice.frame.to_dict("records") if row["within"] and row["strength"] != 0]
    largest = max(within, key=abs) if within else float("nan")
    rows.append(Measured("strength", "largest within the budget", largest, of=str(budget), unit="strength"))
    limit = f"The largest of the strengths tried that is within the budget {budget} is {largest:g}. " if within else ""
    return Item(tuple(rows), (f"{limit}{choice.sentence}.",))
