"""CAA against the mean difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lens_steer.activations.collect import collect
from lens_steer.errors import ActivationError, SettingError, SiteError
from lens_steer.methods.caa import CAA
from lens_steer.texts.contrast import ContrastSet
from tests.families import sentences


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return ContrastSet(sentences(8, seed=1, must="sad"), sentences(8, seed=2, must="happy"), paired=True)


@pytest.mark.compat
@pytest.mark.parametrize("pool", ["last", "mean"])
def test_it_adds_the_mean_of_the_pairs_differences(tiny: Any, contrast: ContrastSet, pool: Any) -> None:
    acts = collect(tiny, contrast, "hook_resid_post", pool=pool)
    edit = CAA(layers="all", pool=pool, multiplier=1.5).fit(tiny, contrast, activations=acts)
    assert edit == CAA(layers="all", pool=pool, multiplier=1.5).fit(tiny, contrast)
    for site, e in zip(acts.sites, edit.edits, strict=True):
        pairs = (acts.target[site] - acts.source[site]).mean(0)
        torch.testing.assert_close(e.map.shift, 1.5 * pairs, rtol=1e-4, atol=1e-5)
        assert bool((e.map.scale == 1).all())


def test_last_is_the_last_token_of_the_completion(tiny: Any) -> None:
    texts = ["the dog was", "a big cat"]
    pairs = ContrastSet([(text, " sad") for text in texts], [(text, " happy") for text in texts], paired=True)
    whole = ContrastSet([f"{text} sad" for text in texts], [f"{text} happy" for text in texts], paired=True)
    assert CAA(layers="all").fit(tiny, pairs) == CAA(layers="all").fit(tiny, whole)
    assert CAA(layers="all", pool="mean").fit(tiny, pairs) != CAA(layers="all", pool="mean").fit(tiny, whole)


def test_one_pair_will_do_and_the_swap_is_the_negative(tiny: Any) -> None:
    pair = ContrastSet(["the dog was sad"], ["the dog was happy"], paired=True)
    assert CAA(layers="all", multiplier=-1.0).fit(tiny, pair) == CAA(layers="all").fit(tiny, pair.swap())


def test_layers_are_chosen(tiny: Any, contrast: ContrastSet) -> None:
    assert [site.layer for site in CAA(layers=(-1,)).fit(tiny, contrast).sites] == [1]
    acts = collect(tiny, contrast, "hook_resid_post", pool="last")
    edit = CAA(layers=(0,)).fit(tiny, contrast, activations=acts)
    assert [site.layer for site in edit.sites] == [0]
    assert edit.provenance["settings"]["layers"] == (0,)
    assert edit.provenance["settings"]["sites"] == "hook_resid_post"


def test_refusals(tiny: Any, contrast: ContrastSet) -> None:
    with pytest.raises((SettingError, TypeError)):
        CAA(pool="max")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="finite"):
        CAA(multiplier=float("inf"))
    with pytest.raises(SiteError, match="layer 7 does not exist"):
        CAA(layers=(7,)).fit(tiny, contrast)
    with pytest.raises(ActivationError, match="pooled by max"):
        CAA().fit(tiny, contrast, activations=collect(tiny, contrast, "hook_resid_post"))
