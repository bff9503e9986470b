import math

import pytest

from lens_steer.microworld.attributes import OCCUPATION
from lens_steer.microworld.counting import _answers, counts, log10_documents
from lens_steer.microworld.lexicon import OCCUPATIONS
from lens_steer.microworld.topics import HOMOGRAPHS, TOPICS
from tests.microworld.brute_force import all_documents, cut_down


@pytest.fixture(scope="module")
def counted():
    return counts(documents=8000)


@pytest.mark.plain
def test_no_short_cut(counted):
    assert counted.log10_documents > 8
    assert counted.repeats < 0.01
    assert 500 <= counted.words <= 1500
    assert counted.homographs >= 5
    assert len(TOPICS) >= 10


@pytest.mark.plain
def test_every_value_is_carried_by_many_words_none_too_common(counted):
    for value, carriers in counted.carriers.items():
        assert carriers.number >= 15, value
        assert carriers.largest_share < 1 / 3, (value, carriers)
    assert len(counted.carriers) == 12 + 3 + 3 + 3 + 2 + 2


def test_number_of_documents_is_exact():
    assert log10_documents(cut_down()) == pytest.approx(math.log10(len(all_documents())))


def test_answers_are_read_against_the_facts():
    text = (
        "clearly , ann owned the round camera , sir . surely , bob owned the ticket . what did ann own ? "
        "ugh , ann owned the ticket . please , what did bob own ? bob owned the ticket ."
    )
    assert _answers(text) == {"swapped after owned", "right after owned"}


def test_occupations_have_their_stated_skew():
    law = OCCUPATION.table.probabilities
    for share, group in OCCUPATIONS.items():
        for occupation in group.split():
            column = law[:, OCCUPATION.words.index(occupation)]
            assert column[1] / (column[1] + column[2]) == pytest.approx(share)


def test_homographs_have_two_senses():
    assert HOMOGRAPHS["bank"] == ("money", "river")
    assert all(len(topics) == 2 for topics in HOMOGRAPHS.values())
