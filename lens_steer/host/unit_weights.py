"""What units read from the residual stream and write into it by their own weights, and which tokens that means.

A neuron reads through its row of the MLP's in-projection (a gated one through gate and in both) behind the norm, and
writes through its column of the out-projection; a dimension of a head reads through its value head and writes through
the attention's output projection. Units of the stream are read and written as they are. Where a site has no such
weights, that is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.errors import ModelError
from lens_steer.host.adapter import BridgeHost, Host, host_of
from lens_steer.host.sites import Site, split_name
from lens_steer.host.weights import PlainWeights

Rows = Float[Tensor, "unit stream"]

_NEURONS = ("mlp.out.hook_in", "mlp.hook_post")
_HEADS = ("attn.o.hook_in", "attn.hook_z")
_STREAM = ("hook_in", "hook_out", "hook_resid_pre", "hook_resid_mid", "hook_resid_post")
# What stands behind a projection, by the names of both hosts.
_OUTPUTS = {
    **{f"{part}.hook_out": part for part in ("attn.q", "attn.k", "attn.v", "mlp.gate", "mlp.in")},
    **{f"attn.hook_{part}": f"attn.{part}" for part in ("q", "k", "v")},
    "mlp.hook_pre_linear": "mlp.in",
}
_BEHIND = {
    "attn.q": "a query: it decides where its head looks, and writes nothing itself",
    "attn.k": "a key: it decides where heads look, and writes nothing itself",
    "attn.v": "a value: heads carry it on, see attn.hook_z",
    "mlp.gate": "it writes behind the activation function, see mlp.hook_post",
    "mlp.in": "it writes behind the activation function, see mlp.hook_post",
}
_BRANCHES = {
    **dict.fromkeys(("mlp.out.hook_out", "mlp.hook_out", "hook_mlp_out", "ln2_post.hook_out"), "mlp.out"),
    **dict.fromkeys(("attn.o.hook_out", "attn.hook_out", "hook_attn_out", "ln1_post.hook_out"), "attn.o"),
}
_NORMS = {"attn": "ln1", "mlp": "ln2"}
_LARGE = 1e3  # length of what is put through a norm to see what it does to a direction: its epsilon vanishes there


@dataclass(frozen=True, eq=False)
class SiteWeights:
    """The weights beside one site; every row is a unit's.

    Attributes
    ----------
    reads:
        Part -> the weights that its units read the stream with, behind the norm `norms` names (None: no norm).
    writes:
        What a unit of 1 adds to the stream; where the branch has a norm of its own, in front of that (`post_norm`).
    reads_stream, writes_stream:
        Whether a unit is a dimension of the stream itself, read or written as it is.
    no_reads, no_writes:
        Why there are no such weights; "" where there are.

    """

    site: Site
    reads: Mapping[str, Rows] = field(default_factory=dict)
    writes: Rows | None = None
    norms: Mapping[str, str | None] = field(default_factory=dict)
    post_norm: str | None = None
    reads_stream: bool = False
    writes_stream: bool = False
    no_reads: str = ""
    no_writes: str = ""

    @property
    def matrices(self) -> tuple[Rows, ...]:
        """Every table of weights that there is; none for units of the stream."""
        return (*self.reads.values(), *(() if self.writes is None else (self.writes,)))


def site_weights(model: nn.Module, site: Site) -> SiteWeights:
    """Return the weights beside a site, float32 on the CPU; what cannot be told is said in `no_reads`, `no_writes`."""
    host = host_of(model)
    kind = split_name(host.canonical(site.name))[1]
    try:
        parts = _Parts(host, site)
        if kind in _NEURONS:
            return _between(parts, site, parts.mlp_readers, "mlp.out")
        if kind in _HEADS:
            return _between(parts, site, ("attn.v",), "attn.o")
        if kind in _OUTPUTS or kind == "mlp.hook_pre":
            return _reader(parts, site, _OUTPUTS.get(kind) or parts.mlp_readers[0])
    except ModelError as error:
        return SiteWeights(site, no_reads=str(error), no_writes=str(error))
    if kind in _STREAM or kind == "ln2.hook_in":
        # A bridge's ln2.hook_in (hook_resid_mid) feeds the MLP alone.
        alone = "" if kind in _STREAM else "it feeds the MLP alone"
        return SiteWeights(site, reads_stream=True, writes_stream=not alone, no_writes=alone)
    if kind in _BRANCHES:
        part = _BRANCHES[kind]
        why = f"it is a sum over all units in front of {part}: no weights of its own read the stream"
        norm = None if kind.startswith(("ln", "hook")) else parts.post_norm(part)
        return SiteWeights(site, writes_stream=True, post_norm=norm, no_reads=why)
    if kind.split(".")[0] in _NORMS.values() and kind.endswith(("hook_out", "hook_normalized")):
        norm = kind.split(".")[0]
        why = f"it is read by all projections behind {norm}, and writes nothing itself"
        return SiteWeights(site, reads_stream=True, norms={"stream": norm}, no_writes=why)
    why = f"no weights are known to stand beside {site.name}"
    return SiteWeights(site, no_reads=why, no_writes=why)


def _between(parts: _Parts, site: Site, readers: tuple[str, ...], writer: str) -> SiteWeights:
    reads = {part: rows for part in readers if (rows := parts.reading(part)) is not None}
    writes = parts.writing(writer)
    without = "the weights of {} cannot be told apart in this architecture"
    return SiteWeights(
        site,
        reads=reads,
        writes=writes,
        norms={part: parts.norm(part) for part in reads},
        post_norm=parts.post_norm(writer),
        no_reads="" if len(reads) == len(readers) else without.format(" and ".join(readers)),
        no_writes="" if writes is not None else without.format(writer),
    )


def _reader(parts: _Parts, site: Site, part: str) -> SiteWeights:
    rows = parts.reading(part)
    if rows is None:
        why = f"the weights of {part} cannot be told apart in this architecture"
        return SiteWeights(site, no_reads=why, no_writes=_BEHIND[part])
    return SiteWeights(site, reads={part: rows}, norms={part: parts.norm(part)}, no_writes=_BEHIND[part])


class _Parts:
    """The projections of one block, on either host, as [out, in] or one row per unit of a site."""

    def __init__(self, host: Host, site: Site) -> None:
        self._host, self._site = host, site
        self._block: Any = host.model.blocks[site.layer]
        self._plain = PlainWeights(host.model) if host.kind == BridgeHost.kind else None

    @property
    def mlp_readers(self) -> tuple[str, ...]:
        """Gate and in of a gated MLP, else in."""
        if self._plain is not None:
            gated = self._has("mlp.gate")
        else:
            gated = getattr(self._block.mlp, "W_gate", None) is not None
        return ("mlp.gate", "mlp.in") if gated else ("mlp.in",)

    def norm(self, part: str) -> str | None:
        """Return the norm in front of a projection."""
        name = _NORMS[part.split(".")[0]]
        return name if self._has(name) else None

    def post_norm(self, part: str) -> str | None:
        """Return the norm behind a branch's projection."""
        name = f"{_NORMS[part.split('.')[0]]}_post"
        return name if self._has(name) else None

    def reading(self, part: str) -> Rows | None:
        """Return a projection's weights, a row per unit of the site; value heads once per head that reads them."""
        rows = self._read(part)
        if rows is None or len(rows) == self._site.width:
            return rows
        heads = int(self._host.model.cfg.n_heads)
        groups = getattr(self._host.model.cfg, "n_key_value_heads", None) or heads
        if self._site.width % len(rows) or heads % groups:
            return None
        by_group = rearrange(rows, "(group dim) stream -> group dim stream", group=groups)
        return repeat(by_group, "group dim stream -> (group head dim) stream", head=heads // groups)

    def writing(self, part: str) -> Rows | None:
        """Return a projection's columns, one per unit of the site."""
        weight = self._read(part)
        return None if weight is None or weight.shape[1] != self._site.width else weight.T.contiguous()

    def _has(self, name: str) -> bool:
        try:
            self._block.get_submodule(name)
        except AttributeError:
            return False
        return True

    def _read(self, part: str) -> Float[Tensor, "out into"] | None:
        if self._plain is not None:
            projection = self._plain.projection(self._site.layer, part)
            return None if projection is None else self._plain.read(projection)[0].float()
        room, name = part.split(".")
        weights = getattr(self._block, room)
        if room == "mlp":
            parts: Tensor = getattr(weights, f"W_{name}").detach().cpu().float()
            return parts.T
        if name == "o":
            output: Tensor = weights.W_O.detach().cpu().float()
            return rearrange(output, "head dim stream -> stream (head dim)")
        raw = getattr(weights, f"_W_{name.upper()}", None)  # of grouped heads, each once
        heads: Tensor = raw if isinstance(raw, Tensor) else getattr(weights, f"W_{name.upper()}")
        by_unit: Tensor = rearrange(heads.detach().cpu().float(), "head stream dim -> (head dim) stream")
        return by_unit


@torch.no_grad()
def tokens_read(model: nn.Module, weights: SiteWeights, index: int) -> dict[str, Float[Tensor, " token"]]:
    """Return part -> what a unit would read (its bias left out) if the stream were one token's embedding alone."""
    host = host_of(model)
    embedding = host.model.W_E.detach()
    read = {}
    for part, rows in weights.reads.items():
        seen = _normed(host, weights.site.layer, weights.norms[part], embedding)
        read[part] = seen.float().cpu() @ rows[index]
    if weights.reads_stream:
        seen = _normed(host, weights.site.layer, weights.norms.get("stream"), embedding)
        read["stream"] = seen[:, index].float().cpu()
    return read


@torch.no_grad()
def tokens_written(model: nn.Module, weights: SiteWeights, index: int) -> Float[Tensor, " token"] | None:
    """Return what a unit of 1 adds to every token's logit directly, where the stream at the end has a size of 1.

    That size is what the final norm divides by (root mean square; of a LayerNorm about the mean), held fixed, as is
    that of a norm behind the branch. None for a unit that does not write into the stream.
    """
    host = host_of(model)
    width = int(host.model.cfg.d_model)
    if weights.writes is not None:
        direction = weights.writes[index]
    elif weights.writes_stream:
        direction = torch.nn.functional.one_hot(torch.tensor(index), width).float()
    else:
        return None
    if weights.post_norm is not None:
        direction = _direction(getattr(host.model.blocks[weights.site.layer], weights.post_norm), direction, host)
    final = getattr(host.model, "ln_final", None)
    if final is not None:
        direction = _direction(final, direction, host)
    unembedding: Tensor = host.model.W_U.detach()
    return direction @ unembedding.float().cpu()


def _normed(host: Host, layer: int, norm: str | None, rows: Float[Tensor, "row stream"]) -> Float[Tensor, "row stream"]:
    return rows if norm is None else _apply(getattr(host.model.blocks[layer], norm), rows, host)


def _apply(norm: Any, rows: Float[Tensor, "row stream"], host: Host) -> Float[Tensor, "row stream"]:
    with host.bare():
        module = getattr(norm, "original_component", None) or norm
        normed: Tensor = module(rows[None].to(host.device, host.dtype))
    return normed[0]


def _direction(norm: Any, direction: Float[Tensor, " stream"], host: Host) -> Float[Tensor, " stream"]:
    """Return where a norm sends a direction, what it divides by held at 1.

    Measured, so that it holds for LayerNorm and RMSNorm, with an offset in its weight, or folded away: a norm takes x
    to (linear x) / size(x) + bias, and only a LayerNorm leaves a constant out of the size.
    """
    length = float(direction.norm())
    if length == 0:
        return direction
    probe = direction / length * _LARGE
    both = _apply(norm, torch.stack([probe, -probe, probe + _LARGE]), host).float().cpu()
    centres = torch.allclose(both[2], both[0], rtol=1e-3, atol=1e-3 * float(both[0].abs().max()))
    seen = probe - probe.mean() if centres else probe
    size = float(seen.square().mean().sqrt())
    return (both[0] - both[1]) / 2 * size * length / _LARGE
