"""Components: the attention and the MLP of every layer, as the residual stream sees them.

What differs between architectures and hosts lives here: which hook points hold what a branch adds to the stream (behind
its post-norm where there is one), where an edit belongs to a branch or to the stream, and where attention patterns act.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lens_steer.errors import ModelError
from lens_steer.host.adapter import Host, host_of
from lens_steer.host.projections import Projection, output_projection
from lens_steer.host.sites import Site, site_at, split_name
from lens_steer.host.trunk import flatten_heads

Part = Literal["attention", "mlp"]

_STREAM = {"hook_resid_pre", "hook_in", "hook_resid_mid", "hook_resid_post", "hook_out"}
_OUTPUTS: Mapping[Part, str] = {"attention": "hook_attn_out", "mlp": "hook_mlp_out"}
_UNITS: Mapping[Part, str] = {"attention": "attn.hook_z", "mlp": "mlp.hook_post"}
_PATTERN = "attn.hook_pattern"
_OF_ATTENTION = ("attn", "ln1", "hook_attn", "hook_q", "hook_k", "hook_v", "hook_z", "hook_result")
_ENDS = ("hook_in", "hook_normalized", "hook_out")
_PROBE_TOKENS = 7
_SHARE = 1e-3  # of the largest value: far above rounding in float32, far below what a wrong sum is off by
_KEPT = "components"


@dataclass(frozen=True)
class Component:
    """What one layer's attention, or its MLP, adds to the residual stream.

    Attributes
    ----------
    output:
        The site of what is added.
    units:
        The site in front of the output projection: heads' outputs, neurons. None, as is `projection`, where there is
        no single one (a mixture of experts).
    heads_add_up:
        Whether the heads' shares of the output add up to it.
    pattern:
        Name of the hook point whose attention pattern can be read and written; None where it has no effect.

    """

    layer: int
    part: Part
    output: Site
    units: Site | None = field(default=None, compare=False)
    projection: Projection | None = field(default=None, compare=False, repr=False)
    heads_add_up: bool = field(default=False, compare=False)
    pattern: str | None = field(default=None, compare=False)


def find_components(model: nn.Module) -> tuple[Component, ...]:
    """Return the components of every layer, in the order in which a forward pass reaches their outputs.

    Tried once per model, on a probe: their outputs are what the layers add to the stream.

    Raises
    ------
    ModelError
        The stream behind a layer is not the stream in front of it and the outputs of its components: a layer that
        scales its branches, or mixes streams, cannot be taken apart.

    """
    host = host_of(model)
    host.refresh()
    if _KEPT not in host.readings:
        host.readings[_KEPT] = _find(host)
    completed: tuple[Component, ...] = host.readings[_KEPT]
    return completed


def owners(host: Host, site: Site, components: Sequence[Component]) -> tuple[Component, ...]:
    """Return the components inside which, or at whose output, a site lies: none for the stream itself.

    A norm that attention and MLP share (blocks that run both side by side) belongs to both.
    """
    here = [component for component in components if component.layer == site.layer]
    name = host.canonical(site.name)
    kinds = {split_name(site.name)[1], split_name(name)[1]}
    at_output = tuple(one for one in here if host.canonical(one.output.name) == name)
    if at_output or kinds & _STREAM:
        return at_output
    kind = split_name(name)[1]
    of_both = kind.startswith("ln1.") and not any(f"blocks.{site.layer}.ln2.{end}" in host.hook_names for end in _ENDS)
    part = "attention" if kind.startswith(_OF_ATTENTION) else "mlp"
    return tuple(one for one in here if of_both or one.part == part)


def _find(host: Host) -> tuple[Component, ...]:
    bare = [
        Component(layer, part, site_at(host, name))
        for layer in range(host.n_layers)
        for part, kind in _OUTPUTS.items()
        if (name := f"blocks.{layer}.{kind}") in host.hook_names and host.firing(name) is not None
    ]
    read = _read_probe(host, [*_stream_names(host), *(name for one in bare for name in _names_of(host, one))])
    _require_sum(host, bare, read)
    acting = _acting_patterns(host, bare)
    completed = [_completed(host, one, read, acting) for one in bare]
    return tuple(sorted(completed, key=lambda one: host.firing_order(one.output.name)))


def _names_of(host: Host, one: Component) -> list[str]:
    units = f"blocks.{one.layer}.{_UNITS[one.part]}"
    return [one.output.name, *([units] if units in host.hook_names and host.firing(units) is not None else [])]


def _stream_names(host: Host) -> list[str]:
    return [
        f"blocks.{layer}.{kind}" for layer in range(host.n_layers) for kind in ("hook_resid_pre", "hook_resid_post")
    ]


def _require_sum(host: Host, components: Sequence[Component], read: Mapping[str, Tensor]) -> None:
    for layer in range(host.n_layers):
        before, after = (read[f"blocks.{layer}.{kind}"] for kind in ("hook_resid_pre", "hook_resid_post"))
        parts = [read[one.output.name] for one in components if one.layer == layer]
        added = sum(parts, torch.zeros_like(before))
        rounding = 8 * torch.finfo(host.dtype).eps * float(after.abs().max())
        if not _close(added, after - before, host.dtype, rounding=rounding):
            raise ModelError(
                f"layer {layer} of this model adds other things to the residual stream than its attention and its "
                "MLP's output (scaled branches, or several streams): its components cannot be summed. "
                "downstream_shift measures a shift as a whole"
            )


def _completed(host: Host, one: Component, read: Mapping[str, Tensor], acting: set[str]) -> Component:
    """Add what stands in front of the output, where a projection is found that makes the one of the other."""
    pattern = f"blocks.{one.layer}.{_PATTERN}"
    about: dict[str, Any] = {"pattern": pattern if one.part == "attention" and pattern in acting else None}
    name, projection = f"blocks.{one.layer}.{_UNITS[one.part]}", None
    if name in read and host.canonical(name) != host.canonical(one.output.name):
        site = site_at(host, name)
        projection = output_projection(host, one.layer, one.part, width=site.width, heads=site.heads)
    if projection is None:
        return Component(one.layer, one.part, one.output, **about)
    values, output = read[name], read[one.output.name]
    with torch.no_grad():
        if not _close(projection(values).float(), output, host.dtype):
            return Component(one.layer, one.part, one.output, **about)
        shared = projection.shared_scale(values)
        by_head = projection.by_head((shared[:, 1:] - shared[:, :1])[0]).sum(1)[None]
        add_up = one.part == "attention" and _close(by_head, output[:, 1:] - output[:, :1], host.dtype)
    return Component(one.layer, one.part, one.output, site, projection, add_up, **about)


def _close(ours: Tensor, theirs: Tensor, dtype: torch.dtype, *, rounding: float = 0.0) -> bool:
    share = max(_SHARE, 8 * torch.finfo(dtype).eps)
    return bool((ours - theirs.to(ours.device)).abs().max() <= share * theirs.abs().max() + rounding)


def _acting_patterns(host: Host, components: Sequence[Component]) -> set[str]:
    """Names of the patterns whose layers' attention answers to a write there: each is tried in a row of its own."""
    tried = [one for one in components if one.part == "attention"]
    names = [f"blocks.{one.layer}.{_PATTERN}" for one in tried]
    tried = [one for one, name in zip(tried, names, strict=True) if name in host.hook_names and host.firing(name)]
    names = [f"blocks.{one.layer}.{_PATTERN}" for one in tried]
    if not tried:
        return set()

    def turned(row: int) -> Callable[..., Tensor]:
        def write(pattern: Tensor, hook: Any) -> Tensor:
            changed = pattern.clone()
            changed[row] = changed[row].roll(1, -1)
            return changed

        return write

    outputs = [one.output.name for one in tried]
    plain = _read_probe(host, outputs, rows=len(tried))
    writes = [(name, turned(row)) for row, name in enumerate(names)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a write has no effect, which is what is tried here
        moved = _read_probe(host, outputs, rows=len(tried), writes=writes)
    acting = set()
    for row, (one, name) in enumerate(zip(tried, names, strict=True)):
        before, after = plain[one.output.name][row], moved[one.output.name][row]
        if not _close(after, before, host.dtype):
            acting.add(name)
    return acting


def _read_probe(
    host: Host, names: Sequence[str], *, rows: int = 1, writes: Sequence[tuple[str, Callable[..., Tensor]]] = ()
) -> dict[str, Tensor]:
    """Run the bare model on the probe and return what stands at some hook points, float32, heads laid side by side."""
    read: dict[str, Tensor] = {}

    def reader(name: str) -> Callable[..., None]:
        def note(tensor: Tensor, hook: Any) -> None:
            read[name] = flatten_heads(tensor).detach().float()

        return note

    ids = host.probe_ids(_PROBE_TOKENS).expand(rows, -1)
    pairs = [*writes, *((name, reader(name)) for name in dict.fromkeys(names))]
    with torch.no_grad(), host.bare(), host.hooks(pairs):
        host.trunk(ids, torch.ones_like(ids, dtype=torch.bool))
    return read
