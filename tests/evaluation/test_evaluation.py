from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lens_steer.errors import ContrastError, SettingError
from lens_steer.evaluation import evaluation as evaluation_room
from lens_steer.evaluation.evaluation import Evaluation, evaluate
from lens_steer.evaluation.generation import generate
from lens_steer.evaluation.perplexity import perplexity
from lens_steer.evaluation.reading import as_scorer
from lens_steer.evaluation.scorers import WordList
from lens_steer.interventions.intervention import Intervention
from lens_steer.statistics.intervals import share_change_interval
from lens_steer.statistics.verdict import verdict_of
from lens_steer.texts.seen import known_forms, pack, seen_forms
from tests.evaluation.hosts import random_edit
from tests.families import make_tiny, sentences

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
    assert list(result.frame.columns) == [
        *("measure", "before", "after", "change", "low", "high", "verdict", "fell", "rose", "unit", "n")
    ]
    for when in ("before", "after"):
        assert result.texts[when].tolist() == texts[when]
        assert result.texts[f"{when}_score"].tolist() == WORDS(texts[when]).tolist()
        assert frame.loc["effect", when] == pytest.approx(WORDS(texts[when]).mean())
        assert frame.loc["cost", when] == pytest.approx(cost[when])
    np.testing.assert_allclose(frame["change"], frame["after"] - frame["before"])
    assert (frame["low"] <= frame["change"] + 1e-12).all()
    assert (frame["change"] <= frame["high"] + 1e-12).all()
    assert frame["n"].to_dict() == {"effect": 6, "cost": 5}
    for measure, row in frame.iterrows():
        assert row["verdict"] == verdict_of(row["low"], row["high"]).value, measure
    scores = result.texts["after_score"] - result.texts["before_score"]
    losses = result.neutral["after_loss"] - result.neutral["before_loss"]
    for measure, change in (("effect", scores), ("cost", losses)):
        assert tuple(frame.loc[measure, ["fell", "rose"]]) == ((change < 0).mean(), (change > 0).mean())


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
    scores = three.texts.groupby("prompt")[["before_score", "after_score"]].sum().loc[PROMPTS].to_numpy().T
    of = np.full(6, 3.0)
    interval = share_change_interval(scores[0], of, scores[1], of, confidence=0.95, seed=0)
    assert tuple(three.frame.loc[0, ["low", "high"]]) == pytest.approx(interval)


def test_nothing_changes_under_strength_zero(tiny: Any) -> None:
    result = run(tiny, strength=0.0)
    assert (result.frame[["change", "fell", "rose"]] == 0).all(axis=None)
    assert result.frame["verdict"].tolist() == ["not shown"] * 2
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


@pytest.mark.parametrize("changed", ["weights", "edit", "hook"])
def test_an_unedited_side_of_the_same_name_and_another_content_is_refused(changed: str) -> None:
    """Models made in memory share their names, and what is attached shows in no name at all."""
    model, edit = make_tiny("gpt2"), random_edit(make_tiny("gpt2"), seed=1)
    before = run(model, edit)
    with ExitStack() as stack:
        if changed == "weights":
            with torch.no_grad():
                next(model.original_model.parameters()).mul_(1.5)
        elif changed == "edit":
            stack.enter_context(random_edit(model, seed=2).on(model))
        else:
            hook = model.original_model.transformer.h[0].register_forward_hook(
                lambda module, given, out: (out[0] * 1.5, *out[1:]) if isinstance(out, tuple) else out * 1.5
            )
            stack.callback(hook.remove)
        with pytest.raises(SettingError, match="weights or attached edits"):
            run(model, edit, before=before)


def test_a_plain_function_is_a_scorer_by_its_own_name(tiny: Any) -> None:
    def brevity(texts: Sequence[str]) -> list[float]:
        return [1 / (1 + len(text)) for text in texts]

    result = run(tiny, scorer=brevity)
    assert result.frame.loc[0, "unit"] == "mean score of brevity"
    np.testing.assert_allclose(result.texts["after_score"], brevity(result.texts["after"].tolist()))


def test_shown_as_its_frame_and_never_as_its_texts(tiny: Any) -> None:
    result = run(tiny)
    for shown in (repr(result), result._repr_html_()):
        assert "6 prompts (6 continuations) and 5 neutral texts" in shown
        assert "perplexity" in shown
        assert "verdict" in shown
        assert not any(text in shown for text in (*PROMPTS, *NEUTRAL, *result.texts["after"]))


def test_a_mean_that_falls_may_hold_prompts_that_rise(tiny: Any) -> None:
    scores = iter([(1.0, 1.0, 1.0, 0.0, 0.5, 0.5), (0.0, 0.0, 0.0, 1.0, 0.5, 0.5)])

    def falling(texts: Sequence[str]) -> Any:
        return next(scores)

    row = run(tiny, scorer=falling).frame.iloc[0]
    assert (row["fell"], row["rose"]) == (0.5, pytest.approx(1 / 6))
    assert row["verdict"] == "not shown"  # three against one is no finding


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"text": ["the dog"]}, "not one dict"),
        (b"the dog", "not one bytes"),
        (3, "not one int"),
        (pd.DataFrame({"text": ["the dog"]}), "not one DataFrame"),
        (["the dog", None], r"prompts\[1\] is a NoneType"),
        ([], "no prompt"),
    ],
    ids=str,
)
def test_what_is_no_list_of_texts_is_named(rows: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        evaluation_room.listed("prompts", rows)
    assert evaluation_room.listed("neutral", pd.Series(["the dog"])) == ["the dog"]


@pytest.mark.parametrize("scorer", [None, ["sad"], "sad"])
def test_what_cannot_be_called_is_no_scorer(scorer: Any) -> None:
    with pytest.raises(SettingError, match="cannot be called"):
        as_scorer(scorer)


@pytest.mark.parametrize(
    "bad", [{"neutral": []}, {"neutral": "the dog"}, {"prompts": []}, {"confidence": 1.0}], ids=str
)
def test_settings_are_refused_before_anything_is_generated(
    tiny: Any, bad: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(evaluation_room, "generate")
    with pytest.raises(SettingError):
        run(tiny, **bad)


@pytest.mark.parametrize("place", ["prompts", "neutral"])
def test_texts_that_the_edit_has_seen_are_refused(tiny: Any, place: str) -> None:
    edit = random_edit(tiny)
    seen = pack(seen_forms(known_forms({"prompts": PROMPTS, "neutral": NEUTRAL}[place][2:3])))
    taught = Intervention(edit.edits, {**edit.provenance, "parts": [{"seen": seen}]})
    with pytest.raises(ContrastError, match=r"the intervention was made from 1 of these (6|5) texts"):
        run(tiny, taught)


def test_neutral_pairs_and_a_single_prompt(tiny: Any) -> None:
    pairs = [("dog", " ran"), ("cat", " sat in the park")]
    result = run(tiny, prompts=["dog"], neutral=pairs, chat="the {text} was")
    frame = result.frame.set_index("measure")
    assert frame.loc["cost", "before"] == pytest.approx(perplexity(tiny, pairs, chat="the {text} was"))
    assert (frame.loc["effect", "verdict"], frame.loc["cost", "n"]) == ("not shown", 2)  # one prompt shows nothing
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
