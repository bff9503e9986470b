"""Guards: what must hold of a site before anything is written there, tried on a probe of four tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lens_steer.errors import ModelError, SiteError
from lens_steer.host.adapter import Host, host_of
from lens_steer.host.sites import Site, site_at, split_name
from lens_steer.host.trunk import flatten_heads, restore_heads

_PROBE_TOKENS = 4
_MOST_ROWS = 16  # sites that one pass tries, each in a row of its own
_WRITERS = ("hook_attn_out", "hook_mlp_out")  # a layer's own parts, each of which adds to the stream

# Kind of a site on the residual stream -> the parts of its layer that answer to a write there. The layer's output must
# move by what was written and these answers, and by nothing else.
_ANSWERS: dict[str, tuple[str, ...]] = {
    "hook_resid_pre": _WRITERS,
    "hook_in": _WRITERS,
    "hook_resid_mid": _WRITERS,
    "hook_attn_out": ("hook_mlp_out",),
    "hook_mlp_out": ("hook_attn_out",),
    "hook_resid_post": (),
    "hook_out": (),
}


def require_eval(model: nn.Module) -> None:
    """Refuse what is no TransformerLens model, and one in training mode, whose dropout would make results random."""
    host_of(model)
    if model.training or getattr(model, "original_model", model).training:
        raise ModelError("the model is in training mode: call model.eval() first")


def check_edit_sites(model: nn.Module, sites: Sequence[Site]) -> None:
    """Make sure that a write at each site does what it says; each site is tried once, and again after weights changed.

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
    host.refresh()
    for site in sites:
        actual = site_at(host, site.name)
        if actual.width != site.width:
            raise SiteError(f"{site.name} has {actual.width} units in this model, the edit has {site.width}")
    untried = [site for site in dict.fromkeys(sites) if site.name not in host.checked_sites]
    with torch.no_grad(), host.bare():
        for start in range(0, len(untried), _MOST_ROWS):
            _try_sites(host, untried[start : start + _MOST_ROWS])


@dataclass(frozen=True)
class _Reading:
    """One pass over the probe: logits, and by hook name the layers' parts and outputs, and the sites' own values."""

    logits: Tensor
    layers: dict[str, Tensor]
    sites: dict[str, Tensor]
    times_fired: dict[str, int]


def _try_sites(host: Host, sites: Sequence[Site]) -> None:
    """Write at every site, each in its own row of one pass, and compare with the same pass without a write."""
    base = _probe(host, sites, {})
    for site in sites:
        if base.times_fired[site.name] != 1:
            raise SiteError(
                f"{site.name} fired {base.times_fired[site.name]} times in one forward pass; an edit needs exactly once"
            )
    amounts = {site.name: _random_write(base.sites[site.name][row]) for row, site in enumerate(sites)}
    moved = _probe(host, sites, amounts)
    for row, site in enumerate(sites):
        if not (moved.logits[row] - base.logits[row]).abs().max() > 1e-6 * base.logits[row].abs().max():
            raise SiteError(
                f"{site.name} can be read, but a write there does not move the logits of this model: it cannot be "
                "edited"
            )
        _check_stream(site, row, base, moved, amounts[site.name], host.dtype)
        host.checked_sites.add(site.name)


def _probe(host: Host, sites: Sequence[Site], amounts: dict[str, Tensor]) -> _Reading:
    """Run the probe with one row per site, adding a site's amount in its row, and read what happens."""
    layers: dict[str, Tensor] = {}
    values: dict[str, Tensor] = {}
    times_fired = {site.name: 0 for site in sites}

    def writer(row: int, amount: Tensor) -> Callable[..., Tensor]:
        def write(tensor: Tensor, hook: Any) -> Tensor:
            flat = flatten_heads(tensor).clone()
            flat[row] += amount.to(tensor.dtype)
            return restore_heads(flat, tensor)

        return write

    def site_reader(name: str) -> Callable[..., None]:
        def read(tensor: Tensor, hook: Any) -> None:
            times_fired[name] += 1
            values[name] = flatten_heads(tensor).float()

        return read

    def layer_reader(name: str) -> Callable[..., None]:
        def read(tensor: Tensor, hook: Any) -> None:
            layers[name] = flatten_heads(tensor).float()

        return read

    hooks: list[tuple[str, Callable[..., Any]]] = []
    hooks += [(site.name, writer(row, amounts[site.name])) for row, site in enumerate(sites) if site.name in amounts]
    hooks += [(site.name, site_reader(site.name)) for site in sites]
    hooks += [(name, layer_reader(name)) for name in _parts_of_layers(host, sites)]
    ids = host.probe_ids(_PROBE_TOKENS).expand(len(sites), -1)
    with host.hooks(hooks):
        logits = host.logits(ids, torch.ones_like(ids, dtype=torch.bool)).float()
    return _Reading(logits, layers, values, times_fired)


def _parts_of_layers(host: Host, sites: Sequence[Site]) -> Iterator[str]:
    for layer in sorted({site.layer for site in sites}):
        for kind in (*_WRITERS, "hook_resid_post"):
            name = f"blocks.{layer}.{kind}"
            if name in host.hook_names:
                yield name


def _random_write(activation: Tensor) -> Tensor:
    """Draw values of the activation's own size, others at every position and unit.

    LayerNorm hides a constant over units, the softmax hides keys that all move alike, a pattern hides a scaling.
    """
    noise = torch.randn(activation.shape, generator=torch.Generator().manual_seed(0)).to(activation.device)
    return noise * activation.std().clamp_min(1e-3)


def _check_stream(site: Site, row: int, base: _Reading, moved: _Reading, amount: Tensor, dtype: torch.dtype) -> None:
    """Refuse a site of the residual stream whose layer's output moves otherwise than `_ANSWERS` says."""
    kind = split_name(site.name)[1]
    output = f"blocks.{site.layer}.hook_resid_post"
    if kind not in _ANSWERS or output not in moved.layers:
        return
    answers = [f"blocks.{site.layer}.{part}" for part in _ANSWERS[kind]]
    arrived = moved.layers[output][row] - base.layers[output][row]
    for name in answers:
        if name in moved.layers:
            arrived = arrived - (moved.layers[name][row] - base.layers[name][row])
    # In bfloat16 a huge value of the stream is rounded by more than is written.
    of_layer = (value[row] for name, value in moved.layers.items() if name.startswith(f"blocks.{site.layer}."))
    rounding = 2 * torch.finfo(dtype).eps * sum(value.abs().to(arrived.device) for value in of_layer)
    amount = amount.to(arrived.device)
    if not ((arrived - amount).abs() <= 0.05 * amount.abs().max() + rounding).all():
        reached = "the MLP branch only" if kind == "hook_resid_mid" else "less than the whole stream"
        raise SiteError(
            f"a write at {site.name} reaches {reached} on this host, not the residual stream: "
            "edit hook_attn_out or hook_resid_post instead (reading it is fine)"
        )
