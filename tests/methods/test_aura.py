"""AurA against its formula and the reference numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.methods.aura import AurA, aura_scale
from lens_steer.texts.contrast import ContrastSet
from tests.families import sentences


def test_identity_at_half_and_zero_at_one() -> None:
    source = torch.tensor([[1.0, 1.0, 0.0, 1.0], [2.0, 3.0, 0.0, 3.0]])
    target = torch.tensor([[1.0, 0.0, 5.0, 2.0], [2.0, 0.5, 6.0, 0.0]])
    assert aura_scale(source, target).tolist() == [1.0, 0.0, 1.0, 0.5]


def test_scale_is_the_formula_on_every_unit(tiny: Any) -> None:
    contrast = ContrastSet(sentences(9, seed=1, must="sad"), sentences(11, seed=2, must="happy"))
    acts = collect(tiny, contrast)
    edit = AurA().fit(tiny, contrast, activations=acts)
    for site, e in zip(acts.sites, edit.edits, strict=True):
        values = torch.cat([acts.source[site], acts.target[site]]).numpy()
        areas = [roc_auc_score([1] * 9 + [0] * 11, values[:, unit]) for unit in range(site.width)]
        np.testing.assert_allclose(e.map.scale.numpy(), [1 - 2 * max(a - 0.5, 0) for a in areas], atol=1e-6)
        assert not e.map.shift.any()
    assert AurA().fit(tiny, contrast) == edit


@pytest.mark.real
def test_reference_numbers(shared: Path) -> None:
    golden = np.load(shared / "golden" / "transport.npz")
    name = "blocks.0.mlp.hook_post"
    acts = Activations.from_arrays(source={name: golden["source"]}, target={name: golden["target"]})
    scale = aura_scale(acts.source[name], acts.target[name])
    np.testing.assert_allclose(scale.numpy(), golden["aura_scale"], rtol=1e-6, atol=1e-7)
    from lens_steer.interventions.maps import DiagonalAffine

    diagonal = DiagonalAffine(scale, torch.zeros_like(scale))
    for strength, key in ((1.0, "aura_tokens"), (0.5, "aura_tokens_half")):
        got = diagonal.scaled(strength)(torch.from_numpy(golden["tokens"]))
        np.testing.assert_allclose(got.numpy(), golden[key], rtol=1e-4, atol=1e-6)
