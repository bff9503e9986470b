"""The ablation study: its doses and controls, and that its sentences follow from its frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import lens_steer as ls
from analyses import ablation
from tests.analyses.contrasts import GENERATION, contrast

SMALL: dict[str, Any] = {
    **GENERATION,
    "ks": (2, 6),
    "draws": 2,
    "fit_texts": 6,
    "gamma_shares": (0.5, 0.2),
    "steps": 6,
    "lr": 0.01,
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ablation") / "run"


@pytest.fixture(scope="module")
def study(tiny: Any, out: Path) -> ls.Study:
    return ablation.run(tiny, contrast("sad", "happy"), out=out, **SMALL)


def test_every_choice_is_measured_at_every_dose(study: ls.Study) -> None:
    doses = study.frames["dose_response"]
    columns = ["choice", "k", "draws", "measure", "before", "after", "change", "low", "high"]
    assert doses.columns.tolist() == columns
    choices = [ablation.EXPERTS, ablation.LINEAS, ablation.MATCHED, ablation.RANDOM, ablation.SHUFFLED]
    assert set(doses["choice"]) == set(choices)
    assert (doses.groupby(["choice", "k"])["measure"].nunique() == 2).all()
    np.testing.assert_allclose(doses["after"] - doses["before"], doses["change"], atol=1e-12)
    assert (doses.groupby("measure")["before"].nunique() == 1).all()  # one unedited model
    assert ((doses["low"] <= doses["high"]) | doses["low"].isna()).all()


def test_the_same_seed_gives_the_same_frames_and_the_folder_holds_them(study: ls.Study, tiny: Any, out: Path) -> None:
    again = ablation.run(tiny, contrast("sad", "happy"), out=None, **SMALL)
    saved = ls.Study.load(out)
    for name, frame in study.frames.items():
        pd.testing.assert_frame_equal(again.frames[name], frame)
        pd.testing.assert_frame_equal(saved.frames[name], frame)
    assert saved.summary == study.summary == again.summary


def test_differences_are_those_of_the_doses(study: ls.Study) -> None:
    doses: Any = study.frames["dose_response"].set_index(["choice", "k", "measure"])
    for row in study.frames["against_controls"].to_dict("records"):
        chosen, control = (doses.loc[row[which], row["k"], row["measure"]] for which in ("choice", "control"))
        assert row["difference"] == pytest.approx(chosen["after"] - control["after"], abs=1e-12)


def test_matched_units_lie_at_the_experts_sites_and_are_none_of_them(study: ls.Study) -> None:
    units = study.frames["chosen_units"]
    experts = units[units["choice"] == ablation.EXPERTS].set_index("rank")
    named = set(zip(experts["site"], experts["unit"], strict=True))
    matched = units[units["choice"] == ablation.MATCHED]
    for _, draw in matched.groupby("draw"):
        drawn = draw.set_index("rank")
        assert (drawn["site"] == experts["site"]).all()
        here = set(zip(drawn["site"], drawn["unit"], strict=True))
        assert len(here) == len(drawn)
        assert not here & named
    far = units[units["choice"] == ablation.RANDOM]

    def distance(rows: pd.DataFrame) -> float:
        gaps = rows["token_mean"].to_numpy() - rows["rank"].map(experts["token_mean"]).to_numpy()
        return float(np.abs(gaps).mean())

    assert distance(matched) < distance(far)


def test_a_selection_keeps_the_order_in_which_units_enter_the_path(tiny: Any) -> None:
    texts = contrast("sad", "happy")
    acts = ls.collect(tiny, texts, "mlp.hook_post")
    lineas = ls.LinEAS(sites="mlp.hook_post", steps=6, lr=0.01)
    path = lineas.path(tiny, texts, gammas=[share * lineas.gamma_max(tiny, texts) for share in (0.6, 0.2)])
    order = ablation._entrance_order(path.interventions, acts)
    first, second = (edit.units() for edit in path.interventions)
    assert set(order[: len(first)]) == set(first)
    assert set(order) == set(first) | set(second)


def doses(difference: float, low: float, high: float) -> tuple[pd.DataFrame, pd.DataFrame]:
    effects = pd.DataFrame(
        [
            {"choice": ablation.EXPERTS, "control": ablation.MATCHED, "k": 4, "measure": "concept",
             "difference": difference, "low": low, "high": high}
        ]
    )  # fmt: skip
    rows = [{"choice": ablation.EXPERTS, "k": 4, "measure": "concept", "before": 0.5, "after": 0.25}]
    return effects, pd.DataFrame(rows)


def test_a_verdict_follows_from_the_interval() -> None:
    def said(*difference: float) -> str:
        effects, table = doses(*difference)
        return ablation._verdict("sad", ablation.EXPERTS, effects, table)

    assert "from 0.500 to 0.250" in said(-0.2, -0.3, -0.1)
    assert "no more than" in said(-0.2, -0.4, 0.1)
    assert "raise it" in said(0.2, 0.1, 0.3)
    assert "no more than" in said(0.0, float("nan"), float("nan"))


def test_costs_in_the_sentences_are_those_of_the_frame(study: ls.Study) -> None:
    table = study.frames["dose_response"]
    row = table[(table["choice"] == ablation.EXPERTS) & (table["measure"] == "perplexity")].iloc[-1]
    assert f"from {row['before']:.1f} to {row['after']:.1f}" in " ".join(study.summary)


@pytest.mark.parametrize("ks", [(), (0, 2), (2, 200)])
def test_impossible_doses_are_refused(tiny: Any, ks: tuple[int, ...]) -> None:
    with pytest.raises(ls.LensSteerError, match="doses lie between"):
        ablation.run(tiny, contrast("sad", "happy"), out=None, **{**SMALL, "ks": ks})
