"""The jobs of the table of methods on real models, without a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from analyses.steering_table import JOBS, METHODS, prepared


@pytest.mark.parametrize("name", JOBS)
def test_prompts_are_different_and_every_second_one_is_of_every_kind(name: str) -> None:
    """One half of the prompts chooses, the other is reported on: no word that they vary stands on one side alone."""
    prompts = JOBS[name].prompts
    assert len(set(prompts)) == len(prompts) >= 18
    firsts = [{prompt.split()[6] for prompt in prompts[half::2]} for half in (0, 1)]
    assert firsts[0] & firsts[1] or name == "woman"  # whose prompts differ in one word each


@pytest.mark.real
def test_the_classifier_judges_texts_that_take_no_part(shared: Path) -> None:
    contrast, (words, classifier) = prepared(JOBS["sad"])
    assert contrast.chat is True
    whole = JOBS["sad"].read()
    assert len(contrast.source) < len(whole.source)
    assert classifier.heldout_auroc > 0.8
    assert words(["She cried."]).tolist() == [1.0]
    assert METHODS == 17
