"""One frame of measurements: its intervals know prompts and draws, and random choices do not differ from each other."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import lens_steer as ls
from analyses.controls import random_choices
from analyses.experiment import Experiment, Measurement
from analyses.measurements import COLUMNS, PERPLEXITY, HeldOut, Measurements
from tests.analyses.contrasts import contrast

PROMPTS, TEXTS, SAMPLES = 40, 40, 2


def edit_rows(random: np.random.Generator, edit: str, draw: int, *, prompt: Any, text: Any, spread: float) -> list[Any]:
    """An edit of one law: its own effect, on prompts and texts that all edits share."""
    share = np.clip(prompt + spread * random.normal(), 0.02, 0.98)
    counted = random.binomial(SAMPLES, share, PROMPTS).astype(float)
    losses = 10 * (text + 0.3 * spread * random.normal() + 0.05 * random.normal(size=TEXTS))
    before = [np.full(PROMPTS, 1.0), 10 * text]
    parts = (("concept", counted, SAMPLES, before[0]), (PERPLEXITY, losses, 10.0, before[1]))
    return [
        (edit, draw, measure, when, row, value[row], of)
        for measure, after, of, first in parts
        for when, value in (("before", first), ("after", after))
        for row in range(len(after))
    ]


@pytest.mark.parametrize("spread", [0.0, 0.15])
def test_a_random_choice_differs_from_random_controls_at_the_nominal_rate(spread: float) -> None:
    """One more draw of the control stands against 20 of them, again and again."""
    random, runs, confidence = np.random.default_rng(3), 50, 0.95
    outside = {"concept": 0, PERPLEXITY: 0}
    for _ in range(runs):
        shared: dict[str, Any] = {"prompt": random.uniform(0.1, 0.6, PROMPTS), "text": random.uniform(1, 3, TEXTS)}
        rows = edit_rows(random, "choice", 0, spread=spread, **shared)
        for draw in range(20):
            rows += edit_rows(random, "control", draw, spread=spread, **shared)
        measurements = Measurements.of([pd.DataFrame(rows, columns=list(COLUMNS))], seed=0)
        for row in measurements.against("choice", "control", confidence=confidence):
            outside[row["measure"]] += not row["low"] <= 0 <= row["high"]
    for count in outside.values():
        assert stats.binomtest(count, runs, 1 - confidence, alternative="greater").pvalue > 0.005, outside


def test_a_choice_that_does_more_is_told_from_its_controls() -> None:
    random = np.random.default_rng(4)
    shared: dict[str, Any] = {"prompt": random.uniform(0.4, 0.6, PROMPTS), "text": random.uniform(1, 3, TEXTS)}
    rows = edit_rows(random, "choice", 0, spread=0.0, **{**shared, "prompt": shared["prompt"] - 0.3})
    for draw in range(20):
        rows += edit_rows(random, "control", draw, spread=0.02, **shared)
    measurements = Measurements.of([pd.DataFrame(rows, columns=list(COLUMNS))], seed=0)
    effect, _ = measurements.against("choice", "control")
    assert effect["high"] < 0
    assert effect["before"] == pytest.approx(
        np.mean([after for _, after in measurements.by_draw("control", "concept")])
    )


def test_few_draws_leave_nothing_to_judge() -> None:
    random = np.random.default_rng(5)
    shared: dict[str, Any] = {"prompt": np.full(PROMPTS, 0.5), "text": np.full(TEXTS, 2.0), "spread": 0.1}
    rows = edit_rows(random, "choice", 0, **shared) + edit_rows(random, "control", 0, **shared)
    measurements = Measurements.of([pd.DataFrame(rows, columns=list(COLUMNS))], seed=0)
    assert all(np.isnan(row["low"]) for row in measurements.against("choice", "control"))


@pytest.fixture(scope="module")
def heldout(tiny: Any) -> HeldOut:
    texts = contrast("sad", "happy")
    return HeldOut(
        tiny,
        prompts=ls.beginnings(texts.source, words=2, most=5),
        scorers={"concept": ls.WordList(["sad", "dog", "cat", "the"])},
        neutral=texts.target[:6],
        neutral_name="target texts",
        samples=2,
        max_new_tokens=6,
        chat=None,
        seed=0,
    )


def test_values_are_those_of_the_evaluation(tiny: Any, heldout: HeldOut) -> None:
    activations = ls.collect(tiny, contrast("cat", "tree", seed=7), "mlp.hook_post")
    choices = random_choices(activations.sites, 8, draws=3, seed=0)
    edits = [ls.ablate(units, mode="mean", activations=activations) for units in choices]
    measurements = Measurements.of(
        [heldout.measure(edit, "random", draw=draw) for draw, edit in enumerate(edits)], seed=0
    )
    results = [
        ls.evaluate(
            tiny, edit, prompts=heldout.prompts, scorer=heldout.scorers["concept"], neutral=heldout.neutral, samples=2,
            max_new_tokens=6, progress=False,
        )
        for edit in edits
    ]  # fmt: skip
    for measure, name in (("effect", "concept"), ("cost", PERPLEXITY)):
        for (before, after), result in zip(measurements.by_draw("random", name), results, strict=True):
            row = result.frame.set_index("measure").loc[measure]
            assert (before, after) == pytest.approx((row["before"], row["after"]))
    written = heldout.texts[heldout.texts["edit"] == "random"]
    assert len(written)
    assert written["after"].str.len().gt(0).all()


def test_a_random_choice_of_units_is_one_of_twenty_others(tiny: Any, heldout: HeldOut) -> None:
    activations = ls.collect(tiny, contrast("sad", "happy"), "mlp.hook_post")
    choices = random_choices(activations.sites, 40, draws=21, seed=1)
    edits = [ls.ablate(units, mode="zero") for units in choices]
    parts = [heldout.measure(edits[0], "choice")]
    parts += [heldout.measure(edit, "control", draw=draw) for draw, edit in enumerate(edits[1:])]
    for row in Measurements.of(parts, seed=0).against("choice", "control", confidence=0.99):
        assert row["low"] <= 0 <= row["high"]
        assert row["rank_p"] > 2 / 21
        assert row["draws"] == 20


def test_a_run_keeps_what_repeats_it(tiny: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words, texts = ls.WordList(["sad", "cry"], name="sad words"), contrast("sad", "happy")

    def run(model: Any, contrast: Any, *, out: Any, scorer: Any, second: Any, ks: Any, seed: int = 0) -> Any: ...

    given = {"model": tiny, "contrast": texts, "out": tmp_path / "run", "seed": 3, "ks": (1, 2)}
    experiment = Experiment.begin("ablation", run, {**given, "scorer": words, "second": texts})
    assert experiment.measurement == Measurement()
    monkeypatch.setattr("sys.argv", ["-c"])  # a notebook: there is no command line
    experiment.keep(ls.Study({}, {}, ["nothing was asked"]))
    kept = json.loads((tmp_path / "run" / "run.json").read_text())
    assert kept["settings"]["scorer"] == {"type": "WordList", "words": ["sad", "cry"], "name": "sad words"}
    assert kept["settings"]["second"]["data"] == kept["contrast"]["data"] == texts.data_hash
    assert kept["settings"]["ks"] == [1, 2]
    assert kept["command"].startswith("ablation.run(model, contrast, seed=3, ks=(1, 2), scorer=WordList(")


def test_an_occupied_place_is_refused_before_the_work(
    tiny: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from analyses import ablation, composition, demo, downstream, expert_ranking, lineas_selection, method_comparison

    (tmp_path / "file").write_text("mine")
    for name in ("collect", "evaluate", "find_sites", "rank_experts"):
        monkeypatch.setattr(ls, name, pytest.fail)
    for study in (ablation, composition, demo, downstream, expert_ranking, lineas_selection, method_comparison):
        more = {"second": contrast("cat", "tree")} if study is composition else {}
        with pytest.raises(ls.LensSteerError, match="already holds"):
            study.run(tiny, contrast("sad", "happy"), out=tmp_path, **more)
    assert (tmp_path / "file").read_text() == "mine"


def test_the_settings_of_a_measurement_are_settings_of_the_study_and_documented_once() -> None:
    import inspect

    from analyses import ablation, method_comparison

    for study in (ablation, method_comparison):
        parameters = inspect.signature(study.run).parameters
        assert {"scorer", "prompts", "most_neutral", "max_new_tokens"} <= set(parameters)
        assert "Continuations per prompt" in (study.run.__doc__ or "")
        assert "**measurement" not in (study.run.__doc__ or "")
    assert inspect.signature(method_comparison.run).parameters["most_prompts"].default == 200
    with pytest.raises(TypeError, match="sample_count"):
        ablation.run(None, contrast("sad", "happy"), out=None, sample_count=3)


@pytest.mark.parametrize(
    "name", ["ablation", "composition", "demo", "downstream", "lineas_selection", "method_comparison"]
)
@pytest.mark.filterwarnings("ignore:.*too few to hold a quarter out")
def test_an_interrupted_study_ends_and_publishes_nothing(
    request: pytest.FixtureRequest, tmp_path: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a fit alone would keep the best map so far, as at a prompt."""
    study: Any = import_module(f"analyses.{name}")
    steps = []

    def interrupted(self: Any, *given: Any) -> Any:
        steps.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr("lens_steer.methods.quasi_newton_descent.QuasiNewtonRun.step", interrupted)
    monkeypatch.setattr("sys.ps1", ">>> ", raising=False)
    words = ls.WordList(["sad", "dog"])
    settings: dict[str, Any] = {
        "ablation": {"ks": (2,), "scorer": words},
        "composition": {"second": contrast("cat", "tree", seed=7), "scorer": words, "second_scorer": words},
        "downstream": {"fits": 1},
        "lineas_selection": {"draws": 2, "scorer": words},
        "demo": {"draws": 1},
        "method_comparison": {"only": ("LinEAS",), "scorer": words},
    }[name]
    texts = ls.read_contrast("microworld:rude", n=8) if name == "demo" else contrast("sad", "happy", n=20)
    model = request.getfixturevalue("embedded" if name == "demo" else "tiny")
    with pytest.raises(KeyboardInterrupt):
        study.run(model, texts, out=tmp_path / "run", **settings)
    assert len(steps) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_cannot_judge_ends_before_it_fits(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from analyses import ablation

    for name in ("collect", "rank_experts"):
        monkeypatch.setattr(ls, name, pytest.fail)
    with pytest.raises(ls.LensSteerError, match="cannot judge"):
        ablation.run(tiny, contrast("sad", "happy").shuffled(1), out=None)
