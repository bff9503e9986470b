"""Sentences about many changes, and that the check of verbs finds verbs that say too much."""

from __future__ import annotations

import math

import pytest

import lens_steer as ls
from analyses.sentences import PLURAL, by_verdict, interval, listed, sentence
from tests.analyses.verbs import check_verbs


def test_names_are_grouped_by_verdict() -> None:
    verdicts = {
        "a": ls.Verdict.NOT_SHOWN, "b": ls.Verdict.LOWER, "c": ls.Verdict.CANNOT_JUDGE, "d": ls.Verdict.LOWER
    }  # fmt: skip
    assert by_verdict(verdicts) == "lower: b and d; not shown: a; cannot be judged: c"
    assert by_verdict({"a": ls.Verdict.HIGHER}, {ls.Verdict.HIGHER: "beyond"}) == "beyond: a"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert sentence("one", "", "two") == "One; two."


def test_a_value_that_is_none_is_not_written_as_a_number() -> None:
    assert interval({"value": math.nan, "low": math.nan, "high": math.nan}) == "cannot be judged"
    assert interval({"value": 0.5, "low": 0.25, "high": 0.75}) == "0.50 [0.25, 0.75]"


@pytest.mark.parametrize(
    "text",
    [
        "Ablating experts lowers the share from 0.5 to 0.2 (change -0.300 [-0.700, +0.010] at 95 %).",
        "Ablating experts was not shown to change the share (0.5 to 0.2, change -0.300 [-0.400, -0.200] at 95 %).",
        "Ablating experts raises the share from 0.5 to 0.2 (change -0.300 [-0.400, -0.200] at 95 %).",
        "Ablating experts was not shown to change the share (0.5 to nan, no interval).",
        "The same fits do not change the concept.",
        "There is no effect within the budget.",
    ],
)
def test_a_verb_that_says_more_than_its_interval_is_found(text: str) -> None:
    with pytest.raises(AssertionError):
        check_verbs([text])


def test_every_clause_with_an_interval_is_counted() -> None:
    rows = [(-0.3, -0.1), (0.1, 0.3), (-0.1, 0.1), (float("nan"), float("nan"))]
    clauses = [ls.Change(0.5, 0.4, low, high).sentence("it", "the share") for low, high in rows]
    assert check_verbs([sentence(*clauses[:2]), sentence(*clauses[2:])]) == 4


def test_a_plural_subject_has_plural_verbs() -> None:
    said = [ls.Change(0.5, after, low, high).sentence("edits", "the share", **PLURAL) for after, low, high in _CHANGES]
    assert [text.partition(" the share")[0] for text in said] == [
        "edits lower", "edits raise", "edits were not shown to change", "edits: whether",
    ]  # fmt: skip
    assert check_verbs(f"{text}." for text in said) == 4


_CHANGES = ((0.2, -0.4, -0.2), (0.9, 0.3, 0.5), (0.5, -0.1, 0.1), (0.5, math.nan, math.nan))
