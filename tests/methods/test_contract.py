"""What every method must obey, on every model: one suite, run over all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lens_steer.host.tokens import tokenize
from lens_steer.interventions.intervention import Intervention
from lens_steer.methods.fitting import Method
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.readers import read_contrast
from tests.families import make_tiny, sentences
from tests.handles import handles
from tests.methods.contract import METHODS


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    sad, happy, neutral = (sentences(8, seed=seed, must=word) for seed, word in enumerate(("sad", "happy", "tree"), 1))
    return ContrastSet(sad, happy, control=neutral, name="sad")


@pytest.fixture(scope="module")
def microworld_contrast() -> ContrastSet:
    rude, film = (read_contrast(f"microworld:{name}", n=8) for name in ("rude", "topic=film"))
    return replace(rude, control=film.source)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Method:
    return METHODS[request.param]


@pytest.fixture(scope="module")
def fitted() -> dict[Method, Intervention]:
    """What was fitted already: every method once for all tests that only use its intervention."""
    return {}


@pytest.fixture
def edit(method: Method, tiny: Any, contrast: ContrastSet, fitted: dict[Method, Intervention]) -> Intervention:
    if method not in fitted:
        fitted[method] = method.fit(tiny, contrast)
    return fitted[method]


@pytest.fixture(scope="module")
def untouched(tiny: Any) -> tuple[torch.Tensor, Any]:
    """What the model answers before all tests, and the handles on it."""
    return logits(tiny), handles(tiny)


@pytest.fixture(autouse=True)
def model_untouched(tiny: Any, untouched: tuple[torch.Tensor, Any]) -> Iterator[None]:
    """Whatever a test does, the model answers as before and no handle is left."""
    yield
    before, on_it = untouched
    assert handles(tiny) == on_it
    assert torch.equal(logits(tiny), before)


@pytest.fixture(scope="module")
def half() -> Any:
    """The tiny model in bfloat16."""
    model = make_tiny("gpt2")
    model.to(torch.bfloat16)
    return model


def logits(model: Any, text: str = "the dog was sad and ran home") -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(model.to_tokens(text))
    return result


@pytest.mark.compat
def test_it_changes_the_model_and_strength_zero_does_not(tiny: Any, edit: Intervention) -> None:
    plain = logits(tiny)
    with edit.on(tiny):
        assert float((logits(tiny) - plain).abs().max()) > 1e-3
    with edit.on(tiny, strength=0.0):
        assert torch.equal(logits(tiny), plain)


def test_half_the_strength_is_between(tiny: Any, edit: Intervention) -> None:
    first = edit.edits[0]
    h = torch.randn(2, 3, first.site.width)
    torch.testing.assert_close(first.map.scaled(0.5)(h), (h + first.map(h)) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.compat
def test_it_comes_back_from_disk(tiny: Any, edit: Intervention, tmp_path: Path) -> None:
    back = Intervention.load(edit.save(tmp_path / "edit"))
    assert back == edit
    with edit.on(tiny):
        expected = logits(tiny)
    with back.on(tiny):
        assert torch.equal(logits(tiny), expected)


def test_layers_narrow_the_sites(method: Method, tiny: Any, contrast: ContrastSet) -> None:
    if "layers" in {field.name for field in fields(method)}:
        edit = replace(method, layers=(-1,)).fit(tiny, contrast)
        assert {site.layer for site in edit.sites} == {1}


def test_the_same_call_gives_the_same_intervention(
    method: Method, tiny: Any, contrast: ContrastSet, edit: Intervention
) -> None:
    assert method.fit(tiny, contrast) == edit


def test_it_says_where_it_came_from(method: Method, edit: Intervention, contrast: ContrastSet) -> None:
    about = edit.provenance
    assert about["method"] == type(method).__name__
    assert about["data"] == contrast.data_hash
    assert about["settings"]["seed"] == 0
    assert {"model", "host", "weights", "dtype", "lens_steer", "transformer_lens"} <= about.keys()
    assert set(edit.fingerprint) == {site.name for site in edit.sites}


@pytest.mark.compat
def test_padding_changes_nothing(tiny: Any, edit: Intervention) -> None:
    tokens = tokenize(tiny, ["the dog", "a big cat ran home and sat"])
    batch = tokens.batch([0, 1])
    with edit.on(tiny):
        together = tiny(batch.ids, attention_mask=batch.mask.long())
        for row in (0, 1):
            alone = tokens.batch([row])
            expected = tiny(alone.ids)
            got = together[row, : alone.ids.shape[1]]
            assert float((got - expected[0]).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("scope", ["all", "last"])  # the other scopes: tests/host/test_scope.py
def test_cache_or_no_cache(tiny: Any, edit: Intervention, scope: Any) -> None:
    ids = tiny.to_tokens("the dog was")
    with edit.scoped(scope).on(tiny):
        runs = [
            tiny.original_model.generate(ids, max_new_tokens=5, do_sample=False, use_cache=cache, pad_token_id=0)
            for cache in (True, False)
        ]
    assert torch.equal(*runs)


def test_an_exception_leaves_nothing(tiny: Any, edit: Intervention) -> None:
    with pytest.raises(RuntimeError, match="on purpose"), edit.scoped("last").on(tiny):
        logits(tiny)
        raise RuntimeError("on purpose")


def test_nesting_is_composition(tiny: Any, edit: Intervention) -> None:
    with edit.on(tiny), edit.scaled(0.5).on(tiny):
        nested = logits(tiny)
    with edit.then(edit.scaled(0.5)).on(tiny):
        torch.testing.assert_close(logits(tiny), nested, rtol=1e-4, atol=1e-4)


def test_it_follows_the_models_dtype(method: Method, half: Any, contrast: ContrastSet) -> None:
    edit = method.fit(half, contrast)
    assert all(value.dtype == torch.float32 for e in edit.edits for value in e.map.tensors().values())
    with edit.on(half):
        got = logits(half)
    assert got.dtype == torch.bfloat16
    assert torch.isfinite(got).all()


@pytest.mark.real
def test_on_the_real_models(method: Method, real_model: Any, shared: Path) -> None:
    contrast = read_contrast(shared / "data" / "story_concepts" / "sad.json", n=16)
    neutral = read_contrast(shared / "data" / "story_concepts" / "dog.json", n=16)
    contrast = replace(contrast, control=neutral.source)
    before, on_it = logits(real_model), handles(real_model)
    with method.fit(real_model, contrast).on(real_model):
        assert not torch.equal(logits(real_model), before)
    assert handles(real_model) == on_it
    assert torch.equal(logits(real_model), before)


@pytest.mark.compat
def test_on_the_embedded_model(method: Method, embedded_host: Any, microworld_contrast: ContrastSet) -> None:
    text = str(microworld_contrast.source[0])
    before, on_it = logits(embedded_host, text), handles(embedded_host)
    with method.fit(embedded_host, microworld_contrast).on(embedded_host):
        assert not torch.equal(logits(embedded_host, text), before)
    assert handles(embedded_host) == on_it
    assert torch.equal(logits(embedded_host, text), before)


def test_every_layout(method: Method, distinct_family: Any, contrast: ContrastSet) -> None:
    plain = logits(distinct_family)
    with method.fit(distinct_family, contrast).on(distinct_family):
        assert not torch.equal(logits(distinct_family), plain)
    assert torch.equal(logits(distinct_family), plain)
