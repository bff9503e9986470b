"""Attaching: edits act inside the context, nest, and leave the model as it was, also after an exception."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lens_steer.activations.collect import collect
from lens_steer.host.adapter import host_of
from lens_steer.host.attach import Write, attach
from lens_steer.host.clock import ForwardPass
from lens_steer.host.generations import Generation, announced
from lens_steer.host.sites import Site, find_sites
from lens_steer.host.tokens import tokenize
from lens_steer.host.trunk import frozen, trunk
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.texts.contrast import ContrastSet
from tests.families import make_tiny
from tests.handles import handles, logits

pytestmark = pytest.mark.compat

IDS = torch.tensor([[1, 5, 9, 7, 30, 31], [1, 8, 8, 40, 41, 42]])
SITES = ["hook_resid_post", "mlp.hook_post", "attn.hook_z", "attn.hook_k"]


def random_edit(model: Any, sites: str | list[str] = "hook_resid_post", *, seed: int = 0) -> Intervention:
    generator = torch.Generator().manual_seed(seed)
    edits = []
    for site in find_sites(model, sites):
        scale, shift = (0.3 * torch.randn(site.width, generator=generator) for _ in range(2))
        edits.append(Edit(site, DiagonalAffine(1 + scale, shift)))
    return Intervention(tuple(edits))


def by_hand(model: Any, edits: list[Edit], ids: Tensor) -> Tensor:
    """Logits with each map applied in a plain TransformerLens hook."""

    def hook_of(edit: Edit) -> Callable[..., Tensor]:
        def hook_function(tensor: Tensor, hook: Any) -> Tensor:
            scale, shift = edit.map.scale.reshape(tensor.shape[2:]), edit.map.shift.reshape(tensor.shape[2:])
            return tensor * scale + shift

        return hook_function

    with torch.no_grad(), model.hooks(fwd_hooks=[(edit.site.name, hook_of(edit)) for edit in edits]):
        out: Tensor = model(ids)
    return out


def passing(site: Site, record: list[ForwardPass | None]) -> tuple[Site, Write]:
    def write(flat: Tensor, forward: ForwardPass | None) -> Tensor:
        record.append(forward)
        return flat

    return site, write


def test_edits_act_as_plain_hooks_do_and_only_inside(host_model: Any) -> None:
    edit = random_edit(host_model, SITES)
    before = logits(host_model, IDS)
    with edit.on(host_model):
        inside = logits(host_model, IDS)
    torch.testing.assert_close(inside, by_hand(host_model, list(edit.edits), IDS), rtol=1e-5, atol=1e-5)
    assert (inside - before).abs().max() > 0.1
    assert torch.equal(logits(host_model, IDS), before)


def test_strength_zero_is_the_identity_to_the_bit(host_model: Any) -> None:
    before = logits(host_model, IDS)
    with random_edit(host_model, SITES).on(host_model, strength=0.0):
        assert torch.equal(logits(host_model, IDS), before)


def test_writes_at_one_site_act_in_the_order_given(host_model: Any) -> None:
    site = find_sites(host_model, "hook_resid_post")[0]
    double: Write = lambda flat, _: 2 * flat  # noqa: E731
    add: Write = lambda flat, _: flat + 1  # noqa: E731
    seen: list[Tensor] = []

    def outcome(writes: list[Write]) -> Tensor:
        with (
            attach(host_model, [(site, write) for write in writes]),
            host_model.hooks(fwd_hooks=[(site.name, lambda tensor, hook: seen.append(tensor))]),
        ):
            logits(host_model, IDS)
        return seen.pop()

    plain = outcome([])
    torch.testing.assert_close(outcome([double, add]), 2 * plain + 1)
    torch.testing.assert_close(outcome([add, double]), 2 * (plain + 1))


def test_nesting_is_then(host_model: Any) -> None:
    outer, inner = random_edit(host_model, SITES, seed=1), random_edit(host_model, SITES, seed=2)
    before, hanging = logits(host_model, IDS), handles(host_model)
    with outer.on(host_model):
        alone = logits(host_model, IDS)
        with inner.on(host_model):
            both = logits(host_model, IDS)
        assert torch.equal(logits(host_model, IDS), alone)
    with outer.then(inner).on(host_model):
        torch.testing.assert_close(logits(host_model, IDS), both, rtol=1e-4, atol=1e-4)
    assert (both - alone).abs().max() > 0.1
    assert torch.equal(logits(host_model, IDS), before)
    assert handles(host_model) == hanging


def test_fitted_interventions_nest(host_model: Any) -> None:
    sites = ("hook_resid_post", "mlp.hook_post")
    outer, inner = (Intervention.fitted(host_model, random_edit(host_model, site).edits) for site in sites)
    with outer.on(host_model, strength=2.0), inner.on(host_model):
        nested = logits(host_model, IDS)
    with outer.scaled(2.0).then(inner).on(host_model):
        torch.testing.assert_close(logits(host_model, IDS), nested, rtol=1e-4, atol=1e-4)
    with outer.on(host_model, strength=2.0):
        assert (logits(host_model, IDS) - nested).abs().max() > 0.1


def test_the_same_intervention_twice(host_model: Any) -> None:
    edit = random_edit(host_model)
    with edit.on(host_model), edit.on(host_model):
        twice = logits(host_model, IDS)
    with edit.then(edit).on(host_model):
        torch.testing.assert_close(logits(host_model, IDS), twice, rtol=1e-4, atol=1e-4)


def test_contexts_may_be_left_in_any_order(host_model: Any) -> None:
    before, hanging = logits(host_model, IDS), handles(host_model)
    first = random_edit(host_model, seed=1).scoped("prompt").on(host_model)
    second = random_edit(host_model, seed=2).scoped("last").on(host_model)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    with random_edit(host_model, seed=2).scoped("last").on(host_model):
        pass
    second.__exit__(None, None, None)
    assert handles(host_model) == hanging
    assert torch.equal(logits(host_model, IDS), before)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("scope", ["all", "prompt"])
def test_an_exception_inside_leaves_nothing(host_model: Any, error: type[BaseException], scope: Any) -> None:
    edit = random_edit(host_model, SITES).scoped(scope)
    before, hanging = logits(host_model, IDS), handles(host_model)
    with pytest.raises(error), edit.on(host_model):
        assert handles(host_model) != hanging
        logits(host_model, IDS)
        raise error
    assert handles(host_model) == hanging
    assert torch.equal(logits(host_model, IDS), before)


def test_an_exception_in_a_forward_pass_leaves_nothing(host_model: Any) -> None:
    site = find_sites(host_model, "mlp.hook_post")[1]
    before, hanging = logits(host_model, IDS), handles(host_model)

    def fail(flat: Tensor, forward: ForwardPass | None) -> Tensor:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"), attach(host_model, [(site, fail)]):
        logits(host_model, IDS)
    assert handles(host_model) == hanging
    assert torch.equal(logits(host_model, IDS), before)


def test_an_interrupted_collect_leaves_nothing(host_model: Any) -> None:
    tokens = tokenize(host_model, ["a dog ran", "the cat sat"])
    site = find_sites(host_model, "hook_resid_post")[0]
    before, hanging = logits(host_model, IDS), handles(host_model)

    def fail(activation: Tensor, batch: object) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), torch.no_grad(), trunk(host_model, {site: fail}) as run:
        run(tokens.batch([0, 1]))
    collect(host_model, ContrastSet(["a dog ran"], ["the cat sat"]))
    assert handles(host_model) == hanging
    assert torch.equal(logits(host_model, IDS), before)


def test_two_interventions_never_see_each_others_clock(host_model: Any) -> None:
    """Entering, and first trying, an inner intervention between two steps does not move the outer one's clock."""
    first, second = find_sites(host_model, "attn.hook_q")
    outer: list[ForwardPass | None] = []
    inner: list[ForwardPass | None] = []
    with attach(host_model, [passing(first, outer)]):
        with announced(Generation(host_of(host_model), ids=IDS)):
            logits(host_model, IDS)
            fresh = find_sites(host_model, "ln2.hook_normalized")[0]
            with attach(host_model, [passing(second, inner), passing(fresh, [])]):
                logits(host_model, torch.cat([IDS, IDS[:, 2:3]], 1))
    assert [p is None for p in outer + inner] == [False] * 3
    assert [p.positions.prompt_length.tolist() for p in outer + inner if p] == [[6, 6]] * 3
    assert [p.fresh for p in outer + inner if p] == [6, 1, 7]


