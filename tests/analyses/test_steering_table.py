"""The jobs of the table of methods on real models, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import lens_steer as ls
from analyses.steering_table import (
    JOBS,
    METHODS,
    WORDS,
    Job,
    has_chat_template,
    main,
    neutral_pairs,
    over_seeds,
    prepared,
    run,
)
from tests.analyses.contrasts import contrast
from tests.families import sentences


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


def test_a_job_over_seeds_goes_on_from_the_seeds_that_are_done(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tuple(" ".join(text.split()[:4]) for text in sentences(8, seed=5))
    made = contrast("sad", "happy", n=150)
    monkeypatch.setitem(JOBS, "sad", Job(lambda: made, (), asked, tuple(WORDS["sad"])))
    settings: dict[str, Any] = {"only": ("CAA",), "reply_tokens": 6, "most_neutral": 10}
    whole = over_seeds(tiny, "sad", out=tmp_path / "whole", seeds=(1, 2), **settings)
    assert list(whole["methods"]["seed"].unique()) == [1, 2]
    assert list(whole["seeds"]["seed"].unique()) == ["1 2"]

    done = iter(range(1))

    def broken_off(*given: Any, **called: Any) -> ls.Study:
        if next(done, None) is None:
            raise RuntimeError
        return run(*given, **called)

    monkeypatch.setattr("analyses.steering_table.run", broken_off)
    with pytest.raises(RuntimeError), pytest.warns(ls.LensSteerWarning, match="kept in"):
        over_seeds(tiny, "sad", out=tmp_path / "broken", seeds=(1, 2), **settings)
    monkeypatch.setattr("analyses.steering_table.run", run)
    with pytest.warns(ls.LensSteerWarning, match="going on from"):
        again = over_seeds(tiny, "sad", out=tmp_path / "broken", seeds=(1, 2), **settings)
    timed = ["fit_seconds"]
    for name, frame in again.items():
        pd.testing.assert_frame_equal(frame.drop(columns=timed), whole[name].drop(columns=timed))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seeds", [(1,), (1, 2, 1)])
def test_seeds_that_cannot_show_how_seeds_vary_are_refused_before_a_run(
    seeds: tuple[int, ...], tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyses.steering_table.run", lambda *given, **called: pytest.fail("a study was run"))
    with pytest.raises(ls.LensSteerError, match="two or more, all different"):
        over_seeds(tiny, "sad", out=tmp_path / "out", seeds=seeds)


def test_random_edits_over_seeds_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setattr(
        "sys.argv", ["x", "--job", "sad", "--seeds", "1", "2", "--random-edits", "20", "--out", "a.csv"]
    )
    with pytest.raises(SystemExit):
        main()
    assert "give --seed in place of --seeds" in capsys.readouterr().err


@pytest.mark.real
def test_the_classifier_judges_texts_that_take_no_part(shared: Path) -> None:
    contrast, (words, classifier) = prepared(JOBS["sad"], chat=True)
    assert contrast.chat is True
    whole = JOBS["sad"].read()
    assert len(contrast.source) < len(whole.source)
    assert classifier.heldout_auroc > 0.8
    assert words(["She cried."]).tolist() == [1.0]
    assert METHODS == 17
