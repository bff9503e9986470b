"""Collecting: texts through the trunk in length-sorted batches, each site pooled as it passes and then forgotten."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lens_steer.activations.activations import Activations, BySite
from lens_steer.activations.moments import MomentSums, Scratch
from lens_steer.activations.pooling import Pool, TokenPool
from lens_steer.activations.store import Progress, load_activations
from lens_steer.errors import ActivationError
from lens_steer.host.adapter import host_of
from lens_steer.host.guards import require_eval
from lens_steer.host.scope import Scope, ScopeName, as_scope
from lens_steer.host.sites import Site, SitePattern, find_sites
from lens_steer.host.tokens import Overflow, TokenBatch, Tokens, default_batch_size, tokenize
from lens_steer.host.trunk import Visit, trunk
from lens_steer.progress import progress_bar
from lens_steer.texts.contrast import ContrastSet, LabelledTexts
from lens_steer.texts.seen import known_forms


def collect(
    model: nn.Module,
    contrast: ContrastSet | LabelledTexts,
    sites: SitePattern = "mlp.hook_post",
    *,
    pool: Pool = "max",
    batch_size: int | None = None,
    scope: Scope | ScopeName = "all",
    special_in_pool: bool = False,
    overflow: Overflow = "truncate",
    store: str | Path | None = None,
    progress: bool = True,
) -> Activations:
    """Run every text once and keep one value per text and unit, and the token moments of each side.

    Parameters
    ----------
    model:
        A TransformerLens model. Interventions that are attached to it take part.
    contrast:
        Source and target texts, or texts x labels, to rank many concepts in one pass.
    sites:
        A pattern for `find_sites`.
    pool:
        max, mean, last or first over a text's tokens (a pair: over its completion).
    batch_size:
        Texts per batch; chosen by length when None. It changes nothing beyond rounding.
    scope:
        Which tokens the pools read.
    special_in_pool, overflow:
        See `tokenize`: whether BOS counts, and what becomes of texts longer than the context.
    store:
        A directory for the result. An interrupted call resumes there, and a finished one is read back.
    progress:
        Whether to show a progress bar.

    Raises
    ------
    ActivationError
        A value is not finite (the site and the text are named).
    SiteError, TokenError, ModelError
        As `find_sites` and `tokenize` say; the model is in training mode.
    OutputError
        `store` holds the activations of other texts, sites, settings or another model.

    """
    require_eval(model)
    texts = contrast.labelled if isinstance(contrast, ContrastSet) else contrast
    found = find_sites(model, sites)
    tokens = tokenize(
        model, texts.texts, chat=texts.chat, scope=as_scope(scope), special_in_pool=special_in_pool, overflow=overflow
    )
    provenance = {
        **host_of(model).provenance,
        "data": texts.data_hash,
        "pool": pool,
        "scope": repr(as_scope(scope)),
        "bos": "pooled" if special_in_pool else "not pooled" if host_of(model).prepends_bos else "none",
    }
    size = batch_size or default_batch_size(tokens)
    saved = (
        None
        if store is None
        else Progress(Path(store), {**provenance, "sites": [s.name for s in found], "batch": size})
    )
    if saved is not None and saved.finished:
        return load_activations(saved.directory)
    sink = _Sink(found, tokens, torch.from_numpy(texts.labels.copy()), pool)
    _stream(model, sink, size, saved, progress)
    activations = sink.activations(texts, provenance)
    if saved is not None:
        saved.finish(activations)
    return activations


def _stream(model: nn.Module, sink: _Sink, batch_size: int, saved: Progress | None, progress: bool) -> None:
    """Run the batches that no shard holds yet."""
    done = 0
    if saved is not None:
        done, shards = saved.read()
        for shard in shards:
            sink.restore(shard)
    device = host_of(model).device
    batches = list(sink.tokens.batches(batch_size))
    bar = progress_bar(batches, desc="collect", unit="batch", show=progress)
    with torch.no_grad(), trunk(model, sink.visits) as run:
        for number, (rows, batch) in enumerate(bar):
            if number < done:
                continue
            here = batch.to(device)
            sink.begin(rows, here)
            run(here)
            if not sink.finite:
                break
            if saved is not None and saved.due:
                saved.write(number + 1, sink.shard())
    if not sink.finite:
        raise ActivationError(_not_finite(model, sink.visits, rows, here))


def _not_finite(model: nn.Module, sites: Iterable[Site], rows: list[int], batch: TokenBatch) -> str:
    """Run a batch again to name the first value in it that is not finite."""
    found: list[str] = []

    def look_at(site: Site) -> Visit:
        def look(activation: Tensor, batch: TokenBatch) -> None:
            bad = (~torch.isfinite(activation) & batch.mask[..., None]).nonzero()
            if len(bad) and not found:
                row, token, unit = bad[0].tolist()
                value = float(activation[row, token, unit])
                found.append(f"{site.name}[{unit}] is {value} at token {token} of text {rows[row]}")

        return look

    with torch.no_grad(), trunk(model, {site: look_at(site) for site in sites}) as run:
        run(batch)
    return f"{found[0] if found else 'a sum over tokens overflows'}: the model or an edit attached to it overflows"


class _Sink:
    """What stays of a pass: the pooled values and the moment sums of every site."""

    def __init__(self, sites: tuple[Site, ...], tokens: Tokens, labels: Tensor, pool: Pool) -> None:
        self.tokens = tokens
        self._labels = labels
        self._pool: Pool = pool
        self._sites = sites
        self._values = {site.name: torch.empty(len(tokens), site.width) for site in sites}
        self._sums = {site.name: MomentSums(2 * labels.shape[1], site.width) for site in sites}
        self._rows = torch.empty(0, dtype=torch.long)
        self._since_shard: list[int] = []
        self._scratch = Scratch()
        self._check = torch.zeros((), dtype=torch.float64)

    @property
    def finite(self) -> bool:
        """Whether every value so far was."""
        return bool(torch.isfinite(self._check))

    @property
    def visits(self) -> dict[Site, Visit]:
        """One visit per site; each pools what passes."""
        return {site: self._visit(site) for site in self._sites}

    def begin(self, rows: list[int], batch: TokenBatch) -> None:
        """Prepare what the sites of one batch share."""
        self._rows = torch.tensor(rows)
        self._since_shard += rows
        self._tokens = TokenPool(batch.pooled)
        labels = self._labels[rows].to(batch.ids.device)
        self._sides = torch.stack([labels == 1, labels == 0], dim=2).flatten(1).T.float()  # [2 * concept, text]

    def _visit(self, site: Site) -> Visit:
        values, sums = self._values[site.name], self._sums[site.name]

        def visit(activation: Tensor, batch: TokenBatch) -> None:
            pooled = self._tokens(activation, self._pool)
            sums.add(activation, self._tokens, self._sides, self._scratch)
            # Not finite as soon as one pooled token is, of whatever side: zero times infinity is not a number.
            self._check = self._check.to(pooled.device) + sums.second.sum()
            values.index_copy_(0, self._rows, pooled.cpu())

        return visit

    def shard(self) -> dict[str, Tensor]:
        """Return the values since the last shard, and all sums so far."""
        rows, self._since_shard = self._since_shard, []
        shard = {"rows": torch.tensor(rows)}
        for site in self._sites:
            shard[f"values/{site}"] = self._values[site.name][rows]
            shard |= {f"{part}/{site}": value for part, value in self._sums[site.name].state().items()}
        return shard

    def restore(self, shard: dict[str, Tensor]) -> None:
        """Take a shard's values, and its sums in place of those so far."""
        for site in self._sites:
            self._values[site.name][shard["rows"]] = shard[f"values/{site}"]
            self._sums[site.name].restore({part: shard[f"{part}/{site}"] for part in MomentSums.PARTS})

    def activations(self, texts: LabelledTexts, provenance: dict[str, Any]) -> Activations:
        """Return the result."""
        moments = {name: sums.moments() for name, sums in self._sums.items()}
        return Activations(
            values=BySite(self._sites, lambda site: self._values[site.name]),
            labels=self._labels,
            concepts=texts.concepts,
            pool=self._pool,
            moments=BySite(self._sites, lambda site: moments[site.name]),
            lengths=tuple(sum(row) for row in self.tokens.pooled),
            groups=texts.groups,
            provenance=provenance,
            blocks=torch.tensor(texts.blocks),
            hashes=torch.from_numpy(known_forms(texts.texts)),
            pairs=None if texts.pairs is None else torch.from_numpy(texts.pairs.copy()),
        )
