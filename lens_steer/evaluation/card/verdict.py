"""The verdict of a card: whether one should use the edit, in words that the intervals allow."""

from __future__ import annotations

from collections.abc import Sequence

from lens_steer.evaluation.card.measured import Measured
from lens_steer.interventions.budget import Budget
from lens_steer.statistics.verdict import Change, Verdict

_MATTERS = 0.5
"""A change of so large a share of the misses matters: an interval that holds it and 0 tells nothing."""


def headline(rows: Sequence[Measured], budget: Budget) -> str:
    """Say in one sentence whether to use an edit: by the misses of the first scorer, random edits, and the cost."""
    effects = [row for row in rows if row.item == "effect" and row.measure == "misses"]
    if not effects:
        return "Cannot be told: no scorer could judge what the edit does."
    misses, unreadable = effects[0].as_change, _find(rows, "effect", "unreadable")
    broken = unreadable is not None and unreadable.verdict is Verdict.HIGHER
    match misses.verdict:
        case Verdict.CANNOT_JUDGE:
            return "Cannot be told: these prompts do not suffice to judge the edit."
        case Verdict.HIGHER:
            return _harm(broken, "more texts miss than without it")
        case Verdict.NOT_SHOWN:
            if broken:
                return _harm(broken, "fewer were not shown to miss")
            if misses.low < -_MATTERS * misses.before:
                return (
                    "Cannot be told on so few prompts: what the edit does lies between "
                    f"{misses.low:+.0%} and {misses.high:+.0%} of the texts, which may be nothing or much."
                )
            return "Of no use that was shown: the edit does not change how many texts miss by much, if at all."
    return _useful(rows, broken, budget)


def _harm(broken: bool, what: str) -> str:
    return f"Do not use it: texts become unreadable, and {what}." if broken else f"Do not use it: {what}."


def _useful(rows: Sequence[Measured], broken: bool, budget: Budget) -> str:
    """Say of an edit that lowers misses what speaks against it."""
    against = _find(rows, "random", "misses against random edits")
    shuffled = _find(rows, "shuffled", "misses against shuffled labels")
    misses = next(row for row in rows if row.item == "effect" and row.measure == "misses")
    missed = f"{100 * misses.before:.0f} to {100 * misses.after:.0f} %"
    doubts = [
        *(["some texts become unreadable"] if broken else []),
        *_beyond(against, "random edits of its size"),
        *_beyond(shuffled, "the same fit on shuffled labels"),
        *_second_opinion(rows),
        *_expense(rows, budget),
    ]
    if doubts:
        return f"It works, with a reserve: fewer texts miss ({missed}), but {'; '.join(doubts)}."
    than = "than without it" + (", and than under random edits of its size" if against is not None else "")
    unheld = "" if against is not None else "; it was not held against random edits"
    return f"Use it: fewer texts miss {than} ({missed}), and it stays within the budget {budget}{unheld}."


def _beyond(change: Change | None, others: str) -> list[str]:
    if change is None:
        return []
    match change.verdict:
        case Verdict.LOWER:
            return []
        case Verdict.HIGHER:
            return [f"still fewer do under {others}"]
        case Verdict.NOT_SHOWN:
            return [f"not shown to be fewer than under {others}"]
        case _:
            return [f"whether fewer than under {others} cannot be judged"]


def _second_opinion(rows: Sequence[Measured]) -> list[str]:
    others = [row for row in rows if row.item == "effect" and row.measure == "misses"][1:]
    return [f"not shown by {row.of}" for row in others if row.as_change.verdict is not Verdict.LOWER]


def _expense(rows: Sequence[Measured], budget: Budget) -> list[str]:
    perplexity, divergence = (
        next((row for row in rows if row.item == "cost" and row.measure == name), None)
        for name in ("perplexity", "divergence")
    )
    if perplexity is None or divergence is None:
        return ["what it costs was not measured"]
    cost = perplexity.after / perplexity.before if budget.kind == "ppl" else divergence.value
    return [] if budget.allows(cost) else [f"it costs more than the budget {budget} ({budget.said(cost)})"]


def _find(rows: Sequence[Measured], item: str, measure: str) -> Change | None:
    return next((row.as_change for row in rows if (row.item, row.measure) == (item, measure)), None)
