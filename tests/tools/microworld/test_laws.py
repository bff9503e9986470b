import numpy as np
import pytest

from lens_steer.microworld.english import english
from lens_steer.microworld.grammar import PAD
from lens_steer.microworld.oracle import Oracle
from lens_steer.microworld.sampler import Sampler
from tools.microworld.laws import Laws
from tools.microworld.training_data import chunk_batches


@pytest.mark.parametrize("speaker", ["none", "untruthful"])
def test_the_laws_are_the_oracle_s_given_all_attributes(speaker):
    grammar = english()
    walk = Sampler.of(grammar).draw(25, stream=(5, 2), given={"speaker": speaker})
    numbers = Laws.of(grammar).number(walk)
    for row in range(25):
        length = int((walk.ids[row] >= 0).sum())
        given = {each.name: each.values[walk.values[row, k]] for k, each in enumerate(grammar.attributes)}
        words = [grammar.words[token] for token in walk.ids[row, : length - 1]]
        exact = np.stack(list(Oracle().follow(words, given=given)))
        ours = Laws.of(grammar).fill(numbers[row, :length], walk.memory[row, :length])
        np.testing.assert_allclose(ours, exact, atol=1e-6)
        assert (numbers[row, length:] == -1).all()


def test_a_batch_has_a_law_for_every_word_after_the_first():
    batch = chunk_batches(0, 0, 1024)[3]
    assert (batch.words == (batch.ids[:, 1:] != english().ids[PAD])).all()
    targets = batch.targets()
    np.testing.assert_allclose(targets.sum(-1), 1.0, atol=1e-5)
    assert (targets[np.arange(len(targets)), batch.ids[:, 1:][batch.words]] > 0).all()
