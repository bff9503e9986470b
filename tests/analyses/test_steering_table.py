"""The jobs of the table of methods on real models, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from analyses.steering_table import JOBS, METHODS, has_chat_template, neutral_pairs, prepared


@pytest.mark.parametrize("name", JOBS)
def test_prompts_are_different_and_every_second_one_is_of_every_kind(name: str) -> None:
    """One half of the prompts chooses, the other is reported on: no word that they vary stands on one side alone."""
    job = JOBS[name]
    for prompts, word in ((job.questions, 6), (job.beginnings, 4)):
        assert len(set(prompts)) == len(prompts) >= 18
        firsts = [{prompt.split()[word] for prompt in prompts[half::2]} for half in (0, 1)]
        assert firsts[0] & firsts[1] or name == "woman"  # whose prompts differ in one word each


def test_a_model_without_a_chat_template_goes_on_from_beginnings(tiny: Any) -> None:
    assert not has_chat_template(tiny)
    assert JOBS["sad"].prompts(tiny)[0].startswith("This is about ")
    assert not any("sentences" in beginning for job in JOBS.values() for beginning in job.beginnings)
    pairs = neutral_pairs(tiny, most=3)
    assert pairs
    assert not any("?" in prompt for prompt, _ in pairs)


@pytest.mark.real
def test_the_classifier_judges_texts_that_take_no_part(shared: Path) -> None:
    contrast, (words, classifier) = prepared(JOBS["sad"], chat=True)
    assert contrast.chat is True
    whole = JOBS["sad"].read()
    assert len(contrast.source) < len(whole.source)
    assert classifier.heldout_auroc > 0.8
    assert words(["She cried."]).tolist() == [1.0]
    assert METHODS == 17
