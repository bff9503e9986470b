"""What LinEAS says of a model before and after an edit: the gradient at the identity, and the loss of any edit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lens_steer.host.sites import Site, find_sites
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.methods.lineas import LinEAS
from lens_steer.texts.contrast import ContrastSet
from tests.families import sentences

STEP = 1e-2


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return ContrastSet(sentences(8, seed=1, must="sad"), sentences(6, seed=2, must="happy"))


def nudged(site: Site, unit: int, what: str, by: float) -> Intervention:
    parts = {"scale": torch.ones(site.width), "shift": torch.zeros(site.width)}
    parts[what][unit] += by
    return Intervention((Edit(site, DiagonalAffine(**parts)),), {}, strengths=(0.0, 1.0))


@pytest.mark.parametrize("what", ["scale", "shift"])
def test_sensitivity_is_the_slope_of_the_loss(tiny: Any, contrast: ContrastSet, what: str) -> None:
    lineas = LinEAS(shifts="activation")
    frame = lineas.sensitivity(tiny, contrast)
    assert len(frame) == sum(site.width for site in find_sites(tiny, "hook_resid_post"))
    row = frame.loc[frame["norm"].idxmax()]
    (site,) = find_sites(tiny, row["site"])
    up, down = (lineas.loss_of(tiny, contrast, nudged(site, int(row["unit"]), what, by)) for by in (STEP, -STEP))
    assert row[what] == pytest.approx((up - down) / (2 * STEP), rel=0.02, abs=1e-3)


def test_the_loss_of_a_fit_is_what_the_fit_says(tiny: Any, contrast: ContrastSet) -> None:
    lineas = LinEAS.paper(steps=4, lr=0.001, progress=False)
    edit = lineas.fit(tiny, contrast)
    about = edit.provenance["loss"]
    assert lineas.loss_of(tiny, contrast, edit) == pytest.approx(about["training"], rel=1e-4)
    assert lineas.loss_of(tiny, contrast) == pytest.approx(about["identity"], rel=1e-5)
