"""The steering error of hosted models: the same as by hand from their logits, with and without an edit."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import lens_steer as ls
from lens_steer import microworld
from lens_steer.errors import MicroworldError, ModelError, SettingError
from lens_steer.evaluation.steering_error import SteeringErrors
from lens_steer.host.load import load_model
from lens_steer.microworld.english import english
from lens_steer.microworld.oracle import Oracle
from lens_steer.microworld.steering import Measured, SteeringError
from lens_steer.microworld.tokenizer import save_tokenizer
from tests.evaluation.hosts import random_edit
from tests.handles import handles

PLAIN = {"register": "plain"}


@pytest.fixture(scope="module")
def speaker(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A random GPT-2 that speaks the microworld's words."""
    place = tmp_path_factory.mktemp("speaker")
    save_tokenizer(place)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(english().words), n_embd=32, n_layer=2, n_head=4, n_positions=160)
    return load_model(GPT2LMHeadModel(config), tokenizer=AutoTokenizer.from_pretrained(place))


def by_hand(model: Any, *, n: int, seed: int) -> tuple[float, float]:
    """One forward per beginning, through TransformerLens's own call."""
    oracle, divergence, outside = Oracle(), [], []
    for document in microworld.sample(n, seed=seed, **PLAIN):
        ids = [oracle.grammar.ids["<bos>"], *(oracle.grammar.ids[word] for word in document.text.split())]
        laws = zip(oracle.follow(document.text.split(), given=PLAIN), oracle.follow(document.text.split()))
        for place, (law, free) in enumerate(laws):
            with torch.no_grad():
                logits = model(torch.tensor([ids[: place + 1]]))[0, -1].double()
            logs = logits.log_softmax(-1).numpy()
            divergence.append(float((law[law > 0] * (np.log(law[law > 0]) - logs[law > 0])).sum()))
            outside.append(float(np.exp(logs[free == 0]).sum()))
    return float(np.mean(divergence)), float(np.mean(outside))


def test_it_is_the_mean_over_all_beginnings(speaker: Any) -> None:
    edit = random_edit(speaker, size=0.1)
    found = ls.steering_error(speaker, given=PLAIN, intervention=edit, n=2, seed=5, batch_size=1)
    before = by_hand(speaker, n=2, seed=5)
    with edit.on(speaker):
        after = by_hand(speaker, n=2, seed=5)
    assert (found.before.nats.mean, found.before.ungrammatical.mean) == pytest.approx(before, rel=1e-4)
    assert (found.nats, found.ungrammatical) == pytest.approx(after, rel=1e-4)
    assert abs(after[0] - before[0]) > 1e-3
    table = found.frame.set_index("measure")
    assert table.loc["nats", ["before", "after"]].tolist() == pytest.approx([before[0], after[0]], rel=1e-4)
    np.testing.assert_allclose(table["change"], table["after"] - table["before"])
    assert (table[["before_se", "after_se"]] > 0).all(axis=None)


def test_it_leaves_the_model_and_its_answer_alone(speaker: Any) -> None:
    edit = random_edit(speaker)
    ls.steering_error(speaker, given=PLAIN, n=2)  # the host hangs its own hooks at its first forward pass
    there = handles(speaker)
    first = ls.steering_error(speaker, given=PLAIN, intervention=edit, n=4, seed=1)
    assert handles(speaker) == there
    assert ls.steering_error(speaker, given=PLAIN, intervention=edit, strength=0.0, n=4, seed=1).after == first.before
    assert ls.steering_error(speaker, given=PLAIN, n=4, seed=1).after == first.before
    by_one = ls.steering_error(speaker, given=PLAIN, n=4, seed=1, batch_size=1)
    assert by_one.nats == pytest.approx(first.before.nats.mean, rel=1e-5)


@pytest.mark.filterwarnings("ignore:no token was in the scope")
def test_documents_are_as_if_generated(speaker: Any) -> None:
    """An edit of generated tokens acts behind BOS; one for prompts has none to act on."""
    edit = random_edit(speaker)
    generated = ls.steering_error(speaker, given=PLAIN, intervention=edit.scoped("generated"), n=3)
    assert abs(generated.nats - generated.before.nats.mean) > 1e-3
    with pytest.raises(SettingError, match="plain texts"):
        ls.steering_error(speaker, given=PLAIN, intervention=edit.scoped("prompt"), n=3)


def test_bad_input_is_refused(speaker: Any, tiny: Any) -> None:
    with pytest.raises(ModelError, match=r'load_model\("microworld"\)'):
        ls.steering_error(tiny, given=PLAIN)
    with pytest.raises(MicroworldError, match="no value 'bored'"):
        ls.steering_error(speaker, given={"register": "bored"})
    with pytest.raises(MicroworldError, match="2 or more"):
        ls.steering_error(speaker, given=PLAIN, n=1)
    with pytest.raises(SettingError, match="batch_size"):
        ls.steering_error(speaker, given=PLAIN, batch_size=0)
    overflowing = random_edit(speaker, size=1e30)
    with pytest.raises(ModelError, match="not finite"):
        ls.steering_error(speaker, given=PLAIN, intervention=overflowing, n=2)


def test_the_microworld_has_it_under_its_own_name() -> None:
    assert microworld.steering_error is ls.steering_error
    with pytest.raises(AttributeError, match="no attribute 'steering_erors'"):
        _ = microworld.steering_erors


def test_the_change_has_the_error_of_paired_documents(speaker: Any) -> None:
    """The jackknife over documents of the ratio's change; far below what the means' own errors say."""
    edit = random_edit(speaker, size=0.02)
    result = ls.steering_error(speaker, given=PLAIN, intervention=edit, n=24, seed=2)
    row = result.frame.set_index("measure").loc["nats"]
    assert 0 < row["change_se"] < 0.3 * np.hypot(row["before_se"], row["after_se"])
    half = stats.t.ppf(0.975, 23) * row["change_se"]
    assert (row["low"], row["high"]) == pytest.approx((row["change"] - half, row["change"] + half))
    assert row["verdict"] == ("higher" if row["low"] > 0 else "lower" if row["high"] < 0 else "not shown")


def test_the_paired_error_is_that_of_the_documents_differences() -> None:
    before = Measured(1.0, 0.0, (0.5, -0.5, 0.25, -0.25))
    after = Measured(0.8, 0.0, (0.6, -0.5, 0.15, -0.25))
    assert after.change_error(before) == pytest.approx(np.std([0.1, 0.0, -0.1, 0.0], ddof=1) / 2)
    assert before.change_error(before) == 0
    idle = SteeringError(before, before, 40, 4)
    frame = SteeringErrors(idle, idle).frame
    assert (frame[["change", "change_se", "low", "high"]] == 0).all(axis=None)
    assert frame["verdict"].tolist() == ["not shown"] * 2


def test_the_error_by_documents_is_the_standard_error(speaker: Any) -> None:
    nats = ls.steering_error(speaker, given=PLAIN, n=6, seed=3).before.nats
    assert nats.change_error(replace(nats, by_document=(0.0,) * 6)) == pytest.approx(nats.standard_error)
