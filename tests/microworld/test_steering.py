import numpy as np
import pytest

from lens_steer.errors import MicroworldError
from lens_steer.microworld.english import english
from lens_steer.microworld.oracle import Oracle
from lens_steer.microworld.steering import draw_prefixes, steering_error_from_log_probs

RUDE = {"register": "rude"}


def laws(given, mix=0.0):
    oracle, words = Oracle(), english().words

    def next_log_probs(prefixes):
        rows = [
            oracle.next_token(" ".join(words[token] for token in ids[1:]), given=given).probabilities
            for ids in prefixes
        ]
        mixed = (1 - mix) * np.stack(rows) + mix / len(words)
        return np.log(np.maximum(mixed, 1e-300))

    return next_log_probs


def test_the_grammar_itself_has_no_error():
    found = steering_error_from_log_probs(laws(RUDE), given=RUDE, n=40)
    assert found.nats == pytest.approx(0.0, abs=1e-12)
    assert found.ungrammatical == pytest.approx(0.0, abs=1e-12)
    assert found.prefixes == 40


def test_the_unconditional_grammar_is_off_by_the_information_in_the_attribute():
    found = steering_error_from_log_probs(laws({}), given=RUDE, n=40)
    prefixes, total = draw_prefixes(RUDE, n=40), 0.0
    oracle = Oracle()
    for ids, law in zip(prefixes.ids, prefixes.laws):
        other = oracle.next_token(" ".join(english().words[token] for token in ids[1:])).probabilities
        here = law > 0
        total += float((law[here] * np.log(law[here] / other[here])).sum())
    assert found.nats == pytest.approx(total / 40)
    assert found.nats > 0.01
    assert found.nats < steering_error_from_log_probs(laws({"register": "polite"}), given=RUDE, n=40).nats


def test_ungrammatical_mass_is_what_leaks_out_of_the_grammar():
    found = steering_error_from_log_probs(laws(RUDE, mix=0.5), given=RUDE, n=30, batch_size=7)
    assert 0.4 < found.ungrammatical < 0.5
    assert 0 < found.nats < np.log(2) + 1e-9


def test_rows_that_are_no_laws_are_refused():
    with pytest.raises(MicroworldError, match="log probabilities per prefix"):
        steering_error_from_log_probs(lambda prefixes: np.zeros((len(prefixes), len(english().words))), given=RUDE, n=3)
    with pytest.raises(MicroworldError, match="0 prefixes"):
        draw_prefixes(RUDE, n=0)
