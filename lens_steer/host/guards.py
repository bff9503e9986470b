"""Guards: what must hold of a site before anything is written there, tried on a probe of four tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lens_steer.errors import ModelError, SiteError
from lens_steer.host.adapter import Host, host_of
from lens_steer.host.sites import Site, site_at, split_name
from lens_steer.host.trunk import flatten_heads, restore_heads

_PROBE_TOKENS = 4
_RESIDUAL = (
    "hook_resid_pre",
    "hook_in",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_out",
    "hook_attn_out",
    "hook_mlp_out",
)


def require_eval(model: nn.Module) -> None:
    """Refuse a model in training mode, whose dropout would make every result random."""
    if model.training or getattr(model, "original_model", model).training:
        raise ModelError("the model is in training mode: call model.eval() first")


def check_edit_sites(model: nn.Module, sites: Sequence[Site]) -> None:
    """Make sure that a write at each site does what it says; each site of a model is tried once.

    Raises
    ------
    ModelError
        The model is in training mode.
    SiteError
        A site does not exist, has another width, does not fire exactly once, or a write there does not reach the
        logits, or (on the residual stream) does not reach the layer's output by the written amount.

    """
    require_eval(model)
    host = host_of(model)
    for site in sites:
        actual = site_at(host, site.name)
        if actual.width != site.width:
            raise SiteError(f"{site.name} has {actual.width} units in this model, the edit has {site.width}")
    new = [site for site in dict.fromkeys(sites) if site.name not in host.checked_sites]
    if not new:
        return
    with torch.no_grad(), host.bare():
        base = _probe(host, new)
        for site in new:
            _check_site(host, site, base)
            host.checked_sites.add(site.name)


@dataclass(frozen=True)
class _Reading:
    logits: Tensor
    layers: dict[str, Tensor]
    sites: dict[str, Tensor]
    fired: dict[str, int]


def _probe(host: Host, sites: Sequence[Site], write: tuple[Site, Tensor] | None = None) -> _Reading:
    """Run the probe, adding `write` at its site; read each layer's residual writers and count every site's firings."""
    layers: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    fired = {site.name: 0 for site in sites}
    hooks: list[tuple[str, Callable[..., Any]]] = []

    def reader(store: dict[str, Tensor], name: str) -> Callable[..., None]:
        def read(tensor: Tensor, hook: Any) -> None:
            store[name] = flatten_heads(tensor).float()

        return read

    def counter(name: str) -> Callable[..., None]:
        def count(tensor: Tensor, hook: Any) -> None:
            fired[name] += 1
            values[name] = flatten_heads(tensor).float()

        return count

    if write is not None:
        site, amount = write

        def add(tensor: Tensor, hook: Any) -> Tensor:
            return restore_heads(flatten_heads(tensor) + amount.to(tensor.dtype), tensor)

        hooks.append((site.name, add))
    hooks += [(site.name, counter(site.name)) for site in sites]
    for layer in {site.layer for site in sites}:
        for kind in ("hook_attn_out", "hook_mlp_out", "hook_resid_post"):
            name = f"blocks.{layer}.{kind}"
            if name in host.hook_names:
                hooks.append((name, reader(layers, name)))
    ids = host.probe_ids(_PROBE_TOKENS)
    with host.hooks(hooks):
        logits = host.logits(ids, torch.ones_like(ids, dtype=torch.bool)).float()
    return _Reading(logits, layers, values, fired)


def _check_site(host: Host, site: Site, base: _Reading) -> None:
    if base.fired[site.name] != 1:
        raise SiteError(
            f"{site.name} fired {base.fired[site.name]} times in one forward pass; an edit needs exactly once"
        )
    amount = _random_write(base.sites[site.name])
    moved = _probe(host, [site], (site, amount))
    if not (moved.logits - base.logits).abs().max() > 1e-6 * base.logits.abs().max():
        raise SiteError(
            f"{site.name} can be read, but a write there does not move the logits of this model: it cannot be edited"
        )
    if split_name(site.name)[1] in _RESIDUAL:
        _check_residual(site, base, moved, amount, host.dtype)


def _random_write(activation: Tensor) -> Tensor:
    """Draw values of the activation's own size, others at every position and unit.

    LayerNorm hides a constant over units, the softmax hides keys that all move alike, a pattern hides a scaling.
    """
    noise = torch.randn(activation.shape, generator=torch.Generator().manual_seed(0)).to(activation.device)
    return noise * activation.std().clamp_min(1e-3)


def _check_residual(site: Site, base: _Reading, moved: _Reading, amount: Tensor, dtype: torch.dtype) -> None:
    """A write into the stream arrives at the layer's output, beside what the layer's own parts answer to it."""
    change = {name: moved.layers[name] - base.layers[name] for name in moved.layers}
    output = f"blocks.{site.layer}.hook_resid_post"
    if output not in change:
        return
    answers = sum((value for name, value in change.items() if name != output), torch.zeros_like(change[output]))
    carried = change[output] - answers
    if split_name(site.name)[1] in ("hook_attn_out", "hook_mlp_out"):
        carried = carried + amount  # the reading at the written site already holds the write
    elif split_name(site.name)[1] in ("hook_resid_post", "hook_out"):
        carried = change[output]
    # In bfloat16 a huge value of the stream is rounded by more than is written.
    rounding = 2 * torch.finfo(dtype).eps * sum(value.abs() for value in moved.layers.values())
    if not ((carried - amount).abs() <= 0.05 * amount.abs().max() + rounding).all():
        reached = (
            "the MLP branch only" if split_name(site.name)[1] == "hook_resid_mid" else "less than the whole stream"
        )
        raise SiteError(
            f"a write at {site.name} reaches {reached} on this host, not the residual stream: "
            "edit hook_attn_out or hook_resid_post instead (reading it is fine)"
        )
