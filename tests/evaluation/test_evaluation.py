from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lens_steer.errors import SettingError
from lens_steer.evaluation import evaluation as evaluation_room
from lens_steer.evaluation.evaluation import Evaluation, evaluate
from lens_steer.evaluation.generation import generate
from lens_steer.evaluation.perplexity import perplexity
from lens_steer.evaluation.scorers import WordList
from lens_steer.statistics.intervals import change_interval, mean_change
from tests.evaluation.hosts import random_edit
from tests.families import sentences

PROMPTS = sentences(6, seed=3)
NEUTRAL = sentences(5, seed=4)
WORDS = WordList(["dog", "sad", "the", "ran", "a", "cat", "park", "good", "day", "blue", "was"])


class Scores:
    """A scorer that returns what it was told to."""

    name = "told"

    def __init__(self, *scores: float) -> None:
        self.scores = scores

    def __call__(self, texts: Sequence[str]) -> Any:
        return np.array(self.scores)


class Lengths:
    """A scorer whose scores are all different."""

    name = "length"

    def __call__(self, texts: Sequence[str]) -> Any:
        return np.array([len(text) / 200 for text in texts])


def run(model: Any, edit: Any = None, **changes: Any) -> Evaluation:
    settings: dict[str, Any] = {"prompts": PROMPTS, "scorer": WORDS, "neutral": NEUTRAL, "max_new_tokens": 8}
    return evaluate(model, edit or random_edit(model), **(settings | changes))


@pytest.mark.compat
def test_numbers_are_those_of_the_parts(hosted: Any) -> None:
    edit = random_edit(hosted)
    result = run(hosted, edit, seed=2, strength=0.5)
    texts = {
        "before": generate(hosted, PROMPTS, max_new_tokens=8, seed=2),
        "after": generate(hosted, PROMPTS, max_new_tokens=8, seed=2, intervention=edit, strength=0.5),
    }
    cost = {
        "before": perplexity(hosted, NEUTRAL),
        "after": perplexity(hosted, NEUTRAL, intervention=edit, strength=0.5),
    }
    frame = result.frame.set_index("measure")
    assert list(result.frame.columns) == ["measure", "before", "after", "change", "low", "high", "unit", "n"]
    for when in ("before", "after"):
        assert result.texts[when].tolist() == texts[when]
        assert result.texts[f"{when}_score"].tolist() == WORDS(texts[when]).tolist()
        assert frame.loc["effect", when] == pytest.approx(WORDS(texts[when]).mean())
        assert frame.loc["cost", when] == pytest.approx(cost[when])
    np.testing.assert_allclose(frame["change"], frame["after"] - frame["before"])
    assert (frame["low"] <= frame["change"] + 1e-12).all()
    assert (frame["change"] <= frame["high"] + 1e-12).all()
    assert frame["n"].to_dict() == {"effect": 6, "cost": 5}


def test_samples_are_drawn_again_from_the_same_prompts(tiny: Any) -> None:
    edit = random_edit(tiny)
    one, three = run(tiny, edit, scorer=Lengths()), run(tiny, edit, samples=3, scorer=Lengths())
    assert three.texts["prompt"].tolist() == PROMPTS * 3
    assert three.texts["sample"].tolist() == [0] * 6 + [1] * 6 + [2] * 6
    first = three.texts[three.texts["sample"] == 0]
    assert first["before"].tolist() == one.texts["before"].tolist()
    assert first["after"].tolist() == one.texts["after"].tolist()
    assert set(three.texts["before"][6:12]) != set(one.texts["before"])
    assert three.frame["n"].tolist() == [6, 5]
    by_prompt = three.texts.groupby("prompt")[["before_score", "after_score"]].mean().loc[PROMPTS].to_numpy().T
    interval = change_interval(mean_change, *by_prompt, confidence=0.95, seed=0)
    assert tuple(three.frame.loc[0, ["low", "high"]]) == pytest.approx(interval)


