"""The ablation study: doses, controls drawn for the choice beside them, and verbs that follow from intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lens_steer as ls
from analyses import ablation, self_repair
from analyses.ablation import CHOICES, CONCEPT, EXPERTS, LINEAS, MATCHED, RANDOM, SHUFFLED
from analyses.measurements import PERPLEXITY
from tests.analyses.contrasts import GENERATION, contrast
from tests.analyses.verbs import FEW, changes, check_doses, check_verbs

SMALL: dict[str, Any] = {
    **GENERATION,
    "ks": (2, 6),
    "draws": 2,
    "fit_texts": 6,
    "gamma_shares": (0.5, 0.2),
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ablation") / "run"


@pytest.fixture(scope="module")
def study(tiny: Any, out: Path) -> ls.Study:
    return ablation.run(tiny, contrast("sad", "happy"), out=out, **SMALL)


def test_every_choice_is_measured_at_every_dose(study: ls.Study) -> None:
    doses = study.frames["dose_response"]
    assert set(doses["choice"]) == {*CHOICES, *MATCHED.values(), RANDOM, SHUFFLED}
    assert (doses.groupby(["choice", "k"])["measure"].nunique() == 2).all()
    assert set(doses.loc[~doses["choice"].isin(CHOICES), "draws"]) == {2}
    np.testing.assert_allclose(doses["after"] - doses["before"], doses["change"], atol=1e-12)
    np.testing.assert_allclose(doses.groupby("measure")["before"].agg(np.ptp), 0, atol=1e-9)  # one unedited model


def test_self_repair_is_read_at_the_largest_dose(study: ls.Study) -> None:
    repair = study.frames["self_repair"]
    largest = study.frames["dose_response"].groupby("choice")["k"].max()
    assert set(repair["choice"]) <= set(CHOICES)
    assert (repair["k"] == repair["choice"].map(largest)).all()
    assert (repair.groupby("choice")["part"].agg(lambda parts: list(parts).count("through")) == 1).all()
    for choice in repair["choice"].unique():
        assert sum(choice in line and "later components" in line.lower() for line in study.summary) == 1


@pytest.mark.parametrize(
    ("high", "expected"), [([-0.1, -0.5], 16.0), ([-0.4, -0.6], 4.0), ([-0.1, -0.2], np.nan), ([np.nan] * 2, np.nan)]
)
def test_the_smallest_dose_that_halves_is_one_that_was_shown_to(high: list[float], expected: float) -> None:
    rows = {"choice": EXPERTS, "k": [4, 16], "measure": CONCEPT, "before": 0.8, "high": high}
    halved = self_repair.halving(pd.DataFrame(rows), [EXPERTS], CONCEPT)
    np.testing.assert_equal(halved["k"].to_list(), [expected])
    said = self_repair.halving_sentence(halved, "it")
    assert (f"{expected:.0f} {EXPERTS}" in said) == np.isfinite(expected)
    assert ("not shown at any dose" in said) == np.isnan(expected)


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        ((-0.4, -0.1), "take back some"),
        ((0.1, 0.4), "add to what"),
        ((-0.1, 0.1), "not shown"),
        ((np.nan,) * 2, "cannot"),
    ],
)
def test_what_is_said_of_self_repair_follows_from_intervals(ends: tuple[float, float], said: str) -> None:
    row = {"choice": EXPERTS, "k": 6, "value": 0.0, "low": ends[0], "high": ends[1]}
    frame = pd.DataFrame([{**row, "part": "through", "layer": None}, {**row, "part": "mlp", "layer": 1}])
    sentence = self_repair.repair_sentence(frame, EXPERTS)
    assert said in sentence
    words = {"take back some": "takes some of it back: MLP 1", "add to what": "adds to it: MLP 1"}
    assert words.get(said, "") in sentence


def test_the_same_seed_gives_the_same_frames_and_the_folder_holds_them(study: ls.Study, tiny: Any, out: Path) -> None:
    again = ablation.run(tiny, contrast("sad", "happy"), out=None, **SMALL)
    saved = ls.Study.load(out)
    for name, frame in study.frames.items():
        pd.testing.assert_frame_equal(again.frames[name], frame)
        pd.testing.assert_frame_equal(saved.frames[name], frame)
    assert saved.summary == study.summary == again.summary


def test_a_choice_stands_against_the_mean_of_its_controls_draws(study: ls.Study) -> None:
    doses: Any = study.frames["dose_response"].set_index(["choice", "k", "measure"])
    against = study.frames["against_controls"]
    assert set(against["control"]) == {*MATCHED.values(), RANDOM, SHUFFLED}
    for row in against[against["measure"] == CONCEPT].to_dict("records"):
        chosen, control = (doses.loc[row[which], row["k"], row["measure"]] for which in ("choice", "control"))
        assert row["after"] == pytest.approx(chosen["after"], abs=1e-12)
        assert row["before"] == pytest.approx(control["after"], abs=1e-12)
    # Two draws show nothing of how draws vary.
    assert against["low"].isna().all()
    assert "20 are needed" in study.summary[0]


@pytest.mark.parametrize("choice", CHOICES)
def test_either_choice_has_matched_units_of_its_own(study: ls.Study, choice: str) -> None:
    units = study.frames["chosen_units"]
    chosen = units[units["choice"] == choice].set_index("rank")
    named = set(zip(chosen["site"], chosen["unit"], strict=True))
    matched = units[units["choice"] == MATCHED[choice]]
    for _, draw in matched.groupby("draw"):
        drawn = draw.set_index("rank")
        assert (drawn["site"] == chosen["site"]).all()
        places = set(zip(drawn["site"], drawn["unit"], strict=True))
        assert len(places) == len(drawn)
        assert not places & named
    far = units[units["choice"] == RANDOM]

    def distance(rows: pd.DataFrame) -> float:
        known = rows[rows["rank"] <= len(chosen)]
        gaps = [known[column].to_numpy() - known["rank"].map(chosen[column]).to_numpy()
                for column in ("token_mean", "token_std")]  # fmt: skip
        return float(np.abs(gaps).mean())

    assert distance(matched) < distance(far)


def test_a_selection_keeps_the_order_in_which_units_enter_the_path(tiny: Any) -> None:
    texts = contrast("sad", "happy")
    acts = ls.collect(tiny, texts, "mlp.hook_post")
    lineas = ls.LinEAS(sites="mlp.hook_post")
    path = lineas.path(tiny, texts, gammas=[share * lineas.gamma_max(tiny, texts) for share in (0.6, 0.2)])
    order = ablation._entrance_order(path.interventions, acts)
    first, second = (edit.units() for edit in path.interventions)
    assert set(order[: len(first)]) == set(first)
    assert set(order) == set(first) | set(second)


@st.composite
def frames(draw: st.DrawFn) -> dict[str, pd.DataFrame]:
    ks = (4, 16)
    reached = draw(st.sampled_from([(), (4,), ks]))
    at = {EXPERTS: ks, LINEAS: reached, MATCHED[EXPERTS]: ks, MATCHED[LINEAS]: reached, RANDOM: ks, SHUFFLED: ks}
    doses = [
        {"choice": choice, "k": k, "draws": 1, "measure": measure, **draw(changes())}
        for choice, doses in at.items()
        for k in doses
        for measure in (CONCEPT, PERPLEXITY)
    ]
    against = [
        {"choice": choice, "control": control, "k": k, "measure": measure, "draws": 20, **draw(changes())}
        for choice in CHOICES
        for control in (MATCHED[choice], RANDOM)
        for k in at[choice]
        for measure in (CONCEPT, PERPLEXITY)
    ]
    units = [{"choice": EXPERTS, "rank": 1, "heldout_auroc": 0.9, "token_mean": 1.0, "token_std": 1.0}]
    return {
        "dose_response": pd.DataFrame(doses),
        "against_controls": pd.DataFrame(against),
        "chosen_units": pd.DataFrame(units),
    }


@FEW
@given(frames())
def test_verbs_follow_from_intervals(tables: dict[str, pd.DataFrame]) -> None:
    summary = ablation.summary("sad", tables, (4, 16), "held-out target texts")
    doses, against = tables["dose_response"], tables["against_controls"]
    reached = LINEAS in set(doses["choice"])
    assert check_verbs(summary) == (9 if reached else 5)
    matched = against[(against["choice"] == EXPERTS) & (against["control"] == MATCHED[EXPERTS])]
    check_doses(summary[0], matched[matched["measure"] == CONCEPT], "k")


@pytest.mark.parametrize("mode", ["zero", "resample"])
def test_units_are_held_as_the_mode_says(tiny: Any, mode: str) -> None:
    study = ablation.run(tiny, contrast("sad", "happy"), out=None, **{**SMALL, "mode": mode, "ks": (2,), "draws": 1})
    assert study.interventions["experts"].provenance["method"] == f"ablate {mode}"


@pytest.mark.parametrize(
    ("setting", "culprit"),
    [
        ({"ks": ()}, "doses lie between"),
        ({"ks": (0, 2)}, "doses lie between"),
        ({"ks": (2, 200)}, "doses lie between"),
        ({"draws": 0}, "draws=0"),
        ({"mode": "Zero"}, "mode='Zero': choose one of 'zero', 'mean'"),
    ],
)
def test_impossible_settings_are_refused_before_the_work(
    tiny: Any, setting: dict[str, Any], culprit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ls, "collect", pytest.fail)
    with pytest.raises(ls.LensSteerError, match=culprit):
        ablation.run(tiny, contrast("sad", "happy"), out=None, **{**SMALL, **setting})
