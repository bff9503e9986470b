"""Resampling ablation: each row is held at one drawn text's token means, by seed and row alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.errors import ActivationError, MapError, SettingError
from lens_steer.evaluation.generation import generate
from lens_steer.host.tokens import tokenize
from lens_steer.host.units import Unit
from lens_steer.interventions.ablation import ablate
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.resample import Resample
from lens_steer.texts.contrast import ContrastSet
from tests.families import sentences

CONTRAST = ContrastSet(sentences(6, seed=1, must="sad"), sentences(9, seed=2, must="happy"))
TEXTS = sentences(8, seed=3)


@pytest.fixture(scope="module")
def acts(tiny: Any) -> Activations:
    return collect(tiny, CONTRAST, pool="mean")


@pytest.fixture(scope="module")
def units(acts: Activations) -> list[Unit]:
    return [Unit(acts.sites[0], 3), Unit(acts.sites[1], 40), Unit(acts.sites[1], 7)]


@pytest.mark.compat
def test_every_row_is_held_at_one_text(tiny: Any, acts: Activations, units: list[Unit]) -> None:
    batch = tokenize(tiny, TEXTS).batch(range(len(TEXTS)))
    with ablate(units, mode="resample", activations=acts).on(tiny):
        _, cache = tiny.run_with_cache(batch.ids, attention_mask=batch.mask.long())
    held = torch.stack([cache[unit.site.name][:, :, unit.index] for unit in units], 2)
    assert torch.equal(held, held[:, :1].expand_as(held))
    means = torch.stack([acts.target[unit.site][:, unit.index] for unit in units], 1)
    drawn = [[torch.equal(row, text) for text in means] for row in held[:, 0]]
    assert all(sum(row) == 1 for row in drawn)
    assert len({row.index(True) for row in drawn}) > 1


def test_the_draw_hangs_on_seed_and_row_alone(tiny: Any, acts: Activations, units: list[Unit]) -> None:
    edit = ablate(units, mode="resample", activations=acts, seed=5)
    resample = edit.edits[0].map
    assert isinstance(resample, Resample)
    rows = resample.drawn(range(20))
    assert torch.equal(resample.drawn([7, 3]), rows[[7, 3]])
    other = ablate(units, mode="resample", activations=acts, seed=6).edits[0].map
    assert isinstance(other, Resample)
    assert not torch.equal(other.drawn(range(20)), rows)
    run: dict[str, Any] = {"intervention": edit, "max_new_tokens": 5, "temperature": 0.0, "progress": False}
    assert generate(tiny, TEXTS, batch_size=3, **run) == generate(tiny, TEXTS, batch_size=1, **run)
    with edit.on(tiny):
        few, many = (collect(tiny, CONTRAST, pool="max", batch_size=size, progress=False) for size in (1, 7))
    for unit in units:
        torch.testing.assert_close(few.values[unit.site], many.values[unit.site], rtol=1e-5, atol=1e-6)


def test_it_is_an_intervention_like_any_other(tiny: Any, acts: Activations, units: list[Unit], tmp_path: Path) -> None:
    edit = ablate(units, mode="resample", activations=acts)
    assert Intervention.load(edit.save(tmp_path / "edit")) == edit
    assert set(edit.units()) == set(units)
    assert set(edit.restrict(units[1:]).units()) == set(units[1:])
    h = torch.randn(3, 4, edit.sites[1].width)
    edit_map = edit.edits[1].map
    torch.testing.assert_close(edit_map.scaled(0.25)(h), 0.75 * h + 0.25 * edit_map(h))
    torch.testing.assert_close(edit_map(h[0, 0]), edit_map(h)[0, 0])
    assert torch.equal(edit_map.scaled(0.0)(h), h)
    with pytest.raises(MapError, match="no inverse"):
        edit.inverse()
    # Followed by another edit at the site it is a chain, whose rows are still the texts'.
    site = edit.sites[0]
    twice = edit.then(ablate([Unit(site, 0)], mode="value", value=2.0))
    batch = tokenize(tiny, TEXTS[:3]).batch(range(3))
    with twice.on(tiny):
        _, cache = tiny.run_with_cache(batch.ids)
    first = edit.edits[0].map
    assert isinstance(first, Resample)
    assert torch.equal(cache[site.name][:, 0, 3], first.drawn(range(3))[:, 0])
    assert cache[site.name][0, 0, 0] == 2.0


def test_refusals(tiny: Any, units: list[Unit]) -> None:
    with pytest.raises(SettingError, match="needs activations"):
        ablate(units, mode="resample")
    with pytest.raises(ActivationError, match=r'pooled by max: collect them with pool="mean"'):
        ablate(units, mode="resample", activations=collect(tiny, CONTRAST))
