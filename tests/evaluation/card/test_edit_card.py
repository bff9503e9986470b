"""The card of an edit that does nothing, of one that destroys, of one that works, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lens_steer.errors import ArtifactError, ContrastError, OutputError, SettingError
from lens_steer.evaluation.card.card import EditCard
from lens_steer.evaluation.card.edit_card import edit_card
from lens_steer.evaluation.card.measured import ITEMS
from lens_steer.evaluation.oracle_scorer import OracleScorer
from lens_steer.evaluation.scorers import WordList
from lens_steer.host.sites import find_sites
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.methods.aura import AurA
from lens_steer.methods.lineas import LinEAS
from lens_steer.microworld.prompts import shown_prompts
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.readers import read_contrast

FEW: dict[str, Any] = {"max_new_tokens": 12, "progress": False}


@pytest.fixture(scope="module")
def halves() -> tuple[ContrastSet, ContrastSet]:
    return read_contrast("microworld:rude", n=160, seed=0).split(test=0.5, seed=0)


@pytest.fixture(scope="module")
def lineas(embedded: Any, halves: tuple[ContrastSet, ContrastSet]) -> Intervention:
    method = LinEAS(sites="hook_resid_post", layers=(1, 2), gamma_share=0.05, steps=12, progress=False)
    return method.fit(embedded, halves[0].subsample(32))


def shift_of(model: Any, size: float, *, layer: int = 2, seed: int = 0) -> Intervention:
    """A shift of the stream in a random direction."""
    (site,) = find_sites(model, f"blocks.{layer}.hook_resid_post")
    direction = torch.randn(site.width, generator=torch.Generator().manual_seed(seed))
    shift = size * direction / direction.norm()
    return Intervention.fitted(model, [Edit(site, DiagonalAffine(torch.ones(site.width), shift))], method="shift")


def row(card: EditCard, item: str, measure: str, of: str | None = None) -> dict[str, Any]:
    frame = card.frame[(card.frame["item"] == item) & (card.frame["measure"] == measure)]
    return (frame if of is None else frame[frame["of"] == of]).iloc[0].to_dict()


def test_an_edit_that_hardly_does_anything(embedded: Any, halves: tuple[ContrastSet, ContrastSet]) -> None:
    card = edit_card(
        embedded, shift_of(embedded, 1e-6), halves[1], train=halves[0],
        prompts=shown_prompts("rude", 40, seed=5), items=("dose", "effect", "cost", "others", "downstream"), **FEW,
    )  # fmt: skip
    assert card.headline.startswith("Of no use that was shown")
    misses = row(card, "effect", "misses")
    assert misses["before"] == pytest.approx(misses["after"], abs=1e-4)
    assert row(card, "effect", "made worse")["value"] == 0
    assert row(card, "cost", "divergence")["value"] == pytest.approx(0, abs=1e-6)
    assert row(card, "dose", "dose")["value"] < 1e-5
    assert row(card, "downstream", "collateral")["value"] == pytest.approx(0, abs=1e-4)
    others = card.frame[card.frame["item"] == "others"]
    assert len(others) == 24
    assert set(others["verdict"]) == {"not shown"}
    assert (others["confidence"] > 0.997).all()


def test_an_edit_that_destroys(embedded: Any, halves: tuple[ContrastSet, ContrastSet]) -> None:
    card = edit_card(
        embedded, shift_of(embedded, 3000.0), halves[1], train=halves[0], items=("dose", "effect", "cost"), **FEW
    )
    assert card.headline.startswith("Do not use it: texts become unreadable")
    unreadable = row(card, "effect", "unreadable")
    assert unreadable["verdict"] == "higher"
    assert unreadable["after"] > 0.8
    assert row(card, "effect", "misses")["after"] > 0.8  # gone with the text is not a success
    assert row(card, "effect", "made worse")["value"] > 0.3
    assert row(card, "dose", "dose")["value"] > 1
    assert row(card, "cost", "perplexity")["verdict"] == "higher"


def test_an_edit_that_works(embedded: Any, halves: tuple[ContrastSet, ContrastSet], lineas: Intervention) -> None:
    train, held = halves
    prompts = shown_prompts("rude", 24, seed=3)
    card = edit_card(
        embedded, lineas, held, train=train, prompts=prompts, scorers=[OracleScorer("rude")],
        shuffled=shift_of(embedded, 1e-6), strengths=(1.0,), budget="ppl:100", **FEW,
    )  # fmt: skip
    assert set(card.items) == set(ITEMS)
    misses, concept = row(card, "effect", "misses"), row(card, "effect", "concept")
    assert misses["verdict"] == concept["verdict"] == "lower"
    assert card.headline.startswith(("Use it", "It works, with a reserve"))
    assert row(card, "random", "misses against random edits")["verdict"] == "lower"
    assert row(card, "random", "random edits with more misses")["value"] == 1
    assert row(card, "shuffled", "misses against shuffled labels")["verdict"] == "lower"
    assert row(card, "steerable", "probe, held-out AUROC")["verdict"] == "higher"
    assert "the oracle's rude" not in set(card.frame[card.frame["item"] == "others"]["of"])
    assert len(card.texts) == 3
    page = card._repr_html_()
    assert sum(page.count(text) for text in {" ".join(text.split())[:60] for text in held.source}) == 0
    assert card.headline in page


def test_six_prompts_cannot_tell(embedded: Any, halves: tuple[ContrastSet, ContrastSet]) -> None:
    train, held = halves
    few = held.subsample(6)
    card = edit_card(
        embedded, shift_of(embedded, 0.5), few, train=train, items=("steerable", "effect", "random"), draws=3, **FEW
    )
    assert card.headline.startswith("Cannot be told")
    assert row(card, "random", "misses against random edits")["verdict"] == "cannot be judged"


def test_shuffled_sides_are_not_steerable(embedded: Any, halves: tuple[ContrastSet, ContrastSet]) -> None:
    card = edit_card(
        embedded, shift_of(embedded, 0.1), halves[1].shuffled(3), train=halves[0], items=["steerable"], progress=False
    )
    assert set(card.frame["verdict"]) <= {"not shown", "lower"}
    assert "was not shown to differ from its null" in card.sentences[1]


def test_the_fit_is_made_again_on_shuffled_labels(embedded: Any, halves: tuple[ContrastSet, ContrastSet]) -> None:
    train, held = halves
    edit = AurA(sites="blocks.1.mlp.hook_post").fit(embedded, train.subsample(20))
    card = edit_card(embedded, edit, held, train=train, shuffled="refit", items=["shuffled"], **FEW)
    assert np.isfinite(row(card, "shuffled", "misses against shuffled labels")["value"])
    with pytest.raises(ContrastError, match="does not hold the texts that the edit was made from"):
        edit_card(embedded, edit, held, train=held, shuffled="refit", items=["shuffled"], **FEW)
    with pytest.raises(SettingError, match="'shift', which its settings cannot make once more"):
        edit_card(embedded, shift_of(embedded, 1.0), held, train=train, shuffled="refit", items=["shuffled"], **FEW)


def test_elsewhere_a_classifier_and_words_judge(embedded: Any, halves: tuple[ContrastSet, ContrastSet]) -> None:
    """The same texts under another name: nothing tells that they are the microworld's."""
    train, held = (ContrastSet(part.source, part.target, name="manners") for part in halves)
    edit = shift_of(embedded, 3000.0)
    card = edit_card(embedded, edit, held, train=train, items=["effect", "others"], **FEW)
    assert set(card.frame["of"]) == {"manners classifier", "words of manners", "broken by repetition or surprise"}
    broken = row(card, "effect", "unreadable")
    assert broken["before"] < 0.1
    assert broken["after"] > 0.8
    assert card.left_out["others"] == "no other contrast was given: others="
    lacking = edit_card(embedded, edit, held, train=train.shuffled(1), items=["effect"], **FEW)
    assert lacking.headline.startswith("Cannot be told: no scorer")
    assert len(lacking.items["effect"].left_out) == 3


