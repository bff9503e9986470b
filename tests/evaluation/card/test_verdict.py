"""The headline follows from intervals: every way in which it may come out, from made-up rows."""

from __future__ import annotations

import math

import pytest

from lens_steer.evaluation.card.measured import Measured
from lens_steer.evaluation.card.verdict import headline
from lens_steer.interventions.budget import Budget

BUDGET = Budget.of("ppl:1.1")


def change(item: str, measure: str, before: float, after: float, low: float, high: float, of: str = "") -> Measured:
    return Measured.change(item, measure, before, after, (low, high), of=of, confidence=0.95)


def misses(low: float, high: float, after: float = 0.2, of: str = "one") -> Measured:
    return change("effect", "misses", 0.5, after, low, high, of)


WORKS = misses(-0.4, -0.2)
READABLE = change("effect", "unreadable", 0.0, 0.0, -0.05, 0.05)
BROKEN = change("effect", "unreadable", 0.0, 0.4, 0.2, 0.6)
CHEAP = change("cost", "perplexity", 10.0, 10.1, -0.1, 0.3), Measured("cost", "divergence", 0.01, null=0.0)
DEAR = change("cost", "perplexity", 10.0, 15.0, 4.0, 6.0), Measured("cost", "divergence", 0.4, null=0.0)
BEYOND = change("random", "misses against random edits", 0.5, 0.2, -0.4, -0.2)
LIKE_RANDOM = change("random", "misses against random edits", 0.3, 0.2, -0.3, 0.1)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "Cannot be told: no scorer could judge"),
        ([misses(math.nan, math.nan)], "Cannot be told: these prompts do not suffice"),
        ([misses(0.1, 0.3, 0.7), READABLE], "Do not use it: more texts miss than without it."),
        ([misses(0.1, 0.3, 0.7), BROKEN], "Do not use it: texts become unreadable, and more texts miss"),
        ([misses(-0.1, 0.1, 0.5), BROKEN], "Do not use it: texts become unreadable, and fewer were not shown to miss"),
        ([misses(-0.1, 0.1, 0.5), READABLE], "Of no use that was shown"),
        ([misses(-0.3, 0.3, 0.5), READABLE], "Cannot be told on so few prompts: what the edit does lies between -30%"),
        ([WORKS, READABLE, *CHEAP, BEYOND], "Use it: fewer texts miss than without it, and than under random edits"),
        ([WORKS, READABLE, *CHEAP], "within the budget ppl:1.1; it was not held against random edits."),
        ([WORKS, BROKEN, *CHEAP], "It works, with a reserve: fewer texts miss (50 to 20 %), but some texts become"),
        ([WORKS, READABLE, *CHEAP, LIKE_RANDOM], "but not shown to be fewer than under random edits of its size"),
        ([WORKS, READABLE, *DEAR], "it costs more than the budget ppl:1.1 (perplexity of neutral texts times 1.5)"),
        ([WORKS, READABLE], "but what it costs was not measured"),
        ([WORKS, misses(-0.1, 0.1, 0.45, "two"), READABLE, *CHEAP], "but not shown by two."),
    ],
)
def test_every_way_it_may_come_out(rows: list[Measured], said: str) -> None:
    assert said in headline(rows, BUDGET)
