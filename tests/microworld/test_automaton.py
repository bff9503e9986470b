import numpy as np
import pytest

from lens_steer.errors import MicroworldError
from lens_steer.microworld.automaton import Table, choice, compile_automaton, seq, styled
from lens_steer.microworld.grammar import Attribute
from lens_steer.microworld.lexicon import inflect
from tests.microworld.brute_force import cut_down


def test_ambiguous_words_are_refused():
    with pytest.raises(MicroworldError, match="share"):
        compile_automaton(choice((0.5, seq("the cat")), (0.5, seq("the dog"))))


def test_tables_must_be_laws():
    with pytest.raises(MicroworldError, match="one law"):
        Table(("mood",), np.array([[0.5, 0.4]]))
    with pytest.raises(MicroworldError, match="summing to 1"):
        Attribute("mood", ("glad", "sad"), (0.5, 0.6))


def test_styled_laws():
    category = styled("x", "mood", {"glad": "a b", "sad": "c d e"}, shared="f", share=0.2, leak=0.1)
    np.testing.assert_allclose(category.table.probabilities.sum(-1), 1.0)
    law = dict(zip(category.words, category.table.probabilities[0]))
    assert law["a"] == pytest.approx(0.8 * 0.9 / 2)
    assert law["c"] == pytest.approx(0.8 * 0.1 / 3)
    assert law["f"] == pytest.approx(0.2)


def test_components_join_what_a_table_ties():
    assert [[each.name for each in component] for component in cut_down().components] == [["truth"], ["mood", "place"]]


@pytest.mark.parametrize(
    ("verb", "forms"),
    [("walk", "walk walks walked"), ("carry", "carry carries carried"), ("rush", "rush rushes rushed"),
     ("like", "like likes liked"), ("go:goes:went", "go goes went"), ("play", "play plays played")],
)  # fmt: skip
def test_inflection(verb, forms):
    assert " ".join(inflect(verb)) == forms
