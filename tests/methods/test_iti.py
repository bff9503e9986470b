"""ITI: which heads, how far along which direction, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.errors import ActivationError, ContrastError, SettingError, SiteError
from lens_steer.interventions.intervention import Intervention
from lens_steer.methods.caa import CAA
from lens_steer.methods.cast import CAST
from lens_steer.methods.dsas import DSAS
from lens_steer.methods.iti import ITI
from lens_steer.texts.contrast import ContrastSet
from tests.families import make_tiny, sentences

SITES = ("blocks.0.attn.hook_z", "blocks.1.attn.hook_z")


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return ContrastSet(sentences(20, seed=1, must="sad"), sentences(30, seed=2, must="happy"))


@pytest.fixture(scope="module")
def acts(tiny: Any, contrast: ContrastSet) -> Activations:
    return collect(tiny, contrast, "attn.hook_z", pool="last")


def planted(*heads: tuple[int, int], n: int = 20, seed: int = 0) -> Activations:
    """Return noise at the two sites of four heads, where these (layer, head) alone tell the sides apart."""
    generator = np.random.default_rng(seed)
    sides = []
    for sign in (-1, 1):
        values = {site: generator.normal(size=(n, 4, 8)) for site in SITES}
        for layer, head in heads:
            values[SITES[layer]][:, head, 3] += 8 * sign
        sides.append({site: of_site.reshape(n, 32) for site, of_site in values.items()})
    return Activations.from_arrays(source=sides[0], target=sides[1], pool="last")


def heads_of(edit: Intervention) -> list[str]:
    return [row["head"] for row in edit.provenance["heads"]]


def moved_heads(edit: Intervention) -> set[str]:
    return {f"{unit.site.name}[{unit.index // 8}]" for unit in edit.units(tol=0.0)}


@pytest.mark.compat
def test_the_shift_is_sigma_times_theta_in_the_chosen_heads_only(
    tiny: Any, contrast: ContrastSet, acts: Activations
) -> None:
    method = ITI(k=3, alpha=2.5)
    edit = method.fit(tiny, contrast, activations=acts)
    assert edit == method.fit(tiny, contrast)
    assert len(heads_of(edit)) == 3
    assert moved_heads(edit) == set(heads_of(edit))
    sigmas = {row["head"]: row["sigma"] for row in edit.provenance["heads"]}
    for one in edit.edits:
        assert bool((one.map.scale == 1).all())
        for head in range(4):
            name, part = f"{one.site.name}[{head}]", slice(8 * head, 8 * head + 8)
            source, target = (side[one.site][:, part].numpy() for side in (acts.source, acts.target))
            theta = target.mean(0) - source.mean(0)
            theta /= np.linalg.norm(theta)
            sigma = (np.concatenate([source, target]) @ theta).std()
            expected = 2.5 * sigma * theta if name in sigmas else np.zeros(8)
            np.testing.assert_allclose(one.map.shift[part].numpy(), expected, rtol=1e-4, atol=1e-6)
            assert name not in sigmas or sigmas[name] == pytest.approx(sigma, rel=1e-4)


def test_the_heads_are_the_best_on_held_out_texts(tiny: Any, contrast: ContrastSet, acts: Activations) -> None:
    edit = ITI(k=8, holdout=0.4, seed=3).fit(tiny, contrast, activations=acts)
    held = np.isin([*contrast.source, *contrast.target], [*(part := contrast.split(0.4, 3)[1]).source, *part.target])
    kept = ~held
    is_target = acts.labels[:, 0].numpy() == 0
    expected = {}
    for site in acts.sites:
        values = acts.values[site].double().numpy().reshape(50, 4, 8)
        for head in range(4):
            probe = LogisticRegression(class_weight="balanced", max_iter=1000)
            right = probe.fit(values[kept, head], is_target[kept]).predict(values[held, head]) == is_target[held]
            sides = right[is_target[held]].mean(), right[~is_target[held]].mean()
            expected[f"{site.name}[{head}]"] = float(np.mean(sides))
    rows = edit.provenance["heads"]
    assert {row["head"]: row["accuracy"] for row in rows} == pytest.approx(expected)
    chosen_by = [row["choosing_accuracy"] for row in rows]
    assert chosen_by == sorted(chosen_by, reverse=True)
    assert heads_of(ITI(k=2, holdout=0.4, seed=3).fit(tiny, contrast, activations=acts)) == heads_of(edit)[:2]


def test_the_chosen_heads_are_measured_on_texts_that_chose_nothing(tiny: Any, contrast: ContrastSet) -> None:
    """Noise: the accuracy that chose the best head flatters it; on the texts held out it is one half."""
    rows = [
        ITI(k=1, holdout=0.5, seed=seed).fit(tiny, contrast, activations=planted(seed=seed)).provenance["heads"][0]
        for seed in range(12)
    ]
    accuracy = np.array([row["accuracy"] for row in rows])
    assert np.mean([row["choosing_accuracy"] for row in rows]) > 0.57
    assert abs(accuracy.mean() - 0.5) < 3 * accuracy.std(ddof=1) / 12**0.5


@pytest.mark.parametrize("direction", ["mass_mean", "probe"])
def test_planted_heads_are_found_and_pushed_towards_the_target(
    tiny: Any, contrast: ContrastSet, direction: Any
) -> None:
    acts = planted((0, 2), (1, 1))
    edit = ITI(k=2, direction=direction, alpha=1.0).fit(tiny, contrast, activations=acts)
    assert set(heads_of(edit)) == {"blocks.0.attn.hook_z[2]", "blocks.1.attn.hook_z[1]"}
    for one, head in zip(edit.edits, (2, 1), strict=True):
        sigma = acts.values[one.site][:, 8 * head + 3].std(correction=0)
        assert float(one.map.shift[8 * head + 3]) == pytest.approx(float(sigma), rel=0.1)
    assert [row["accuracy"] for row in edit.provenance["heads"]] == [1.0, 1.0]
    away = ITI(k=2, direction=direction, alpha=-1.0).fit(tiny, contrast, activations=acts)
    assert all(torch.equal(a.map.shift, -b.map.shift) for a, b in zip(edit.edits, away.edits, strict=True))


@pytest.mark.compat
def test_what_a_head_says_moves_by_alpha_deviations(tiny: Any, contrast: ContrastSet, acts: Activations) -> None:
    edit = ITI(k=1, alpha=4.0).fit(tiny, contrast, activations=acts)
    (one,) = edit.edits
    with edit.on(tiny):
        after = collect(tiny, contrast, [one.site.name], pool="last")
    step = (after.values[one.site] - acts.values[one.site]).double()
    length = 4.0 * edit.provenance["heads"][0]["sigma"]
    torch.testing.assert_close(step.norm(dim=1), torch.full((50,), length).double(), rtol=1e-4, atol=1e-5)
    assert float(step.mean(0) @ (acts.target[one.site].mean(0) - acts.source[one.site].mean(0)).double()) > 0


def test_the_swap_of_all_heads_is_the_negative(tiny: Any, contrast: ContrastSet) -> None:
    there, back = ITI(k=8).fit(tiny, contrast), ITI(k=8).fit(tiny, contrast.swap())
    for one, other in zip(there.edits, back.edits, strict=True):
        torch.testing.assert_close(one.map.shift, -other.map.shift, rtol=1e-4, atol=1e-6)


def test_copies_do_not_tell_a_head_of_noise(tiny: Any, contrast: ContrastSet) -> None:
    """Ten texts of noise a side, each four times: a copy that trains a probe must not measure it."""
    accuracies = []
    for seed in range(10):
        noise = planted(n=10, seed=seed)
        sides = [
            {str(site): side[site].repeat_interleave(4, 0) for site in side} for side in (noise.source, noise.target)
        ]
        blocks = [row // 4 for row in range(80)]
        acts = Activations.from_arrays(source=sides[0], target=sides[1], pool="last", blocks=blocks)
        edit = ITI(k=1, holdout=0.5, seed=seed).fit(tiny, contrast, activations=acts)
        accuracies.append(edit.provenance["heads"][0]["accuracy"])
    assert abs(np.mean(accuracies) - 0.5) < 3 * np.std(accuracies, ddof=1) / 10**0.5


def test_grouped_heads() -> None:
    llama = make_tiny("llama")
    contrast = ContrastSet(sentences(8, seed=1, must="sad"), sentences(8, seed=2, must="happy"))
    for kind, heads in (("attn.hook_z", 4), ("attn.hook_v", 2), ("attn.hook_q", 4)):
        edit = ITI(k=2 * heads, sites=kind).fit(llama, contrast)
        assert len(heads_of(edit)) == 2 * heads
        with pytest.raises(SettingError, match=f"more than the {2 * heads} of the chosen sites"):
            ITI(k=2 * heads + 1, sites=kind).fit(llama, contrast)


def test_a_constant_head_stays(tiny: Any, contrast: ContrastSet) -> None:
    acts = planted((0, 1))
    acts.values[SITES[1]][:, 8:16] = 2.0
    for direction in ("mass_mean", "probe"):
        edit = ITI(k=8, direction=direction).fit(tiny, contrast, activations=acts)  # type: ignore[arg-type]
        assert not edit.edits[1].map.shift[8:16].any()
        assert bool(torch.isfinite(edit.edits[1].map.shift).all())


def test_the_heads_are_saved(tiny: Any, contrast: ContrastSet, acts: Activations, tmp_path: Path) -> None:
    edit = ITI(k=2).fit(tiny, contrast, activations=acts)
    assert Intervention.load(edit.save(tmp_path / "edit")).provenance["heads"] == edit.provenance["heads"]


def test_refusals(tiny: Any, contrast: ContrastSet) -> None:
    with pytest.raises(SiteError, match=r"heads are asked of blocks\.0\.hook_resid_post, which has none: use attn"):
        ITI(k=1, sites="hook_resid_post").fit(tiny, contrast)
    with pytest.raises(SiteError, match="holds keys"):
        ITI(k=1, sites="attn.hook_k").fit(tiny, contrast)
    with pytest.raises(SettingError, match="k=9 heads are more than the 8"):
        ITI(k=9).fit(tiny, contrast)
    with pytest.raises(SettingError, match="1 or more"):
        ITI(k=0)
    with pytest.raises(SettingError, match="finite"):
        ITI(k=1, alpha=float("nan"))
    with pytest.raises((SettingError, TypeError)):
        ITI(k=1, direction="mean")  # type: ignore[arg-type]
    for share in (0.0, 1.0):
        with pytest.raises(SettingError, match="share between 0 and 1"):
            ITI(k=1, holdout=share)
    with pytest.raises(ContrastError, match=r"ITI: to hold out 20% of 7 source texts in 7 blocks leaves 6 and 1"):
        ITI(k=1).fit(tiny, ContrastSet(sentences(7, must="sad"), sentences(20, must="happy")))
    with pytest.raises(ActivationError, match="pooled by max"):
        ITI(k=1).fit(tiny, contrast, activations=collect(tiny, contrast, "attn.hook_z"))


def test_layers_keep_the_heads_of_some_layers(tiny: Any) -> None:
    contrast = ContrastSet(sentences(16, seed=1, must="sad"), sentences(16, seed=2, must="happy"))
    edit = ITI(k=2, alpha=1.0, layers=(-1,)).fit(tiny, contrast)
    assert {site.layer for site in edit.sites} == {1}
    assert edit == ITI(k=2, alpha=1.0, sites="blocks.1.attn.hook_z").fit(tiny, contrast)
    with pytest.raises(SettingError, match="more than the"):
        ITI(k=9, layers=(0,)).fit(tiny, contrast)


def test_a_gated_method_keeps_the_layers_of_its_base(tiny: Any) -> None:
    rows = [sentences(16, seed=seed, must=must) for seed, must in ((1, "sad"), (2, "happy"), (3, "dog"))]
    contrast = ContrastSet(rows[0], rows[1], control=rows[2])
    base = CAA(pool="mean", layers=(1,))
    for method in (CAST(base=base), DSAS(base=base)):
        assert method.sites == base.sites
        assert {site.layer for site in method.fit(tiny, contrast).sites} == {1}
