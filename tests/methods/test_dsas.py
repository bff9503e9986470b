"""DSAS: the folded gate against scikit-learn's own pipeline, what it does to source and neutral tokens, refusals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from lens_steer.activations.collect import collect
from lens_steer.errors import ActivationError, ContrastError, MapError, SettingError
from lens_steer.interventions.gated_map import Gated, LogisticGate
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.methods.act_add import ActAdd
from lens_steer.methods.caa import CAA
from lens_steer.methods.cast import CAST
from lens_steer.methods.damp import Damp
from lens_steer.methods.dsas import DSAS, gate_between
from lens_steer.texts.contrast import ContrastSet
from tests.families import sentences


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    sad, happy, neutral = (sentences(9, seed=seed, must=word) for seed, word in enumerate(("sad", "happy", "tree"), 1))
    return ContrastSet(sad, happy, control=neutral)


def drawn(n: int, m: int, units: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scales = 10 ** torch.randn(units, generator=generator)
    source, control = (torch.randn(count, units, generator=generator) for count in (n, m))
    return (source + 0.5) * scales, control * scales


@settings(max_examples=25)
@example(4, 2, 5, 5, 237)  # a unit that varies by less than a hundred-thousandth of another
@given(st.integers(2, 12), st.integers(2, 12), st.integers(1, 9), st.integers(1, 12), st.integers(0, 999))
def test_the_fold_is_the_regression_on_components(n: int, m: int, units: int, components: int, seed: int) -> None:
    source, control = drawn(n, m, units, seed)
    gate = gate_between(source, control, components=components)
    assert gate.width == units
    values = torch.cat([source, control]).double().numpy()
    # Components that hardly vary, such as the last of n + m centred texts, are left out by the gate itself.
    variances = PCA().fit(values).explained_variance_
    count = min(components, int((variances > 1e-10 * variances[0]).sum()))
    steps = make_pipeline(PCA(count, whiten=True), LogisticRegression(class_weight="balanced", max_iter=1000))
    expected = steps.fit(values, np.arange(n + m) < n).predict_proba(values)[:, 1]
    np.testing.assert_allclose(gate(torch.cat([source, control])).numpy(), expected, rtol=5e-3, atol=5e-3)


def test_the_scale_of_a_site_does_not_matter() -> None:
    source, control = drawn(8, 8, 5, 0)
    plain, large = (gate_between(c * source, c * control, components=3) for c in (1.0, 1000.0))
    torch.testing.assert_close(plain(source), large(1000 * source), rtol=1e-3, atol=1e-3)


def test_every_map_of_the_base_stands_behind_the_gate_of_its_site(tiny: Any, contrast: ContrastSet) -> None:
    base = CAA(multiplier=2.0)
    plain, gated = base.fit(tiny, contrast), DSAS(base=base, components=4).fit(tiny, contrast)
    acts = {
        side: collect(tiny, ContrastSet(rows, contrast.target), "hook_resid_post", pool="mean").source
        for side, rows in (("source", contrast.source), ("control", contrast.control))
    }
    for before, after in zip(plain.edits, gated.edits, strict=True):
        assert isinstance(after.map, Gated)
        assert after.site == before.site
        assert after.map.map.same_as(before.map)
        expected = gate_between(acts["source"][after.site], acts["control"][after.site], components=4)
        for name in ("weights", "bias"):
            torch.testing.assert_close(getattr(after.map.gate, name), getattr(expected, name), rtol=1e-3, atol=1e-4)
        # Pooled source activations open the gate further than neutral ones.
        openness = [float(after.map.gate(acts[side][after.site]).mean()) for side in ("source", "control")]
        assert openness[0] > openness[1] + 0.1


@dataclass(frozen=True)
class WithoutLayers:
    """A method of somebody's own, which edits where it edits."""

    sites: str = "hook_resid_post"
    seed: int = 0

    def fit(self, model: Any, contrast: ContrastSet, *, activations: Any = None) -> Any:
        return CAA(layers="all").fit(model, contrast)


def test_layers_are_those_of_the_base(tiny: Any, contrast: ContrastSet) -> None:
    narrow = DSAS(base=CAA(layers="all"), layers=(0,), components=4).fit(tiny, contrast)
    assert narrow == DSAS(base=CAA(layers=(0,)), components=4).fit(tiny, contrast)
    for wrap in (DSAS, CAST):
        with pytest.raises(SettingError, match="WithoutLayers has no layers= that could be narrowed"):
            wrap(base=WithoutLayers(), layers=(0,))


def test_scopes_and_several_edits_of_a_site_stay(tiny: Any, contrast: ContrastSet) -> None:
    base = ActAdd(prompts=("sad dog", "the happy dog ran"), layers=(1,))
    plain, gated = base.fit(tiny, contrast), DSAS(base=base).fit(tiny, contrast)
    assert len(gated.edits) == len(plain.edits) > 1
    assert [edit.scope for edit in gated.edits] == [edit.scope for edit in plain.edits]
    scoped = DSAS(base=CAA()).fit(tiny, contrast).scoped("generated")
    assert all(isinstance(edit.map, Gated) for edit in scoped.edits)