def test_what_is_refused(embedded: Any, halves: tuple[ContrastSet, ContrastSet]) -> None:
    train, held = halves
    edit = shift_of(embedded, 0.1)
    seen = AurA(sites="blocks.1.mlp.hook_post").fit(embedded, held)
    with pytest.raises(ContrastError, match="the edit was made from 160 of these 160 texts.*split before you fit"):
        edit_card(embedded, seen, held, train=train, progress=False)
    with pytest.raises(SettingError, match="no item 'effects'; there are dose, steerable, effect"):
        edit_card(embedded, edit, held, train=train, items=["effects"])
    with pytest.raises(SettingError, match="needs an item"):
        edit_card(embedded, edit, held, train=train, items=[])
    with pytest.raises(ContrastError, match="edit_card needs at least 4 texts per side"):
        edit_card(embedded, edit, held.subsample(3), train=train)
    with pytest.raises(ContrastError, match="edit_card needs at least 8 texts per side"):
        edit_card(embedded, edit, held.subsample(6))
    with pytest.raises(SettingError, match="prompts: a card needs 4 or more, not 1"):
        edit_card(embedded, edit, held, train=train, prompts=["the cat"])
    with pytest.raises(SettingError, match="a budget is"):
        edit_card(embedded, edit, held, train=train, budget="1.1")
    with pytest.raises(SettingError, match="draws and samples"):
        edit_card(embedded, edit, held, train=train, draws=0)
    site = find_sites(embedded, "blocks.2.hook_resid_post")[0].name
    elsewhere = replace(edit, fingerprint={site: replace(edit.fingerprint[site], mean=9.0)})
    with pytest.raises(ArtifactError, match="fitted on other weights"):
        edit_card(embedded, elsewhere, held, train=train, progress=False)


def test_a_card_is_saved_once(embedded: Any, halves: tuple[ContrastSet, ContrastSet], tmp_path: Any) -> None:
    card = edit_card(
        embedded, shift_of(embedded, 0.1), halves[1], scorers=[WordList(["ugly"])], items=["effect"], **FEW
    )
    place = card.save(tmp_path / "card.html")
    text = place.read_text()
    assert text.startswith("<!doctype html>")
    assert "default-src 'none'" in text
    assert "http" not in text.replace("http-equiv", "")
    with pytest.raises(OutputError, match="already exists"):
        card.save(place)
