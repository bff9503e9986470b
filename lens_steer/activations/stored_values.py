"""Values in the shards of a store: read from disk when they are used, a site at a time, or some units of one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lens_steer.activations.by_site import BySite
from lens_steer.activations.tensor_file import read_columns, read_tensors
from lens_steer.errors import ArtifactError
from lens_steer.host.sites import Site


class StoredValues(BySite[Tensor]):
    """Site -> float32 [text, unit], put together from shards, each with some rows of every site.

    `rows` are the rows of the pass that the result has, in its order. What is read of a site is that site's bytes in
    every shard; a site's bytes are compared with their hashes when it is first read as a whole. ArtifactError, then,
    where a shard is damaged, and at once where the shards are not of these rows.
    """

    def __init__(self, sites: tuple[Site, ...], shards: Sequence[Path], rows: Int[Tensor, " text"]) -> None:
        super().__init__(sites, lambda site: self.units(site, slice(None)))
        self.rows = rows
        self.shards = tuple(shards)
        self._checked: set[str] = set()
        of_shard = [read_tensors(path, ["rows"])["rows"] for path in self.shards]
        every = torch.cat(of_shard)
        self._taken = [torch.isin(held, rows) for held in of_shard]
        if not torch.equal(every[torch.cat(self._taken)].sort().values, rows.sort().values):
            raise ArtifactError(f"the shards in {self.shards[0].parent} do not hold every text once: collect again")
        order = rows.argsort()
        ordered = rows[order]
        self._places = [
            order[torch.searchsorted(ordered, held[taken])] for held, taken in zip(of_shard, self._taken, strict=True)
        ]

    def units(self, site: Site, units: slice) -> Float[Tensor, "text unit"]:
        """Return some units of a site: no other bytes are read, and none are compared with their hashes."""
        name = f"values/{site}"
        whole = units == slice(None)
        width = len(range(*units.indices(site.width)))
        values = torch.empty(sum(map(len, self._places)), width)
        for path, taken, places in zip(self.shards, self._taken, self._places, strict=True):
            if whole:
                part = read_tensors(path, [name], verify=site.name not in self._checked)[name]
            else:
                part = read_columns(path, name, units)
            if part.shape != (len(taken), width):
                raise ArtifactError(f"{path} is damaged: {name} is of another shape: collect again with this store")
            values[places] = part[taken].float()
        if whole:
            self._checked.add(site.name)
        return values
