"""The rows of a pass: pooled values and token moments of every text, filled batch by batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lens_steer.activations.activations import Activations
from lens_steer.activations.by_site import BySite
from lens_steer.activations.moments import MomentSums, Scratch
from lens_steer.activations.pooling import Pool, TokenPool
from lens_steer.activations.store import UnfinishedPass
from lens_steer.errors import ActivationError, ArtifactError
from lens_steer.host.sites import Site
from lens_steer.host.tokens import TokenBatch
from lens_steer.host.trunk import Visit
from lens_steer.texts.contrast import LabelledTexts
from lens_steer.texts.seen import known_forms


class PooledRows:
    """The pooled values and the moment sums of every site, filled batch by batch: `begin`, the visits, `end`."""

    def __init__(self, sites: tuple[Site, ...], labels: Tensor, pool: Pool) -> None:
        self._sites = sites
        self._labels = labels
        self._pool: Pool = pool
        self._values = {site.name: torch.empty(len(labels), site.width) for site in sites}
        self._sums = {site.name: MomentSums(2 * labels.shape[1], site.width) for site in sites}
        self.done = torch.zeros(len(labels), dtype=torch.bool)
        self._since_shard: list[int] = []
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
        self._rows = torch.tensor(rows)
        self._tokens = TokenPool(batch.pooled)
        labels = self._labels[rows].to(batch.ids.device)
        self._sides = torch.stack([labels == 1, labels == 0], dim=2).flatten(1).T.float()  # [2 * concept, text]

    def end(self) -> None:
        """Note that the rows of the batch are there at every site."""
        self.done[self._rows] = True
        self._since_shard += self._rows.tolist()

    def skip(self, rows: Sequence[int]) -> None:
        """Note that rows have no token to pool: they have no value."""
        for site in self._sites:
            self._values[site.name][list(rows)] = torch.nan
        self.done[list(rows)] = True
        self._since_shard += rows

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
            values.index_copy_(0, self._rows, pooled.cpu())

        return visit

    def values_since_shard(self) -> dict[str, Tensor]:
        """Return the rows that no shard holds yet, and their values at every site."""
        rows, self._since_shard = self._since_shard, []
        return {"rows": torch.tensor(rows), **{f"values/{site}": self._values[site.name][rows] for site in self._sites}}

    def sums(self) -> dict[str, Tensor]:
        """Return the moment sums of all rows so far."""
        return {
            f"{part}/{site}": value for site in self._sites for part, value in self._sums[site.name].state().items()
        }

    def restore(self, saved: UnfinishedPass) -> list[dict[str, Tensor]]:
        """Take what an unfinished pass holds; return what its shards hold beside values. ArtifactError for damage."""
        others = []
        try:
            for shard in saved.shards():
                self.restore_values(shard)
                others.append({name: value for name, value in shard.items() if not name.startswith("values/")})
            self.restore_sums(saved.sums())
        except (LookupError, RuntimeError) as error:  # another shape, a row or a site that is not there
            raise ArtifactError(f"what {saved.directory} holds is damaged ({error}): remove the directory") from error
        return others

    def restore_values(self, shard: Mapping[str, Tensor]) -> None:
        """Take a shard's values."""
        for site in self._sites:
            self._values[site.name][shard["rows"]] = shard[f"values/{site}"]
        self.done[shard["rows"]] = True

    def restore_sums(self, sums: Mapping[str, Tensor]) -> None:
        """Continue from sums that `sums` gave; none at the start of a pass."""
        if sums:
            for site in self._sites:
                self._sums[site.name].restore({part: sums[f"{part}/{site}"] for part in MomentSums.PARTS})

    def activations(self, texts: LabelledTexts, lengths: Sequence[int], provenance: dict[str, Any]) -> Activations:
        """Return the result, `lengths` the pooled tokens of each text; ActivationError if a row is missing."""
        if not bool(self.done.all()):
            missing = int((~self.done).sum())
            raise ActivationError(f"{missing} of {len(self.done)} texts were not run: collect them again")
        moments = {name: sums.moments() for name, sums in self._sums.items()}
        return Activations(
            values=BySite(self._sites, lambda site: self._values[site.name]),
            labels=self._labels,
            concepts=texts.concepts,
            pool=self._pool,
            moments=BySite(self._sites, lambda site: moments[site.name]),
            lengths=tuple(lengths),
            groups=texts.groups,
            provenance=provenance,
            blocks=torch.tensor(texts.blocks),
            hashes=torch.from_numpy(known_forms(texts.texts)),
            pairs=None if texts.pairs is None else torch.from_numpy(texts.pairs.copy()),
        )
