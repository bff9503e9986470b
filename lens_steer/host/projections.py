"""Output projections: how a layer's attention or MLP makes what it adds to the stream of the units in front of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lens_steer.host.adapter import BridgeHost, Host

Linear = Callable[[Float[Tensor, "*text unit"]], Float[Tensor, "*text stream"]]

_PROJECTIONS = {"attention": "attn.o", "mlp": "mlp.out"}
_POST_NORMS = {"attention": "ln1_post", "mlp": "ln2_post"}


class Projection:
    """The output projection of a component, with its bias and the branch's post-norm where there is one.

    It is called outside of the model's forward pass: no hook fires, and nothing that is attached acts.
    """

    def __init__(self, linear: Linear, post_norm: Linear | None, *, width: int, heads: int, like: Tensor) -> None:
        self._linear, self._post_norm = linear, post_norm
        self._width, self.heads = width, heads
        self._like = like

    def __call__(self, units: Float[Tensor, "text pos unit"]) -> Float[Tensor, "text pos stream"]:
        """Return what the component adds to the stream when its units have these values."""
        written = self._linear(units.to(self._like.dtype))
        return written if self._post_norm is None else self._post_norm(written)

    def shared_scale(self, units: Float[Tensor, "text pos unit"]) -> Float[Tensor, "text pos unit"]:
        """Divide the units of every token by what the post-norm divides its output by; without one, leave them.

        What `by_head` makes of the result then adds up, over heads, to the output: a root-mean-square norm is linear
        once its scale is given.
        """
        if self._post_norm is None:
            return units
        projected = self._by_gain(self._linear(units.to(self._like.dtype)).float())
        normed = self(units).float()
        return units * (normed * projected).sum(-1, keepdim=True) / projected.square().sum(-1, keepdim=True)

    def by_head(self, units: Float[Tensor, "text unit"]) -> Float[Tensor, "text head stream"]:
        """Return what each head adds, of differences of pooled values that `shared_scale` gave; biases fall out."""
        own = torch.eye(self.heads).repeat_interleave(self._width // self.heads, dim=1)
        alone = units[:, None] * own.to(units)  # text head unit
        bias = self._linear(torch.zeros(1, 1, self._width).to(self._like)).float()
        return self._by_gain(self._linear(alone.to(self._like)).float() - bias)

    def _by_gain(self, written: Float[Tensor, "*text stream"]) -> Float[Tensor, "*text stream"]:
        if self._post_norm is None:
            return written
        ones = torch.ones(1, 1, written.shape[-1]).to(self._like)
        return written * self._post_norm(ones)[0, 0].float()


def output_projection(host: Host, layer: int, part: str, *, width: int, heads: int) -> Projection | None:
    """Return the projection of a layer's attention or MLP; None where the host shows no single one."""
    block = host.model.blocks[layer]
    like = torch.zeros((), dtype=host.dtype, device=host.device)
    if isinstance(host, BridgeHost):
        linear = _original(block, _PROJECTIONS[part])
        post_norm = _original(block, _POST_NORMS[part])
    else:
        linear = _of_weights(block, part)
        post_norm = getattr(block, _POST_NORMS[part], None)
    if linear is None:
        return None
    return Projection(linear, post_norm, width=width, heads=heads, like=like)


def _original(block: Any, name: str) -> Linear | None:
    """Return a part of the Hugging Face model itself, on which no hook hangs."""
    try:
        original: Linear = block.get_submodule(name).original_component
    except AttributeError:
        return None
    return original


def _of_weights(block: Any, part: str) -> Linear | None:
    """Return the projection of a HookedTransformer's block, whose modules hold weights and no linear layer."""
    module = getattr(block, "attn" if part == "attention" else "mlp", None)
    weight = getattr(module, "W_O" if part == "attention" else "W_out", None)
    bias = getattr(module, "b_O" if part == "attention" else "b_out", None)
    if weight is None or bias is None:
        return None
    flat = weight.flatten(0, -2)
    return lambda units: units @ flat + bias
