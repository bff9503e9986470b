"""The study of faithfulness: its tables, its nulls, and sentences that say what the tables do."""

from __future__ import annotations

from typing import Any

import pytest

import lens_steer as ls
from analyses import patching_faithfulness
from analyses.indirect_objects import indirect_objects
from tests.effects.attribution.prompts import CLEAN, CORRUPTED, attribute


@pytest.fixture(scope="module")
def study(tiny: Any) -> ls.Study:
    rows = [2, 3]
    pairs = ls.ContrastSet(
        [(CLEAN[row], "dog") for row in rows], [(CORRUPTED[row], "cat") for row in rows], paired=True
    )
    return patching_faithfulness.run(tiny, pairs, out=None, units=4, steps=16)


def test_every_place_and_method_stands_beside_its_null(study: ls.Study) -> None:
    table = study.frames["agreement"]
    assert len(table) == len(patching_faithfulness.PLACES) * len(patching_faithfulness.METHODS) * 2
    assert table["value"].abs().max() <= 1 + 1e-9
    assert table[["shuffled", "same_site"]].stack().between(0, 1 + 1e-9).all()
    assert table["published"].notna().sum() == 9
    assert set(study.frames["worst"]["place"]) == set(patching_faithfulness.PLACES)
    path = table[
        (table["method"] == patching_faithfulness.INTEGRATED)
        & (table["measure"] == "pearson")
        & (table["place"] != "units")
    ]
    assert path["value"].min() > 0.9


def test_the_sentences_follow_from_the_tables(study: ls.Study) -> None:
    assert patching_faithfulness.summary(study.frames, pairs=2) == list(study.summary)
    table = study.frames["agreement"].copy()
    for place in patching_faithfulness.PLACES:
        assert any(place in sentence.lower() or place in sentence for sentence in study.summary[1:])
    table["low"] = 0.0
    doubtful = patching_faithfulness.summary({**study.frames, "agreement": table}, pairs=2)
    assert any("RelP is not shown to follow exact patching at residual stream" in each for each in doubtful)
    certain = {**study.frames, "agreement": table.assign(low=0.99, shuffled=0.1, same_site=0.1)}
    assert not any("not shown" in each for each in patching_faithfulness.summary(certain, pairs=2) if "RelP is" in each)
    layers = {**study.frames, "agreement": certain["agreement"].assign(same_site=1.0)}
    said = patching_faithfulness.summary(layers, pairs=2)
    assert any("know more of the parts than their layers at residual stream" in each for each in said)


def test_shuffled_parts_read_as_nothing_and_the_same_as_everything(tiny: Any) -> None:
    exact = attribute(tiny, sites="mlp.hook_post", level="unit", method="patch")
    assert patching_faithfulness.shuffled_parts(exact, exact, "pearson", 0) < 0.3
    layers = ls.Attribution(exact.frame.assign(value=exact.frame["layer"] + 1.0), exact.cases, exact.settings)
    assert patching_faithfulness.shuffled_parts(layers, layers, "pearson", 0) < 0.3
    assert patching_faithfulness.shuffled_parts(layers, layers, "pearson", 0, within="site") == pytest.approx(1)
    assert patching_faithfulness.shuffled_parts(exact, exact, "pearson", 0, within="site") < 0.5
    assert patching_faithfulness.slope(exact, exact) == pytest.approx(1)
    half = ls.Attribution(exact.frame.assign(value=exact.frame["value"] / 2), exact.cases, exact.settings)
    assert patching_faithfulness.slope(half, exact) == pytest.approx(0.5)
    assert (patching_faithfulness.farthest(exact, exact, "units")["error"] == 0).all()


def test_pairs_of_the_embedded_language_are_in_its_vocabulary(embedded: Any) -> None:
    pairs = indirect_objects(embedded, 12, embedded=True)
    assert pairs.paired
    assert len(pairs.source) == len(pairs.target) == 12
    for clean, corrupted in zip(pairs.source, pairs.target, strict=True):
        words = [row[0].split() for row in (clean, corrupted)]
        assert sum(one != other for one, other in zip(*words, strict=True)) == 1
        assert clean[1] != corrupted[1]
        assert {clean[1], corrupted[1]} <= set(words[0])
    with pytest.raises(ls.LensSteerError, match="0 of the names as single tokens"):
        indirect_objects(embedded, 4)


def test_what_is_no_pairs_is_refused(tiny: Any) -> None:
    for contrast in (
        ls.ContrastSet(CLEAN, CORRUPTED, paired=True),
        ls.ContrastSet([(text, "dog") for text in CLEAN], [(text, "cat") for text in CORRUPTED]),
    ):
        with pytest.raises(ls.LensSteerError, match="paired contrast whose rows are"):
            patching_faithfulness.run(tiny, contrast, out=None)
