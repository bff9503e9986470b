import numpy as np
import pytest

from lens_steer.errors import MicroworldError
from lens_steer.microworld.english import english
from lens_steer.microworld.oracle import Oracle
from lens_steer.microworld.sampler import Sampler, sample
from tests.microworld.brute_force import all_documents, cut_down


def test_sampled_frequencies_are_the_listed_probabilities():
    grammar, n = cut_down(), 200_000
    walk = Sampler.of(grammar).draw(n, stream=(3, 1), given={})
    values, ids = walk.values, walk.ids
    expected: dict = {}
    for words, entries in all_documents().items():
        for chosen, p in entries:
            expected[words, tuple(chosen.values())] = n * p
    times = dict.fromkeys(expected, 0)
    for row, drawn in zip(ids.tolist(), values.tolist()):
        words = tuple(grammar.words[token] for token in row if token >= 0)[:-1]
        times[words, tuple(drawn)] += 1
    observed, wanted = np.array(list(times.values())), np.array(list(expected.values()))
    large = wanted >= 5
    chi = ((observed - wanted) ** 2 / np.maximum(wanted, 1e-9))[large].sum()
    assert abs(chi - large.sum()) < 5 * np.sqrt(2 * large.sum())
    assert (observed[wanted == 0] == 0).all()


def test_a_document_depends_on_seed_and_row_only():
    assert sample(5, seed=4) == sample(1500, seed=4)[:5]
    assert sample(5, seed=4) != sample(5, seed=5)
    assert sample(0) == []


def test_attributes_can_be_fixed():
    documents = sample(200, seed=1, register="rude", topic="river")
    assert {document.attributes["register"] for document in documents} == {"rude"}
    assert {document.attributes["topic"] for document in documents} == {"river"}
    assert len({document.attributes["tense"] for document in documents}) == 2


def test_every_document_is_grammatical_and_has_two_to_six_sentences():
    oracle = Oracle()
    for document in sample(200, seed=77):
        sentences = oracle.sentences(document.text)
        assert all(sentence.grammatical for sentence in sentences)
        assert 2 <= len(sentences) <= 6
        assert np.isfinite(oracle.log_likelihood(document.text))


def test_documents_are_short_enough_for_the_model():
    documents = sample(20_000, seed=9)
    assert max(len(document.text.split()) for document in documents) < 150


def test_attributes_follow_their_priors():
    documents = sample(6000, seed=10)
    for attribute in english().attributes:
        for value, prior in zip(attribute.values, attribute.prior):
            share = np.mean([document.attributes[attribute.name] == value for document in documents])
            assert abs(share - prior) < 5 * np.sqrt(prior * (1 - prior) / len(documents))


def test_bad_requests_are_named():
    with pytest.raises(MicroworldError, match="no attribute 'colour'"):
        sample(1, colour="red")
    with pytest.raises(MicroworldError, match="no value 'space'; it has film"):
        sample(1, topic="space")
    with pytest.raises(MicroworldError, match="-1 documents"):
        sample(-1)
