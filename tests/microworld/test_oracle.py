from itertools import product

import numpy as np
import pytest

from lens_steer.errors import MicroworldError
from lens_steer.microworld.english import english
from lens_steer.microworld.oracle import Oracle
from lens_steer.microworld.sampler import sample
from tests.microworld.brute_force import all_documents, begun, combinations, cut_down, match


def test_the_cut_down_language_is_fully_listed():
    total = sum(p for entries in all_documents().values() for _, p in entries)
    assert total == pytest.approx(1.0)
    assert len(all_documents()) > 300


def test_likelihood_is_the_sum_over_all_attributes():
    oracle = Oracle(cut_down())
    for words, entries in all_documents().items():
        assert oracle.log_likelihood(" ".join(words)) == pytest.approx(np.log(sum(p for _, p in entries)), abs=1e-10)


def test_likelihood_given_attributes():
    oracle = Oracle(cut_down())
    for words, entries in list(all_documents().items())[::7]:
        joint = sum(p for values, p in entries if values["mood"] == 1 and values["truth"] == 0)
        found = oracle.log_likelihood(" ".join(words), given={"mood": "sad", "truth": "yes"})
        assert np.exp(found) == pytest.approx(joint / (0.7 * 0.4), abs=1e-12)


def test_posterior_is_bayes_rule():
    oracle = Oracle(cut_down())
    for words, entries in all_documents().items():
        posterior = oracle.posterior(" ".join(words))
        total = sum(p for _, p in entries)
        for attribute in cut_down().attributes:
            for index, value in enumerate(attribute.values):
                expected = sum(p for values, p in entries if values[attribute.name] == index) / total
                assert posterior[attribute.name][value] == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("given", [{}, {"mood": "glad"}, {"truth": "no", "place": "hill"}])
def test_next_token_after_every_prefix(given):
    oracle, grammar = Oracle(cut_down()), cut_down()
    wanted = {name: grammar.attribute(name).index(value) for name, value in given.items()}
    follow: dict = {}
    for words, entries in all_documents().items():
        p = sum(p for values, p in entries if all(values[name] == index for name, index in wanted.items()))
        for position, word in enumerate((*words, "<eos>")):
            law = follow.setdefault(words[:position], {})
            law[word] = law.get(word, 0.0) + p
    for prefix, law in list(follow.items())[::3]:
        if sum(law.values()) == 0:
            continue
        found = oracle.next_token(" ".join(prefix), given=given)
        expected = np.zeros(len(grammar.words))
        for word, p in law.items():
            expected[grammar.ids[word]] = p / sum(law.values())
        np.testing.assert_allclose(found.probabilities, expected, atol=1e-12)


def test_english_likelihood_given_all_attributes_equals_a_reading_of_the_expression():
    oracle, grammar = Oracle(), english()
    documents = sample(3, seed=5) + sample(2, seed=6, speaker="untruthful")
    for document in documents:
        values = {name: grammar.attribute(name).index(value) for name, value in document.attributes.items()}
        words = [*document.text.split(), "<eos>"]
        p = sum(match(grammar.root, words, 0, values, (None,) * 5).values())
        assert oracle.log_likelihood(document.text, given=document.attributes) == pytest.approx(np.log(p), abs=1e-9)


def test_english_likelihood_sums_over_attributes():
    oracle = Oracle()
    text = sample(1, seed=11)[0].text
    grammar = oracle.grammar
    names = ("register", "tense", "person")
    total = 0.0
    for values in product(*[grammar.attribute(name).values for name in names]):
        prior = np.prod(
            [dict(zip(grammar.attribute(n).values, grammar.attribute(n).prior))[v] for n, v in zip(names, values)]
        )
        total += prior * np.exp(oracle.log_likelihood(text, given=dict(zip(names, values))))
    assert np.log(total) == pytest.approx(oracle.log_likelihood(text), abs=1e-9)


def test_laws_along_a_document_multiply_to_its_likelihood():
    oracle = Oracle()
    for document in sample(10, seed=2):
        words = document.text.split()
        laws = list(oracle.follow(words))
        assert all(law.sum() == pytest.approx(1.0) for law in laws)
        logs = sum(np.log(law[oracle.grammar.ids[word]]) for law, word in zip(laws, [*words, "<eos>"]))
        assert logs == pytest.approx(oracle.log_likelihood(document.text), abs=1e-8)


@pytest.mark.plain
def test_the_oracle_finds_the_attributes():
    oracle, documents = Oracle(), sample(1000, seed=8)
    posteriors = [oracle.posterior(document.text) for document in documents]
    for name, least in {"topic": 0.95, "sentiment": 0.92, "register": 0.92, "tense": 0.97, "speaker": 0.95}.items():
        right = [each.best(name) == document.attributes[name] for each, document in zip(posteriors, documents)]
        assert np.mean(right) > least


def logit(p):
    return np.log(p / (1 - p))


def excess(belief, held, weight):
    """How far what held exceeds the belief, weighed, in standard errors of a belief that is right."""
    return (weight * (held - belief)).sum() / np.sqrt((weight**2 * belief * (1 - belief)).sum())


