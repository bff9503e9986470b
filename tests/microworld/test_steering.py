from typing import Any

import numpy as np
import pytest

from lens_steer import microworld
from lens_steer.errors import MicroworldError
from lens_steer.microworld.english import english
from lens_steer.microworld.grammar import EOS
from lens_steer.microworld.oracle import Oracle
from lens_steer.microworld.steering import SteeringTask, steering_error_from_log_probs

RUDE = {"register": "rude"}


def speaker(given: dict[str, str], mix: float = 0.0) -> Any:
    """The grammar given attributes, or a mixture of it and the uniform law; prefix by prefix, through `next_token`."""
    oracle, words = Oracle(), english().words

    def next_log_probs(documents: Any) -> list[np.ndarray]:
        answers = []
        for ids in documents:
            said = [words[token] for token in ids[1:]]
            rows = [
                oracle.next_token(" ".join(said[:place]), given=given).probabilities for place in range(len(said) + 1)
            ]
            answers.append(np.log(np.maximum((1 - mix) * np.stack(rows) + mix / len(words), 1e-300)))
        return answers

    return next_log_probs


def test_the_grammar_itself_has_no_error() -> None:
    found = steering_error_from_log_probs(speaker(RUDE), given=RUDE, n=5)
    for measured in (found.nats, found.ungrammatical):
        assert measured.mean == pytest.approx(0.0, abs=1e-12)
        assert measured.standard_error == pytest.approx(0.0, abs=1e-12)
    documents = microworld.sample(5, seed=0, **RUDE)
    assert found.documents == 5
    assert found.prefixes == sum(len(document.text.split()) + 1 for document in documents)


def test_the_error_is_the_mean_over_every_beginning() -> None:
    """Against a computation prefix by prefix from `next_token`, with every document's terms apart."""
    oracle, terms = Oracle(), []
    for document in microworld.sample(3, seed=4, **RUDE):
        words, here = document.text.split(), []
        for place in range(len(words) + 1):
            law, other = (oracle.next_token(" ".join(words[:place]), given=given) for given in (RUDE, None))
            here.append(
                sum(
                    law[word] * np.log(law[word] / other[word])
                    for word, probability in law.top(len(law.words))
                    if probability > 0
                )
            )
        terms.append(here)
    found = steering_error_from_log_probs(speaker({}), given=RUDE, n=3, seed=4)
    everything = [value for here in terms for value in here]
    assert found.nats.mean == pytest.approx(np.mean(everything))
    residual = [sum(here) - np.mean(everything) * len(here) for here in terms]
    by_hand = np.sqrt(np.square(residual).sum() / (3 * 2)) / (len(everything) / 3)
    assert found.nats.standard_error == pytest.approx(by_hand)
    assert found.nats.mean > 0.01
    polite = steering_error_from_log_probs(speaker({"register": "polite"}), given=RUDE, n=3, seed=4)
    assert found.nats.mean < polite.nats.mean


@pytest.mark.plain
def test_the_standard_error_shrinks_with_documents() -> None:
    oracle, words = Oracle(), english().words

    def next_log_probs(documents: Any) -> list[np.ndarray]:
        laws = [np.stack(list(oracle.follow([words[token] for token in ids[1:]]))) for ids in documents]
        return [np.log(np.maximum(law, 1e-300)) for law in laws]

    few, many = (steering_error_from_log_probs(next_log_probs, given=RUDE, n=n).nats for n in (6, 54))
    assert 1.5 < few.standard_error / many.standard_error < 6
    assert abs(few.mean - many.mean) < 4 * few.standard_error


def test_ungrammatical_mass_is_what_leaks_out_of_the_grammar() -> None:
    task = SteeringTask.draw(RUDE, n=5, seed=1)
    found = task.error(speaker(RUDE, mix=0.5), batch_size=2)
    outside = [(~allowed).mean(-1) for allowed in task.allowed]
    assert found.ungrammatical.mean == pytest.approx(0.5 * np.concatenate(outside).mean())
    assert 0 < found.nats.mean < np.log(2) + 1e-9


def test_a_speaker_that_gives_the_grammar_nothing_has_a_finite_error() -> None:
    def says_end_only(documents: Any) -> list[np.ndarray]:
        logits = np.full(len(english().words), -1e4)
        logits[english().ids[EOS]] = 0.0
        return [np.tile(logits - np.log(np.exp(logits).sum()), (len(ids), 1)) for ids in documents]

    found = steering_error_from_log_probs(says_end_only, given=RUDE, n=3)
    assert 1e3 < found.nats.mean < 1e4
    assert found.ungrammatical.mean > 0.9


def test_answers_that_are_no_laws_are_refused() -> None:
    words = len(english().words)
    with pytest.raises(MicroworldError, match="one row of log probabilities per token"):
        steering_error_from_log_probs(lambda documents: [np.zeros((len(i), words)) for i in documents], given=RUDE, n=3)
    with pytest.raises(MicroworldError, match="3 documents were asked about and 0"):
        steering_error_from_log_probs(lambda documents: [], given=RUDE, n=3)
    with np.errstate(divide="ignore"), pytest.raises(MicroworldError, match="error is infinite"):
        certain = np.log(np.eye(words)[english().ids[EOS]])
        SteeringTask.draw(RUDE, n=3).error(lambda documents: [np.tile(certain, (len(i), 1)) for i in documents])
    with pytest.raises(MicroworldError, match="not 1"):
        SteeringTask.draw(RUDE, n=1)
    with pytest.raises(MicroworldError, match="no attribute 'manner'"):
        SteeringTask.draw({"manner": "rude"}, n=3)
