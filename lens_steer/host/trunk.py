"""Running the trunk: all blocks up to the last site that is wanted, never the unembedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.errors import SiteError
from lens_steer.host.adapter import host_of
from lens_steer.host.clock import announced_texts
from lens_steer.host.padding import most_pads
from lens_steer.host.sites import Site
from lens_steer.host.tokens import TokenBatch, Tokens
from lens_steer.host.turns import taking_turns

Visit = Callable[[Float[Tensor, "text pos unit"], TokenBatch], Tensor | None]
"""Sees a site's activation (heads flattened) of a batch; returns what shall stand there, or None to leave it."""


class _AllSitesVisited(Exception):
    """Ends a forward pass whose remaining blocks nobody asked for."""


def flatten_heads(activation: Tensor) -> Float[Tensor, "text pos unit"]:
    """Lay the heads of a site side by side: unit = head * d_head + dim."""
    if activation.ndim == 3:
        return activation
    return rearrange(activation, "text pos head dim -> text pos (head dim)")


def restore_heads(flat: Float[Tensor, "text pos unit"], like: Tensor) -> Tensor:
    """Undo `flatten_heads`."""
    if like.ndim == 3:
        return flat
    return rearrange(flat, "text pos (head dim) -> text pos head dim", head=like.shape[2])


def as_hook(visit: Callable[[Tensor], Tensor | None]) -> Callable[..., Tensor | None]:
    """Make a TransformerLens hook of a function on flattened heads."""

    def hook_function(tensor: Tensor, hook: Any) -> Tensor | None:
        flat = flatten_heads(tensor)
        written = visit(flat)
        if written is not None:
            return restore_heads(written, tensor)
        # A point of heads hands out a reshaped copy: only what is returned stays in the graph.
        return restore_heads(flat, tensor) if tensor.ndim == 4 and tensor.requires_grad else None

    return hook_function


@contextmanager
def trunk(model: nn.Module, visits: Mapping[Site, Visit]) -> Iterator[Callable[[TokenBatch], None]]:
    """Hang a visit on each site and give the function that runs one batch through the trunk.

    A pass ends after the last of the sites. SiteError if one of them does not fire.
    """
    host = host_of(model)
    waiting: set[str] = set()
    current: list[TokenBatch] = []

    def hook_of(site: Site, visit: Visit) -> Callable[..., Tensor | None]:
        def visit_and_count(flat: Tensor) -> Tensor | None:
            written = visit(flat, current[0])
            waiting.discard(site.name)
            if not waiting:
                raise _AllSitesVisited
            return written

        return as_hook(visit_and_count)

    def run(batch: TokenBatch) -> None:
        current[:] = [batch]
        waiting.update(site.name for site in visits)
        try:
            with announced_texts(batch.rows, batch.prompt_lengths):
                host.trunk(batch.ids, batch.mask)
        except _AllSitesVisited:
            return
        raise SiteError(f"{', '.join(sorted(waiting))} did not fire in a forward pass")

    hooks = [(site.name, hook_of(site, visit)) for site, visit in visits.items()]
    with taking_turns(model), host.hooks(hooks):
        yield run


def text_logits(model: nn.Module, batch: TokenBatch) -> Float[Tensor, "text pos vocab"]:
    """Run a batch of texts, on the model's device, through the whole model: edits know where their prompts end."""
    with taking_turns(model), announced_texts(batch.rows, batch.prompt_lengths):
        return host_of(model).logits(batch.ids, batch.mask)


def run_texts(model: nn.Module, tokens: Tokens, visits: Mapping[Site, Visit], batch_size: int | None) -> None:
    """Run all texts through the trunk without gradients; a visit finds its texts in `batch.rows`."""
    device = host_of(model).device
    with torch.no_grad(), trunk(model, visits) as run:
        for _, batch in tokens.batches(batch_size, most_pads=most_pads(model)):
            run(batch.to(device))


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Keep gradients off the weights inside, and give every parameter its own flag back afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
