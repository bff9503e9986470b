"""Activations of generated tokens against a pass over prompt and continuation, and what must not change them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lens_steer.activations import generated as generated_module
from lens_steer.activations import store as store_module
from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.activations.whole_texts import pool_texts
from lens_steer.errors import ActivationError, LensSteerWarning, OutputError, SettingError, TokenError
from lens_steer.evaluation.generation import generate
from lens_steer.host.adapter import host_of
from lens_steer.host.attach import edited
from lens_steer.host.decode import Decoding, decode
from lens_steer.host.prompts import prompt_tokens
from lens_steer.host.scope import Scope, special_ids
from lens_steer.host.sites import find_sites
from lens_steer.host.tokens import Tokens
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.texts.contrast import ContrastSet
from tests.evaluation.hosts import random_edit
from tests.families import WORDS, sentences

CONTRAST = ContrastSet(sentences(4, seed=1, must="sad"), sentences(5, seed=2, must="happy"))
TEXTS = [*CONTRAST.source, *CONTRAST.target]
SAMPLING: dict[str, Any] = {"max_new_tokens": 7, "seed": 3}


def continued(model: Any, edit: Any = None, texts: list[str] = TEXTS) -> tuple[Tokens, list[list[int]]]:
    """Prompts and the ids that the model writes after them, by the same run as `generate`'s."""
    prompts = prompt_tokens(model, texts, None, SAMPLING["max_new_tokens"])
    with edited(model, edit, 1.0):
        new = decode(model, prompts.ids, Decoding(**SAMPLING), rows=range(len(texts)))
    return prompts, new


def over_whole_texts(model: Any, edit: Any, kind: str, pool: Any, first: int = 10**6) -> dict[str, torch.Tensor]:
    """Pool the generated positions of prompt + continuation, run as (prompt, completion) pairs in one pass."""
    prompts, new = continued(model, edit)
    special = special_ids(host_of(model).tokenizer)
    ids = tuple((*before, *after) for before, after in zip(prompts.ids, new, strict=True))
    pooled = tuple(
        (*[False] * len(before), *[token not in special and step < first for step, token in enumerate(after)])
        for before, after in zip(prompts.ids, new, strict=True)
    )
    tokens = Tokens(ids, pooled, prompts.pad_id, tuple(map(len, prompts.ids)))
    with edited(model, edit, 1.0):
        found = pool_texts(model, tokens, find_sites(model, kind), pool, None)
    return {site.name: values for site, values in found.items()}


