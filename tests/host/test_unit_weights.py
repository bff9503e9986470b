"""What units read and write, against the model itself: gradients of activations and logits, and planted weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lens_steer.host.adapter import host_of
from lens_steer.host.load import load_model
from lens_steer.host.sites import Site, find_sites
from lens_steer.host.trunk import flatten_heads
from lens_steer.host.unit_weights import site_weights, tokens_read, tokens_written
from tests.compat import make_hooked_tiny
from tests.families import make_tiny, make_tokenizer, random_model

UNIT = 5
FAMILIES = ["gpt2", "gpt_neox", "llama", "qwen2", "mistral", "gemma2", "gemma3_text", "qwen3", "olmo2", "smollm3"]


def site_of(model: Any, kind: str, layer: int = 1) -> Site:
    return find_sites(model, f"blocks.{layer}.{kind}")[0]


def written_by_hook(model: Any, site: Site, amount: float) -> torch.Tensor:
    """The change of the last layer's output at the last token when a unit of the last layer is raised."""
    ids = host_of(model).probe_ids(4)
    found: list[torch.Tensor] = []

    def raised(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        flat = flatten_heads(tensor).clone()
        flat[..., UNIT] += amount
        return flat.reshape(tensor.shape)

    last = f"blocks.{host_of(model).n_layers - 1}.hook_resid_post"
    with torch.no_grad():
        for hooks in ([], [(host_of(model).canonical(site.name), raised)]):
            keep = [(host_of(model).canonical(last), lambda tensor, hook: found.append(tensor[0, -1].clone()))]
            model.run_with_hooks(ids, fwd_hooks=[*hooks, *keep])
    return found[1] - found[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_neuron_writes_what_the_model_writes(name: str) -> None:
    model = make_tiny(name)
    weights = site_weights(model, site_of(model, "mlp.hook_post"))
    if weights.post_norm is None:
        moved = written_by_hook(model, weights.site, 0.5) / 0.5
        torch.testing.assert_close(moved, weights.writes[UNIT], rtol=1e-4, atol=1e-4)
    assert set(weights.reads) == ({"mlp.in"} if name in ("gpt2", "gpt_neox") else {"mlp.gate", "mlp.in"})
    assert weights.no_reads == weights.no_writes == ""


@pytest.mark.parametrize("name", FAMILIES)
def test_a_neuron_reads_what_its_gradient_says(name: str) -> None:
    """The value in front of the activation function is linear in the norm's output, with these weights."""
    model = make_tiny(name)
    site = site_of(model, "mlp.hook_pre")
    weights = site_weights(model, site)
    (part,) = weights.reads
    norm = model.blocks[1].ln2 if weights.norms[part] else None
    if norm is None:
        pytest.skip("this family has no norm in front of the MLP")
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(tensor: torch.Tensor, hook: Any) -> None:
            seen.setdefault(name, tensor[0].clone())

        return hook

    ids = host_of(model).probe_ids(6)
    points = [("blocks.1.ln2.hook_out", keep("normed")), (host_of(model).canonical(site.name), keep("pre"))]
    with torch.no_grad():
        model.run_with_hooks(ids, fwd_hooks=points)
    ours = seen["normed"] @ weights.reads[part][UNIT]
    differences = (seen["pre"][:, UNIT] - ours) - (seen["pre"][0, UNIT] - ours[0])  # a bias is left
    torch.testing.assert_close(differences, torch.zeros(6), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "gemma2"])
def test_a_head_reads_by_value_and_writes_by_output(name: str) -> None:
    model = make_tiny(name)
    weights = site_weights(model, site_of(model, "attn.hook_z"))
    assert weights.reads["attn.v"].shape == weights.writes.shape == (32, 32)
    if weights.post_norm is None:
        site = weights.site
        # The MLP behind it reacts: what is read off is the attention's own output.
        ids, found = host_of(model).probe_ids(4), []

        def raised(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
            flat = flatten_heads(tensor).clone()
            flat[..., UNIT] += 1.0
            return flat.reshape(tensor.shape)

        keep = ("blocks.1.attn.hook_out", lambda tensor, hook: found.append(tensor[0, -1].clone()))
        with torch.no_grad():
            model.run_with_hooks(ids, fwd_hooks=[keep])
            model.run_with_hooks(ids, fwd_hooks=[(host_of(model).canonical(site.name), raised), keep])
        torch.testing.assert_close(found[1] - found[0], weights.writes[UNIT], rtol=1e-4, atol=1e-4)
    groups = 2 if name in ("llama", "gemma2") else 4
    by_head = weights.reads["attn.v"].reshape(4, 8, 32)
    assert torch.equal(by_head[0], by_head[1]) == (groups == 2)  # two query heads read one value head


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_written_are_the_slope_of_the_logits(name: str) -> None:
    """The final norm's size held fixed, raising a unit of the last stream raises the logits by these numbers."""
    model = make_tiny(name)
    site = site_of(model, "hook_resid_post")
    written = tokens_written(model, site_weights(model, site), UNIT)
    stream = torch.randn(1, 1, 32, generator=torch.Generator().manual_seed(1))
    final = model.ln_final.original_component
    about = stream - stream.mean() if name in ("gpt2", "gpt_neox") else stream
    size = about.square().mean().sqrt()
    raised = stream.clone()
    raised[..., UNIT] += 1.0
    moved_about = raised - raised.mean() if name in ("gpt2", "gpt_neox") else raised
    moved_size = moved_about.square().mean().sqrt()
    bias = getattr(final, "bias", None)
    bias = torch.zeros(32) if bias is None else bias.detach()
    with torch.no_grad():
        before, after = (final(one) - bias for one in (stream, raised))
        slope = (after * moved_size - before * size)[0, 0] @ model.W_U.detach()
    torch.testing.assert_close(written, slope, rtol=2e-3, atol=2e-3)


def test_a_planted_unit_reads_and_writes_its_tokens() -> None:
    plain = random_model("gpt2")
    reads, writes = 17, 41
    block, table = plain.transformer.h[1], plain.transformer.wte.weight.detach()
    with torch.no_grad():
        normed = block.ln_2(table)
        # The direction along which one token stands out of all others (least squares), and the other token's logit.
        apart = torch.linalg.solve(normed.T @ normed + 0.1 * torch.eye(32), normed[reads])
        block.mlp.c_fc.weight[:, UNIT] = apart
        block.mlp.c_proj.weight[UNIT] = table[writes]
    model = load_model(plain, tokenizer=make_tokenizer())
    weights = site_weights(model, site_of(model, "mlp.hook_post"))
    read, written = tokens_read(model, weights, UNIT)["mlp.in"], tokens_written(model, weights, UNIT)
    torch.testing.assert_close(read, normed @ apart, rtol=1e-4, atol=1e-5)
    assert int(read.argmax()) == reads
    assert int(written.argmax()) == writes


@pytest.mark.parametrize(
    ("kind", "reads", "says"),
    [
        ("hook_resid_post", {"stream"}, ""),
        ("hook_mlp_out", set(), "a sum over all units in front of mlp.out"),
        ("attn.hook_q", {"attn.q"}, "it decides where its head looks"),
        ("attn.hook_v", {"attn.v"}, "see attn.hook_z"),
        ("mlp.hook_pre", {"mlp.in"}, "see mlp.hook_post"),
        ("ln1.hook_out", {"stream"}, "read by all projections behind ln1"),
    ],
)
def test_what_has_no_weights_says_so(tiny: Any, kind: str, reads: set[str], says: str) -> None:
    weights = site_weights(tiny, site_of(tiny, kind))
    assert set(tokens_read(tiny, weights, UNIT)) == reads
    assert says in weights.no_reads + weights.no_writes
    assert (tokens_written(tiny, weights, UNIT) is None) == bool(weights.no_writes)


def test_weights_that_cannot_be_told_apart_are_not_invented() -> None:
    model = make_tiny("phi3")
    weights = site_weights(model, site_of(model, "mlp.hook_post"))
    assert "cannot be told apart" in weights.no_reads
    assert not weights.reads
    assert weights.writes is not None


@pytest.mark.compat
@pytest.mark.parametrize("act_fn", ["gelu", "silu"])
def test_on_a_hooked_transformer(act_fn: str) -> None:
    model = make_hooked_tiny(act_fn=act_fn, gated_mlp=act_fn == "silu")
    weights = site_weights(model, site_of(model, "mlp.hook_post"))
    assert set(weights.reads) == ({"mlp.in"} if act_fn == "gelu" else {"mlp.gate", "mlp.in"})
    torch.testing.assert_close(written_by_hook(model, weights.site, 0.5) / 0.5, weights.writes[UNIT])
    assert tokens_written(model, weights, UNIT).shape == (64,)
    heads = site_weights(model, site_of(model, "attn.hook_z"))
    assert heads.reads["attn.v"].shape == heads.writes.shape == (32, 32)


@pytest.mark.compat
def test_both_hosts_say_the_same(embedded: Any, hooked_embedded: Any) -> None:
    for kind in ("mlp.hook_post", "attn.hook_z", "hook_resid_post"):
        one, other = (site_weights(model, site_of(model, kind)) for model in (embedded, hooked_embedded))
        torch.testing.assert_close(
            tokens_written(embedded, one, UNIT), tokens_written(hooked_embedded, other, UNIT), rtol=1e-3, atol=1e-4
        )
        read, again = tokens_read(embedded, one, UNIT), tokens_read(hooked_embedded, other, UNIT)
        assert read.keys() == again.keys()
        for part in read:
            torch.testing.assert_close(read[part], again[part], rtol=1e-3, atol=1e-4)
