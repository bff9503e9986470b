"""The shift on generated text beside that on given text: nothing where nothing moves, a known move where all moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lens_steer.effects.downstream import downstream_shift
from lens_steer.effects.generated_shift import GeneratedShift, generated_shift
from lens_steer.errors import LensSteerWarning, SiteError
from lens_steer.host.scope import Scope
from lens_steer.host.sites import find_sites
from lens_steer.interventions.ablation import ablate
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.statistics.jackknife import jackknife_interval
from lens_steer.texts.contrast import ContrastSet
from tests.families import sentences

SAMPLING: dict[str, Any] = {"max_new_tokens": 6, "seed": 2, "progress": False}


@pytest.fixture
def contrast() -> ContrastSet:
    return ContrastSet(sentences(8, seed=1, must="sad"), sentences(8, seed=2, must="happy"))


def shifted(model: Any, size: float) -> Intervention:
    """An edit that adds one vector to the last layer's output, where nothing but the logits comes after."""
    site = find_sites(model, "hook_resid_post")[-1]
    return Intervention((Edit(site, DiagonalAffine(torch.ones(site.width), torch.full((site.width,), size))),))


def test_an_edit_of_no_strength_moves_nothing(tiny: Any, contrast: ContrastSet) -> None:
    got = generated_shift(tiny, shifted(tiny, 3.0), contrast, strength=0.0, **SAMPLING)
    frame = got.frame.set_index(["of", "measure"])["value"]
    assert frame[["given", "generated"]].notna().any()
    for of in ("given", "generated"):
        assert frame[of, "moved"] == 0.0
        assert frame[of, "removed"] in (0.0, pytest.approx(np.nan, nan_ok=True))
    assert got.differences.query("measure == 'moved'")["verdict"].item() == "not shown"


@pytest.mark.compat
def test_given_text_reads_as_in_downstream_shift(tiny: Any, contrast: ContrastSet) -> None:
    edit = ablate([("blocks.0.mlp.hook_post", unit) for unit in range(20)], model=tiny)
    got = generated_shift(tiny, edit, contrast, **SAMPLING)
    known = downstream_shift(tiny, edit, contrast, by_layer=False, progress=False).measures
    known = known[known["edited"] == "all"].set_index(["layer", "measure"])
    for row in got.frame[got.frame["of"] == "given"].itertuples():
        expected = known.loc[(row.layer, row.measure)]
        np.testing.assert_allclose(
            [row.value, row.low, row.high], expected[["value", "low", "high"]].astype(float), rtol=1e-4
        )


def test_a_move_of_every_token_is_the_same_on_both(tiny: Any, contrast: ContrastSet) -> None:
    # LayerNorm takes a constant away, so that the texts stay the same and only the edited site moves.
    got = generated_shift(tiny, shifted(tiny, 5.0), contrast, **SAMPLING)
    moved = got.differences.query("measure == 'moved'").iloc[0]
    assert moved["generated"] == pytest.approx(moved["given"], rel=1e-3)
    assert "moves the source by" in repr(got)
    assert got.settings["rows"] == {"source": 8, "target": 8}


def test_it_draws_itself(tiny: Any, contrast: ContrastSet) -> None:
    got = generated_shift(tiny, ablate([("blocks.0.mlp.hook_post", 3)], model=tiny), contrast, **SAMPLING)
    assert isinstance(got, GeneratedShift)
    assert {trace.name for trace in got.plot().data} >= {"given", "generated"}
    assert "<table" in got._repr_html_()


def test_differences_are_of_the_same_rows_layer_by_layer() -> None:
    """What both kinds of text have in common cancels out of the interval; the last layer is told, and all are there."""
    generator = np.random.default_rng(0)
    keys = [(layer, measure) for layer in range(3) for measure in ("apart", "removed", "arrived", "moved")]
    common = {key: generator.normal(size=9) for key in keys}
    beyond = {key: 10.0 * place + 0.01 * generator.normal(size=9) for place, key in enumerate(keys)}
    estimates = {("given", *key): common[key] for key in keys} | {
        ("generated", *key): common[key] + beyond[key] for key in keys
    }
    shift = GeneratedShift(estimates, {"confidence": 0.9})  # type: ignore[arg-type]
    assert len(shift.differences) == len(keys)
    for row in shift.differences.itertuples():
        key = (row.layer, row.measure)
        assert (row.given, row.generated) == (common[key][0], common[key][0] + beyond[key][0])
        interval = jackknife_interval(beyond[key][0], beyond[key][1:], confidence=0.9)
        assert (row.low, row.high) == pytest.approx((interval.low, interval.high))
    assert set(shift.differences["verdict"][1:]) == {"higher"}
    assert f"by {common[2, 'moved'][0]:.2f} sd on given text" in repr(shift)
    assert "all are in .differences" in shift._repr_html_()


def test_rows_that_write_nothing_are_left_out_of_both(tiny: Any) -> None:
    source = [*sentences(5, seed=1), *(f"{text} night" for text in sentences(3, seed=3))]
    contrast = ContrastSet(source, sentences(8, seed=2, must="happy"))
    site = find_sites(tiny, "hook_resid_post")[-1]
    towards_eos = 1e3 * tiny.unembed.W_U[:, tiny.tokenizer.eos_token_id].detach()
    edit = Intervention((Edit(site, DiagonalAffine(torch.ones(site.width), towards_eos)),))
    with pytest.warns(LensSteerWarning, match="3 of 16 texts were left out"):
        got = generated_shift(
            tiny, edit.scoped(Scope.of_tokens(["night"], tiny.tokenizer)), contrast, temperature=0.2, **SAMPLING
        )
    assert got.settings["silent"] == [5, 6, 7]
    assert got.settings["rows"] == {"source": 5, "target": 8}
    assert np.isfinite(got.frame.query("measure == 'moved'")["value"]).all()


def test_sites_before_the_edit_are_refused(tiny: Any, contrast: ContrastSet) -> None:
    with pytest.raises(SiteError, match="comes at or after the first edit"):
        generated_shift(tiny, shifted(tiny, 1.0), contrast, sites="blocks.0.hook_resid_post", **SAMPLING)
