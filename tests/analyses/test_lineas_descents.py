"""The course of a descent: its smallest loss so far, and how many steps were taken back, by gradients."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

import lens_steer as ls
from analyses.lineas_descents import DEFAULT, course, run
from tests.families import sentences


def test_the_smallest_loss_so_far_counts_and_a_loss_that_is_not_finite_does_not() -> None:
    losses = [4.0, float("nan"), 9.0, 3.0, *[3.5] * 7, 1.0]
    history = pd.DataFrame({"loss": losses, "event": ["", "not finite", "far above", *[""] * 9]})
    assert list(course("SGD 1", history)) == [
        {"descent": "SGD 1", "gradients": 1, "loss": 4.0, "taken_back": 0},
        {"descent": "SGD 1", "gradients": 10, "loss": 3.0, "taken_back": 2},
        {"descent": "SGD 1", "gradients": 12, "loss": 1.0, "taken_back": 2},
    ]


def test_every_descent_starts_at_the_identitys_loss(tiny: Any) -> None:
    contrast = ls.ContrastSet(sentences(6, seed=1, must="sad"), sentences(6, seed=2, must="happy"))
    frame = run(tiny, contrast, sites="paper:lineas", rates=(0.1,), steps=3)
    starts = frame[frame["gradients"] == 1].set_index("descent")["loss"]
    assert set(starts.index) == {DEFAULT, "SGD 0.1"}
    identity = ls.LinEAS(sites="paper:lineas").loss_of(tiny, contrast)
    assert starts.tolist() == pytest.approx([identity] * 2, rel=1e-5)
    assert frame.groupby("descent")["gradients"].max()["SGD 0.1"] == 3