def test_looking_around_between_two_steps_does_not_move_the_clock() -> None:
    model = make_tiny("gpt2", seed=7)
    record: list[ForwardPass | None] = []
    site = find_sites(make_tiny("gpt2", seed=8), "attn.hook_q")[0]
    with attach(model, [passing(site, record)]), torch.no_grad():
        cache = model.original_model(IDS, use_cache=True).past_key_values
        with random_edit(model, "mlp.hook_pre").on(model):
            pass
        model.original_model(IDS[:, 2:3], past_key_values=cache)
    assert [p.positions.prompt_length.tolist() for p in record if p] == [[6, 6], [6, 6]]


def test_the_users_own_hooks_stay_and_are_called_once(host_model: Any) -> None:
    calls: list[str] = []
    site = find_sites(host_model, "mlp.hook_post")[0]

    def before_it(tensor: Tensor, hook: Any) -> None:
        calls.append("before")

    def within(tensor: Tensor, hook: Any) -> None:
        calls.append("within")

    try:
        host_model.add_hook(site.name, before_it)
        with random_edit(host_model, ["mlp.hook_post", "hook_resid_post"]).on(host_model):
            logits(host_model, IDS)
            assert calls == ["before"]
            host_model.add_hook(site.name, within)
            logits(host_model, IDS)
            assert calls == ["before", "before", "within"]
        calls.clear()
        logits(host_model, IDS)
        assert calls == ["before", "within"]
    finally:
        host_model.reset_hooks()