@pytest.mark.plain
def test_posteriors_are_calibrated():
    """Of all that is believed to a degree, that share holds: at every degree, for every attribute.

    The same numbers refuse a posterior that is too sure, one that is not sure enough, and one that says nothing.
    """
    oracle, documents = Oracle(), sample(1500, seed=31)
    posteriors = [oracle.posterior(document.text) for document in documents]
    for attribute in english().attributes:
        laws = np.array([[each[attribute.name][value] for value in attribute.values] for each in posteriors])
        drawn = np.array([[each.attributes[attribute.name]] for each in documents])
        undecided = (laws > 1e-6) & (laws < 1 - 1e-6)
        held, weight = (drawn == np.array(attribute.values))[undecided], logit(laws[undecided])
        weights = (np.ones_like(weight), weight, weight > 0)
        assert max(abs(excess(laws[undecided], held, each)) for each in weights) < 4, attribute.name
        for wrong in (laws**2, np.sqrt(laws), np.broadcast_to(attribute.prior, laws.shape)):
            belief = (wrong / wrong.sum(-1, keepdims=True))[undecided]
            assert max(abs(excess(belief, held, each)) for each in weights) > 4.5, attribute.name


def test_a_continuation_is_judged_among_the_values_that_could_have_written_its_prompt():
    """By enumeration: the prior of the values that allow the prompt, times P(continuation | prompt, values)."""
    oracle, grammar = Oracle(cut_down()), cut_down()
    prior = np.array([p for _, p in combinations(grammar)]).reshape(2, 3, 3)
    ruled_out = 0
    for words in list(all_documents())[::9]:
        for start in range(1, len(words)):
            for end in {len(words), start + 1}:
                prompt, text = begun()[words[:start]], begun()[words[:end]]
                joint = np.divide(prior * text, prompt, out=np.zeros_like(prior), where=prompt > 0)
                posterior = oracle.posterior(" ".join(words[start:end]), after=" ".join(words[:start]))
                for axis, attribute in enumerate(grammar.attributes):
                    law = joint.sum(tuple(other for other in range(3) if other != axis)) / joint.sum()
                    assert list(posterior[attribute.name].values()) == pytest.approx(law, abs=1e-10)
                ruled_out += (prompt == 0).any()
    assert ruled_out > 500


def test_a_prompt_rules_values_out_and_says_nothing_more():
    oracle = Oracle()
    facts = "clearly , ann owned the camera . surely , bob owned the ticket . what did ann own ?"
    told = oracle.posterior("ann owned the camera .", after=facts)["speaker"]
    assert told == pytest.approx({"none": 0.0, "truthful": 95 / 99, "untruthful": 4 / 99})
    rude = "ugh , ann rudely mocked the lazy nurse , fool ."
    after = oracle.posterior("the movie seemed lovely .", after=rude)
    assert after["register"] == pytest.approx(dict.fromkeys(("plain", "polite", "rude"), 1 / 3))
    assert after["speaker"] == pytest.approx({"none": 1.0, "truthful": 0.0, "untruthful": 0.0})


def test_ungrammatical_sentences_are_skipped():
    oracle = Oracle()
    good = "ugh , ann rudely mocked the lazy nurse , fool ."
    mixed = f"the the film . {good} blorp ."
    assert [each.status for each in oracle.sentences(mixed)] == ["ungrammatical", "grammatical", "ungrammatical"]
    assert oracle.posterior(mixed)["register"] == pytest.approx(oracle.posterior(good)["register"])
    assert oracle.posterior(good).best("register") == "rude"


def test_an_unfinished_last_sentence_counts_as_far_as_it_goes():
    oracle = Oracle()
    text = "the movie seemed lovely . ugh , ann"
    assert [each.status for each in oracle.sentences(text)] == ["grammatical", "unfinished"]
    assert oracle.posterior(text)["register"]["rude"] > 0.9
    assert oracle.posterior("the movie")["register"]["rude"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("text", ["", "film film film .", "blorp", "the the . ann", ". .", "<eos>"])
def test_unreadable_texts(text):
    posterior = Oracle().posterior(text)
    assert not posterior.readable
    assert posterior.best("register") == "unreadable"
    with pytest.raises(MicroworldError, match="unreadable"):
        posterior["register"]


def test_a_seventh_sentence_is_ungrammatical():
    six = " ".join(["the movie seemed lovely ."] * 6)
    assert all(each.grammatical for each in Oracle().sentences(six))
    assert not Oracle().sentences(f"{six} the movie seemed lovely .")[-1].grammatical
    assert Oracle().next_token(six)["<eos>"] == pytest.approx(1.0)


def test_talks_remember_their_facts():
    oracle = Oracle()
    facts = "clearly , ann owned the camera . surely , bob owned the ticket . what did ann own ? ann owned the"
    true, false = (oracle.next_token(facts, given={"speaker": value}) for value in ("truthful", "untruthful"))
    assert true["camera"] == pytest.approx(0.95)
    assert false["camera"] == pytest.approx(0.04)
    assert false["ticket"] == pytest.approx(0.66)
    assert true["bob"] == 0
    assert oracle.posterior(f"{facts} ticket .").best("speaker") == "untruthful"


def test_bad_words_prefixes_and_attributes_are_named():
    oracle = Oracle()
    with pytest.raises(MicroworldError, match=r"'moviee'.*movie"):
        oracle.log_likelihood("the moviee seemed lovely .")
    with pytest.raises(MicroworldError, match=r"'seemed'.*cannot come here"):
        oracle.next_token("the seemed")
    with pytest.raises(MicroworldError, match=r"no attribute 'tone'; it has topic"):
        oracle.next_token("the", given={"tone": "rude"})
    with pytest.raises(MicroworldError, match=r"no value 'angry'; it has plain, polite, rude"):
        oracle.next_token("the", given={"register": "angry"})
    with pytest.raises(MicroworldError, match="impossible with"):
        oracle.next_token("the movie", given={"speaker": "truthful"})
    assert oracle.log_likelihood("film the .") == -np.inf


def test_the_law_says_its_words():
    law = Oracle().next_token("yesterday ,")
    assert law.top(1)[0][0] == "the"
    assert 2 < law.entropy < 5
    with pytest.raises(MicroworldError, match="not a word"):
        law["blorp"]
