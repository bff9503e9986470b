"""Bad input, method by method: one clear message, before any text has passed the model, and the model untouched."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from lens_steer.errors import (
    ContrastError,
    LensSteerError,
    MapError,
    ModelError,
    SiteError,
)
from lens_steer.host.adapter import host_of
from lens_steer.host.sites import find_sites
from lens_steer.methods.act_add import ActAdd
from lens_steer.methods.activation_transport import GaussianAcT, LinearAcT, MeanAcT
from lens_steer.methods.aura import AurA
from lens_steer.methods.dsas import DSAS
from lens_steer.methods.fitting import Method
from lens_steer.methods.iti import ITI
from lens_steer.methods.lineas import LinEAS
from lens_steer.methods.repe import RepE
from lens_steer.texts.contrast import ContrastSet
from tests.families import sentences
from tests.handles import Forwards, handles, logits
from tests.methods.contract import METHODS


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    sad, happy, neutral = (sentences(8, seed=seed, must=word) for seed, word in enumerate(("sad", "happy", "tree"), 1))
    return ContrastSet(sad, happy, control=neutral)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


@pytest.fixture(autouse=True)
def model_untouched(tiny: Any) -> Iterator[None]:
    ids = tiny.to_tokens("the dog was sad and ran home")
    plain, before = logits(tiny, ids), handles(tiny)
    yield
    assert torch.equal(logits(tiny, ids), plain)
    assert handles(tiny) == before


def at(method: Method, sites: str) -> Method:
    """Return the method at other sites, whatever its layers."""
    if hasattr(method, "base"):
        return replace(method, base=at(method.base, sites))  # type: ignore[type-var]
    layers = {"layers": None} if hasattr(method, "layers") else {}
    return replace(method, sites=sites, **layers)  # type: ignore[type-var]


def test_a_site_that_cannot_be_edited(method: Method, tiny: Any, contrast: ContrastSet) -> None:
    """On a bridge a write at hook_resid_mid reaches the MLP alone: refused at fit, before the texts run."""
    host_of(tiny).checked_sites.discard("blocks.0.hook_resid_mid")
    # Methods of heads say so first.
    with Forwards(tiny) as run, pytest.raises(SiteError, match="the MLP branch only|has none: use attn.hook_z"):
        at(method, "hook_resid_mid").fit(tiny, contrast)
    if not hasattr(method, "base"):
        assert run.count <= 2 * 2  # the probe, with and without a write


def test_a_site_that_does_not_exist(method: Method, tiny: Any, contrast: ContrastSet) -> None:
    with pytest.raises(SiteError, match="hook_nowhere"):
        at(method, "hook_nowhere").fit(tiny, contrast)


def test_a_site_without_units(method: Method, tiny: Any, contrast: ContrastSet) -> None:
    with pytest.raises(SiteError, match="pattern"):
        at(method, "attn.hook_pattern").fit(tiny, contrast)


def test_training_mode(method: Method, tiny: Any, contrast: ContrastSet) -> None:
    tiny.train()
    try:
        with pytest.raises(ModelError, match="training mode: call model.eval"):
            method.fit(tiny, contrast)
    finally:
        tiny.eval()


def test_every_site_is_tried_once(tiny: Any, contrast: ContrastSet) -> None:
    AurA().fit(tiny, contrast)  # a model's first fit reads more of it: that is not counted here
    host_of(tiny).checked_sites.clear()
    with Forwards(tiny) as first:
        AurA().fit(tiny, contrast)
    with Forwards(tiny) as second:
        AurA().fit(tiny, contrast)
    assert first.count - second.count == 2  # without writes, and with one at each site
    assert host_of(tiny).checked_sites == {site.name for site in find_sites(tiny, "mlp.hook_post")}


def test_an_inverse_is_one_or_is_refused_by_site(method: Method, tiny: Any, contrast: ContrastSet) -> None:
    with torch.no_grad():  # a caller who has switched gradients off can fit all the same
        edit = method.fit(tiny, contrast)
    assert int(edit.support().kept.sum()) > 0
    try:
        undone = edit.inverse()
    except MapError as error:
        assert str(error).startswith("blocks.")
        assert "no inverse" in str(error)
        return
    for there, back in zip(edit.edits, reversed(undone.edits), strict=True):
        h = torch.randn(3, there.site.width)
        torch.testing.assert_close(back.map(there.map(h)), h, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("method", "error", "says"),
    [
        (MeanAcT(), ContrastError, "MeanAcT needs at least 2 texts per side"),
        (GaussianAcT(causal=False), ContrastError, "GaussianAcT needs at least 2"),
        (LinearAcT(), ContrastError, "LinearAcT needs at least 2"),
        (LinEAS(), ContrastError, "LinEAS needs at least 4"),
        (ITI(k=1), ContrastError, "ITI: to hold out 20% of 1 source texts"),
        (DSAS(base=ActAdd()), ContrastError, "DSAS needs at least 4 source and control texts"),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "fit") else "",
)
def test_fewer_texts_than_the_method_needs(tiny: Any, method: Method, error: type[LensSteerError], says: str) -> None:
    with pytest.raises(error, match=says):
        method.fit(tiny, ContrastSet(["the sad dog"], ["the happy dog"], control=["the dog", "a tree"]))


@pytest.mark.parametrize(("method", "says"), [(RepE(), "RepE needs pairs"), (ActAdd(), "takes one pair of prompts")])
def test_pairs_asked_of_unpaired_texts(tiny: Any, contrast: ContrastSet, method: Method, says: str) -> None:
    with pytest.raises(ContrastError, match=says):
        method.fit(tiny, contrast)


@pytest.mark.parametrize("sites", ["hook_resid_post", "mlp.hook_post"])
def test_heads_asked_of_a_site_without(tiny: Any, contrast: ContrastSet, sites: str) -> None:
    with Forwards(tiny) as run, pytest.raises(SiteError, match="heads are asked of blocks.0.*, which has none: use"):
        ITI(k=1, sites=sites).fit(tiny, contrast)
    assert run.count == 0
