"""Random edits keep what an edit does in standard deviations, and nothing of where it does it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.errors import SettingError
from lens_steer.host.sites import find_sites
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.interventions.project_out import ProjectOut
from lens_steer.interventions.random_edits import random_edits
from lens_steer.texts.contrast import ContrastSet
from tests.families import sentences

SITE = "blocks.0.mlp.hook_post"


@pytest.fixture(scope="module")
def activations(tiny: Any) -> Activations:
    return collect(tiny, ContrastSet(sentences(12, seed=1), sentences(12, seed=2)), SITE, progress=False)


def held(model: Any, units: list[int], value: torch.Tensor) -> Intervention:
    """Units held at a constant."""
    (site,) = find_sites(model, SITE)
    scale, shift = torch.ones(site.width), torch.zeros(site.width)
    scale[units], shift[units] = 0.0, value
    return Intervention((Edit(site, DiagonalAffine(scale, shift).scaled(1.0)),))


def test_units_held_at_their_mean_become_other_units_held_at_theirs(tiny: Any, activations: Activations) -> None:
    units = [3, 17, 40]
    mean = activations.token_mean(SITE, "all")
    drawn = random_edits(held(tiny, units, mean[units]), activations, draws=6, seed=1)
    places = set()
    for edit in drawn:
        moved = [unit.index for unit in edit.units()]
        assert len(moved) == 3
        assert not set(moved) & set(units)
        found = edit.edits[0].map
        assert isinstance(found, DiagonalAffine)
        assert (found.scale[moved] == 0).all()
        torch.testing.assert_close(found.shift[moved], mean[moved].float(), rtol=1e-4, atol=1e-5)
        places.add(tuple(moved))
    assert len(places) > 1


def test_an_edit_of_all_units_keeps_their_number(tiny: Any, activations: Activations) -> None:
    (site,) = find_sites(tiny, SITE)
    edit = Intervention((Edit(site, DiagonalAffine(torch.ones(site.width), torch.ones(site.width))),))
    first, second = random_edits(edit, activations, draws=2)
    assert len(first.units()) == site.width
    shifts = [one.edits[0].map.shift for one in (first, second)]
    assert abs(float(torch.corrcoef(torch.stack(shifts))[0, 1])) < 0.5  # type: ignore[arg-type]
    assert random_edits(edit, activations, draws=2)[1] == second


def test_a_map_that_mixes_units_becomes_a_random_vector(tiny: Any, activations: Activations) -> None:
    (site,) = find_sites(tiny, SITE)
    edit = Intervention((Edit(site, ProjectOut(torch.ones(site.width))),))
    (drawn,) = random_edits(edit, activations, draws=1)
    found = drawn.edits[0].map
    assert isinstance(found, DiagonalAffine)
    assert (found.scale == 1).all()
    assert float(found.shift.norm()) == pytest.approx(1)
    with pytest.raises(SettingError, match="draws is 1 or more"):
        random_edits(edit, activations, draws=0)
