"""The study of what concepts share: dependence in closed form, opposite concepts, labels that mean nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import lens_steer as ls
from analyses import concept_map
from lens_steer.microworld.attributes import ATTRIBUTES
from tests.families import sentences

SMALL: dict[str, Any] = {"k": 10, "permutations": 19, "fit_texts": 8}


def table(n: int = 48) -> ls.LabelledTexts:
    """Texts with and without a word, its opposite, and labels that have nothing to do with either."""
    texts = sentences(n, seed=1, must="sad") + sentences(n, seed=2, must="happy")
    sad = np.repeat([1, 0], n)
    other = np.random.default_rng(3).permutation(sad)
    return ls.LabelledTexts(tuple(texts), np.stack([sad, 1 - sad, other], axis=1), ("sad", "not sad", "nothing"))


@pytest.fixture(scope="module")
def study(tiny: Any) -> ls.Study:
    return concept_map.run(tiny, table(), out=None, **SMALL)


def test_dependence_of_the_embedded_language_is_what_its_grammar_says() -> None:
    """Values of one attribute exclude each other, attributes are drawn independently: in closed form."""
    contrast = ls.read_labels("microworld", ["polite", "rude", "past", "present"], n=200)
    register = next(one for one in ATTRIBUTES if one.name == "register")
    p, q = (register.prior[register.values.index(name)] for name in ("polite", "rude"))
    expected = -math.sqrt(p * q / ((1 - p) * (1 - q)))
    assert concept_map.dependence(contrast, "polite", "rude")[0] == pytest.approx(expected, abs=0.15)
    correlation, information, texts = concept_map.dependence(contrast, "past", "present")
    assert correlation == pytest.approx(-1)
    assert information == pytest.approx(math.log(2), abs=0.02)
    correlation, information, texts = concept_map.dependence(contrast, "polite", "past")
    assert abs(correlation) < 4 / math.sqrt(texts)
    assert 0 <= information < 8 / texts


def test_opposites_point_apart_and_every_measure_knows(study: ls.Study) -> None:
    pairs = study.frames["pairs"].set_index(["concept", "other"])
    opposite = pairs.loc[("sad", "not sad")]
    assert opposite["dependence"] == pytest.approx(-1)
    assert opposite["rank_correlation"] == pytest.approx(-1)
    assert opposite["cosine"] < 0
    ceiling = study.frames["concepts"].set_index("concept")["cosine_of_halves"]
    assert abs(opposite["cosine"]) == pytest.approx(ceiling["sad"], abs=1e-6)  # the same halves, the other way round
    assert pairs.loc[("sad", "nothing"), "shuffled_p"] > 0.01
    assert not study.frames["specificity"].set_index("concept").loc["sad", "specific"].any()


def test_the_sentences_follow_from_the_intervals(study: ls.Study) -> None:
    agreement = study.frames["agreement"]
    assert agreement["labels"].unique().tolist() == ["labels", "shuffled labels 0"]
    assert len(agreement) == 6
    for line, (_, part) in zip(study.summary, agreement.groupby("labels", sort=False), strict=False):
        for row in part.to_dict("records"):
            assert f"{row['value']:.2f} [" in line
    made = pd.DataFrame(
        {"labels": "labels", "measure": list(concept_map.MEASURES), "value": [0.5, -0.5, 0.1],
         "low": [0.2, -0.9, -0.2], "high": [0.8, -0.1, 0.4]}
    )  # fmt: skip
    (first, *_) = concept_map.summary({**study.frames, "agreement": made})
    assert "grows with it: the correlation of the units' AUROC" in first.replace("Grows", "grows")
    assert "falls with it: the share of experts in common" in first.replace("Falls", "falls")
    assert "not shown: the cosine of the learned shifts" in first


@pytest.mark.parametrize(("permutations", "judged"), [(79, False), (80, True)])
def test_what_the_permutations_cannot_resolve_is_not_judged(study: ls.Study, permutations: int, judged: bool) -> None:
    """Four pairs at 5 % over all: a p of 1/80 is the level itself, and what 79 shuffles give at least."""
    low = 1 / permutations
    pairs = pd.DataFrame(
        {"dependence": 0.0, "shuffled_p": [low, 1, 1, 1], "correlation_p": [low, low, 1, 1], "resolution": low}
    )
    sentence = concept_map.summary({**study.frames, "pairs": pairs})[-2]
    assert ("cannot be judged" in sentence) is not judged
    assert (
        "1 are shown to share more experts than shuffled labels do, and 2 to have AUROCs of units that correlate more"
        in sentence
    ) is judged
    assert judged or "79 would do" in sentence


def test_it_is_kept_repeats_and_learns_by_gradients_too(tiny: Any, study: ls.Study, tmp_path: Path) -> None:
    again = concept_map.run(tiny, table(), out=tmp_path / "run", shifts="LinEAS", steps=3, shuffles=0, **SMALL)
    saved = ls.Study.load(tmp_path / "run")
    assert saved.summary == tuple(again.summary) or list(saved.summary) == list(again.summary)
    columns = ["concept", "other", "dependence", "jaccard", "rank_correlation", "shuffled_p"]
    pd.testing.assert_frame_equal(again.frames["pairs"][columns], study.frames["pairs"][columns])
    assert again.frames["pairs"]["cosine"].between(-1, 1).all()


def test_what_is_no_table_of_concepts_is_refused(tiny: Any) -> None:
    one = ls.ContrastSet(["a sad dog"] * 3, ["a happy dog"] * 3)
    for given in (one, one.labelled):
        with pytest.raises(ls.LensSteerError, match="labelled for three concepts or more"):
            concept_map.run(tiny, given, out=None)
    with pytest.raises(ls.LensSteerError, match="k=0: give 1 or more"):
        concept_map.run(tiny, table(), out=None, k=0)
