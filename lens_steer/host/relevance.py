"""RelP's propagation rules as hooks: the forward pass stays as it is, to float rounding; gradients become coefficients.

Layer-wise relevance propagation in the form of a backward pass (RelP, arXiv 2508.21258). A pass under the rules is
linear in the stream, up to biases and a cap on the logits: coefficients times activations sum to the output.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lens_steer.errors import ModelError, SiteError
from lens_steer.host.adapter import Host, host_of
from lens_steer.host.sites import site_at

RelevanceRule = Literal["norm", "activation", "attention"]
RELEVANCE_RULES: tuple[RelevanceRule, ...] = ("norm", "activation", "attention")

Rules = list[tuple[str, Callable[..., Tensor]]]
"""Hook names with what acts there."""

_INSIDE_ATTENTION = ("q_norm.hook_scale", "k_norm.hook_scale")  # norms of queries and keys: nothing flows there


@contextmanager
def relevance_rules(model: nn.Module, rules: Collection[RelevanceRule] = RELEVANCE_RULES) -> Iterator[None]:
    """Let gradients inside follow RelP's rules; hooks that are attached inside see them act.

    "norm": a norm's scale is held. "activation": f(x) passes on as x times f(x) / x, held, and nothing where x is 0; of
    gated products each factor gets half. "attention": patterns are held (queries and keys are cut off), values carry
    everything. Nothing is done to a cap on the logits.

    Raises
    ------
    ModelError
        A block has no point where a rule can hang: a mixture of experts, an MLP that hides its activation function,
        attention that does not split queries, keys and values.

    """
    host = host_of(model)
    fired: set[str] = set()
    hooks = [(name, _counted(name, rule, fired)) for name, rule in rules_of(host, rules)]
    with warnings.catch_warnings():
        # A native norm whose scale is hooked says that its rounding is now another.
        warnings.filterwarnings("ignore", message=".*hook_scale.*")
        with host.hooks(hooks):
            yield
    if missing := sorted({name for name, _ in hooks} - fired):
        raise ModelError(f"RelP's rule at {missing[0]} never acted: this model computes past that hook point")


def held_by_rules(model: nn.Module, name: str) -> bool:
    """Whether RelP holds what stands at a hook point: queries and keys, to which no relevance flows."""
    host = host_of(model)
    points = (f"blocks.{layer}.attn.hook_{part}" for layer in range(host.n_layers) for part in "qk")
    return host.canonical(name) in {host.canonical(point) for point in points if point in host.hook_names}


def rules_of(host: Host, rules: Collection[RelevanceRule]) -> Rules:
    """Return the hooks of all rules; ModelError as `relevance_rules` says."""
    host.refresh()
    scales = [name for name in host.hook_names if name.endswith("hook_scale") and not name.endswith(_INSIDE_ATTENTION)]
    hooks: Rules = [(name, _held) for name in dict.fromkeys(map(host.canonical, scales))] if "norm" in rules else []
    for layer in range(host.n_layers):
        normed = any("Norm" in type(module).__name__ for module in host.model.blocks[layer].modules())
        if "norm" in rules and normed and not any(name.startswith(f"blocks.{layer}.") for name in scales):
            raise _no_place(host, f"blocks.{layer}", "norms show no hook_scale")
        if "attention" in rules:
            hooks += [(_point(host, layer, f"attn.hook_{part}"), _held) for part in "qk"]
            _point(host, layer, "attn.hook_v")
        if "activation" in rules and not getattr(host.model.cfg, "attn_only", False):
            hooks += _mlp_rules(host, layer)
    return hooks


def _mlp_rules(host: Host, layer: int) -> Rules:
    """Remember what goes into the activation function, and rewrite what comes out."""
    inputs: dict[str, Tensor] = {}

    def remember(name: str) -> Callable[..., Tensor]:
        def hook_function(tensor: Tensor, hook: Any) -> Tensor:
            # Where no graph comes in one begins here, so that a site at this point finds what the rule will use.
            begins = torch.is_grad_enabled() and not tensor.requires_grad
            inputs[name] = tensor.detach().requires_grad_() if begins else tensor
            return inputs[name]

        return hook_function

    names = [_point(host, layer, "mlp.hook_pre")]
    gate = f"blocks.{layer}.mlp.hook_pre_linear"
    if gate in host.hook_names:
        names.append(host.canonical(gate))

    def rewrite(tensor: Tensor, hook: Any) -> Tensor:
        factors = [inputs.pop(name) for name in names]
        passed: Tensor = _PassedOn.apply(tensor.detach(), *factors)  # type: ignore[no-untyped-call]
        return passed

    return [*((name, remember(name)) for name in names), (_point(host, layer, "mlp.hook_post"), rewrite)]


class _PassedOn(torch.autograd.Function):
    """Gives the output as it is; back goes, in equal shares, the gradient times output / factor, held, to each factor.

    Where a factor is 0 nothing goes back: it carries nothing.
    """

    @staticmethod
    def forward(ctx: Any, output: Tensor, *factors: Tensor) -> Tensor:
        ctx.save_for_backward(output, *factors)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        output, *factors = ctx.saved_tensors
        carried = gradient * output / len(factors)
        return (None, *((carried / factor).masked_fill_(factor == 0, 0.0) for factor in factors))


def _held(tensor: Tensor, hook: Any) -> Tensor:
    return tensor.detach()


def _counted(name: str, rule: Callable[..., Tensor], fired: set[str]) -> Callable[..., Tensor]:
    def hook_function(tensor: Tensor, hook: Any) -> Tensor:
        fired.add(name)
        return rule(tensor, hook)

    return hook_function


def _point(host: Host, layer: int, kind: str) -> str:
    name = f"blocks.{layer}.{kind}"
    try:
        return host.canonical(site_at(host, name).name)
    except SiteError as error:
        raise _no_place(host, name, str(error)) from None


def _no_place(host: Host, place: str, why: str) -> ModelError:
    model = host.provenance["model"]
    kind = getattr(getattr(getattr(host.model, "original_model", None), "config", None), "model_type", model)
    return ModelError(
        f"RelP's rules cannot be hung on {kind!r}: at {place} ({why}); use method='attribution' or 'integrated'"
    )
