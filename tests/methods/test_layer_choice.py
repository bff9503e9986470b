"""The choice of a layer: on held-out texts, by what they say of the direction; and defaults that do no harm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.errors import LensSteerWarning, SettingError
from lens_steer.evaluation.perplexity import perplexity
from lens_steer.methods.caa import CAA, mean_difference
from lens_steer.methods.iti import ITI
from lens_steer.methods.layer_choice import at_chosen_layer
from lens_steer.methods.repe import RepE
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.readers import read_contrast
from tests.families import sentences

SITES = tuple(f"blocks.{layer}.hook_resid_post" for layer in range(4))


def planted(gaps: dict[int, float], *, n: int = 20, seed: int = 0, blocks: Any = ()) -> Activations:
    """Return noise at four layers, where these layers' first unit lies so far apart."""
    generator = np.random.default_rng(seed)
    sides = []
    for sign in (-0.5, 0.5):
        values = {site: generator.normal(size=(n, 6)) for site in SITES}
        for layer, gap in gaps.items():
            values[SITES[layer]][:, 0] += sign * gap
        sides.append(values)
    return Activations.from_arrays(source=sides[0], target=sides[1], pool="last", blocks=blocks)


@pytest.mark.parametrize("seed", range(5))
def test_the_layer_that_separates_held_out_texts_is_taken(seed: int) -> None:
    chosen, about = at_chosen_layer(planted({1: 1.0, 2: 4.0}, seed=seed), mean_difference, seed=seed, what="CAA")
    assert [site.layer for site in chosen.sites] == [2]
    assert about["layer_choice"]["chosen"] == 2
    rows = {row["site"]: row for row in about["layer_choice"]["sites"]}
    assert rows[SITES[2]]["apart"] > 3
    assert rows[SITES[2]]["heldout_auroc"] > 0.97
    assert rows[SITES[3]]["apart"] < 1


def test_the_size_of_a_layer_says_nothing() -> None:
    given = planted({1: 4.0})
    large = {site.name: given.values[site] * (1000.0 if site.layer == 3 else 1.0) for site in given.sites}
    sides = [{name: values[part].numpy() for name, values in large.items()} for part in (slice(20), slice(20, 40))]
    scaled = Activations.from_arrays(source=sides[0], target=sides[1], pool="last")
    one, other = (at_chosen_layer(each, mean_difference, seed=0, what="CAA")[1] for each in (given, scaled))
    assert one["layer_choice"]["chosen"] == other["layer_choice"]["chosen"] == 1


def test_copies_of_noise_do_not_separate() -> None:
    """Without blocks a direction knows its held-out texts; with them noise has an AUROC of about one half."""
    few = planted({}, n=4, seed=3)
    sides = [{site.name: part[site].repeat(5, 1).numpy() for site in few.sites} for part in (few.source, few.target)]
    blocks = [*np.tile(np.arange(4), 5), *(4 + np.tile(np.arange(4), 5))]
    apart = []
    for given in ([], blocks):
        acts = Activations.from_arrays(source=sides[0], target=sides[1], pool="last", blocks=given)
        _, about = at_chosen_layer(acts, mean_difference, seed=0, what="CAA")
        apart.append(np.mean([row["heldout_auroc"] for row in about["layer_choice"]["sites"]]))
    assert apart[0] > 0.85
    assert apart[1] < 0.65


def test_one_layer_or_a_given_one_is_no_choice(tiny: Any) -> None:
    contrast = ContrastSet(sentences(8, seed=1, must="sad"), sentences(8, seed=2, must="happy"))
    for method in (CAA(layers=(0,)), CAA(layers="all"), CAA(sites="blocks.1.hook_resid_post")):
        assert "layer_choice" not in method.fit(tiny, contrast).provenance


