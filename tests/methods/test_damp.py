"""Det0 and Damp: which units, and the identities between them and ablation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.errors import ActivationError, SettingError
from lens_steer.host.sites import Site
from lens_steer.interventions.ablation import ablate
from lens_steer.methods.best_units import best_units
from lens_steer.methods.damp import Damp, Det0
from lens_steer.ranking.experts import rank_experts
from lens_steer.texts.contrast import ContrastSet
from tests.families import sentences


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return ContrastSet(sentences(9, seed=1, must="sad"), sentences(11, seed=2, must="happy"))


@pytest.fixture(scope="module")
def acts(tiny: Any, contrast: ContrastSet) -> Activations:
    return collect(tiny, contrast)


@pytest.mark.compat
@pytest.mark.parametrize("k", [1, 5, 40, 256])
def test_damp_to_nothing_is_det0_is_zero_ablation_of_the_best(
    tiny: Any, contrast: ContrastSet, acts: Activations, k: int
) -> None:
    det0 = Det0(k=k).fit(tiny, contrast, activations=acts)
    assert det0 == Det0(k=k).fit(tiny, contrast)
    assert det0 == Damp(k=k, factor=0.0).fit(tiny, contrast, activations=acts)
    assert det0 == ablate(det0.units(), mode="zero")
    assert len(det0.units()) == k
    # The ranking orders ties by their distance, Det0 by their place, so that ranks alone decide: the scores agree.
    area = rank_experts(acts, holdout=None).frame.set_index(["site", "unit"])["auroc"]
    assert sorted(area[unit.site.name, unit.index] for unit in det0.units()) == sorted(area.iloc[:k])


def test_damp_multiplies_the_same_units(tiny: Any, contrast: ContrastSet, acts: Activations) -> None:
    damp = Damp(k=7).fit(tiny, contrast, activations=acts)
    assert damp.units() == Det0(k=7).fit(tiny, contrast, activations=acts).units()
    scales = torch.cat([edit.map.scale for edit in damp.edits])
    assert int((scales == 0.5).sum()) == 7
    assert int((scales == 1).sum()) == len(scales) - 7
    assert not any(edit.map.shift.any() for edit in damp.edits)
    assert Damp(k=3, factor=1.0).fit(tiny, contrast, activations=acts).units() == ()


def test_it_is_stronger_with_more_units(tiny: Any, contrast: ContrastSet, acts: Activations) -> None:
    few, many = (set(Det0(k=k).fit(tiny, contrast, activations=acts).units()) for k in (4, 12))
    assert few < many


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=4), st.data())
def test_the_best_are_the_head_of_a_stable_sort(scores: list[list[int]], data: st.DataObject) -> None:
    sites = [Site(f"blocks.{n}.mlp.hook_post", n, "mlp.hook_post", len(row)) for n, row in enumerate(scores)]
    k = data.draw(st.integers(1, sum(map(len, scores))))
    chosen = best_units({site: torch.tensor(row).double() for site, row in zip(sites, scores, strict=True)}, k)
    flat = [(site, unit) for site in sites for unit in range(site.width)]
    values = [value for row in scores for value in row]
    expected = {flat[place] for place in sorted(range(len(flat)), key=lambda place: -values[place])[:k]}
    assert {(site, unit) for site, mask in chosen.items() for unit in mask.nonzero()[:, 0].tolist()} == expected
    assert list(chosen) == [site for site in sites if site in chosen]


def test_refusals(tiny: Any, contrast: ContrastSet, acts: Activations) -> None:
    units = sum(site.width for site in acts.sites)
    for method in (Det0, Damp):
        with pytest.raises(SettingError, match="1 or more"):
            method(k=0)
        with pytest.raises(SettingError, match=f"more than the {units}"):
            method(k=units + 1).fit(tiny, contrast, activations=acts)
        with pytest.raises(ActivationError, match="pooled by max"):
            method(k=1, pool="mean").fit(tiny, contrast, activations=acts)
    with pytest.raises(SettingError, match="between 0"):
        Damp(k=1, factor=1.5)
