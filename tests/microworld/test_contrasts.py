import numpy as np
import pytest

from lens_steer.errors import MicroworldError
from lens_steer.microworld.contrasts import concept, contrast_names, named_contrast
from lens_steer.microworld.english import english
from lens_steer.microworld.oracle import Oracle
from lens_steer.microworld.prompts import open_prompts, shown_prompts
from lens_steer.microworld.sampler import sample


def test_names_cover_the_issue():
    wanted = (
        "rude polite plain negative positive neutral she he i past present truthful untruthful topic=film bank=river"
    )
    assert set(wanted.split()) <= set(contrast_names())


@pytest.mark.parametrize("name", ["rude", "topic=film", "bank=river", "she", "past", "untruthful"])
def test_sources_show_the_value_and_targets_do_not(name):
    source, target = named_contrast(name, n=12, seed=3)
    asked, oracle = concept(name), Oracle()
    assert len(source) == len(target) == 12
    for texts, low, high in ((source, 0.9, 1.0), (target, 0.0, 0.1)):
        for text in texts:
            assert low <= oracle.posterior(text)[asked.attribute][asked.value] <= high + 1e-12
            assert asked.word is None or asked.word in text.split()


@pytest.mark.plain
def test_every_name_can_be_drawn():
    for name in contrast_names():
        source, target = named_contrast(name, n=1, seed=1)
        assert len(source) == len(target) == 1


def test_contrasts_follow_the_seed():
    assert named_contrast("rude", n=4, seed=1) == named_contrast("rude", n=4, seed=1)
    assert named_contrast("rude", n=4, seed=1) != named_contrast("rude", n=4, seed=2)
    assert named_contrast("rude", n=8, seed=1)[0][:4] == named_contrast("rude", n=4, seed=1)[0]


def differences(source, target):
    """Attribute -> largest difference of a value's mean probability between two sides, in standard errors."""
    oracle, largest = Oracle(), {}
    sides = [[oracle.posterior(text) for text in side] for side in (source, target)]
    for attribute in english().attributes:
        laws = [np.array([list(each[attribute.name].values()) for each in side]) for side in sides]
        errors = np.sqrt(sum(law.var(0) / len(law) for law in laws)) + 1e-9
        largest[attribute.name] = float(np.max(np.abs(laws[0].mean(0) - laws[1].mean(0)) / errors))
    return largest


@pytest.mark.plain
@pytest.mark.parametrize("name", ["rude", "negative", "past", "untruthful", "she"])
def test_other_attributes_are_drawn_alike(name):
    source, target = named_contrast(name, n=150, seed=5)
    largest = differences(source, target)
    assert largest.pop(concept(name).attribute) > 20
    assert max(largest.values()) < 4


@pytest.mark.plain
def test_attributes_that_are_not_drawn_alike_would_be_seen():
    """Beside the test above: a share of two thirds in place of one on one side shows."""
    source, target = named_contrast("rude", n=150, seed=5)
    negative = [document.text for document in sample(75, seed=1, register="rude", sentiment="negative")]
    assert differences([*source[75:], *negative], target)["sentiment"] > 4


def test_unknown_names_and_sizes_are_refused():
    with pytest.raises(MicroworldError, match=r"'rood'.*nearest are rude.*bank=river"):
        named_contrast("rood", n=2)
    with pytest.raises(MicroworldError, match="not 0"):
        named_contrast("rude", n=0)


def test_open_prompts_say_nothing_about_register():
    oracle = Oracle()
    prompts = open_prompts(30, seed=2)
    assert len(prompts) == 30
    assert prompts == open_prompts(30, seed=2)
    for prompt in prompts:
        posterior = oracle.posterior(prompt)
        assert posterior["register"]["rude"] == pytest.approx(1 / 3)
        assert posterior["sentiment"]["negative"] == pytest.approx(1 / 3)
        assert 2 <= len(prompt.split()) <= 5


@pytest.mark.parametrize("name", ["rude", "untruthful"])
def test_shown_prompts_show_the_value(name):
    oracle, asked = Oracle(), concept(name)
    for prompt in shown_prompts(name, 8, seed=2):
        assert oracle.posterior(prompt)[asked.attribute][asked.value] >= 0.9
        assert prompt[-1] in ".?"
    with pytest.raises(MicroworldError, match="number of prompts.*not 0"):
        shown_prompts(name, 0)
