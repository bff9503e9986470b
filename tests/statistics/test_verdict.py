from __future__ import annotations

import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lens_steer.errors import SettingError
from lens_steer.statistics.verdict import Change, Verdict, verdict_of

numbers = st.floats(-1e3, 1e3)
ends = st.tuples(numbers, numbers).map(sorted)


@given(ends, numbers)
def test_a_verdict_is_where_the_interval_lies(interval: list[float], reference: float) -> None:
    low, high = interval
    verdict = verdict_of(low, high, reference=reference)
    assert (verdict is Verdict.LOWER) == (high < reference)
    assert (verdict is Verdict.HIGHER) == (low > reference)
    assert (verdict is Verdict.NOT_SHOWN) == (low <= reference <= high)


@pytest.mark.parametrize(
    ("low", "high", "reference"), [(math.nan, 1.0, 0.0), (0.0, math.nan, 0.0), (1.0, 2.0, math.nan)]
)
def test_without_an_interval_nothing_can_be_judged(low: float, high: float, reference: float) -> None:
    assert verdict_of(low, high, reference=reference) is Verdict.CANNOT_JUDGE


def test_ends_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(SettingError, match="from 2"):
        verdict_of(2.0, 1.0)


@given(numbers, numbers, ends, st.sampled_from(["number", "share"]))
def test_the_verb_follows_from_the_interval(before: float, after: float, interval: list[float], style: str) -> None:
    row = pd.Series({"before": before, "after": after, "low": interval[0], "high": interval[1]})
    sentence = Change.of(row).sentence("the edit", "the share", style=style)  # type: ignore[arg-type]
    low, high = interval
    assert ("the edit lowers the share" in sentence) == (high < 0)
    assert ("the edit raises the share" in sentence) == (low > 0)
    assert ("was not shown to change the share" in sentence) == (low <= 0 <= high)
    assert ("points" in sentence) == (style == "share")


@pytest.mark.parametrize("place", ["before", "after", "low", "high"])
def test_nan_is_never_a_finding(place: str) -> None:
    values = {"before": 0.5, "after": 0.2, "low": -0.4, "high": -0.2} | {place: math.nan}
    sentence = Change(**values).sentence("the edit", "rudeness")
    assert "cannot be judged" in sentence
    assert not {"lowers", "raises"} & set(sentence.split())


def test_shares_are_written_in_per_cent_and_their_changes_in_points() -> None:
    change = Change(0.347, 0.102, -0.276, -0.214)
    assert change.text() == "-0.245 [-0.276, -0.214]"
    assert change.sentence("The edit", "the share", style="share") == (
        "The edit lowers the share from 34.7 % to 10.2 % (change -24.5 points [-27.6, -21.4] at 95 %)"
    )


@given(numbers, numbers, ends)
def test_two_things_compared_say_what_the_interval_says(before: float, after: float, interval: list[float]) -> None:
    low, high = interval
    sentence = Change(before, after, low, high).comparison("LinEAS", "AurA", "perplexity")
    assert sentence.startswith("LinEAS: lower perplexity than AurA (") == (high < 0)
    assert sentence.startswith("LinEAS: higher perplexity than AurA (") == (low > 0)
    assert ("was not shown to differ from AurA in perplexity" in sentence) == (low <= 0 <= high)


def test_a_comparison_puts_its_subject_first_and_never_finds_nan() -> None:
    change = Change(0.5, 0.2, -0.4, -0.1, 0.99)
    assert change.comparison("A", "B", "share", style="share", words=("a smaller", "a larger")) == (
        "A: a smaller share than B (20.0 % against 50.0 %, difference -30.0 points [-40.0, -10.0] at 99 %)"
    )
    assert "cannot be judged" in Change(0.5, math.nan, -1.0, -0.5).comparison("A", "B", "share")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (9.9994, "+9.999"),
        (10.0, "+10.00"),
        (99.996, "+100.00"),
        (100.0, "+100.0"),
        (-12.345, "-12.35"),
        (0.0, "+0.000"),
    ],
)
def test_numbers_keep_about_four_figures(value: float, written: str) -> None:
    assert Change(0.0, value, value, value).text().startswith(f"{written} [")


def test_clauses_to_the_letter() -> None:
    """Numbers by default, without a unit; shares in per cent and points; nan where nothing is known."""
    row = {"before": 0.5, "after": 0.25, "low": -0.375, "high": -0.125}
    change = Change.of(row)
    assert change.confidence == 0.95
    assert Change.of(row, confidence=0.8).confidence == 0.8
    assert change.text() == "-0.250 [-0.375, -0.125]"
    assert change.text("share") == "-25.0 points [-37.5, -12.5]"
    said = "the edit lowers the score from 0.500 to 0.250 (change -0.250 [-0.375, -0.125] at 95 %)"
    assert change.sentence("the edit", "the score") == said
    assert change.sentence("the edit", "the share", style="share") == (
        "the edit lowers the share from 50.0 % to 25.0 % (change -25.0 points [-37.5, -12.5] at 95 %)"
    )
    assert change.comparison("one", "two", "score") == (
        "one: lower score than two (0.250 against 0.500, difference -0.250 [-0.375, -0.125] at 95 %)"
    )
    gone = Change(0.5, math.nan, math.nan, math.nan)
    assert gone.sentence("the edit", "the score") == (
        "the edit: whether the score changes cannot be judged (0.500 to nan, no interval)"
    )
    assert Change(5.0, 12.25, 7.0, 7.5).sentence("it", "perplexity") == (
        "it raises perplexity from 5.000 to 12.25 (change +7.250 [+7.000, +7.500] at 95 %)"
    )
