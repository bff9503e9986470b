"""Runs of a batch of pairs: what the sites hold in the clean and in the corrupted run, and gradients of the metric."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lens_steer.effects.attribution.metrics import BoundMetric, Rows
from lens_steer.effects.attribution.pairs import PairBatch
from lens_steer.errors import SettingError, SiteError
from lens_steer.host.adapter import host_of
from lens_steer.host.later_layers import BlockOutputs, keeping_outputs, starting_at
from lens_steer.host.readout import logits_at
from lens_steer.host.sites import Site
from lens_steer.host.tokens import TokenBatch
from lens_steer.host.trunk import as_hook

Values = Mapping[Site, Float[Tensor, "pair place unit"]]
"""What each site holds at the compared places."""


@dataclass(frozen=True)
class Readings:
    """One run of the pairs' clean or corrupted prompts.

    `logits` and `metric` are at the metric's position; `blocks` what the blocks returned, to go on from.
    """

    values: Values
    logits: Float[Tensor, "pair vocab"]
    metric: Float[Tensor, " pair"]
    blocks: BlockOutputs


@contextmanager
def visiting(model: nn.Module, visits: Mapping[Site, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    """Hang a function on each site, heads flattened, for the passes inside."""
    with host_of(model).hooks([(site.name, as_hook(visit)) for site, visit in visits.items()]):
        yield


def at_places(activation: Float[Tensor, "pair pos unit"], places: Int[Tensor, "pair place"]) -> Tensor:
    """Return an activation at each pair's places, [pair, place, unit]; itself where these are all positions."""
    length = activation.shape[1]
    if places.shape[1] == length and bool((places == torch.arange(length, device=places.device)).all()):
        return activation
    return activation[torch.arange(len(places), device=places.device)[:, None], places]


def read_clean(model: nn.Module, batch: PairBatch, sites: Sequence[Site], metric: BoundMetric) -> Readings:
    """Run the clean prompts."""
    values: dict[Site, Tensor] = {}
    with torch.no_grad(), visiting(model, {site: _keeper(values, site, batch.clean_at) for site in sites}):
        logits = logits_at(model, batch.clean, batch.clean_read).float()
        return Readings(values, logits, metric(logits, Rows(batch.pairs, logits)), {})


def read_corrupted(
    model: nn.Module, batch: PairBatch, sites: Sequence[Site], metric: BoundMetric, clean: Readings
) -> Readings:
    """Run the corrupted prompts, and keep what the blocks before each site return."""
    values: dict[Site, Tensor] = {}
    with (
        torch.no_grad(),
        keeping_outputs(model, _before(sites)) as blocks,
        visiting(model, {site: _keeper(values, site, batch.corrupted_at) for site in sites}),
    ):
        logits = logits_at(model, batch.corrupted, batch.corrupted_read).float()
    return Readings(values, logits, metric(logits, Rows(batch.pairs, clean.logits)), blocks)


def corrupted_gradients(
    model: nn.Module, batch: PairBatch, sites: Sequence[Site], metric: BoundMetric, clean: Readings
) -> tuple[Readings, Values]:
    """Run the corrupted prompts, and return the metric's gradient at every site beside what the site holds."""
    held: dict[Site, Tensor] = {}

    def visit(site: Site) -> Callable[[Tensor], Tensor]:
        def keep(activation: Tensor) -> Tensor:
            # Weights are frozen: the first site begins the graph.
            held[site] = activation if activation.requires_grad else activation.detach().requires_grad_()
            return held[site]

        return keep

    with (
        torch.enable_grad(),
        keeping_outputs(model, _before(sites)) as blocks,
        visiting(model, {site: visit(site) for site in sites}),
    ):
        logits = logits_at(model, batch.corrupted, batch.corrupted_read).float()
        values = metric(logits, Rows(batch.pairs, clean.logits))
    at_sites = _gradients(values, [held[site] for site in sites])
    gradients, activations = {}, {}
    for site, gradient in zip(sites, at_sites, strict=True):
        if gradient is None:
            raise SiteError(f"no gradient of the metric reaches {site.name}: use method='patch', or another site")
        gradients[site] = at_places(gradient, batch.corrupted_at).float()
        activations[site] = at_places(held[site].detach(), batch.corrupted_at).float()
    return Readings(activations, logits.detach(), values.detach(), blocks), gradients


def gradients_between(
    model: nn.Module,
    batch: PairBatch,
    site: Site,
    metric: BoundMetric,
    runs: tuple[Readings, Readings],
    shares: Sequence[float],
    most_rows: int,
) -> Float[Tensor, "pair place unit"]:
    """Return the mean gradient at one site that stands so many shares of the way from corrupted to clean.

    All compared places of the site are moved at once; each share is a row of its own, run from the site's layer on.
    """
    clean, corrupted = runs
    steps = torch.tensor(shares, device=batch.pairs.device)
    rows = torch.arange(len(batch.pairs), device=steps.device).repeat_interleave(len(steps))
    total = torch.zeros_like(corrupted.values[site])
    steps = steps.repeat(len(batch.pairs))
    for start in range(0, len(rows), most_rows):
        some, step = rows[start : start + most_rows], steps[start : start + most_rows]
        way = (clean.values[site] - corrupted.values[site])[some]
        moved = (corrupted.values[site][some] + step[:, None, None] * way).requires_grad_()

        def write(activation: Tensor, moved: Tensor = moved, some: Tensor = some) -> Tensor:
            places = batch.corrupted_at[some]
            numbers = torch.arange(len(places), device=places.device)[:, None]
            return activation.index_put((numbers, places), moved.to(activation.dtype))

        with torch.enable_grad(), visiting(model, {site: write}):
            logits = logits_from(model, batch, site.layer, corrupted.blocks, some)
            values = metric(logits, Rows(batch.pairs[some], clean.logits[some]))
        (gradient,) = _gradients(values, [moved])
        if gradient is None:
            raise SiteError(f"no gradient of the metric reaches {site.name}: use method='patch', or another site")
        total.index_add_(0, some, gradient.to(total.dtype) / len(shares))
    return total


def logits_from(
    model: nn.Module, batch: PairBatch, layer: int, blocks: BlockOutputs, rows: Int[Tensor, " row"]
) -> Float[Tensor, "row vocab"]:
    """Run rows of the corrupted batch, any of them any number of times, from a layer on."""
    corrupted = batch.corrupted
    repeated = TokenBatch(
        corrupted.ids[rows],
        corrupted.mask[rows],
        corrupted.pooled[rows],
        tuple(corrupted.rows[row] for row in rows.tolist()),
        tuple(corrupted.prompt_lengths[row] for row in rows.tolist()),
    )
    with starting_at(model, layer, blocks, rows):
        return logits_at(model, repeated, batch.corrupted_read[rows]).float()


def _before(sites: Sequence[Site]) -> list[int]:
    """Layers whose output a run goes on from that starts in the layer of one of the sites."""
    return sorted({site.layer - 1 for site in sites if site.layer})


def _keeper(values: dict[Site, Tensor], site: Site, places: Tensor) -> Callable[[Tensor], None]:
    def keep(activation: Tensor) -> None:
        values[site] = at_places(activation, places).float()

    return keep


def _gradients(values: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    if not values.requires_grad:
        raise SettingError(
            "no gradient goes through the metric, or none of the sites comes before it: write it in torch's functions "
            "of the logits, or use method='patch'"
        )
    return torch.autograd.grad(values.sum(), inputs, allow_unused=True)
