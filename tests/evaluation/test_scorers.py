import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest

from lens_steer.errors import ContrastError, LensSteerWarning, SettingError
from lens_steer.evaluation.scorers import ConceptClassifier, Scorer, WordList
from lens_steer.statistics.verdict import Verdict
from lens_steer.texts.contrast import ContrastSet
from tests.families import sentences


def test_words_count_where_they_stand_whole() -> None:
    scorer = WordList(["cat", "ice cream", "C++", "née"], name="things")
    texts = ["Cat!", "catch", "a bobcat", "We had ICE CREAM.", "ice creams", "in C++ it", "C+", "NÉE", "", "cat's"]
    assert scorer(texts).tolist() == [1, 0, 0, 1, 0, 1, 0, 1, 0, 1]
    assert scorer.name == "things"
    assert isinstance(scorer, Scorer)
    assert scorer([]).shape == (0,)


def test_word_lists_are_values() -> None:
    assert WordList(iter(["a", "b"])) == WordList(("a", "b"))
    assert WordList(["a"]) != WordList(["b"])


@pytest.mark.parametrize("words", ["cat", [], ["cat", " "]], ids=str)
def test_word_lists_without_words_are_refused(words: object) -> None:
    with pytest.raises(SettingError, match="word"):
        WordList(words)  # type: ignore[arg-type]


def toy(n: int = 120) -> ContrastSet:
    return ContrastSet(sentences(n, seed=0, must="sad"), sentences(n, seed=1, must="happy"), name="sadness")


@pytest.mark.filterwarnings("ignore::lens_steer.errors.LensSteerWarning")
def test_classifier_finds_the_word_that_tells_the_sides_apart() -> None:
    classifier = ConceptClassifier.fit(toy())
    scores = classifier(["the boy was sad", "the boy was happy"])
    assert scores[0] > 0.6 > 0.4 > scores[1]
    assert classifier.heldout_auroc > 0.9
    assert 0.8 < classifier.heldout_accuracy <= 1
    assert classifier.name == "sadness classifier"
    assert isinstance(classifier, Scorer)


@pytest.mark.filterwarnings("ignore::lens_steer.errors.LensSteerWarning")
def test_classifier_is_reproducible_and_judged_on_texts_it_never_saw() -> None:
    contrast = toy()
    one, again, other = (ConceptClassifier.fit(contrast, seed=seed) for seed in (0, 0, 1))
    texts = sentences(20, seed=5)
    np.testing.assert_array_equal(one(texts), again(texts))
    assert not np.array_equal(one(texts), other(texts))
    assert one.verdict is Verdict.HIGHER
    assert one.heldout_low < one.heldout_auroc <= one.heldout_high


def test_a_classifier_that_tells_nothing_cannot_judge() -> None:
    """Of classifiers of labels by chance nearly all are refused: an error of 2.5 % on their side of 1/2."""
    contrast, refused = toy(60), 0
    for draw in range(20):
        try:
            ConceptClassifier.fit(contrast.shuffled(draw))
        except ContrastError as error:
            assert re.search(r"cannot judge: on 60 held-out texts its AUROC is 0\.\d\d \[.*unproven=", str(error))
            refused += 1
    assert refused >= 17
    null = contrast.shuffled(0)
    with pytest.warns(LensSteerWarning, match="cannot judge"):
        asked = ConceptClassifier.fit(null, unproven="warn")
    assert asked.verdict is not Verdict.HIGHER
    assert asked(["a sad dog"]).shape == (1,)


def test_classifier_of_topics_with_sides_by_chance_is_right_half_of_the_time() -> None:
    """Four sentence forms of each of 20 topics: with topics on both sides of the split this reads 1.0."""
    forms = [
        "Once there was a {}.",
        "We all talked about the {}.",
        "Nobody knew the {} well.",
        "She saw that {} again.",
    ]
    names = [f"{a}{b}" for a in ("kite", "frog", "pond", "train", "drum") for b in ("son", "let", "man", "er")]
    accuracies = []
    for seed in range(16):
        order = np.random.default_rng(seed).permutation(names).tolist()
        rows = [[(form.format(name), name) for name in half for form in forms] for half in (order[:10], order[10:])]
        (source, source_groups), (target, target_groups) = (zip(*half, strict=True) for half in rows)
        topics = ContrastSet(source, target, source_groups=source_groups, target_groups=target_groups)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", LensSteerWarning)
            accuracies.append(ConceptClassifier.fit(topics, seed=seed, unproven="warn").heldout_accuracy)
    assert abs(np.mean(accuracies) - 0.5) < 3 * max(np.std(accuracies, ddof=1), 0.02) / 4


def test_classifier_reads_the_completion_of_a_pair() -> None:
    pairs = [[(f"prompt {number}", f"{text} {number}") for number in range(8)] for text in ("bad day", "good night")]
    classifier = ConceptClassifier.fit(ContrastSet(*pairs))
    assert classifier.heldout_accuracy == 1
    assert classifier(["bad day"])[0] > 0.5 > classifier(["good night"])[0]


def test_classifier_needs_words() -> None:
    with pytest.raises(ContrastError, match="no classifier"):
        ConceptClassifier.fit(ContrastSet(["!", "!!", "!!!", "!!!!"], ["?", "??", "???", "????"]))


@pytest.mark.real
@pytest.mark.filterwarnings("ignore::lens_steer.errors.LensSteerWarning")
def test_classifier_on_a_real_concept(shared: Path) -> None:
    texts = json.loads((shared / "data" / "story_concepts" / "dog.json").read_text())["sentences"]
    classifier = ConceptClassifier.fit(ContrastSet(texts["positive"], texts["negative"], name="dog"))
    assert classifier.heldout_auroc > 0.9
