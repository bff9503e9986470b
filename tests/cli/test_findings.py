"""The sentences of commands: the verb follows from the interval, whatever the numbers are."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens_steer.cli.findings import best_unit_sentence, change_sentence, edited_units, separating_sentence
from lens_steer.host.sites import find_sites
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine

VALUES = st.floats(-1e6, 1e6) | st.just(float("nan"))
VERBS = {"lower": " lowers ", "higher": " raises ", "not shown": " was not shown to change ", "nan": "cannot be judged"}


@given(before=VALUES, after=VALUES, ends=st.tuples(VALUES, VALUES).map(sorted))
def test_the_verb_follows_from_the_interval(before: float, after: float, ends: list[float]) -> None:
    low, high = ends
    row = {"before": before, "after": after, "low": low, "high": high, "n": 30}
    sentence = change_sentence("Editing 3 units", "the mean score", row, over="prompts")
    if any(map(math.isnan, (before, after, low, high))):
        verb = "nan"
    else:
        verb = "lower" if high < 0 else "higher" if low > 0 else "not shown"
    assert [name for name, words in VERBS.items() if words in sentence] == [verb]
    assert sentence.endswith("over 30 prompts")


def ranking(auroc: float, low: float, high: float) -> pd.DataFrame:
    row: dict[str, Any] = {"concept": "sad", "site": "blocks.0.mlp.hook_post", "unit": 3, "auroc": 0.9}
    return pd.DataFrame([{**row, "heldout_auroc": auroc, "heldout_low": low, "heldout_high": high, "q_value": 0.01}])


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (ranking(0.86, 0.73, 0.93), "The best expert unit of “sad” is blocks.0.mlp.hook_post[3], with AUROC 0.860"),
        (ranking(0.55, 0.40, 0.70), "was not shown to tell source from target"),
        (ranking(0.20, 0.10, 0.30), "the wrong way round"),
        (ranking(0.5, math.nan, math.nan), "cannot be judged"),
        (ranking(math.nan, math.nan, math.nan), "on the very texts that chose it; nothing was held out"),
    ],
)
def test_a_best_unit_is_one_where_its_interval_says_so(frame: pd.DataFrame, words: str) -> None:
    sentence = best_unit_sentence(frame)
    assert words in sentence
    assert "nan" not in sentence
    assert separating_sentence(frame).startswith("1 of 1 units differ")


def test_sites_are_counted_where_a_unit_moves(tiny: Any) -> None:
    sites = find_sites(tiny, "mlp.hook_post")
    edits = []
    for place, site in enumerate(sites):
        scale = torch.ones(site.width)
        scale[: 2 * (place == 0)] = 0.5
        edits.append(Edit(site, DiagonalAffine(scale, torch.zeros(site.width))))
    assert len(sites) > 1
    assert edited_units(Intervention.fitted(tiny, edits)) == "Editing 2 units at 1 site"