@pytest.mark.compat
@pytest.mark.parametrize("pool", ["max", "mean", "last", "first"])
def test_values_are_those_of_a_pass_over_the_whole_text(tiny: Any, pool: Any) -> None:
    got = collect(tiny, CONTRAST, "mlp.hook_post", pool=pool, of="generated", **SAMPLING)
    assert list(got.continuations or ()) == generate(tiny, TEXTS, **SAMPLING)
    for name, expected in over_whole_texts(tiny, None, "mlp.hook_post", pool).items():
        torch.testing.assert_close(got.values[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["hook_resid_post", "attn.hook_z"])
def test_of_every_family(family: Any, kind: str) -> None:
    edit = random_edit(family, scope="generated")
    got = collect(family, CONTRAST, kind, of="generated", intervention=edit, **SAMPLING)
    assert list(got.continuations or ()) == generate(family, TEXTS, intervention=edit, **SAMPLING)
    for name, expected in over_whole_texts(family, edit, kind, "max").items():
        torch.testing.assert_close(got.values[name], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.compat
@pytest.mark.parametrize("scope", ["all", "generated", "last", "prompt", Scope.of_steps(3), Scope.from_position(4)])
def test_an_edit_acts_as_in_generation_whatever_its_scope(embedded_host: Any, scope: Any) -> None:
    edit = random_edit(embedded_host, size=0.1).scoped(scope)
    contrast = ContrastSet(["the dog is", "a child was"], ["the old man", "every cat and"])
    texts = [*contrast.source, *contrast.target]
    got = collect(embedded_host, contrast, "hook_resid_post", of="generated", intervention=edit, **SAMPLING)
    assert list(got.continuations or ()) == generate(embedded_host, texts, intervention=edit, **SAMPLING)
    with edit.on(embedded_host):
        attached = collect(embedded_host, contrast, "hook_resid_post", of="generated", **SAMPLING)
    plain = collect(embedded_host, contrast, "hook_resid_post", of="generated", **SAMPLING)
    for site in got.sites:
        assert torch.equal(got.values[site], attached.values[site])
        assert not torch.allclose(got.values[site], plain.values[site], rtol=1e-3)


def test_the_first_tokens_whatever_the_length_of_the_prompt(tiny: Any) -> None:
    got = collect(tiny, CONTRAST, pool="mean", of="generated", scope=Scope.of_steps(3), **SAMPLING)
    assert max(got.lengths or ()) <= 3
    for name, expected in over_whole_texts(tiny, None, "mlp.hook_post", "mean", first=3).items():
        torch.testing.assert_close(got.values[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.compat
def test_batches_and_neighbours_change_nothing(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = collect(tiny, CONTRAST, of="generated", batch_size=1, **SAMPLING)
    together = collect(tiny, CONTRAST, of="generated", **SAMPLING)
    monkeypatch.setattr(generated_module, "_HELD", 20_000)  # two rows
    narrow = collect(tiny, CONTRAST, of="generated", **SAMPLING)
    for other in (together, narrow):
        assert other.continuations == alone.continuations
        for site in alone.sites:
            torch.testing.assert_close(alone.values[site], other.values[site], rtol=1e-4, atol=1e-5)
            for side in ("source", "target"):
                torch.testing.assert_close(
                    alone.token_mean(site, side), other.token_mean(site, side), rtol=1e-4, atol=1e-5
                )


def test_token_moments_are_those_of_the_written_tokens(tiny: Any) -> None:
    got = collect(tiny, CONTRAST, pool="mean", of="generated", **SAMPLING)
    counts = torch.tensor(got.lengths).float()
    for site in got.sites:
        source = got.labels[:, 0] == 1
        expected = (counts[source] / counts[source].sum()) @ got.values[site][source]
        torch.testing.assert_close(got.token_mean(site, "source"), expected, rtol=1e-4, atol=1e-5)


def test_a_pair_is_continued_behind_its_prompt(tiny: Any) -> None:
    pairs = ContrastSet([("the dog", " was sad")], [("a big cat", " ran")])
    prompts = ContrastSet(["the dog"], ["a big cat"])
    one, other = (collect(tiny, contrast, of="generated", **SAMPLING) for contrast in (pairs, prompts))
    assert one.continuations == other.continuations
    assert all(torch.equal(one.values[site], other.values[site]) for site in one.sites)


def ending_at_once(model: Any) -> Intervention:
    """An edit under which the model writes EOS whatever stands before."""
    site = find_sites(model, "hook_resid_post")[-1]
    shift = 1e3 * model.unembed.W_U[:, host_of(model).tokenizer.eos_token_id].detach()
    return Intervention((Edit(site, DiagonalAffine(torch.ones(site.width), shift)),))


def test_rows_that_end_at_once_are_left_out_and_named(tiny: Any, tmp_path: Path) -> None:
    strengths = [0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    settings: dict[str, Any] = {"of": "generated", "intervention": ending_at_once(tiny), **SAMPLING, "temperature": 0.2}
    with pytest.warns(LensSteerWarning, match="2 of 9 texts were left out"):
        got = collect(tiny, CONTRAST, strength=strengths, **settings)
    plain = collect(tiny, CONTRAST, of="generated", **SAMPLING, temperature=0.2)
    kept = [0, 2, 3, 4, 5, 6, 8]
    assert got.provenance["silent"] == [1, 7]
    assert got.continuations == tuple((plain.continuations or ())[row] for row in kept)
    for site in got.sites:
        torch.testing.assert_close(got.values[site], plain.values[site][kept], rtol=1e-4, atol=1e-5)
        assert bool(torch.isfinite(got.token_mean(site, "source")).all())
    back = Activations.load(got.save(tmp_path / "acts"))
    assert back.continuations == got.continuations
    assert torch.equal(back.labels, got.labels)
    with pytest.raises(ActivationError, match="no source text of 'contrast' was continued"):
        collect(tiny, CONTRAST, strength=[1.0] * 4 + [0.0] * 5, **settings)


def test_where_they_come_from_is_written_down(tiny: Any) -> None:
    edit = replace(random_edit(tiny), provenance={"method": "random", "seed": 5})
    got = collect(tiny, CONTRAST, of="generated", intervention=edit, strength=0.5, **SAMPLING)
    about = got.provenance
    assert about["of"] == "generated"
    assert about["sampling"]["seed"] == 3
    assert about["sampling"]["max_new_tokens"] == 7
    assert about["edit"] == {"method": "random", "seed": 5, "strength": 0.5}
    assert about["fingerprint"] != collect(tiny, CONTRAST, of="generated", **SAMPLING).provenance["fingerprint"]


def test_an_edit_may_be_given_with_given_texts(tiny: Any) -> None:
    edit = random_edit(tiny)
    got = collect(tiny, CONTRAST, intervention=edit)
    with edit.on(tiny):
        expected = collect(tiny, CONTRAST)
    assert all(torch.equal(got.values[site], expected.values[site]) for site in got.sites)
    assert got.continuations is None


def test_an_interrupted_call_goes_on(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"of": "generated", "batch_size": 2, **SAMPLING}
    whole = collect(tiny, CONTRAST, **settings)
    monkeypatch.setattr(store_module, "_SHARD_BATCHES", 1)
    monkeypatch.setattr(store_module, "_ROWS_PER_GROUP", 0)
    calls: list[int] = []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return decode(*args, **kwargs)

    monkeypatch.setattr(generated_module, "decode", failing)
    with pytest.raises(KeyboardInterrupt):
        collect(tiny, CONTRAST, store=tmp_path, **settings)
    resumed = collect(tiny, CONTRAST, store=tmp_path, **settings)
    assert len(calls) == 6  # five batches, one of which was tried twice
    assert resumed.continuations == whole.continuations
    assert resumed.lengths == whole.lengths
    for site in whole.sites:
        torch.testing.assert_close(resumed.values[site], whole.values[site])
        torch.testing.assert_close(resumed.token_mean(site, "source"), whole.token_mean(site, "source"))
    with pytest.raises(OutputError, match="sampling"):
        collect(tiny, CONTRAST, store=tmp_path, **{**settings, "seed": 4})


def test_it_leaves_the_model_as_it_was(tiny: Any) -> None:
    ids = tiny.to_tokens("the dog was sad")
    before = tiny(ids)
    collect(tiny, CONTRAST, of="generated", intervention=random_edit(tiny), **SAMPLING)
    assert torch.equal(tiny(ids), before)
    assert not any(point.fwd_hooks for point in tiny.hook_dict.values())


@pytest.mark.parametrize(
    ("settings", "error", "says"),
    [
        ({"max_new_tokens": 3}, SettingError, 'goes with of="generated"'),
        ({"of": "generated", "scope": "prompt"}, SettingError, "holds no generated token"),
        ({"of": "generated", "temperature": -1.0}, SettingError, "temperature must be"),
        ({"of": "generated", "max_new_tokens": 60}, TokenError, "leaves no room for 60 new ones"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said(tiny: Any, settings: dict[str, Any], error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        collect(tiny, CONTRAST, **settings)


@pytest.mark.plain
def test_other_tokens_than_these_are_refused(tiny: Any) -> None:
    of: Any = "written"
    with pytest.raises(SettingError, match="collect: of is 'given' or 'generated'"):
        collect(tiny, CONTRAST, of=of)


def test_a_full_context_is_read_to_its_last_token(tiny: Any) -> None:
    prompt = " ".join(WORDS[:40])
    room = host_of(tiny).context - len(prompt_tokens(tiny, [prompt], None, 1).ids[0])
    other = " ".join(reversed(WORDS[:40]))
    contrast = ContrastSet([prompt], [other])
    got = collect(tiny, contrast, of="generated", max_new_tokens=room, seed=1, special_in_pool=True)
    assert list(got.continuations or ()) == generate(tiny, [prompt, other], max_new_tokens=room, seed=1)
