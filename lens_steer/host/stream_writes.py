"""Stream writes: what a write at a site adds to the residual stream, where that is known in closed form."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from lens_steer.host.adapter import Host
from lens_steer.host.projections import output_projection
from lens_steer.host.sites import Site, split_name

IntoStream = Callable[[Tensor], Tensor]
"""Brings a site's value [text, pos, unit] into the stream; a write adds what it makes of after, less of before."""

_STREAM = {"hook_in", "hook_out", "hook_resid_pre", "hook_resid_mid", "hook_resid_post"}
_UNITS = {
    "attn.o.hook_in": "attention",
    "attn.hook_z": "attention",
    "mlp.out.hook_in": "mlp",
    "mlp.hook_post": "mlp",
}
_BRANCHES = {
    **dict.fromkeys(("attn.o.hook_out", "attn.hook_out", "hook_attn_out"), "ln1_post"),
    **dict.fromkeys(("mlp.out.hook_out", "mlp.hook_out", "hook_mlp_out"), "ln2_post"),
}
_NORMED_BRANCHES = {"ln1_post.hook_out", "ln2_post.hook_out"}


def is_stream(host: Host, site: Site) -> bool:
    """Whether the site is the residual stream itself."""
    return not _kinds(host, site).isdisjoint(_STREAM)


def into_stream(host: Host, site: Site) -> IntoStream | None:
    """Return how the site's value enters the stream of its layer; None where something not linear stands between.

    The stream itself and what a branch adds to it (behind its post-norm, where there is one) enter as they are, neurons
    and heads through the output projection.
    """
    kinds = _kinds(host, site)
    if not kinds.isdisjoint(_STREAM | _NORMED_BRANCHES):
        return _as_it_is
    if parts := {_UNITS[kind] for kind in kinds & _UNITS.keys()}:
        return output_projection(host, site.layer, parts.pop(), width=site.width, heads=site.heads)
    norms = {_BRANCHES[kind] for kind in kinds & _BRANCHES.keys()}
    block = host.model.blocks[site.layer]
    return _as_it_is if norms and not any(hasattr(block, norm) for norm in norms) else None


def _as_it_is(value: Tensor) -> Tensor:
    return value


def _kinds(host: Host, site: Site) -> set[str]:
    return {site.kind, split_name(host.canonical(site.name))[1]}