@pytest.mark.parametrize("method", [CAA(), RepE(pairing="random"), RepE(mode="project_out", pairing="random")])
def test_the_edit_is_that_of_the_chosen_layer(tiny: Any, method: Any) -> None:
    contrast = ContrastSet(sentences(12, seed=1, must="sad"), sentences(12, seed=2, must="happy"))
    edit = method.fit(tiny, contrast)
    (site,) = edit.sites
    assert edit.provenance["layer_choice"]["chosen"] == site.layer
    settings = {"pairing": "random", "mode": method.mode} if isinstance(method, RepE) else {}
    assert edit == type(method)(layers=(site.layer,), **settings).fit(tiny, contrast)
    assert edit.provenance["settings"]["layers"] is None
    values = collect(tiny, contrast, "hook_resid_post", pool="last")
    assert method.fit(tiny, contrast, activations=values) == edit


def test_pairs_stay_together(tiny: Any) -> None:
    """Of arrays, too, whose blocks do not say so."""
    pairs = ContrastSet(sentences(9, seed=1, must="sad"), sentences(9, seed=2, must="happy"), paired=True)
    given = collect(tiny, pairs, "hook_resid_post", pool="last")
    sides = [{site.name: part[site].numpy() for site in given.sites} for part in (given.source, given.target)]
    loose = Activations.from_arrays(source=sides[0], target=sides[1], pool="last")
    one, other = (RepE().fit(tiny, pairs, activations=each) for each in (given, loose))
    assert one.provenance["layer_choice"] == other.provenance["layer_choice"]
    assert one == other


def test_too_few_texts_take_the_middle_and_say_so(tiny: Any) -> None:
    pair = ContrastSet(["the dog was sad"], ["the dog was happy"], paired=True)
    with pytest.warns(LensSteerWarning, match="layer 1 in the middle is taken: set layers="):
        edit = CAA().fit(tiny, pair)
    assert [site.layer for site in edit.sites] == [1]
    assert edit.provenance["layer_choice"] == {"chosen": 1, "sites": []}


def test_the_papers_settings_have_their_name() -> None:
    assert RepE.paper(multiplier=2.0) == RepE(layers="all", multiplier=2.0)
    assert ITI.paper() == ITI(k=48, alpha=15.0)
    assert CAA.paper(layers=(13,)) == CAA(layers=(13,))
    with pytest.raises(SettingError, match="set layers="):
        CAA.paper()
    for method in (CAA, RepE):
        with pytest.raises((SettingError, TypeError)):
            method(layers="last")  # type: ignore[arg-type]


def test_iti_goes_from_mean_to_mean(tiny: Any) -> None:
    contrast = ContrastSet(sentences(20, seed=1, must="sad"), sentences(20, seed=2, must="happy"))
    acts = collect(tiny, contrast, "attn.hook_z", pool="last")
    edit = ITI(k=3).fit(tiny, contrast, activations=acts)
    for each in edit.edits:
        moved = each.map.moved(0.0)
        difference = (acts.target[each.site] - acts.source[each.site]).double().mean(0) * moved
        torch.testing.assert_close(each.map.shift.double(), difference, rtol=1e-4, atol=1e-5)
    for row in edit.provenance["heads"]:
        again = ITI(k=3, alpha=row["alpha"]).fit(tiny, contrast, activations=acts)
        site, head = row["head"].removesuffix("]").split("[")
        dims = slice(8 * int(head), 8 * int(head) + 8)
        one, other = (next(e.map.shift for e in each.edits if e.site.name == site)[dims] for each in (edit, again))
        torch.testing.assert_close(one, other)


def test_defaults_do_no_harm(embedded: Any) -> None:
    """The perplexity of neutral texts, as a multiple of the unedited model's; of the papers' settings beside."""
    contrast = read_contrast("microworld:rude", n=48)
    train, held = contrast.split(seed=0)
    neutral = held.control or held.target
    plain = perplexity(embedded, neutral, progress=False)

    def cost(method: Any) -> float:
        edit = method.fit(embedded, train)
        return perplexity(embedded, neutral, intervention=edit, progress=False) / plain

    costs = {
        "CAA": (cost(CAA()), cost(CAA(layers="all"))),
        "RepE": (cost(RepE(pairing="random")), cost(RepE.paper(pairing="random"))),
        "ITI": (cost(ITI(k=4)), cost(ITI.paper(k=4))),
    }
    for gentle, papers in costs.values():
        assert gentle < papers, costs
        assert gentle < 1.5, costs
