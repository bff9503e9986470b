"""Doses in closed form: a shift of the stream, of neurons through their projection, of a site that is neither."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lens_steer.evaluation.card.dose import DoseReader, dose_item
from lens_steer.evaluation.card.norm_matched import norm_matched_edits
from lens_steer.host.sites import find_sites
from lens_steer.host.tokens import tokenize
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.texts.contrast import ContrastSet
from tests.evaluation.hosts import random_edit
from tests.families import make_tiny, sentences

TEXTS = sentences(5, seed=3)


def shift_at(model: Any, name: str, seed: int = 0) -> Intervention:
    (site,) = find_sites(model, name)
    shift = torch.randn(site.width, generator=torch.Generator().manual_seed(seed))
    return Intervention((Edit(site, DiagonalAffine(torch.ones(site.width), shift)),))


def norms_at(model: Any, name: str) -> np.ndarray:
    """The norms of an unedited site at every token but BOS, by TransformerLens's own cache."""
    found = []
    tokens = tokenize(model, TEXTS)
    for ids, pooled in zip(tokens.ids, tokens.pooled, strict=True):
        _, cache = model.run_with_cache(torch.tensor([ids]))
        found.append(cache[name][0].flatten(1).norm(dim=-1)[torch.tensor(pooled)])
    return torch.cat(found).numpy()


def read(model: Any, edit: Intervention) -> Any:
    (dose,) = DoseReader(model, TEXTS, chat=None, batch_size=2).read(edit)
    return dose


@pytest.mark.compat
def test_a_shift_of_the_stream(hosted: Any) -> None:
    name = "blocks.0.hook_resid_post"
    edit = shift_at(hosted, name)
    dose = read(hosted, edit)
    assert dose.in_stream
    size = float(edit.edits[0].map.shift.norm())  # type: ignore[union-attr, operator]
    np.testing.assert_allclose(dose.write, size, rtol=1e-3)
    np.testing.assert_allclose(np.sort(dose.ratio), np.sort(size / norms_at(hosted, name)), rtol=1e-3)


@pytest.mark.compat
def test_a_shift_of_neurons_enters_through_their_projection(hosted: Any) -> None:
    edit = shift_at(hosted, "blocks.1.mlp.hook_post")
    dose = read(hosted, edit)
    assert dose.in_stream
    expected = float((edit.edits[0].map.shift @ hosted.blocks[1].mlp.W_out).norm())  # type: ignore[operator]
    np.testing.assert_allclose(dose.write, expected, rtol=1e-3)
    np.testing.assert_allclose(np.sort(dose.into), np.sort(norms_at(hosted, "blocks.1.hook_resid_post")), rtol=1e-3)


def test_before_a_nonlinearity_the_site_itself_is_the_measure(tiny: Any) -> None:
    edit = shift_at(tiny, "blocks.0.mlp.hook_pre")
    dose = read(tiny, edit)
    assert not dose.in_stream
    np.testing.assert_allclose(dose.write, float(edit.edits[0].map.shift.norm()), rtol=1e-3)  # type: ignore[union-attr, operator]
    item = dose_item([dose])
    assert item.rows[0].unit == "times the norm of the site itself"
    assert "the site itself" in item.sentences[0]


def test_behind_a_branch_with_a_norm_its_output_is_no_write_into_the_stream() -> None:
    gemma = make_tiny("gemma2")
    assert not read(gemma, shift_at(gemma, "blocks.0.mlp.out.hook_out")).in_stream
    assert read(gemma, shift_at(gemma, "blocks.0.ln2_post.hook_out")).in_stream


def test_random_edits_write_as_far_as_the_edit(tiny: Any) -> None:
    edit = random_edit(tiny, size=0.2)
    contrast = ContrastSet(sentences(8, seed=1), sentences(8, seed=2))
    reader = DoseReader(tiny, contrast.source, chat=None, batch_size=None)
    first, second = norm_matched_edits(tiny, edit, contrast, draws=2, seed=0)
    assert first != second
    wanted = [dose.size for dose in reader.read(edit)]
    for control in (first, second):
        assert control.sites == edit.sites
        sizes = [dose.size for dose in reader.read(control)]
        first_to_fire = edit.sites.index(find_sites(tiny, "blocks.0.mlp.hook_post")[0])
        assert sizes[first_to_fire] == pytest.approx(wanted[first_to_fire], rel=1e-3)  # the others see what it wrote
        np.testing.assert_allclose(sizes, wanted, rtol=0.35)


def test_random_edits_beside_no_edit_write_nothing(tiny: Any) -> None:
    contrast = ContrastSet(sentences(8, seed=1), sentences(8, seed=2))
    none = shift_at(tiny, "blocks.0.mlp.hook_post").scaled(0.0)
    for control in norm_matched_edits(tiny, none, contrast, draws=2):
        assert read(tiny, control).size == 0.0
