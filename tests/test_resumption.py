"""Parts of long jobs: taken over by the same call alone, computed again where anything differs, gone at its end."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import lens_steer as ls
from analyses.experiment import as_study
from lens_steer.errors import LensSteerWarning
from lens_steer.evaluation import evaluation
from lens_steer.methods.end_to_end import EndToEndLoss
from lens_steer.resumption import Part, remembered, resumable
from tests.families import sentences


def broken_off(out: Path, model: Any, plan: dict[str, Any], starts: list[float], *, fails: bool) -> list[Part]:
    """Compute a part from each start; returns the parts, and counts in `plan` what was computed."""
    parts: list[Part] = []

    def compute(start: float) -> Callable[[], Part]:
        def computed() -> Part:
            COMPUTED.append(start)
            return Part({"value": start, "nothing": math.nan}, {"maps": torch.full((3,), start)})

        return computed

    with resumable(out, model=model, plan=plan):
        for start in starts:
            parts.append(remembered({"start": start}, compute(start)))
        if fails:
            raise ZeroDivisionError
    return parts


COMPUTED: list[float] = []


def test_only_the_same_call_takes_parts_over(tmp_path: Path, tiny: Any) -> None:
    out = tmp_path / "edit"
    with pytest.raises(ZeroDivisionError), pytest.warns(LensSteerWarning, match="2 finished parts kept in"):
        broken_off(out, tiny, {"seed": 0}, [0.1, 0.2], fails=True)
    COMPUTED.clear()
    broken_off(out, tiny, {"seed": 1}, [0.1, 0.2], fails=False)  # another plan
    assert COMPUTED == [0.1, 0.2]
    (kept,) = tmp_path.iterdir()
    (kept / "0001.safetensors").write_bytes(b"cut off")
    COMPUTED.clear()
    with pytest.warns(LensSteerWarning, match="going on from 2 finished parts"):
        first, second, third = broken_off(out, tiny, {"seed": 0}, [0.1, 0.2, 0.3], fails=False)
    assert COMPUTED == [0.2, 0.3]  # the damaged part and the new one
    assert first.values["value"] == 0.1
    assert math.isnan(first.values["nothing"])
    assert torch.equal(first.tensors["maps"], torch.full((3,), 0.1))
    assert (second.values["value"], third.values["value"]) == (0.2, 0.3)
    assert list(tmp_path.iterdir()) == []


def test_a_part_of_another_origin_is_computed_again(tmp_path: Path, tiny: Any) -> None:
    with pytest.raises(ZeroDivisionError), pytest.warns(LensSteerWarning):
        broken_off(tmp_path / "edit", tiny, {}, [0.1], fails=True)
    COMPUTED.clear()
    with pytest.warns(LensSteerWarning):
        broken_off(tmp_path / "edit", tiny, {}, [0.5], fails=False)
    assert COMPUTED == [0.5]


def test_work_goes_on_where_nothing_can_be_kept_and_outside_nothing_is(tmp_path: Path, tiny: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.warns(LensSteerWarning, match="not kept for a resumption"):
        assert broken_off(tmp_path / "file" / "edit", tiny, {}, [0.1], fails=False)[0].values["value"] == 0.1
    assert remembered({}, lambda: Part({"value": 1})).values["value"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_study_takes_its_evaluations_over(tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    edits = [ls.ablate([("blocks.0.mlp.hook_post", unit)], model=tiny) for unit in (1, 2)]
    contrast = ls.ContrastSet(sentences(4, seed=1), sentences(4, seed=2))
    fails, generated = [True], []
    generate = evaluation.generate

    def counted(*given: Any, **settings: Any) -> Any:
        generated.append(settings["intervention"])
        return generate(*given, **settings)

    monkeypatch.setattr(evaluation, "generate", counted)

    @as_study
    def run(model: Any, contrast: ls.ContrastSet, *, out: Path | None, seed: int = 0) -> ls.Study:
        frames = {}
        for name, edit in zip("ab", edits, strict=True):
            if name == "b" and fails[0]:
                raise ZeroDivisionError
            scorer = ls.WordList(["dog", "sad"])
            given: dict[str, Any] = {"prompts": ["the dog", "a cat"], "neutral": list(contrast.target)}
            frames[name] = ls.evaluate(model, edit, scorer=scorer, max_new_tokens=3, seed=seed, **given).texts
        return ls.Study(frames, {}, ["done"])

    whole = tmp_path / "whole"
    fails[0] = False
    expected = run(tiny, contrast, out=whole)
    fails[0] = True
    with pytest.raises(ZeroDivisionError), pytest.warns(LensSteerWarning, match="2 finished parts kept in"):
        run(tiny, contrast, out=tmp_path / "run")
    generated.clear()
    fails[0] = False
    with pytest.warns(LensSteerWarning, match="going on from 2 finished parts"):
        resumed = run(tiny, contrast, out=tmp_path / "run")
    assert generated == [None, edits[1]]  # not the first edit; before= is not used here
    for name in "ab":
        pd.testing.assert_frame_equal(resumed.frames[name], expected.frames[name])
    generated.clear()
    run(tiny, contrast, out=None)
    assert len(generated) == 4


def test_a_fit_that_is_taken_over_estimates_no_metric(
    tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    contrast = ls.ContrastSet(sentences(4, seed=1), sentences(4, seed=2))
    estimates = []
    curvature = EndToEndLoss.curvature

    def counted(loss: EndToEndLoss, **settings: Any) -> torch.Tensor:
        estimates.append(loss)
        return curvature(loss, **settings)

    def fit(*, fails: bool) -> None:
        with ls.resumable(tmp_path / "edit", model=tiny, plan={}):
            fitted.append(ls.LinEAS(gamma_share=0.1, steps=3, progress=False).fit(tiny, contrast))
            if fails:
                raise ZeroDivisionError

    fitted: list[ls.Intervention] = []
    monkeypatch.setattr(EndToEndLoss, "curvature", counted)
    with pytest.raises(ZeroDivisionError), pytest.warns(LensSteerWarning, match="1 finished part kept in"):
        fit(fails=True)
    with pytest.warns(LensSteerWarning, match="going on from 1 finished part"):
        fit(fails=False)
    assert len(estimates) == 1
    pd.testing.assert_frame_equal(fitted[1].history, fitted[0].history)
