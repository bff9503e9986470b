"""The end-to-end transport loss of LinEAS: all edits at once, with exact gradients in micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.activations.pooling import Pool, TokenPool
from lens_steer.activations.whole_texts import Pooled
from lens_steer.host.adapter import host_of
from lens_steer.host.padding import most_pads
from lens_steer.host.sites import Site
from lens_steer.host.tokens import TokenBatch, Tokens
from lens_steer.host.trunk import Visit, trunk
from lens_steer.methods.layout import Layout
from lens_steer.methods.transport_maps import without_spread
from lens_steer.statistics.wasserstein import quantile_coupling

Chunk = tuple[list[int], list[TokenBatch]]
"""Rows whose graphs are in memory together, and their tokens, padded with texts of like length."""


class EndToEndLoss:
    """Loss of a parameter vector: how far the edited source is from the untouched target, at the loss sites.

    (1/sites) sum over loss sites and units of the squared Wasserstein-2 distance between pooled activations; summed
    over units, as in the paper: with their mean a learning rate of 0.1 does not move. With `unit_weights` (site ->
    [unit]) each unit's distance is multiplied by its weight first, which the paper does not do.

    `layout` says how the parameters are the scales and shifts of the edited sites; 0 is the identity, and `spreads`
    what a shift of 1 is.
    """

    def __init__(
        self,
        model: nn.Module,
        source: Tokens,
        target: Pooled,
        *,
        edit_sites: Sequence[Site],
        loss_sites: Sequence[Site],
        pool: Pool,
        micro_batch: int,
        unit_weights: Mapping[Site, Tensor] | None = None,
        spreads: Mapping[Site, Tensor] | None = None,
    ) -> None:
        self._model = model
        self._source = source
        self._target = target
        self._sorted_target = {site: values.sort(0).values for site, values in target.items()}
        self.layout = Layout(edit_sites, spreads)
        self._loss_sites = tuple(loss_sites)
        self._pool: Pool = pool
        self._micro_batch = micro_batch
        self.unit_weights, self.spreads = unit_weights, spreads
        self._edits: dict[str, tuple[Tensor, Tensor]] = {}
        self._pooled: dict[Site, Tensor] = {}
        self._couplings: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}

    def _visit(self, site: Site) -> Visit:
        edited, measured = site in self.layout.sites, site in self._loss_sites

        def visit(activation: Tensor, batch: TokenBatch) -> Tensor | None:
            if edited:
                scale, shift = self._edits[site.name]
                # In float32, rounded once, as the maps of an intervention are.
                activation = torch.addcmul(shift, activation.float(), scale).to(activation.dtype)
            if measured:
                self._pooled[site] = self._batch_pool(activation, self._pool)
            return activation if edited else None

        return visit

    def __call__(
        self, parameters: Tensor, source: Sequence[int] | None = None, target: Sequence[int] | None = None
    ) -> float:
        """Return the loss, over some rows or all."""
        with torch.no_grad():
            if bool(parameters.any()):
                pooled = self._pooled_source(parameters, self._chunks(source))
            else:
                rows = slice(None) if source is None else list(source)
                pooled = {site: values[rows] for site, values in self._untouched.items()}
            return float(self._distance(pooled, target))

    def on_subsets(self, parameters: Tensor, subsets: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[float]:
        """Return the loss over several choices of source and target rows, for one pass of the model."""
        with torch.no_grad():
            pooled = self._in_order(parameters)
            return [
                float(self._distance({site: values[list(source)] for site, values in pooled.items()}, target))
                for source, target in subsets
            ]

    def of_units(self) -> dict[Site, Float[Tensor, " unit"]]:
        """Return what each unit of the loss sites contributes to the loss at the identity: they sum to it."""
        with torch.no_grad():
            distances = self._distances(self._untouched, None)
            return {site: distance / len(self._loss_sites) for site, distance in distances}

    @cached_property
    def _untouched(self) -> dict[Site, Tensor]:
        """The pooled source at the identity, in the order of the texts: any rows of it, for no pass of the model."""
        return self._in_order(self._identity)

    def _in_order(self, parameters: Tensor) -> dict[Site, Tensor]:
        """Return the pooled source under some parameters, in the order of the texts."""
        order = torch.tensor([row for rows, _ in self._all_chunks for row in rows]).argsort()
        pooled = self._pooled_source(parameters, self._all_chunks)
        return {site: values[order.to(values.device)] for site, values in pooled.items()}

    @property
    def _identity(self) -> Float[Tensor, " parameter"]:
        return torch.zeros(len(self.layout), device=host_of(self._model).device)

    @torch.enable_grad()  # also where the caller has switched gradients off
    def with_gradient(
        self, parameters: Tensor, source: Sequence[int] | None = None, target: Sequence[int] | None = None
    ) -> tuple[float, Float[Tensor, " parameter"]]:
        """Return loss and gradient, the same whatever the micro-batch: only pooled values are held for all rows."""
        chunks = self._chunks(source)
        leaf = parameters.detach().requires_grad_()
        if len(chunks) == 1:
            loss = self._distance(self._forward(leaf, chunks[0]), target)
            (gradient,) = torch.autograd.grad(loss, leaf)
            return loss.item(), gradient
        with torch.no_grad():
            pooled = {site: values.requires_grad_() for site, values in self._pooled_source(leaf, chunks).items()}
        loss = self._distance(pooled, target)
        slopes = dict(zip(pooled, torch.autograd.grad(loss, list(pooled.values())), strict=True))
        gradient = torch.zeros_like(leaf)
        start = 0
        for chunk in chunks:
            stop = start + len(chunk[0])
            part = self._forward(leaf, chunk)
            outputs = [part[site] for site in self._loss_sites]
            (one,) = torch.autograd.grad(outputs, leaf, [slopes[site][start:stop] for site in self._loss_sites])
            gradient += one
            start = stop
        return loss.item(), gradient

    @torch.enable_grad()
    def curvature(self, *, probes: int = 2, seed: int = 0) -> Float[Tensor, " parameter"]:
        """Return an unbiased estimate of the diagonal of the Gauss-Newton matrix at the identity, over all rows.

        2 J^T J of the residuals, with J the pooled values' derivatives: no entry is negative. Random signs are sent
        backwards (Hutchinson 1989) to parameters of every text's own, so that each text is a draw of its own and few
        `probes` do. Costs a forward pass and one backward pass a probe.
        """
        total = self._identity
        generator = torch.Generator().manual_seed(seed)
        for chunk in self._all_chunks:
            leaf = self._identity.expand(len(chunk[0]), -1).clone().requires_grad_()
            pooled = self._forward(leaf, chunk)
            for probe in range(probes):
                signs = [self._signs(site, values, generator) for site, values in pooled.items()]
                (slopes,) = torch.autograd.grad(list(pooled.values()), leaf, signs, retain_graph=probe + 1 < probes)
                total += slopes.square().sum(0)
        return total * 2 / (probes * len(self._source) * len(self._loss_sites))

    def _signs(self, site: Site, like: Tensor, generator: torch.Generator) -> Tensor:
        signs = torch.randint(0, 2, like.shape, generator=generator).to(like) * 2 - 1
        return signs if self.unit_weights is None else signs * self.unit_weights[site].sqrt()

    def _chunks(self, rows: Sequence[int] | None) -> list[Chunk]:
        """Return padded batches of the rows."""
        return self._all_chunks if rows is None else self._padded(rows)

    @cached_property
    def _all_chunks(self) -> list[Chunk]:
        return self._padded(None)

    def _padded(self, rows: Sequence[int] | None) -> list[Chunk]:
        device, pads = host_of(self._model).device, most_pads(self._model)
        chunks = self._source.batch_rows(self._micro_batch, rows=rows)
        parts = [(chosen, self._source.of_like_length(chosen, pads)) for chosen in chunks]
        return [(chosen, [self._source.batch(part).to(device) for part in alike]) for chosen, alike in parts]

    def _forward(self, parameters: Tensor, chunk: Chunk) -> dict[Site, Tensor]:
        maps = self.layout.maps(parameters).items()
        # One map for all tokens: of all texts, or of each text its own.
        maps_of = {site.name: (scale.unsqueeze(-2), shift.unsqueeze(-2)) for site, (scale, shift) in maps}
        visited = dict.fromkeys([*self.layout.sites, *self._loss_sites])
        parts, start = [], 0
        with trunk(self._model, {site: self._visit(site) for site in visited}) as run:
            for batch in chunk[1]:
                own = slice(start, start + len(batch.rows)) if parameters.ndim > 1 else slice(None)
                self._edits = {name: (scale[own], shift[own]) for name, (scale, shift) in maps_of.items()}
                self._batch_pool = TokenPool(batch.pooled)
                run(batch)
                parts.append(self._pooled)
                self._pooled, start = {}, start + len(batch.rows)
        return self._joined(parts)

    def _pooled_source(self, parameters: Tensor, chunks: list[Chunk]) -> dict[Site, Tensor]:
        return self._joined([self._forward(parameters, chunk) for chunk in chunks])

    def _joined(self, parts: Sequence[Mapping[Site, Tensor]]) -> dict[Site, Tensor]:
        return {site: torch.cat([part[site] for part in parts]) for site in self._loss_sites}

    def _distance(self, pooled: Mapping[Site, Tensor], target: Sequence[int] | None) -> Tensor:
        total = torch.zeros((), device=next(iter(pooled.values())).device)
        for _, distances in self._distances(pooled, target):
            total = total + distances.sum()
        return total / len(self._loss_sites)

    def _distances(
        self, pooled: Mapping[Site, Tensor], target: Sequence[int] | None
    ) -> Iterator[tuple[Site, Float[Tensor, " unit"]]]:
        """Yield every loss site and its units' squared distances, weighted."""
        for site, values in pooled.items():
            other = self._sorted_target[site] if target is None else self._target[site][list(target)].sort(0).values
            i, j, weights = self._coupling(len(values), len(other), values.device)
            gaps = values.sort(0).values[i] - other[j]
            distances = weights @ gaps.square()
            yield site, distances if self.unit_weights is None else distances * self.unit_weights[site]

    def _coupling(self, n: int, m: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if (n, m) not in self._couplings:
            i, j, weights = quantile_coupling(n, m)
            self._couplings[n, m] = (i.to(device), j.to(device), weights.float().to(device))
        return self._couplings[n, m]


def inverse_variances(source: Pooled, target: Pooled) -> dict[Site, Float[Tensor, " unit"]]:
    """Return per site the weight of each unit in the normalised loss: 1 / variance over the texts of both sides.

    Pooled values of the untouched model. A unit that holds one value on all texts has weight 0: nothing says what is
    far for it.
    """
    weights = {}
    for site in target:
        values = torch.cat([source[site], target[site]])
        variance = values.double().var(0, correction=0)
        dead = without_spread(values)
        weights[site] = torch.where(dead, 0.0, 1 / variance.masked_fill(dead, 1.0)).float()
    return weights
