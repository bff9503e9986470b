"""The embedded model on both hosts: the same logits, texts, edits and steering error, from one checkpoint."""

from typing import Any

import numpy as np
import pytest
import torch

import lens_steer as ls
from lens_steer import microworld
from lens_steer.host.fingerprint import compare_fingerprints, read_fingerprint
from lens_steer.host.sites import find_sites
from tests.handles import logits

pytestmark = pytest.mark.compat
KINDS = ["hook_resid_pre", "hook_resid_post", "mlp.hook_post", "attn.hook_z"]


def test_a_hosted_model_is_close_to_the_grammar(embedded_host: Any) -> None:
    """Given nothing it nearly is the grammar; given a register it is off by what it could not know."""
    free, rude = (ls.steering_error(embedded_host, given=given, n=16) for given in ({}, {"register": "rude"}))
    assert 0 < free.nats < 0.15
    assert free.ungrammatical < 0.03
    assert rude.nats > free.nats


def test_both_hosts_agree(embedded: Any, hooked_embedded: Any) -> None:
    ids = embedded.to_tokens(microworld.sample(1, seed=1)[0].text)
    assert ids[0, 0] == embedded.tokenizer.bos_token_id
    assert torch.equal(ids, hooked_embedded.to_tokens(microworld.sample(1, seed=1)[0].text))
    here, there = logits(embedded, ids), logits(hooked_embedded, ids)
    assert float((here - there).abs().max() / here.abs().max()) < 1e-5
    sites = find_sites(embedded, KINDS)
    assert compare_fingerprints(*(read_fingerprint(model, sites) for model in (embedded, hooked_embedded))) == ""
    edit = ls.AurA().fit(embedded, ls.read_contrast("microworld:rude", n=8))
    errors = [
        ls.steering_error(model, given={"register": "plain"}, intervention=edit, n=4)
        for model in (embedded, hooked_embedded)
    ]
    np.testing.assert_allclose(errors[0].frame["after"], errors[1].frame["after"], rtol=1e-3)
    prompts = microworld.open_prompts(4)
    texts = [ls.generate(model, prompts, intervention=edit, max_new_tokens=12) for model in (embedded, hooked_embedded)]
    assert sum(one != other for one, other in zip(*texts, strict=True)) <= 1  # a close call may fall either way


def test_evaluate_reports_what_the_oracle_cannot_read(embedded_host: Any) -> None:
    edit = ls.ablate(ls.random_units(find_sites(embedded_host, "hook_resid_post"), 200, seed=0), mode="zero")
    prompts = microworld.open_prompts(8, seed=3)
    scorer = ls.OracleScorer("rude")
    neutral = ls.read_contrast("microworld:rude", n=8).target
    result = ls.evaluate(embedded_host, edit, prompts=prompts, scorer=scorer, neutral=neutral, max_new_tokens=20)
    frame = result.frame.set_index("measure")
    assert list(frame.index) == ["effect", "cost", "unreadable", "grammatical", "empty"]
    for when in ("before", "after"):
        reading = scorer.read(prompts, result.texts[when].tolist())
        scores = result.texts[f"{when}_score"]
        np.testing.assert_array_equal(scores, reading.scores)
        assert frame.loc["effect", when] == pytest.approx(float(scores.mean()), nan_ok=True)  # of the readable ones
        for name, share in reading.shares.items():
            expected = share.counted.sum() / share.of.sum()
            assert frame.loc[name, when] == pytest.approx(expected, nan_ok=True)
    assert frame.loc["cost", "change"] > 0
