"""RelP: what it conserves, where it is the gradient, and where it does not exist."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import lens_steer as ls
from lens_steer.host.adapter import host_of
from lens_steer.host.relevance import relevance_rules
from lens_steer.host.trunk import frozen
from tests.compat import make_hooked_tiny
from tests.effects.attribution.prompts import attribute
from tests.families import make_tiny


def relevance(model: Any, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a site's activation and coefficients, a logit difference under the rules, and the plain logits."""
    host = host_of(model)
    ids = host.probe_ids(6)
    mask = torch.ones_like(ids, dtype=torch.bool)
    held: list[torch.Tensor] = []

    def hold(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        held.append(tensor if tensor.requires_grad else tensor.detach().requires_grad_())
        return held[0]

    with frozen(model):
        with relevance_rules(model), host.hooks([(name, hold)]):
            logits = host.logits(ids, mask)
            value = logits[0, -1, 7] - logits[0, -1, 9]
            (coefficients,) = torch.autograd.grad(value, held)
        with torch.no_grad():
            plain = host.logits(ids, mask)
    return held[0].detach(), coefficients, torch.stack([value.detach()]), plain


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3_text", "qwen3", "olmo2", "phi3", "smollm3"])
def test_relevance_is_conserved_without_biases(kind: str) -> None:
    """Coefficients times the stream sum to the metric, at every layer; the forward pass is the model's own."""
    model = make_tiny(kind)
    for layer in (0, 1):
        stream, coefficients, value, plain = relevance(model, f"blocks.{layer}.hook_resid_pre")
        assert float((stream * coefficients).sum()) == pytest.approx(float(value), rel=1e-4, abs=1e-5)
        assert float(plain[0, -1, 7] - plain[0, -1, 9]) == pytest.approx(float(value), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox"])
def test_with_biases_relevance_is_that_of_the_held_affine_map(kind: str) -> None:
    """Under the rules the rest of the model is affine in the stream: half of it moves the metric by half."""
    model = make_tiny(kind)
    host = host_of(model)
    stream, coefficients, value, _ = relevance(model, "blocks.1.hook_resid_post")
    scale: list[torch.Tensor] = []
    ids = host.probe_ids(6)
    mask = torch.ones_like(ids, dtype=torch.bool)
    with torch.no_grad(), host.hooks([("ln_final.hook_scale", lambda tensor, hook: scale.append(tensor))]):
        host.logits(ids, mask)
    with (
        torch.no_grad(),
        host.hooks(
            [
                ("blocks.1.hook_resid_post", lambda tensor, hook: tensor / 2),
                ("ln_final.hook_scale", lambda tensor, hook: scale[0]),
            ]
        ),
    ):
        logits = host.logits(ids, mask)
    moved = float(logits[0, -1, 7] - logits[0, -1, 9]) - float(value)
    assert moved == pytest.approx(-float((stream * coefficients).sum()) / 2, rel=1e-4, abs=1e-5)


@pytest.mark.compat
def test_where_the_network_is_linear_all_methods_are_exact() -> None:
    """Attention alone, without norms and with positions that attend evenly: patch, gradient, path and RelP agree."""
    model = make_hooked_tiny(normalization_type=None, attn_only=False, act_fn="relu", n_layers=2)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_Q.zero_()
            block.attn.b_Q.zero_()
            block.mlp.W_in.zero_()  # units that hold a constant: the function is affine in everything before
            block.mlp.b_in.fill_(1.0)
    settings: Any = {"sites": ["hook_resid_post", "hook_attn_out", "attn.hook_v"], "level": "unit"}
    exact = attribute(model, method="patch", **settings).frame["value"].to_numpy()
    assert abs(exact).max() > 0.05
    for method in ("attribution", "integrated", "relp"):
        estimate = attribute(model, method=method, reliability=method == "attribution", **settings)
        np.testing.assert_allclose(estimate.frame["value"], exact, rtol=2e-3, atol=1e-4 * abs(exact).max())
        if method == "attribution":
            clear = abs(estimate.frame["value"]) > 1e-2 * abs(exact).max()
            assert estimate.frame.loc[clear, "ratio"].max() < 1e-2
            assert not estimate.frame.loc[clear, "flagged"].any()


@pytest.mark.compat
def test_direct_and_indirect_effects_of_two_linear_layers() -> None:
    """The first layer writes a, which the second turns into W a: patching it does U a + U W a in all."""
    model = make_hooked_tiny(normalization_type=None, attn_only=True, n_layers=2)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_Q.zero_()
            block.attn.b_Q.zero_()
    clean, corrupted = "the dog ran home", "the cat ran home"
    result = {
        method: attribute(model, clean, corrupted, sites="hook_attn_out", method=method).frame["value"].tolist()
        for method in ("patch", "attribution")
    }
    host = host_of(model)
    values: list[list[torch.Tensor]] = []
    for text in (clean, corrupted):
        ids = torch.tensor([host.tokenizer(text).input_ids])
        read: list[torch.Tensor] = []
        with (
            torch.no_grad(),
            host.hooks(
                [
                    (f"blocks.{layer}.hook_attn_out", lambda tensor, hook, read=read: read.append(tensor))
                    for layer in (0, 1)
                ]
            ),
        ):
            host.logits(ids, torch.ones_like(ids, dtype=torch.bool))
        values.append(read)
    first, second = (one - other for one, other in zip(*values, strict=True))
    heads = [torch.einsum("hio,hod->id", model.blocks[1].attn.W_V, model.blocks[1].attn.W_O)]
    dog, cat = (host.tokenizer(word, add_special_tokens=False).input_ids[0] for word in ("dog", "cat"))
    read_out = model.unembed.W_U[:, dog] - model.unembed.W_U[:, cat]
    direct = float(first[0, -1] @ read_out)
    indirect = float(first[0].mean(0) @ heads[0] @ read_out)
    assert abs(direct) > 1e-3
    assert abs(indirect) > 1e-3
    for found in result.values():
        assert found[0] == pytest.approx(direct + indirect, rel=1e-3, abs=1e-4)
        assert found[1] == pytest.approx(float(second[0, -1] @ read_out), rel=1e-3, abs=1e-4)


def test_relevance_ends_where_a_site_is_held(tiny: Any) -> None:
    with pytest.raises(ls.LensSteerError, match="no relevance reaches blocks.0.attn.hook_q"):
        attribute(tiny, sites="attn.hook_q", method="relp")
    assert attribute(tiny, sites="attn.hook_q", method="relp", rules=["norm"]).frame["value"].abs().max() > 0
    assert attribute(tiny, sites="attn.hook_v", method="relp").frame["value"].abs().max() > 0


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_relevance_before_and_behind_an_activation_function(kind: str) -> None:
    """Coefficients at the input are those at the output times output over input (half of it where there are gates)."""
    model = make_tiny(kind)
    before, at_input, *_ = relevance(model, "blocks.1.mlp.hook_pre")
    behind, at_output, *_ = relevance(model, "blocks.1.mlp.hook_post")
    share = 0.5 if kind == "llama" else 1.0
    np.testing.assert_allclose(before * at_input, share * behind * at_output, rtol=1e-4, atol=1e-6)


def test_a_mixture_of_experts_is_refused_by_name() -> None:
    model = make_tiny("qwen3_moe")
    with pytest.raises(ls.LensSteerError, match=r"cannot be hung on 'qwen3_moe'.*use method='attribution'"):
        attribute(model, sites="hook_resid_post", method="relp")
    with pytest.raises(ls.LensSteerError, match="mixture of experts"):
        attribute(model, sites="mlp.hook_post")
    assert np.isfinite(attribute(model, sites="hook_mlp_out").frame["value"]).all()


def test_without_rules_relevance_is_the_gradient(tiny: Any) -> None:
    settings: Any = {"sites": ["mlp.hook_post", "attn.hook_z"], "level": "unit"}
    bare = attribute(tiny, method="relp", rules=[], **settings).frame["value"]
    np.testing.assert_allclose(bare, attribute(tiny, **settings).frame["value"], rtol=1e-4, atol=1e-6)
    for rules in (["norm"], ["activation"], ["attention"]):
        one = attribute(tiny, method="relp", rules=rules, **settings).frame["value"]
        assert not np.allclose(bare, one, rtol=1e-2)
