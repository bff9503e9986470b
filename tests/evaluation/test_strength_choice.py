"""The divergence in closed form, budgets, and the choice of a strength: within the budget, reported on other texts."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from lens_steer.errors import ContrastError, SettingError
from lens_steer.evaluation.perplexity import divergence, perplexity, text_divergences
from lens_steer.evaluation.scorers import WordList
from lens_steer.evaluation.strength_choice import StrengthChoice, choose_strength
from lens_steer.host.tokens import tokenize
from lens_steer.interventions.budget import Budget, largest_within
from lens_steer.interventions.intervention import Intervention
from lens_steer.methods.aura import AurA
from lens_steer.texts.contrast import ContrastSet
from tests.evaluation.hosts import random_edit
from tests.families import sentences

TEXTS = ["the dog was sad", "a cat", "the big bird sat on a tree and the boy cried"]
PROMPTS = ["the dog", "a cat", "the boy", "the girl", "a bird was", "the red"]
NEUTRAL = sentences(8, seed=5)


@pytest.fixture(scope="module")
def edit(tiny: Any) -> Intervention:
    return random_edit(tiny, size=0.2)


def test_no_edit_moves_nothing(tiny: Any, edit: Intervention) -> None:
    assert divergence(tiny, TEXTS, intervention=None, progress=False) == 0
    assert divergence(tiny, TEXTS, intervention=edit, strength=0.0, progress=False) == 0


@pytest.mark.compat
def test_the_divergence_is_torchs_own(tiny: Any, edit: Intervention) -> None:
    found = text_divergences(tiny, TEXTS, intervention=edit, strength=0.7, progress=False)
    for row, ids in enumerate(tokenize(tiny, TEXTS).ids):
        batch = torch.tensor([ids])
        with torch.no_grad():
            before = tiny(batch)[0, :-1].double()
            with edit.on(tiny, 0.7):
                after = tiny(batch)[0, :-1].double()
        expected = kl_divergence(Categorical(logits=before), Categorical(logits=after)).sum()
        assert found.sums[row] == pytest.approx(float(expected), rel=1e-4)
        assert found.counts[row] == len(ids) - 1 == len(found.tokens[row])
        assert found.sums[row] == pytest.approx(found.tokens[row].sum())
    assert found.mean == pytest.approx(found.sums.sum() / found.counts.sum())
    single = text_divergences(tiny, TEXTS, intervention=edit, strength=0.7, batch_size=1, progress=False)
    np.testing.assert_allclose(single.sums, found.sums, rtol=1e-4)


def test_of_pairs_the_completions_count(tiny: Any, edit: Intervention) -> None:
    found = text_divergences(tiny, [("the dog", " was sad")], intervention=edit, progress=False)
    assert found.counts.tolist() == [2]


def test_budgets_are_read() -> None:
    assert Budget.of("ppl:1.1") == Budget("ppl", 1.1)
    assert Budget.of("kl:0") == Budget("kl", 0.0)
    assert str(Budget.of(Budget.of("kl:0.25"))) == "kl:0.25"
    assert not Budget.of("ppl:2").allows(math.nan)
    for wrong in ("ppl", "ppl:0.9", "kl:-1", "kl:inf", "bits:1", "1.1", "ppl:nan", ""):
        with pytest.raises(SettingError, match="a budget is"):
            Budget.of(wrong)


@pytest.mark.parametrize("wanted", [0.011, 0.2, 0.999, 1.0, 1.7, 5.3])
def test_the_largest_strength_of_a_growing_cost(wanted: float) -> None:
    largest, measured = largest_within(Budget("kl", wanted**2), lambda strength: strength**2)
    assert wanted / 1.02 <= largest <= wanted
    assert measured[largest] <= wanted**2
    assert len(measured) < 20


def test_a_cost_that_no_strength_meets_or_every_one_does() -> None:
    assert largest_within(Budget("kl", 1.0), lambda _: 0.0)[0] == 8
    with pytest.raises(SettingError, match=r"no strength is within the budget kl:0.1: the cheapest .* 0.00781"):
        largest_within(Budget("kl", 0.1), lambda strength: 1 + strength)


@pytest.mark.parametrize("budget", ["ppl:1.05", "kl:0.05"])
def test_calibrate_measures_the_useful_range(tiny: Any, edit: Intervention, budget: str) -> None:
    found = edit.calibrate(tiny, NEUTRAL, budget, progress=False)
    assert found == edit
    assert edit.strengths is None
    assert found.strengths is not None
    low, largest = found.strengths
    assert low == 0
    quiet = replace(edit, strengths=(0.0, 8.0))  # a random model is as surprised by anything: far out is within it
    cost = Budget.of(budget).measure(tiny, NEUTRAL, lambda strength: quiet.on(tiny, strength), progress=False)
    assert cost(largest) <= Budget.of(budget).limit
    assert cost(largest * 1.02) > Budget.of(budget).limit
    about = found.provenance["calibration"]
    assert about["largest"] == largest
    assert {row["strength"] for row in about["measured"]} > {largest}


def test_calibrate_refuses_texts_that_were_seen(tiny: Any) -> None:
    train = ContrastSet(sentences(8, seed=1, must="sad"), sentences(8, seed=2, must="happy"))
    with pytest.raises(ContrastError, match="was made from"):
        AurA().fit(tiny, train).calibrate(tiny, train.target, progress=False)


def choose(tiny: Any, edit: Intervention, **settings: Any) -> StrengthChoice:
    given: dict[str, Any] = {
        "prompts": PROMPTS,
        "scorer": WordList(["sad", "cried", "bad", "small"]),
        "neutral": NEUTRAL,
    }
    run: dict[str, Any] = {"samples": 3, "max_new_tokens": 6, "progress": False}
    return choose_strength(tiny, edit, **{**given, **run, **settings})


def test_the_least_of_the_concept_within_the_budget(tiny: Any, edit: Intervention) -> None:
    choice = choose(tiny, edit, strengths=(2.0, 0.25, 0.5, -0.25), budget="kl:0.1")
    frame = choice.frame.set_index("strength")
    assert frame.index.tolist() == [-0.25, 0, 0.25, 0.5, 2]
    for strength in frame.index:
        cost = divergence(tiny, NEUTRAL[::2], intervention=edit, strength=strength, progress=False)
        assert frame.cost[strength] == pytest.approx(cost)
    assert (frame.within == (frame.cost <= 0.1)).all()
    assert not frame.within[2.0]
    assert frame.effect.isna().equals(~frame.within)
    candidates = frame[frame.within].drop(index=0.0)
    assert frame.effect[choice.chosen] == candidates.effect.min()
    assert frame.chosen.sum() == 1
    assert choice.evaluation is not None
    assert set(choice.evaluation.texts.prompt) == set(PROMPTS[1::2])
    assert choice.evaluation.settings["neutral"] == tuple(NEUTRAL[1::2])
    assert choice.cost == pytest.approx(
        divergence(tiny, NEUTRAL[1::2], intervention=edit, strength=choice.chosen or 0, progress=False)
    )
    assert f"Strength {choice.chosen:g}" in repr(choice)
    assert "chose nothing" in choice.sentence


def test_the_choice_sees_nothing_of_what_reports(tiny: Any, edit: Intervention) -> None:
    fresh = sentences(8, seed=6)
    others = [text if place % 2 == 0 else fresh[place] for place, text in enumerate(NEUTRAL)]
    prompts = [text if place % 2 == 0 else fresh[place] for place, text in enumerate(PROMPTS)]
    one, other = (
        choose(tiny, edit, prompts=p, neutral=n, budget="kl:1") for p, n in ((PROMPTS, NEUTRAL), (prompts, others))
    )
    assert one.frame.equals(other.frame)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.5, 0.9, ""), (0.5, 2, "was not shown to be within the budget"), (2, 3, "it is beyond the budget"),
     (float("nan"), float("nan"), "was not shown to be within the budget")],
)  # fmt: skip
def test_what_is_beyond_the_budget_elsewhere_is_said(
    tiny: Any, edit: Intervention, low: float, high: float, words: str
) -> None:
    """The strength is within the budget where it was chosen; the interval of the other texts' perplexity says more."""
    choice = choose(tiny, edit, strengths=(0.25,), budget="ppl:1.1")
    assert choice.evaluation is not None
    frame = choice.evaluation.frame.set_index("measure")
    frame.loc["cost", ["before", "after", "low", "high"]] = [10.0, 11.5, low, high]
    made = replace(choice, evaluation=replace(choice.evaluation, frame=frame.reset_index()))
    if words:
        assert words in made.sentence
        assert made.sentence.endswith(f"(1.15 times the perplexity [{1 + low / 10:.2f}, {1 + high / 10:.2f}])")
    else:
        assert made.sentence.endswith("texts that chose nothing")


