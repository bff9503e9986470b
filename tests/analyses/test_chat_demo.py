"""The demo of a real model: its texts, its choices and controls, and verbs that follow from intervals."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lens_steer as ls
from analyses import chat_demo, steering_table
from analyses.chat_demo import CLASSIFIER, CONCEPT, EXPERTS, RANDOM, SHUFFLED
from analyses.sad_stories import SAD_WORDS, requests, sad_stories
from tests.analyses.contrasts import contrast
from tests.analyses.verbs import FEW, changes, check_verbs

QUESTIONS = [
    ("What is bread?", "Bread is a food made of flour."),
    ("What is tea?", "Tea is a hot drink made of leaves."),
    ("What is a map?", "A map shows where places lie."),
    ("What is the moon?", "The moon is a rock that circles us."),
]
SMALL: dict[str, Any] = {
    "neutral": QUESTIONS,
    "most_prompts": 4,
    "choosing": 2,
    "strengths": (2.0,),
    "fit_texts": 4,
    "draws": 2,
    "max_new_tokens": 4,
}


class TestTexts:
    def test_every_request_has_a_sad_and_a_happy_reply_of_one_length(self) -> None:
        texts = sad_stories()
        assert len(texts.source) == len(texts.target) == len(np.unique(texts.blocks)) >= 64
        for (asked, sad), (also_asked, happy) in zip(texts.source, texts.target, strict=True):
            assert asked == also_asked
            assert sad != happy
            assert sad.count(".") == happy.count(".") == 2
        words = [[len(reply.split()) for _, reply in side] for side in (texts.source, texts.target)]
        assert abs(np.mean(words[0]) - np.mean(words[1])) < 1

    def test_both_halves_keep_pairs_together_and_train_a_classifier(self) -> None:
        for half in sad_stories().split(test=0.5, seed=0):
            assert half.source
            assert [asked for asked, _ in half.source] == [asked for asked, _ in half.target]
            assert ls.ConceptClassifier.fit(half, seed=0).heldout_low > 0.5

    def test_the_words_tell_the_sides_apart(self) -> None:
        scorer, texts = ls.WordList(SAD_WORDS), sad_stories()
        shares = [scorer([reply for _, reply in side]).mean() for side in (texts.source, texts.target)]
        assert shares[0] > 0.8
        assert shares[1] < 0.05

    def test_no_request_is_of_the_fit_or_holds_a_sad_word(self) -> None:
        asked = requests()
        assert len(set(asked)) == len(asked) == 64
        assert not set(asked) & {request for request, _ in sad_stories().source}
        assert not ls.WordList(SAD_WORDS)(asked).any()
        assert (
            len({re.split(" about | and ", prompt)[1] for prompt in asked[:16]}) > 4
        )  # those that choose: of many kinds


class TestRun:
    @pytest.fixture(scope="class")
    def study(self, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[ls.Study, Path]:
        out = tmp_path_factory.mktemp("demo") / "run"
        words = ls.WordList(["the"], name="words")
        asked = [f"word {number}" for number in range(6)]
        given = {
            **SMALL,
            "layer": 0,
            "units": 5,
            "scorer": words,
            "prompts": asked,
            "neutral": [a for _, a in QUESTIONS],
        }
        return chat_demo.run(tiny, contrast("sad", "happy", n=48), out=out, **given), out

    def test_controls_have_as_many_units_moved_as_far(self, study: tuple[ls.Study, Path]) -> None:
        effect = study[0].frames["effect"]
        assert set(effect["edit"]) == {EXPERTS, SHUFFLED, RANDOM}
        assert set(effect["units"]) == {5}
        assert effect.groupby("edit")["draws"].first().to_dict() == {EXPERTS: 1, SHUFFLED: 2, RANDOM: 2}
        assert (
            effect["before"].round(9).groupby(effect["measure"]).nunique(dropna=False).eq(1).all()
        )  # one unedited model beside all
        assert (study[0].frames["divergence"]["kl"] > 0).all()

    def test_the_saved_edit_moves_the_best_units_at_the_chosen_strength(self, study: tuple[ls.Study, Path]) -> None:
        result, out = study
        assert ls.Study.load(out).summary == result.summary
        assert len(result.interventions["edit"].units()) == 5
        assert result.frames["strengths"]["chosen"].tolist() == [True]
        assert result.captions["experts"] != result.captions["edit"]  # a table and an edit of one name would share one
        page = ls.write_report(out.parent / "report.html", out).read_text(encoding="utf-8")
        assert "the share of replies with words" in page

    def test_too_few_prompts_are_refused(self, tiny: Any) -> None:
        with pytest.raises(ls.LensSteerError, match="give two prompts or more"):
            chat_demo.run(
                tiny,
                contrast("sad", "happy", n=48),
                out=None,
                prompts=["a", "b"],
                scorer=ls.WordList(["the"]),
                choosing=1,
            )


def test_controls_have_the_norm_of_the_edit(tiny: Any) -> None:
    texts = contrast("sad", "happy").subsample(6)
    whole = ls.CAA(layers=(0,), pool="mean").fit(tiny, texts.swap())
    edit = whole.restrict([ls.Unit(whole.sites[0], index) for index in (1, 4, 9)])
    here = ls.collect(tiny, texts, whole.sites[0].name, pool="mean", progress=False)
    size = torch.tensor(edit.to_frame()["shift"].to_numpy()).norm()
    made = chat_demo.controls(tiny, edit, here, texts, draws=3, seed=0)
    assert [job.kind for job in made] == [SHUFFLED] * 3 + [RANDOM] * 3
    for job in made:
        shift = torch.tensor(job.edit.to_frame()["shift"].to_numpy())
        assert int((shift != 0).sum()) == 3
        assert shift.norm() == pytest.approx(float(size), rel=1e-4)
        if job.kind == RANDOM:
            assert not set(job.edit.units()) & set(edit.units())


def test_the_best_units_lie_furthest_from_a_half_on_either_side() -> None:
    site = ls.Site("blocks.0.hook_resid_post", 0, "hook_resid_post", 4)
    frame = pd.DataFrame(
        {"site": [site.name] * 4 + ["other"], "unit": [0, 1, 2, 3, 0], "auroc": [0.6, 0.1, 0.5, 0.8, 1.0]}
    )
    assert [unit.index for unit in chat_demo.best_at(frame, site, 2)] == [1, 3]
    with pytest.raises(ls.LensSteerError, match="has 4 units"):
        chat_demo.best_at(frame, site, 5)


@pytest.mark.parametrize(
    ("costs", "scores", "budget", "strength"),
    [
        ((1.1, 1.3, 1.7), (0.1, 0.3, 0.9), 1.6, 2.0),  # the most within the budget
        ((1.1, 1.3, 1.5), (0.3, 0.3, 0.3), 1.6, 1.0),  # of equals the smallest
        ((1.9, 1.8, math.inf), (0.1, 0.3, 0.9), 1.6, 2.0),  # none within it: the cheapest
    ],
)
def test_the_strength_is_chosen_within_the_budget(
    costs: tuple[float, ...], scores: tuple[float, ...], budget: float, strength: float
) -> None:
    tried = [
        {"strength": place, "times_perplexity": cost, f"{CONCEPT}_after": score}
        for place, cost, score in zip((1.0, 2.0, 3.0), costs, scores, strict=True)
    ]
    assert chat_demo.best_strength(tried, budget) == strength


@st.composite
def frames(draw: st.DrawFn) -> dict[str, pd.DataFrame]:
    effect = [
        {"edit": edit, "measure": measure, "units": 3, "draws": 5, **draw(changes())}
        for edit in (EXPERTS, SHUFFLED, RANDOM)
        for measure in (CONCEPT, CLASSIFIER, "perplexity")
    ]
    against = [{"control": control, "measure": CONCEPT, **draw(changes())} for control in (SHUFFLED, RANDOM)]
    best = {"site": "blocks.0.mlp.hook_post", "unit": 1, "heldout_auroc": 0.9, "heldout_low": 0.8, "heldout_high": 1.0}
    return {
        "effect": pd.DataFrame(effect),
        "against_controls": pd.DataFrame(against),
        "divergence": pd.DataFrame([{"edit": EXPERTS, "kl": 0.2}]),
        "experts": pd.DataFrame([best]),
    }


@FEW
@given(frames())
def test_verbs_follow_from_intervals(tables: dict[str, pd.DataFrame]) -> None:
    about = {"stream": 576, "site": "blocks.1.hook_resid_post", "strength": 2.0}
    heldout: Any = SimpleNamespace(
        scorers={CONCEPT: ls.WordList(["sad"], name="sad words")}, neutral_name="neutral texts", prompts=range(48)
    )
    summary = chat_demo.summary("sad", tables, about, heldout)
    assert check_verbs(summary) >= 7  # comparisons are counted where there is no interval only


@pytest.mark.llm
def test_the_whole_demo_at_test_size(smollm2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_demo, "sad_stories", lambda: sad_stories().subsample(40))
    study = chat_demo.smollm2(smollm2, out=tmp_path / "run", **SMALL)
    assert set(study.frames["effect"]["units"]) == {150}
    assert ls.Study.load(tmp_path / "run").summary == study.summary


@pytest.mark.llm
def test_neutral_pairs_are_questions_with_the_models_own_replies(smollm2: Any) -> None:
    pairs = steering_table.neutral_pairs(smollm2, most=3, reply_tokens=8)
    assert 0 < len(pairs) <= 3
    for asked, reply in pairs:
        assert asked.endswith("?")
        assert len(reply.split()) > 3
