"""The order that METHODS promises on a real model: end to end below causal, causal below simultaneous transport."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lens_steer.activations.whole_texts import pool_texts
from lens_steer.host.sites import find_sites
from lens_steer.host.tokens import tokenize
from lens_steer.interventions.intervention import Intervention
from lens_steer.methods.activation_transport import LinearAcT
from lens_steer.methods.end_to_end import EndToEndLoss
from lens_steer.methods.lineas import LinEAS
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.readers import read_contrast


def loss_of(model: Any, contrast: ContrastSet, edit: Intervention | None) -> float:
    sites = find_sites(model, "hook_resid_post")
    source, target = (tokenize(model, side) for side in (contrast.source, contrast.target))
    pooled = pool_texts(model, target, sites, "mean", 99)
    loss = EndToEndLoss(
        model, source, pooled, edit_sites=sites, loss_sites=sites, pool="mean", micro_batch=len(contrast.source)
    )
    if edit is None:
        return loss(torch.zeros(len(loss.layout.group)))
    return loss(torch.cat([part for e in edit.edits for part in (e.map.scale - 1, e.map.shift)]))


@pytest.mark.real
def test_adam_ends_below_causal_and_causal_below_simultaneous(stories: Any, shared: Path) -> None:
    contrast = read_contrast(shared / "data" / "story_concepts" / "sad.json", n=16)
    fits = {
        "end to end": LinEAS.paper(optimizer="adam", lr=0.02, steps=150, progress=False),
        "causal": LinearAcT(support="unbounded", moves="source"),
        "simultaneous": LinearAcT(support="unbounded", causal=False),
    }
    losses = {name: loss_of(stories, contrast, method.fit(stories, contrast)) for name, method in fits.items()}
    assert losses["end to end"] < losses["causal"] < losses["simultaneous"]
    assert losses["end to end"] < loss_of(stories, contrast, None)
