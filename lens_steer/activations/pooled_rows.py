"""The rows of a pass, or of one shard of it: pooled values and token moments of every text, filled batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lens_steer.activations.activations import Activations
from lens_steer.activations.by_site import BySite
from lens_steer.activations.moments import MomentSums, Scratch, TokenMoments
from lens_steer.activations.pooling import Pool, TokenPool
from lens_steer.errors import ActivationError, ArtifactError
from lens_steer.host.sites import Site
from lens_steer.host.tokens import TokenBatch
from lens_steer.host.trunk import Visit
from lens_steer.texts.contrast import LabelledTexts
from lens_steer.texts.seen import known_forms


class PooledRows:
    """The pooled values and the moment sums of every site, filled batch by batch: `begin`, the visits, `end`.

    Of all texts, or of those that `rows` numbers.
    """

    def __init__(self, sites: tuple[Site, ...], labels: Tensor, pool: Pool, rows: Sequence[int] | None = None) -> None:
        self._sites = sites
        self._labels = labels
        self._pool: Pool = pool
        self.rows = torch.arange(len(labels)) if rows is None else torch.tensor(list(rows))
        self._place = torch.full((len(labels),), -1)
        self._place[self.rows] = torch.arange(len(self.rows))
        self._values = {site.name: torch.empty(len(self.rows), site.width) for site in sites}
        self._sums = {site.name: MomentSums(2 * labels.shape[1], site.width) for site in sites}
        self._done = torch.zeros(len(self.rows), dtype=torch.bool)
        self._scratch = Scratch()
        self._check = torch.zeros((), dtype=torch.float64)

    @property
    def sites(self) -> tuple[Site, ...]:
        """The sites, in the order of a forward pass."""
        return self._sites

    @property
    def finite(self) -> bool:
        """Whether every pooled token so far was."""
        return bool(torch.isfinite(self._check))

    @property
    def visits(self) -> dict[Site, Visit]:
        """One visit per site; each pools what passes."""
        return {site: self._visit(site) for site in self._sites}

    def begin(self, rows: list[int], batch: TokenBatch) -> None:
        """Prepare what the sites of one batch share."""
        self._places = self._place[rows]
        self._tokens = TokenPool(batch.pooled)
        labels = self._labels[rows].to(batch.ids.device)
        self._sides = torch.stack([labels == 1, labels == 0], dim=2).flatten(1).T.float()  # [2 * concept, text]

    def end(self) -> None:
        """Note that the rows of the batch are there at every site."""
        self._done[self._places] = True

    def skip(self, rows: Sequence[int]) -> None:
        """Note that rows have no token to pool: they have no value."""
        places = self._place[list(rows)]
        for site in self._sites:
            self._values[site.name][places] = torch.nan
        self._done[places] = True

    def _visit(self, site: Site) -> Visit:
        values, sums = self._values[site.name], self._sums[site.name]

        def visit(activation: Tensor, batch: TokenBatch) -> None:
            # Blocks may lie on several devices: what the sites share follows the activations, once per change.
            self._tokens, self._sides = self._tokens.to(activation.device), self._sides.to(activation.device)
            pooled = self._tokens(activation, self._pool)
            sums.add(activation, self._tokens, self._sides, self._scratch)
            # Not finite as soon as one pooled token is, of whatever side: zero times infinity is not a number.
            total = sums.second.sum()
            self._check = self._check.to(total.device) + total
            values.index_copy_(0, self._places, pooled.cpu())

        return visit

    def shard(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the rows, their values at every site in a dtype, and the sums; ActivationError for one too large."""
        self._require_all()
        values = {f"values/{site}": self._values[site.name].to(dtype) for site in self._sites}
        for site in self._sites:
            lost = torch.isinf(values[f"values/{site}"]).nonzero()
            if len(lost):
                row, unit = lost[0].tolist()
                value = float(self._values[site.name][row, unit])
                raise ActivationError(
                    f"{site.name}[{unit}] is {value:g} for text {int(self.rows[row])}, too large for {dtype}: store it "
                    "as bfloat16 or float32"
                )
        sums = {f"sums/{part}/{site}": of for site in self._sites for part, of in self._sums[site.name].state().items()}
        return {"rows": self.rows, **values, **sums}

    def activations(self, texts: LabelledTexts, lengths: Sequence[int], provenance: dict[str, Any]) -> Activations:
        """Return the result, `lengths` the pooled tokens of each text; ActivationError if a row is missing."""
        self._require_all()
        moments = {name: sums.moments() for name, sums in self._sums.items()}
        values = BySite(self._sites, lambda site: self._values[site.name])
        return activations_of(texts, values, moments, self._pool, lengths, provenance)

    def _require_all(self) -> None:
        if not bool(self._done.all()):
            missing = int((~self._done).sum())
            raise ActivationError(f"{missing} of {len(self._done)} texts were not run: collect them again")


def moments_of_shards(
    sites: Sequence[Site], groups: int, shards: Iterable[Mapping[str, Tensor]]
) -> dict[str, TokenMoments]:
    """Return the token moments by site name, from the sums of shards in their order; ArtifactError where some lack."""
    sums = {site.name: MomentSums(groups, site.width) for site in sites}
    for shard in shards:
        try:
            for name, of in sums.items():
                of.merge({part: shard[f"sums/{part}/{name}"] for part in MomentSums.PARTS})
        except (LookupError, RuntimeError) as error:
            raise ArtifactError(f"a shard holds no token sums that fit ({error}): remove the store") from error
    return {name: of.moments() for name, of in sums.items()}


def activations_of(
    texts: LabelledTexts,
    values: BySite[Tensor],
    moments: Mapping[str, TokenMoments],
    pool: Pool,
    lengths: Sequence[int],
    provenance: dict[str, Any],
) -> Activations:
    """Return activations of texts."""
    return Activations(
        values=values,
        labels=torch.from_numpy(texts.labels.copy()),
        concepts=texts.concepts,
        pool=pool,
        moments=BySite(tuple(values), lambda site: moments[site.name]),
        lengths=tuple(lengths),
        groups=texts.groups,
        provenance=provenance,
        blocks=torch.tensor(texts.blocks),
        hashes=torch.from_numpy(known_forms(texts.texts)),
        pairs=None if texts.pairs is None else torch.from_numpy(texts.pairs.copy()),
    )
