"""A HookedTransformer of transformer-lens 3.9 hosts everything: real weights, beside the bridge over the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lens_steer.activations.collect import collect
from lens_steer.effects.downstream import downstream_shift
from lens_steer.errors import ArtifactError, SiteError
from lens_steer.host.adapter import host_of
from lens_steer.host.fingerprint import compare_fingerprints, read_fingerprint
from lens_steer.host.scope import Scope
from lens_steer.host.sites import find_sites
from lens_steer.interventions.ablation import ablate
from lens_steer.interventions.intervention import Intervention
from lens_steer.methods.aura import AurA
from lens_steer.methods.lineas import LinEAS
from lens_steer.ranking.experts import rank_experts
from lens_steer.texts.contrast import ContrastSet
from tests.compat import make_hooked_tiny
from tests.handles import handles, logits
from tests.host.test_attach import random_edit
from tests.host.test_scope import by_hand

pytestmark = [pytest.mark.compat, pytest.mark.real]

SAD = [
    "Tom was sad.",
    "She cried all day.",
    "The boy lost his toy and cried.",
    "It was a sad, dark day.",
    "He was upset.",
]
GLAD = [
    "Tom was happy.",
    "She smiled all day.",
    "The boy got a toy and laughed.",
    "It was a sunny day.",
    "He was glad.",
]
CONTRAST = ContrastSet(SAD, GLAD)
STREAM = ["hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out"]


def some_ids(model: Any) -> Tensor:
    ids: Tensor = model.tokenizer(["Once upon a time there was a girl who lost"], return_tensors="pt").input_ids
    return ids


def shared_kinds(one: Any, other: Any) -> list[str]:
    kinds = [{site.kind for site in find_sites(model, "*")} for model in (one, other)]
    return sorted(kinds[0] & kinds[1])


def test_every_shared_site_holds_the_same(hooked_tinytalk: Any, tinytalk: Any) -> None:
    kinds = shared_kinds(hooked_tinytalk, tinytalk)
    assert {*STREAM, "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z", "mlp.hook_pre", "mlp.hook_post"} <= {
        *kinds
    }
    ids = some_ids(tinytalk)
    seen: list[dict[str, Tensor]] = []
    for model in (hooked_tinytalk, tinytalk):
        sites = find_sites(model, kinds)
        assert {site.layer for site in sites} == set(range(8))
        here: dict[str, Tensor] = {}

        def note(name: str, here: dict[str, Tensor] = here) -> Any:
            return lambda tensor, hook: here.update({name: tensor.clone()})

        with torch.no_grad(), model.hooks(fwd_hooks=[(site.name, note(site.name)) for site in sites]):
            model(ids)
        seen.append(here)
    assert seen[0].keys() == seen[1].keys()
    for name, value in seen[0].items():
        other = seen[1][name]
        assert value.shape == other.shape, name
        # Rounding of two orders of the same sums: up to 1.04e-5 of the spread on one CPU, below 1e-5 on another.
        assert (value - other).abs().max() < 2e-5 * other.std(), name
    for one, other in zip(find_sites(hooked_tinytalk, kinds), find_sites(tinytalk, kinds), strict=True):
        assert one.name == other.name  # also in the same order
        assert (one.width, one.heads) == (other.width, other.heads)


def test_collect_and_rank(hooked_tinytalk: Any, tinytalk: Any) -> None:
    for pool in ("max", "mean", "last"):
        here, there = (
            collect(model, CONTRAST, ["mlp.hook_post", "attn.hook_z", "hook_resid_mid"], pool=pool)
            for model in (hooked_tinytalk, tinytalk)
        )
        for site in here.sites:
            scale = there.source[site].std()
            assert (here.source[site] - there.source[site]).abs().max() < 2e-5 * scale
            assert (here.token_mean(site, "target") - there.token_mean(site, "target")).abs().max() < 2e-5 * scale
    ranks = [rank_experts(values, holdout=None).frame for values in (here, there)]
    order = [frame.set_index(["site", "unit"]).sort_index()["auroc"] for frame in ranks]
    assert (order[0].index == order[1].index).all()
    assert np.abs(order[0].to_numpy() - order[1].to_numpy()).max() < 0.05  # a tie may be broken
    assert (np.abs(order[0].to_numpy() - order[1].to_numpy()) > 1e-9).mean() < 0.001


def test_aura(hooked_tinytalk: Any, tinytalk: Any) -> None:
    here, there = (AurA().fit(model, CONTRAST) for model in (hooked_tinytalk, tinytalk))
    differences = [(a.map.scale - b.map.scale).abs() for a, b in zip(here.edits, there.edits, strict=True)]
    assert torch.cat(differences).gt(1e-5).float().mean() < 0.001
    assert here.support()["kept"].sum() > 0
    assert here.provenance["host"] == "HookedTransformer"
    ids = some_ids(tinytalk)
    with there.on(hooked_tinytalk), there.on(tinytalk):
        on_both = [logits(model, ids) for model in (hooked_tinytalk, tinytalk)]
    assert not torch.allclose(on_both[0], logits(hooked_tinytalk, ids), atol=1e-2)
    assert (on_both[0] - on_both[1]).abs().max() < 1e-4


def test_lineas(hooked_tinytalk: Any, tinytalk: Any) -> None:
    method = LinEAS(sites="hook_resid_post", gamma_share=0.0, steps=10)
    hanging = handles(hooked_tinytalk)
    here, there = (method.fit(model, CONTRAST) for model in (hooked_tinytalk, tinytalk))
    assert handles(hooked_tinytalk) == hanging
    losses = here.history["loss"].to_numpy()
    assert np.nanmin(losses) < losses[0]
    np.testing.assert_allclose(losses, there.history["loss"].to_numpy(), rtol=1e-2)
    for a, b in zip(here.edits, there.edits, strict=True):
        assert a.site == b.site
        torch.testing.assert_close(a.map.scale, b.map.scale, rtol=1e-2, atol=1e-3)
        torch.testing.assert_close(a.map.shift, b.map.shift, rtol=1e-2, atol=1e-3)


def test_ablate(hooked_tinytalk: Any) -> None:
    values = collect(hooked_tinytalk, CONTRAST, "mlp.hook_post")
    units = rank_experts(values, holdout=None).units(k=20)
    seen: dict[str, Tensor] = {}
    sites = {unit.site.name for unit in units}
    hooks = [(name, lambda t, hook, name=name: seen.update({name: t})) for name in sites]
    for mode in ("zero", "target_mean"):
        edit = ablate(units, mode=mode, activations=values)  # type: ignore[arg-type]
        with edit.on(hooked_tinytalk), torch.no_grad(), hooked_tinytalk.hooks(fwd_hooks=hooks):
            hooked_tinytalk(some_ids(hooked_tinytalk))
        for unit in units:
            held = seen[unit.site.name][..., unit.index]
            value = 0.0 if mode == "zero" else float(values.token_mean(unit.site, "target")[unit.index])
            assert torch.allclose(held, torch.full_like(held, value), atol=1e-6)


def test_then_and_inverse(hooked_tinytalk: Any) -> None:
    ids = some_ids(hooked_tinytalk)
    one, two = random_edit(hooked_tinytalk, seed=1), random_edit(hooked_tinytalk, ["mlp.hook_post"], seed=2)
    before = logits(hooked_tinytalk, ids)
    with one.then(two).on(hooked_tinytalk):
        fused = logits(hooked_tinytalk, ids)
    with one.on(hooked_tinytalk), two.on(hooked_tinytalk):
        assert (logits(hooked_tinytalk, ids) - fused).abs().max() < 1e-4
    only = one.restrict([one.sites[2]])
    with only.then(only.inverse()).on(hooked_tinytalk):
        assert (logits(hooked_tinytalk, ids) - before).abs().max() < 1e-4
    assert torch.equal(logits(hooked_tinytalk, ids), before)


@pytest.mark.parametrize("scope", ["all", "prompt", "generated", "last", "no_special", "from 3"])
@pytest.mark.parametrize("cache", [True, False])
def test_scopes_in_its_own_generation(hooked_tinytalk: Any, tinytalk: Any, scope: Any, cache: bool) -> None:
    special = {"no_special": Scope.without_special(tinytalk.tokenizer), "from 3": Scope.from_position(3)}
    asked = special.get(scope) or Scope(scope)
    edit = random_edit(hooked_tinytalk, "mlp.hook_post").scoped(asked)
    ids = some_ids(tinytalk)[:, :6]
    settings = {"max_new_tokens": 5, "do_sample": False, "stop_at_eos": False, "verbose": False}
    with edit.on(hooked_tinytalk):
        out = hooked_tinytalk.generate(ids, use_past_kv_cache=cache, **settings)
    with edit.on(tinytalk):
        assert out.tolist() == tinytalk.generate(ids, use_past_kv_cache=cache, **settings).tolist()
    expected = by_hand(hooked_tinytalk, edit, asked, out[0, :-1].tolist(), 6)[5:]
    assert expected.argmax(-1).tolist() == out[0, 6:].tolist()


def test_batched_prompts_are_as_each_alone(hooked_tinytalk: Any) -> None:
    prompts = ["Once upon a time", "Tom", "One day a little girl named Lily went to"]
    settings = {"max_new_tokens": 5, "do_sample": False, "stop_at_eos": False, "verbose": False}
    with random_edit(hooked_tinytalk, "mlp.hook_post").scoped("last").on(hooked_tinytalk):
        for cache in (True, False):
            together = hooked_tinytalk.generate(prompts, use_past_kv_cache=cache, return_type="tokens", **settings)
            for row, prompt in zip(together, prompts, strict=True):
                alone = hooked_tinytalk.generate([prompt], use_past_kv_cache=cache, return_type="tokens", **settings)
                assert row[-5:].tolist() == alone[0, -5:].tolist()


def test_the_middle_of_the_stream_can_be_edited_here_and_not_on_the_bridge(hooked_tinytalk: Any, tinytalk: Any) -> None:
    edit = random_edit(hooked_tinytalk, "hook_resid_mid").restrict(find_sites(hooked_tinytalk, "hook_resid_mid")[:1])
    ids = some_ids(tinytalk)
    seen: list[Tensor] = []
    with hooked_tinytalk.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda t, hook: seen.append(t))]):
        logits(hooked_tinytalk, ids)
        with edit.on(hooked_tinytalk):
            logits(hooked_tinytalk, ids)
    assert (seen[0] - seen[1]).abs().max() > 0.1
    with pytest.raises(SiteError, match="the MLP branch only"), edit.on(tinytalk):
        pass


def test_folded_weights_are_the_same_model(hooked_tinytalk: Any, folded_tinytalk: Any, tinytalk: Any) -> None:
    ids = some_ids(tinytalk)
    probabilities = [logits(model, ids).softmax(-1) for model in (folded_tinytalk, tinytalk)]
    torch.testing.assert_close(*probabilities, rtol=1e-3, atol=1e-5)
    assert host_of(folded_tinytalk).provenance["weights"] == "norms folded"
    assert host_of(hooked_tinytalk).provenance["weights"] == "raw"


def test_unfolded_weights_have_the_bridges_fingerprint(hooked_tinytalk: Any, tinytalk: Any) -> None:
    sites = find_sites(tinytalk, ["hook_resid_pre", "hook_resid_post", "mlp.hook_post", "attn.hook_z"])
    here, there = (read_fingerprint(model, sites) for model in (hooked_tinytalk, tinytalk))
    assert compare_fingerprints(there, here) == ""


def test_folded_weights_have_another_fingerprint(folded_tinytalk: Any, tinytalk: Any) -> None:
    sites = find_sites(tinytalk, ["hook_resid_pre", "hook_resid_post"])
    there, folded = (read_fingerprint(model, sites) for model in (tinytalk, folded_tinytalk))
    assert compare_fingerprints(there, folded).startswith(f"{len(sites)} of {len(sites)} edited sites differ")


def test_an_edit_of_the_stream_is_refused_on_folded_weights() -> None:
    raw = make_hooked_tiny()
    with torch.no_grad():
        raw.embed.W_E += 0.5  # a stream with a mean, as GPT-2's has
    folded = make_hooked_tiny()
    folded.load_and_process_state_dict(raw.state_dict(), fold_ln=True, center_writing_weights=True, center_unembed=True)
    folded.eval()
    ids = torch.tensor([[1, 5, 9, 7]])
    torch.testing.assert_close(logits(raw, ids).softmax(-1), logits(folded, ids).softmax(-1), rtol=1e-3, atol=1e-5)
    edit = AurA(sites="hook_resid_post").fit(raw, ContrastSet(["a sad dog", "sad"], ["a happy dog", "happy"]))
    with pytest.raises(ArtifactError, match="fitted on other weights.*edited sites differ"), edit.on(folded):
        pass
    with edit.on(folded, check_model=False):
        pass


def test_downstream_shift(hooked_tinytalk: Any, tinytalk: Any) -> None:
    edit = AurA(sites="mlp.hook_post").fit(tinytalk, CONTRAST)
    here, there = (
        downstream_shift(model, edit, CONTRAST, by_layer=False).frame for model in (hooked_tinytalk, tinytalk)
    )
    assert here.site.tolist() == there.site.tolist()
    np.testing.assert_allclose(here.wasserstein_after, there.wasserstein_after, rtol=1e-3, atol=1e-4)
    assert (there.wasserstein_after - there.wasserstein_before).abs().max() > 0.01


def test_one_artifact_on_both_hosts(hooked_tinytalk: Any, tinytalk: Any, tmp_path: Path) -> None:
    fitted = AurA(sites=["mlp.hook_post", "hook_resid_post"]).fit(hooked_tinytalk, CONTRAST)
    fitted.save(tmp_path / "edit")
    loaded = Intervention.load(tmp_path / "edit")
    assert loaded == fitted
    ids = some_ids(tinytalk)
    results = []
    for model in (hooked_tinytalk, tinytalk):
        with loaded.on(model):
            results.append(logits(model, ids))
    assert (results[0] - results[1]).abs().max() < 1e-4
    assert (results[0] - logits(tinytalk, ids)).abs().max() > 0.1


def test_norms_of_a_folded_model_are_sites() -> None:
    model = make_hooked_tiny()
    assert [site.kind for site in find_sites(model, "paper:lineas", layers=[0])] == ["ln2.hook_normalized"]
    kinds = [site.kind for site in find_sites(model, "paper:aura", layers=[0])]
    assert kinds == ["mlp.hook_pre", "hook_mlp_out"]