def test_only_the_sites_of_the_base_get_a_gate(tiny: Any, contrast: ContrastSet) -> None:
    base = Damp(k=3, factor=0.0)
    gated = DSAS(base=base, pool="max").fit(tiny, contrast)
    assert gated.sites == base.fit(tiny, contrast).sites
    assert gated.support().kept.sum() == 3
    assert [row["site"] for row in gated.provenance["gates"]] == [site.name for site in gated.sites]


def test_it_says_what_it_gated_and_how_well_the_gates_tell(tiny: Any) -> None:
    sad, happy, neutral = (
        sentences(40, seed=seed, must=w, length=(1, 3)) for seed, w in enumerate(("sad", "cat", "the"))
    )
    contrast = ContrastSet(sad, happy, control=neutral)
    about = DSAS(base=CAA(pool="mean"), seed=3).fit(tiny, contrast).provenance
    assert about["settings"]["base"]["method"] == "CAA"
    assert about["settings"]["base"]["settings"]["pool"] == "mean"
    assert about["base"]["method"] == "CAA"
    # "sad" is in every source text and "the" in every neutral one; shuffled, nothing tells them apart.
    mixed = [(sad + neutral)[place] for place in np.random.default_rng(0).permutation(80)]
    null = DSAS(base=CAA(), seed=3).fit(tiny, replace(contrast, source=mixed[:40], control=mixed[40:])).provenance
    told, nothing = (np.mean([row["auroc"] for row in each["gates"]]) for each in (about, null))
    assert told > 0.8
    assert abs(nothing - 0.5) < 0.2


def test_copies_of_noise_do_not_tell_source_from_control() -> None:
    """Ten texts a side, each four times: a copy that a gate was fitted to must not measure it."""
    areas = []
    for seed in range(16):
        noise = torch.randn(20, 12, generator=torch.Generator().manual_seed(seed)).repeat_interleave(4, 0)
        areas.append(DSAS(base=CAA(), seed=seed)._held_out_auroc(noise[:40], noise[40:], np.arange(20).repeat(4)))
    assert abs(np.mean(areas) - 0.5) < 0.12


@pytest.mark.real
def test_neutral_text_is_steered_less(tinytalk: Any, shared: Any) -> None:
    """On a real model: what the gate leaves of the edit, on texts that it has not seen."""
    from lens_steer.texts.readers import read_contrast

    sad, dog = (read_contrast(shared / "data" / "story_concepts" / f"{name}.json", n=64) for name in ("sad", "dog"))
    dogs = tuple(text for text in dog.source if text not in {*sad.source, *sad.target})
    train, held = replace(sad, control=dogs).split(test=0.5, seed=0)
    edit = DSAS(base=CAA(pool="mean", layers=(5,))).fit(tinytalk, train)
    (only,) = edit.edits
    assert isinstance(only.map, Gated)
    means = [
        float(
            only.map.gate(
                collect(tinytalk, ContrastSet(rows, held.target), [only.site.name], pool="mean").source[only.site]
            ).mean()
        )
        for rows in (held.source, held.control)
    ]
    assert means[0] > means[1] + 0.2


class TestRefusals:
    def test_no_neutral_texts(self, tiny: Any, contrast: ContrastSet) -> None:
        with pytest.raises(ContrastError, match="has none: make it with ContrastSet\\(source, target, control="):
            DSAS(base=CAA()).fit(tiny, replace(contrast, control=()))
        with pytest.raises(ContrastError, match="at least 4 source and control texts"):
            DSAS(base=CAA()).fit(tiny, replace(contrast, control=contrast.control[:3]))

    def test_nothing_to_tell(self) -> None:
        same = torch.ones(5, 3)
        with pytest.raises(ActivationError, match="all alike at blocks.1"):
            gate_between(same, same, components=2, name="blocks.1.hook_resid_post")

    def test_settings(self) -> None:
        with pytest.raises(SettingError, match="components=0"):
            DSAS(base=CAA(), components=0)
        with pytest.raises((SettingError, TypeError), match="base"):
            DSAS(base="caa")  # type: ignore[arg-type]

    def test_what_the_gate_makes_impossible(self, tiny: Any, contrast: ContrastSet) -> None:
        edit = DSAS(base=CAA()).fit(tiny, contrast)
        with pytest.raises(MapError, match="blocks.1.hook_resid_post: a gated map has no inverse"):
            edit.inverse()


def test_a_gate_of_one_unit() -> None:
    gate = gate_between(torch.tensor([[1.0], [2.0]]), torch.tensor([[-1.0], [0.0]]), components=9)
    assert isinstance(gate, LogisticGate)
    assert gate(torch.tensor([[3.0], [-3.0]])).diff() < 0
    assert Gated(DiagonalAffine.identity(1), gate).width == 1
