"""What stands in the place of a model, a contrast, an edit, activations or a number is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import lens_steer as ls
from tests.families import sentences
from tests.methods.contract import METHODS

pytestmark = pytest.mark.plain  # a type check would speak first

TEXTS: Any = sentences(8, seed=1)
HELD = ls.ContrastSet(TEXTS, sentences(8, seed=2))
NAME: Any = "gpt2"
SITES = "mlp.hook_post"


@pytest.fixture(scope="module")
def edit(tiny: Any) -> ls.Intervention:
    return ls.ablate(["blocks.0.mlp.hook_post[1]"], model=tiny)


def scorer(texts: list[str]) -> list[float]:
    return [0.0 for _ in texts]


WRONG_MODELS: list[Callable[[Any], object]] = [
    lambda model: ls.collect(model, HELD, SITES),
    lambda model: ls.generate(model, TEXTS, max_new_tokens=1),
    lambda model: ls.perplexity(model, TEXTS),
    lambda model: ls.LinEAS().fit(model, HELD),
]


@pytest.mark.parametrize("call", WRONG_MODELS)
def test_no_model_is_refused_and_so_is_one_in_training_mode(call: Callable[[Any], object], tiny: Any) -> None:
    for given in (NAME, HELD, None):
        with pytest.raises(ls.LensSteerError, match="a TransformerLens model is needed, not"):
            call(given)
    tiny.train()
    try:
        with pytest.raises(ls.LensSteerError, match="training mode"):
            call(tiny)
    finally:
        tiny.eval()


@pytest.mark.parametrize("name", METHODS)
def test_a_fit_is_refused_without_a_contrast(name: str, tiny: Any) -> None:
    with pytest.raises(ls.LensSteerError, match=r"(needs a|a) contrast.* not list"):
        METHODS[name].fit(tiny, TEXTS)


def test_measures_are_refused_without_a_contrast(tiny: Any, edit: ls.Intervention) -> None:
    for call in (ls.downstream_shift, ls.trace_shift, ls.edit_card):
        with pytest.raises(ls.LensSteerError, match="a contrast is needed, not list"):
            call(tiny, edit, TEXTS)
    with pytest.raises(ls.LensSteerError, match="a contrast is needed, not list"):
        ls.ConceptClassifier.fit(TEXTS)


def test_the_name_of_an_edit_is_refused_in_its_place(tiny: Any, edit: ls.Intervention) -> None:
    calls: list[Callable[[Any], object]] = [
        lambda given: ls.generate(tiny, TEXTS, intervention=given),
        lambda given: ls.downstream_shift(tiny, given, HELD),
        lambda given: ls.trace_shift(tiny, given, HELD),
        lambda given: ls.generated_shift(tiny, given, HELD),
        lambda given: ls.interaction(tiny, [edit, given], HELD),
        lambda given: ls.evaluate(tiny, given, prompts=TEXTS, scorer=scorer, neutral=TEXTS),
        lambda given: ls.choose_strength(tiny, given, prompts=TEXTS, scorer=scorer, neutral=TEXTS),
        lambda given: ls.edit_card(tiny, given, HELD),
        lambda given: ls.bake(tiny, given),
        lambda given: ls.compose(edit, given),
        lambda given: ls.collisions(edit, given),
        lambda given: edit.then(given),
    ]
    for call in calls:
        with pytest.raises(ls.LensSteerError, match="an intervention is needed, not 'runs/edit'"):
            call("runs/edit")


def test_activations_and_numbers_are_asked_for_by_name(tiny: Any, edit: ls.Intervention) -> None:
    wrong: Any = HELD
    for ranked in (ls.rank_experts, ls.probe_sites):
        with pytest.raises(ls.LensSteerError, match="activations are needed, not ContrastSet"):
            ranked(wrong)
    numbers: list[tuple[str, Any, str]] = [
        ("strength", "1", "strength is a number"),
        ("strength", None, "strength is a number"),
        ("temperature", "hot", "temperature is a number, not 'hot'"),
        ("max_new_tokens", 2.5, "max_new_tokens is a whole number, not 2.5"),
        ("seed", "a", "seed is a whole number"),
    ]
    for name, value, says in numbers:
        with pytest.raises(ls.LensSteerError, match=says):
            ls.generate(tiny, TEXTS, intervention=edit, **{name: value})
    for given in (None, 3):
        with pytest.raises(ls.LensSteerError, match="a model is a hub name"):
            ls.load_model(given)