def test_the_users_own_edits_come_first_where_they_were_attached_first(host_model: Any) -> None:
    site = find_sites(host_model, "hook_resid_post")[1]
    edit = random_edit(host_model).restrict([site])
    seen: list[Tensor] = []

    def tenfold(tensor: Tensor, hook: Any) -> Tensor:
        return 10 * tensor

    def look(tensor: Tensor, hook: Any) -> None:
        seen.append(tensor)

    with host_model.hooks(fwd_hooks=[(site.name, look)]):
        logits(host_model, IDS)
    with host_model.hooks(fwd_hooks=[(site.name, tenfold)]), edit.on(host_model):
        with host_model.hooks(fwd_hooks=[(site.name, look)]):
            logits(host_model, IDS)
    plain, edited = seen
    torch.testing.assert_close(edited, edit.edits[0].map(10 * plain), rtol=1e-5, atol=1e-4)


def test_frozen_gives_every_parameter_its_flag_back() -> None:
    model = make_tiny("gpt2")
    parameters = list(model.parameters())
    for parameter in parameters[::2]:
        parameter.requires_grad_(True)
    flags = [parameter.requires_grad for parameter in parameters]
    assert len(set(flags)) == 2
    with frozen(model):
        assert not any(parameter.requires_grad for parameter in parameters)
    assert [parameter.requires_grad for parameter in parameters] == flags
    with pytest.raises(RuntimeError, match="inside"), frozen(model):
        raise RuntimeError("inside")
    assert [parameter.requires_grad for parameter in parameters] == flags


@pytest.mark.real
def test_real_models_are_left_bit_identical(real_model: Any) -> None:
    ids = real_model.tokenizer(["Once upon a time there was"], return_tensors="pt").input_ids
    before, hanging = logits(real_model, ids), handles(real_model)
    with random_edit(real_model, SITES).scoped("last").on(real_model):
        assert not torch.equal(logits(real_model, ids), before)
    assert torch.equal(logits(real_model, ids), before)
    assert handles(real_model) == hanging