def test_nothing_changes_under_strength_zero(tiny: Any) -> None:
    result = run(tiny, strength=0.0)
    assert result.frame[["change", "low", "high"]].to_numpy().tolist() == [[0.0] * 3] * 2
    assert result.texts["before"].tolist() == result.texts["after"].tolist()


def test_the_unedited_side_is_taken_over(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = random_edit(tiny), random_edit(tiny, seed=1)
    alone = run(tiny, second)
    before = run(tiny, first)
    edits: list[Any] = []

    def counted(*args: Any, **settings: Any) -> list[str]:
        edits.append(settings["intervention"])
        return generate(*args, **settings)

    monkeypatch.setattr(evaluation_room, "generate", counted)
    reused = run(tiny, second, before=before)
    assert edits == [second]
    for table in ("frame", "texts", "neutral"):
        assert getattr(reused, table).equals(getattr(alone, table))
    other_words = run(tiny, second, before=before, scorer=WordList(["zebra"]))
    assert other_words.texts["before_score"].tolist() == [0.0] * 6


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"prompts": PROMPTS[:5]}, {"neutral": NEUTRAL[:4]}, {"samples": 2}, {"temperature": 0.5}],
    ids=lambda change: next(iter(change)),
)
def test_another_evaluations_unedited_side_is_refused(tiny: Any, change: dict[str, Any]) -> None:
    before = run(tiny)
    with pytest.raises(SettingError, match=next(iter(change))):
        run(tiny, before=before, **change)


def test_another_models_unedited_side_is_refused(tiny: Any, family: Any) -> None:
    if family.cfg.model_name == tiny.cfg.model_name:
        pytest.skip("this is the same family")
    with pytest.raises(SettingError, match="model"):
        run(family, before=run(tiny))


def test_neutral_pairs_and_a_single_prompt(tiny: Any) -> None:
    pairs = [("dog", " ran"), ("cat", " sat in the park")]
    result = run(tiny, prompts=["dog"], neutral=pairs, chat="the {text} was")
    frame = result.frame.set_index("measure")
    assert frame.loc["cost", "before"] == pytest.approx(perplexity(tiny, pairs, chat="the {text} was"))
    assert frame.loc["effect", ["low", "high"]].isna().all()
    assert frame.loc["cost", ["low", "high"]].notna().all()


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"samples": 0}, "samples"),
        ({"confidence": 1.0}, "confidence"),
        ({"neutral": []}, "neutral"),
        ({"neutral": "the dog"}, "neutral"),
        ({"prompts": []}, "no prompt"),
        ({"prompts": "the dog"}, "list"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 2.0}, "top_p"),
        ({"scorer": Scores(0.5)}, r"'told' gave shape \(1,\) for 6 texts"),
        ({"scorer": Scores(0.5, 0.5, 1.5, 0, 0, 0)}, "gave 1.5 for text 2"),
        ({"scorer": Scores(0.5, 0.5, float("nan"), 0, 0, 0)}, "gave nan for text 2"),
    ],
)
def test_bad_input_is_refused(tiny: Any, bad: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        run(tiny, **bad)


@pytest.mark.real
def test_damage_shows_in_the_cost_on_a_real_model(tinytalk: Any) -> None:
    prompts = ["Once upon a time there was a", "The little", "One day a big"] * 3
    neutral = ["Tom and Ben found a big red ball.", "The water was cold.", "Lily likes to play in the park."]
    result = evaluate(
        tinytalk,
        random_edit(tinytalk, size=0.05),
        prompts=prompts,
        scorer=WordList(["girl", "boy", "dog"]),
        neutral=neutral,
        max_new_tokens=10,
    )
    frame = result.frame.set_index("measure")
    assert 0 <= frame.loc["effect", "before"] <= 1
    assert frame.loc["cost", "change"] > 0
    assert not result.texts["before"].equals(result.texts["after"])