def test_a_perplexity_budget_and_one_that_nothing_meets(tiny: Any, edit: Intervention) -> None:
    choice = choose(tiny, edit, strengths=(1.0, 2.0), budget="ppl:1")
    before = perplexity(tiny, NEUTRAL[::2], progress=False)
    costs = [perplexity(tiny, NEUTRAL[::2], intervention=edit, strength=s, progress=False) / before for s in (1.0, 2.0)]
    assert choice.frame.cost.tolist() == pytest.approx([1.0, *costs])
    choice = choose(tiny, edit, strengths=(2.0, 1.0), budget="kl:0")
    assert choice.chosen is None
    assert choice.evaluation is None
    assert "None of the strengths 1, 2 is within the budget kl:0: the cheapest, 1, costs" in choice.sentence
    assert choice.about()["chosen"] is None


def test_copies_of_a_text_never_choose_and_report(tiny: Any, edit: Intervention) -> None:
    choice = choose(tiny, edit, prompts=[*PROMPTS, *PROMPTS[::-1]], neutral=NEUTRAL + NEUTRAL[1:], budget="kl:1")
    assert choice.evaluation is not None
    assert set(choice.evaluation.texts.prompt) == set(PROMPTS[1::2])
    assert set(choice.evaluation.settings["neutral"]) == set(NEUTRAL[1::2])


def test_a_named_group_never_chooses_and_reports(tiny: Any, edit: Intervention) -> None:
    """Alternating rows would part both groups; rows without a name are as they are without groups."""
    groups = ["pets", "pets", "people", "people", None, "people"]
    choice = choose(tiny, edit, prompt_groups=groups, neutral_groups=[*"aaaabbbb"], budget="kl:1")
    assert choice.evaluation is not None
    assert set(choice.evaluation.texts.prompt) == {"the boy", "the girl", "the red"}
    assert set(choice.evaluation.settings["neutral"]) == set(NEUTRAL[4:])


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prompt_groups": ["one"] * 6}, "prompts are 6 in one block"),
        ({"neutral_groups": ["one"]}, "neutral texts are 8, and their groups 1"),
        ({"strengths": ()}, "strengths are finite"),
        ({"strengths": (0.0, 1.0)}, "other than 0"),
        ({"prompts": ["one"]}, "prompts are 1 in one block"),
        ({"neutral": ["one text"] * 4}, "neutral texts are 4 in one block"),
        ({"budget": "cheap"}, "a budget is"),
    ],
)
def test_refusals(tiny: Any, edit: Intervention, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        choose(tiny, edit, **settings)
