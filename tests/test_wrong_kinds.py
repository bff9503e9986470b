"""What stands in the place of a model, a contrast, an edit, activations or a number is refused by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

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
        with pytest.raises(ls.LensSteerError, match=r"an [iI]ntervention.* not 'runs/edit': Intervention.load\(DIR\)"):
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


# Numbers in, numbers out, and what takes anything or says in its own words what it takes.
OWN_WORDS = {"load_model", "on_interrupt", "plot", "pooled_text", "resumable", "stream_texts", "study_command"}
PARTS: dict[Any, list[str]] = {
    ls.ConceptClassifier: ["fit"],
    ls.ContrastSet: ["lint", "shuffled", "split", "subsample"],
    ls.ExpertRanking: "concept confounds layers overlap specificity subgroups top units".split(),
    ls.Intervention: ["calibrate", "load", "save", "scaled", "support", "units"],
    ls.LinEAS: ["path"],
}
PUBLIC = [getattr(ls, name) for name in dir(ls) if name not in OWN_WORDS]
CALLS: list[Any] = [
    *(call for call in PUBLIC if inspect.isfunction(call) and ".statistics." not in call.__module__),
    *(getattr(owner, name) for owner, names in PARTS.items() for name in names),
    *{type(method) for method in METHODS.values()},
    *(ls.OracleScorer, ls.Scope, ls.Sketching, ls.Unit, ls.WordList),
]
WRONG: dict[str, list[Any]] = {
    "int": ["a", [], ["a"], True, 1.5, float("nan"), object()],
    "float": ["a", [], True, object()],
    "bool": ["yes", [], 1.5, None],
    "str": [[], 3, object()],
    "str | Path": [None, 3, [], True],
    "Pool": ["median", None, ["max"], {}],
    "Sequence[float]": ["a", 3, ["a"], None],
}
RIGHT: dict[str, Any] = {"int": 1, "str": "a", "str | Path": "a", "Unit | str": "a", "Mapping[str, str]": {}}
RIGHT |= {"str | PathLike[str]": "a", "Intervention | None": None, "Site": ls.Site(f"blocks.0.{SITES}", 0, SITES, 8)}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: str(call.__qualname__))
def test_a_setting_of_a_wrong_kind_is_refused_by_name(call: Any) -> None:
    """Before anything is made of the other arguments, which stand for nothing here."""
    taken = {name: one for name, one in inspect.signature(call).parameters.items() if one.kind not in VARIADIC}
    needed = {name: RIGHT.get(str(one.annotation), []) for name, one in taken.items() if one.default is one.empty}
    for name, one in taken.items():
        for wrong in WRONG.get(str(one.annotation), ()):
            with pytest.raises(ls.LensSteerError, match=rf": {name} is (a |True or|'max',)") as refused:
                call(**{**needed, name: wrong})
            assert f", not {wrong!r:.60}" in str(refused.value)


VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def test_what_passes_for_a_setting() -> None:
    """Numbers of numpy and torch, and lists where the hint says tuple; a mistake names what it is in short."""
    ls.LinEAS(steps=np.int64(3), gamma=np.float32(0.5), layers=[1, 2], progress=np.bool_(0))  # type: ignore[arg-type]
    HELD.split(torch.tensor(0.5))  # type: ignore[arg-type]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"steps": "a"}, "LinEAS: steps is a whole number or None, not 'a'"),
        ({"layers": "last"}, "LinEAS: layers is a list of whole numbers or None, not 'last'"),
        ({"layers": (1, "2")}, "LinEAS: layers is a list of whole numbers or None, not \\(1, '2'\\)"),
        ({"holdout": TEXTS}, r"LinEAS: holdout is a ContrastSet or None, not \['"),
    ]
    for settings, says in cases:
        with pytest.raises(ls.LensSteerError, match=says) as refused:
            ls.LinEAS(**settings)
        assert len(str(refused.value)) < 200


@pytest.mark.parametrize("answer", ["high", "0.5", [0.5]])
def test_a_scorer_that_gives_no_numbers_is_named(answer: Any, tiny: Any, edit: ls.Intervention) -> None:
    def wordy(texts: list[str]) -> list[Any]:
        return [answer for _ in texts]

    class Reader:
        name = "wordy"

        def __call__(self, texts: Any) -> Any:
            return wordy(texts)

        def read(self, prompts: Any, continuations: Any) -> Any:
            return SimpleNamespace(scores=wordy(continuations), shares={})

    settings: Any = {"prompts": sentences(4, seed=3), "neutral": sentences(4, seed=4), "max_new_tokens": 1}
    given: Any
    for given in (wordy, Reader()):
        for call in (ls.evaluate, ls.choose_strength):
            with pytest.raises(ls.LensSteerError, match="'wordy'"):
                call(tiny, edit, scorer=given, progress=False, **settings)


def test_a_whole_strength_is_a_strength(tiny: Any, edit: ls.Intervention) -> None:
    traced = [ls.trace_shift(tiny, edit, HELD, strength=strength, progress=False) for strength in (2, 2.0)]
    pd.testing.assert_frame_equal(traced[0].frame, traced[1].frame)
