"""The course of a descent: its smallest loss so far, and how many steps were taken back, by gradients."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import lens_steer as ls
from analyses.lineas_descents import DEFAULT, SHARES, WEIGHTED, beside_others, course, held_out, run
from tests.families import sentences


def test_the_smallest_objective_so_far_counts_and_one_that_is_not_finite_does_not() -> None:
    losses = [4.0, float("nan"), 9.0, 3.0, *[3.5] * 7, 1.0]
    history = pd.DataFrame(
        {"objective": losses, "support": range(12), "event": ["", "not finite", "far above", *[""] * 9]}
    )
    assert list(course("SGD 1", history)) == [
        {"descent": "SGD 1", "gradients": 1, "objective": 4.0, "support": 0, "taken_back": 0},
        {"descent": "SGD 1", "gradients": 10, "objective": 3.0, "support": 9, "taken_back": 2},
        {"descent": "SGD 1", "gradients": 12, "objective": 1.0, "support": 11, "taken_back": 2},
    ]


def test_every_descent_starts_at_the_identitys_loss(tiny: Any) -> None:
    contrast = ls.ContrastSet(sentences(6, seed=1, must="sad"), sentences(6, seed=2, must="happy"))
    frame = run(tiny, contrast, sites="paper:lineas", rates=(0.1,), steps=3)
    starts = frame[frame["gradients"] == 1].set_index("descent")["objective"]
    assert set(starts.index) == {DEFAULT, "SGD 0.1"}
    identity = ls.LinEAS(sites="paper:lineas").loss_of(tiny, contrast)
    assert starts.tolist() == pytest.approx([identity] * 2, rel=1e-5)
    assert frame.groupby("descent")["gradients"].max()["SGD 0.1"] == 3


def test_both_descents_lower_the_same_objective_at_a_share(tiny: Any) -> None:
    contrast = ls.ContrastSet(sentences(6, seed=1, must="sad"), sentences(6, seed=2, must="happy"))
    frame = run(tiny, contrast, sites="paper:lineas", rates=(0.01,), steps=60, share=0.3)
    last = frame.groupby("descent")[["objective", "support"]].last()
    identity = ls.LinEAS(sites="paper:lineas").loss_of(tiny, contrast)
    assert (last["objective"] < identity).all()
    assert (last["support"] > 0).all()
    lineas = ls.LinEAS(sites="paper:lineas", shifts="activation", relax=False, gamma_share=0.3, progress=False)
    assert last["objective"][DEFAULT] > lineas.loss_of(tiny, contrast, lineas.fit(tiny, contrast))  # by the penalty


def test_every_descent_is_judged_on_the_same_other_texts(tiny: Any) -> None:
    contrast = ls.ContrastSet(sentences(32, seed=1, must="sad"), sentences(32, seed=2, must="happy"))
    others = ls.ContrastSet(sentences(32, seed=3, must="sad"), sentences(32, seed=4, must="happy"))
    frame = held_out(tiny, contrast, others, sites="paper:lineas", rates=(0.1,), steps=5)
    assert len(frame) == 2 + 3 * len(SHARES)
    dense = ls.LinEAS(sites="paper:lineas", gamma_share=0.0, progress=False)
    row = frame[(frame["fit"] == DEFAULT) & (frame["share"] == 0)].iloc[0]
    assert row["heldout_loss"] == pytest.approx(dense.loss_of(tiny, others, dense.fit(tiny, contrast)), rel=1e-5)
    assert row["heldout_identity"] == pytest.approx(dense.loss_of(tiny, others), rel=1e-5)
    assert (frame["loss"] <= frame["identity_loss"] * (1 + 1e-6)).all()
    assert frame["gradients"].isna().tolist() == frame["share"].isna().tolist()


def losses_of(concept: str, *, default: float, weighted: float, adam: float, sgd: float) -> pd.DataFrame:
    """Return rows as `held_out` writes them; at share 0 the default descent leaves nothing, which must not count."""
    losses = {(DEFAULT, np.nan): default, (WEIGHTED, np.nan): weighted, (DEFAULT, 0.0): 1e-9}
    losses |= {("Adam", 0.0): adam, ("Adam", 0.1): 9.0, ("SGD 0.1", 0.0): sgd}
    rows = [{"fit": fit, "share": share, "heldout_loss": loss} for (fit, share), loss in losses.items()]
    return pd.DataFrame(rows).assign(sites="mlp.hook_post", concept=concept)


def test_default_fits_stand_beside_the_best_of_the_others() -> None:
    frame = pd.concat(
        [
            losses_of("sad", default=1.0, weighted=2.0, adam=2.0, sgd=4.0),  # half of Adam's
            losses_of("dog", default=2.0, weighted=1.0, adam=2.0, sgd=1.0),  # twice SGD's
            losses_of("cat", default=4.0, weighted=3.0, adam=3.0, sgd=3.0),
        ]
    )
    beside = beside_others(frame).set_index("fit")
    logs = np.log([1 / 2, 2.0, 4 / 3])
    half = stats.t.ppf(1 - 0.025 / 2, 2) * logs.std(ddof=1) / math.sqrt(3)  # two rows: 97.5 % of each
    row = beside.loc[DEFAULT]
    assert row[["concepts", "above", "confidence"]].tolist() == [3, 2, 0.975]
    ends = [math.exp(logs.mean()), math.exp(logs.mean() - half), math.exp(logs.mean() + half)]
    assert row[["ratio", "low", "high"]].tolist() == pytest.approx(ends)
    assert beside.loc[WEIGHTED, ["ratio", "low", "high", "above"]].tolist() == [1.0, 1.0, 1.0, 0]  # alike: no spread


def test_one_concept_has_no_interval() -> None:
    beside = beside_others(losses_of("sad", default=1.0, weighted=2.0, adam=2.0, sgd=4.0))
    assert beside["ratio"].tolist() == [0.5, 1.0]
    assert beside[["low", "high"]].isna().all(axis=None)
