import numpy as np
import pytest

from lens_steer.errors import MicroworldError
from lens_steer.microworld.contrasts import named_contrast
from lens_steer.microworld.english import english
from lens_steer.microworld.oracle import Oracle
from lens_steer.microworld.prompts import open_prompts, shown_prompts
from lens_steer.microworld.requests import checked_count, checked_seed
from lens_steer.microworld.sampler import Sampler, sample
from lens_steer.microworld.steering import SteeringTask
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
    with pytest.raises(MicroworldError, match="number of documents.*not -1"):
        sample(-1)


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize(
    "draw",
    [
        lambda seed: sample(1, seed=seed),
        lambda seed: named_contrast("rude", n=1, seed=seed),
        lambda seed: open_prompts(1, seed=seed),
        lambda seed: shown_prompts("rude", 1, seed=seed),
        lambda seed: SteeringTask.draw({}, n=2, seed=seed),
    ],
    ids=["sample", "named_contrast", "open_prompts", "shown_prompts", "SteeringTask"],
)
def test_seeds_out_of_range_are_refused(draw, seed):
    """Beyond 2**32 the streams of one seed are those of another."""
    with pytest.raises(MicroworldError, match=f"seed is a whole number from 0 to 4294967295, not {seed}"):
        draw(seed)


def test_numbers_are_whole():
    assert checked_count(np.int64(3), "texts") == checked_seed(np.uint8(3)) == 3
    assert isinstance(checked_count(np.int64(3), "texts"), int)
    for value in (2.0, 2.5, "2", None, True, float("nan")):
        with pytest.raises(MicroworldError, match="number of texts is a whole number, 1 or more"):
            checked_count(value, "texts")
        with pytest.raises(MicroworldError, match="A seed is a whole number"):
            checked_seed(value)
