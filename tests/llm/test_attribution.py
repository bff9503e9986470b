"""Attribution on SmolLM2: grouped heads, thirty layers, English names."""

from __future__ import annotations

from typing import Any

import pytest

import lens_steer as ls

pytestmark = pytest.mark.llm
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"


def test_late_streams_carry_the_answer_and_estimates_follow(smollm2: Any) -> None:
    settings: Any = {"sites": "hook_resid_post", "positions": [-4, -1], "level": "position", "progress": False}
    sites = [f"blocks.{layer}.hook_resid_post" for layer in (20, 25, 29)]
    metric = ls.LogitDifference(" Mary", " John")
    found = {
        method: ls.attribute(smollm2, CLEAN, CORRUPTED, metric, method=method, **{**settings, "sites": sites})
        for method in ("patch", "relp", "attribution")
    }
    exact = found["patch"].frame
    assert found["patch"].gap > 1
    assert exact["value"].iloc[-1] == pytest.approx(found["patch"].gap, rel=1e-3)
    for method in ("relp", "attribution"):
        agreement = found[method].agreement(found["patch"])
        assert agreement.query("measure == 'pearson'")["value"].item() > 0.8


def test_a_name_of_several_tokens_is_refused(smollm2: Any) -> None:
    with pytest.raises(ls.LensSteerError, match=r"' Bartholomew' is \d tokens"):
        ls.attribute(smollm2, CLEAN, CORRUPTED, ls.LogitDifference(" Bartholomew", " John"), sites="hook_resid_post")
