"""Guards: which writes are refused, and that trying them leaves no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lens_steer.activations.collect import collect
from lens_steer.errors import ModelError, SiteError
from lens_steer.host.attach import attach
from lens_steer.host.guards import check_edit_sites
from lens_steer.host.sites import Site, find_sites
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.texts.contrast import ContrastSet
from tests.compat import make_hooked_tiny
from tests.families import make_tiny
from tests.handles import Forwards, handles, logits

IDS = torch.tensor([[1, 5, 9, 7, 30, 31]])
EDITABLE = [
    "hook_resid_pre",
    "hook_attn_out",
    "hook_mlp_out",
    "hook_resid_post",
    "mlp.hook_pre",
    "mlp.hook_post",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_z",
]


def edit(site: Site, scale: float) -> Intervention:
    return Intervention((Edit(site, DiagonalAffine(torch.full((site.width,), scale), torch.zeros(site.width))),))


def fresh_tiny(host: str) -> Any:
    return make_tiny("gpt2", seed=3) if host == "bridge" else make_hooked_tiny()


@pytest.fixture(params=["bridge", "hooked"])
def fresh(request: pytest.FixtureRequest) -> Any:
    """A model on which no site was tried yet."""
    return fresh_tiny(request.param)


@pytest.mark.compat
def test_edit_sites_of_every_family(family: Any) -> None:
    check_edit_sites(family, find_sites(family, EDITABLE))
    for preset in ("paper:aura", "paper:act", "paper:lineas", "paper:selfcond"):
        check_edit_sites(family, find_sites(family, preset))


@pytest.mark.real
@pytest.mark.compat
def test_edit_sites_of_the_real_models(real_model: Any) -> None:
    check_edit_sites(real_model, find_sites(real_model, EDITABLE))


@pytest.mark.compat
def test_the_middle_of_the_stream_is_read_but_not_edited_on_a_bridge(family: Any) -> None:
    if family.original_model.config.model_type == "gpt_neox":
        pytest.skip("parallel blocks have no middle of the stream")
    sites = find_sites(family, "hook_resid_mid")
    assert len(sites) == 2
    with pytest.raises(SiteError, match="reaches the MLP branch only on this host.*edit hook_attn_out"):
        check_edit_sites(family, sites[:1])
    values = collect(family, ContrastSet(["a dog ran"], ["a cat sat"]), "hook_resid_mid")
    assert values.source[sites[1]].shape == (1, 32)
    # A refusal is not remembered as a permission.
    with pytest.raises(SiteError, match="the MLP branch only"), edit(sites[0], 2.0).on(family):
        pass


@pytest.mark.compat
def test_the_middle_of_the_stream_is_edited_on_a_hooked_transformer(hooked_tiny: Any) -> None:
    check_edit_sites(hooked_tiny, find_sites(hooked_tiny, "hook_resid_mid"))


@pytest.mark.real
@pytest.mark.compat
def test_the_pattern_of_gpt_neo_is_refused(tinytalk: Any) -> None:
    """A write there has no effect (TRANSFORMERLENS.md); it is no site to begin with."""
    name = "blocks.2.attn.hook_pattern"
    with pytest.raises(SiteError, match="no unit axis"):
        find_sites(tinytalk, name)
    with pytest.raises(SiteError, match="no unit axis"):
        check_edit_sites(tinytalk, [Site(name, 2, "attn.hook_pattern", 4)])


@pytest.mark.compat
def test_a_write_without_effect_is_refused() -> None:
    model = make_tiny("gpt2")
    with torch.no_grad():
        model.original_model.transformer.h[1].attn.c_proj.weight.zero_()
    heads = find_sites(model, "attn.hook_z")
    with pytest.raises(SiteError, match=r"blocks.1.attn.hook_z can be read, but a write there does not move"):
        check_edit_sites(model, heads)
    check_edit_sites(model, heads[:1])


@pytest.mark.compat
@pytest.mark.parametrize("known", [True, False], ids=["to the guard", "as a site"])
def test_a_site_that_fires_twice_is_refused(known: bool) -> None:
    model = make_tiny("gpt2")
    sites = find_sites(model, "mlp.hook_post", layers=[0]) if known else ()
    point = model.hook_dict["blocks.0.mlp.hook_post"]

    def fire_again(*_: object) -> None:
        point(torch.zeros(1, 4, 128))  # whatever the probe: only the count matters

    model.blocks[1].register_forward_hook(fire_again)
    with pytest.raises(SiteError, match=r"blocks.0.mlp.hook_post fire[sd] 2 times in one forward pass"):
        check_edit_sites(model, sites or find_sites(model, "blocks.0.mlp.hook_post"))


@pytest.mark.compat
@pytest.mark.parametrize("name", ["blocks.9.mlp.hook_post", "blocks.0.mlp.hook_poss"])
def test_unknown_sites(tiny: Any, name: str) -> None:
    with pytest.raises(SiteError, match=r"nearest names here are .*mlp.hook_post"):
        check_edit_sites(tiny, [Site(name, 0, "mlp.hook_post", 128)])


@pytest.mark.compat
def test_wrong_width(fresh: Any) -> None:
    right = find_sites(fresh, "hook_resid_post")[0]
    wrong = Site(right.name, 0, right.kind, right.width + 1)
    says = r"blocks.0.hook_resid_post has 32 units in this model, the edit has 33"
    with pytest.raises(SiteError, match=says):
        check_edit_sites(fresh, [wrong])
    check_edit_sites(fresh, [right])
    with pytest.raises(SiteError, match=says):  # also when the site was tried before
        check_edit_sites(fresh, [wrong])
    with pytest.raises(SiteError, match=says):  # and beside one of the right width
        check_edit_sites(fresh, [right, wrong])


@pytest.mark.compat
def test_training_mode(fresh: Any) -> None:
    site = find_sites(fresh, "hook_resid_post")[0]
    check_edit_sites(fresh, [site])
    fresh.train()
    contrast = ContrastSet(["a dog ran"], ["a cat sat"])
    for call in (
        lambda: check_edit_sites(fresh, [site]),
        lambda: collect(fresh, contrast),
        lambda: edit(site, 2.0).on(fresh).__enter__(),
    ):
        with pytest.raises(ModelError, match=r"training mode: call model.eval\(\)"):
            call()
    fresh.eval()
    check_edit_sites(fresh, [site])


@pytest.mark.compat
def test_guards_leave_no_trace(fresh: Any) -> None:
    before, state = logits(fresh, IDS), torch.get_rng_state()
    hanging = handles(fresh)
    for site in find_sites(fresh, "*"):
        try:
            check_edit_sites(fresh, [site])
        except SiteError as error:
            # HookedTransformer normalises the inputs of q, k and v one by one.
            assert site.kind == "hook_resid_mid" or "ln1.hook_normalized fired 3 times" in str(error)
    assert handles(fresh) == hanging
    assert torch.equal(logits(fresh, IDS), before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.compat
def test_each_site_is_tried_once(fresh: Any) -> None:
    first, second = find_sites(fresh, "hook_resid_post")
    with Forwards(fresh) as forwards:
        check_edit_sites(fresh, [first, first])
        assert forwards.count == 2  # without and with a write
        check_edit_sites(fresh, [first])
        with attach(fresh, [(first, lambda flat, _: flat)]):
            pass
        assert forwards.count == 2
        check_edit_sites(fresh, [first, second])
        assert forwards.count == 4


@pytest.mark.compat
def test_what_one_model_allowed_is_not_remembered_for_another() -> None:
    model, other = make_tiny("gpt2"), make_tiny("gpt2")
    site = find_sites(model, "attn.hook_z")[1]
    check_edit_sites(model, [site])
    with torch.no_grad():
        other.original_model.transformer.h[1].attn.c_proj.weight.zero_()
    with pytest.raises(SiteError, match="does not move the logits"):
        check_edit_sites(other, [site])


@pytest.mark.compat
@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_what_is_attached_does_not_disturb_the_guard(fresh: Any, scale: float) -> None:
    """An outer edit, or the user's own hook, between the site and the layer's output changes what arrives there."""
    first, last = find_sites(fresh, "hook_resid_post")
    inner = find_sites(fresh, ["hook_resid_pre", "hook_attn_out"], layers=[0])

    def users_own(tensor: Tensor, hook: Any) -> Tensor:
        return tensor * scale

    with edit(first, scale).on(fresh), edit(last, 0.5).on(fresh):
        check_edit_sites(fresh, inner[:1])
    with fresh.hooks(fwd_hooks=[(first.name, users_own)]):
        check_edit_sites(fresh, inner[1:])


@pytest.mark.compat
def test_the_users_own_hooks_do_not_see_the_probe(fresh: Any) -> None:
    site = find_sites(fresh, "mlp.hook_post")[0]
    calls: list[int] = []
    with fresh.hooks(fwd_hooks=[(site.name, lambda tensor, hook: calls.append(tensor.shape[1]))]):
        check_edit_sites(fresh, [site])
        assert calls == []
        logits(fresh, IDS)
    assert calls == [6]


@pytest.mark.compat
def test_one_huge_unit_in_bfloat16_does_not_hide_that_a_write_arrives() -> None:
    """The streams of large models carry single values of hundreds of standard deviations, rounded to 8 bits."""
    model = make_tiny("llama")
    with torch.no_grad():
        model.original_model.model.embed_tokens.weight[:, 3] = 1e4
    model.to(torch.bfloat16)
    check_edit_sites(model, find_sites(model, ["hook_resid_pre", "hook_resid_post", "hook_mlp_out"]))
    with pytest.raises(SiteError, match="the MLP branch only"):
        check_edit_sites(model, find_sites(model, "hook_resid_mid"))
