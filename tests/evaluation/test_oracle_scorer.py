"""The oracle as a scorer: exact scores, unreadable texts that are never 'not rude', and continuations by themselves."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lens_steer.errors import MicroworldError, SettingError
from lens_steer.evaluation.oracle_scorer import OracleScorer
from lens_steer.evaluation.reading import ContinuationScorer, Reading, Share, read_continuations
from lens_steer.evaluation.scorers import Scorer
from lens_steer.microworld import Oracle, sample

RUDE = OracleScorer("rude")


def halves(n: int, *, words: int, **attributes: str) -> tuple[list[str], list[str]]:
    """Documents cut behind some words: beginnings and continuations."""
    split = [document.text.split() for document in sample(n, seed=8, **attributes)]
    return [" ".join(each[:words]) for each in split], [" ".join(each[words:]) for each in split]


def test_it_is_the_posterior() -> None:
    texts = [document.text for document in sample(20, seed=3)]
    assert isinstance(RUDE, Scorer)
    assert isinstance(RUDE, ContinuationScorer)
    assert RUDE(texts).tolist() == [Oracle().posterior(text)["register"]["rude"] for text in texts]
    assert RUDE.name == "the oracle's rude"
    assert OracleScorer("rude", attribute="register", name="rude share").name == "rude share"
    assert OracleScorer("topic=film")(texts).tolist() == OracleScorer("film", attribute="topic")(texts).tolist()


def test_it_tells_registers_apart() -> None:
    shares = {value: RUDE([each.text for each in sample(30, seed=5, register=value)]).mean() for value in
              ("rude", "polite", "plain")}  # fmt: skip
    assert shares["rude"] > 0.8
    assert max(shares["polite"], shares["plain"]) < 0.2


def test_what_cannot_be_read_is_not_called_polite() -> None:
    text = sample(1, seed=3, register="rude")[0].text
    shuffled = " ".join(sorted(set(text.split()) - {".", "?"})) + " ."
    scores = RUDE([text, shuffled, "zebra zebra .", ""])
    assert scores[0] > 0.5
    assert np.isnan(scores[1:]).all()
    reading = RUDE.read([""] * 4, [text, shuffled, "zebra zebra .", ""])
    unreadable, grammatical, empty = (reading.shares[name] for name in ("unreadable", "grammatical", "empty"))
    assert unreadable.counted.tolist() == [0, 1, 1, 0]
    assert unreadable.of.tolist() == [1, 1, 1, 0]
    assert empty.counted.tolist() == [0, 0, 0, 1]
    whole = text.count(".") + text.count("?")
    assert grammatical.counted.tolist() == [whole, 0, 0, 0]
    assert grammatical.of.tolist() == [whole, 1, 1, 0]
    assert reading.effect.of.tolist() == [1, 0, 0, 0]
    assert reading.effect.counted.sum() == scores[0]


def test_a_continuation_is_read_from_where_its_prompt_has_left_off() -> None:
    starts, rests = halves(30, words=4)
    reading = RUDE.read(starts, rests)
    assert reading.shares["grammatical"].counted.tolist() == reading.shares["grammatical"].of.tolist()
    alone = RUDE.read([""] * 30, rests).shares["grammatical"]
    assert alone.counted.sum() < alone.of.sum()


def test_the_prompts_own_words_are_no_evidence() -> None:
    """By hand: Bayes with the likelihood of the continuation given its prompt and the value."""
    oracle = Oracle()
    starts, rests = halves(12, words=9, register="rude")
    for start, rest in zip(starts, rests):
        said = start.split() + rest.split()
        weights = {}
        for value in ("plain", "polite", "rude"):
            laws = list(oracle.follow(said, given={"register": value}))
            chances = [laws[place][oracle.grammar.ids[said[place]]] for place in range(9, len(said))]
            weights[value] = float(np.prod(chances))
        # `follow` lets the prompt speak of the other attributes, so that the two agree where register stands alone.
        expected = weights["rude"] / sum(weights.values())
        assert RUDE.read([start], [rest]).scores[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("speaker", ["truthful", "untruthful"])
def test_lies_after_a_prompt_are_lies(speaker: str) -> None:
    """The facts and the question fit every speaker alike, so that whole text and continuation say the same."""
    texts = [document.text for document in sample(300, seed=4, speaker=speaker)]
    cuts = [text.index("?") + 1 for text in texts]
    scorer = OracleScorer(speaker)
    scores = scorer.read(*zip(*[(text[:cut], text[cut:]) for text, cut in zip(texts, cuts)])).scores
    assert scores == pytest.approx(scorer(texts), abs=1e-12)
    assert scores.mean() > 0.9
    assert np.median(scores) > 0.97


def test_a_broken_sentence_is_skipped() -> None:
    text = sample(1, seed=3, register="rude", speaker="none")[0].text
    first, *rest = [sentence.text for sentence in Oracle().sentences(text)]
    reading = RUDE.read([first], [" ".join(["zebra .", *rest])])
    assert reading.shares["grammatical"].counted.tolist() == [len(rest)]
    assert reading.shares["grammatical"].of.tolist() == [len(rest) + 1]
    assert reading.scores[0] == RUDE.read([first], [" ".join(rest)]).scores[0]
    cut = RUDE.read([""], [first.removesuffix(" .")]).shares["grammatical"]
    assert cut.of.tolist() == [0]  # unfinished: neither right nor wrong


class Declines:
    name = "declines"

    def __init__(self, *scores: float) -> None:
        self.scores = np.array(scores)

    def __call__(self, texts: Sequence[str]) -> Any:
        return self.scores

    def read(self, prompts: Sequence[str], continuations: Sequence[str]) -> Reading:
        return Reading(self.scores, {"odd": Share(np.ones(len(continuations)), np.ones(len(continuations)), "share")})


def test_only_a_scorer_that_reports_them_may_leave_texts_unjudged() -> None:
    assert np.isnan(read_continuations(Declines(0.5, np.nan), ["", ""], ["a", "b"]).scores[1])
    with pytest.raises(SettingError, match="gave 1.5 for text 1"):
        read_continuations(Declines(0.5, 1.5), ["", ""], ["a", "b"])
    with pytest.raises(SettingError, match="2 texts"):
        read_continuations(Declines(0.5), ["", ""], ["a", "b"])


def test_bad_input_is_refused() -> None:
    with pytest.raises(MicroworldError, match="nearest are rude"):
        OracleScorer("rood")
    with pytest.raises(MicroworldError, match="no attribute 'manner'"):
        OracleScorer("rude", attribute="manner")
    with pytest.raises(MicroworldError, match="no value 'sad'"):
        OracleScorer("sad", attribute="register")
    with pytest.raises(SettingError, match="1 prompts do not go with 2"):
        RUDE.read([""], ["", ""])
