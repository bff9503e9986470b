"""Collecting: texts through the trunk in length-sorted batches, each site pooled as it passes and then forgotten."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.by_site import BySite
from lens_steer.activations.moments import MomentSums, Scratch
from lens_steer.activations.pooling import Pool, TokenPool, checked_pool
from lens_steer.activations.sketch import ActivationSketch, Sketching, sketch_texts
from lens_steer.activations.store import UnfinishedPass
from lens_steer.errors import ActivationError, ArtifactError, ContrastError, SettingError
from lens_steer.host.adapter import host_of
from lens_steer.host.fingerprint import model_fingerprint
from lens_steer.host.guards import require_eval
from lens_steer.host.scope import Scope, ScopeName, as_scope
from lens_steer.host.sites import Site, SitePattern, find_sites
from lens_steer.host.tokens import Overflow, TokenBatch, Tokens, checked_batch_size, tokenize
from lens_steer.host.trunk import Visit, trunk
from lens_steer.progress import progress_bar
from lens_steer.texts.contrast import ContrastSet, LabelledTexts
from lens_steer.texts.seen import known_forms


@overload
def collect(
    model: nn.Module,
    contrast: ContrastSet | LabelledTexts,
    sites: SitePattern = "mlp.hook_post",
    *,
    pool: Pool = "max",
    batch_size: int | None = None,
    scope: Scope | ScopeName = "all",
    special_in_pool: bool = False,
    format_in_pool: bool = False,
    overflow: Overflow = "truncate",
    store: str | Path | None = None,
    progress: bool = True,
    reduce: None = None,
) -> Activations: ...


@overload
def collect(
    model: nn.Module,
    contrast: ContrastSet | LabelledTexts,
    sites: SitePattern = "mlp.hook_post",
    *,
    pool: Pool = "max",
    batch_size: int | None = None,
    scope: Scope | ScopeName = "all",
    special_in_pool: bool = False,
    format_in_pool: bool = False,
    overflow: Overflow = "truncate",
    store: str | Path | None = None,
    progress: bool = True,
    reduce: Literal["sketch"] | Sketching,
) -> ActivationSketch: ...


def collect(
    model: nn.Module,
    contrast: ContrastSet | LabelledTexts,
    sites: SitePattern = "mlp.hook_post",
    *,
    pool: Pool = "max",
    batch_size: int | None = None,
    scope: Scope | ScopeName = "all",
    special_in_pool: bool = False,
    format_in_pool: bool = False,
    overflow: Overflow = "truncate",
    store: str | Path | None = None,
    progress: bool = True,
    reduce: Literal["sketch"] | Sketching | None = None,
) -> Activations | ActivationSketch:
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
        Texts per batch; chosen by length when None. It changes nothing beyond rounding, also when an interrupted call
        is resumed with another one.
    scope:
        Which tokens the pools read.
    special_in_pool, format_in_pool, overflow:
        See `tokenize`: whether BOS and whether the chat format's own words count, and what becomes of texts longer than
        the context.
    store:
        A directory for the result. An interrupted call resumes there, and a finished one is read back. What is known by
        it is the model's fingerprint: hooks of your own that hang on the model see one pass over 16 tokens.
    progress:
        Whether to show a progress bar.
    reduce:
        "sketch", or `Sketching(...)`, keeps counts per unit in the place of a value per text, so that memory does not
        grow with the texts: the result is an `ActivationSketch`, for `rank_experts`. It is not stored.

    Raises
    ------
    ContrastError, SettingError
        No contrast was given; there is no such pool; a batch size below 1.
    ActivationError
        A value is not finite (the site and the text are named).
    SiteError, TokenError, ModelError
        As `find_sites` and `tokenize` say; the model is in training mode.
    OutputError
        `store` holds the activations of other texts, sites or settings, of another model (other weights, whatever its
        name), or of this one under other interventions or hooks.

    """
    require_eval(model)
    checked_pool(pool)
    size = checked_batch_size(batch_size)
    texts = _labelled(contrast)
    chosen = find_sites(model, sites)
    tokens = tokenize(
        model,
        texts.texts,
        chat=texts.chat,
        scope=as_scope(scope),
        special_in_pool=special_in_pool,
        format_in_pool=format_in_pool,
        overflow=overflow,
    )
    provenance = {
        **host_of(model).provenance,
        "fingerprint": model_fingerprint(model, users_hooks=store is not None).content(),
        "data": texts.data_hash,
        "pool": pool,
        "scope": repr(as_scope(scope)),
        "format": "pooled" if format_in_pool else "not pooled" if texts.chat else "none",
        "bos": "pooled" if special_in_pool else "not pooled" if host_of(model).prepends_bos else "none",
        "batch": size or "by length",
    }
    if reduce is not None:
        if store is not None:
            raise SettingError("a sketch is not stored while it is made: leave store= or reduce= away")
        known = _without_values(chosen, texts, pool, provenance)
        settings = Sketching() if reduce == "sketch" else reduce
        return sketch_texts(model, tokens, known, settings, batch_size=size, progress=progress)
    saved = None if store is None else UnfinishedPass(Path(store), _plan(provenance, chosen))
    if saved is not None and saved.finished:
        return Activations.load(saved.directory)
    collected = _Collected(chosen, torch.from_numpy(texts.labels.copy()), pool)
    _run(model, tokens, collected, size, saved, progress)
    activations = collected.activations(texts, tokens, provenance)
    if saved is not None:
        saved.finish(activations)
    return activations


_NAMES = ("model", "revision", "origin", "batch")  # of the provenance: they change nothing that is collected


def _labelled(contrast: ContrastSet | LabelledTexts) -> LabelledTexts:
    if isinstance(contrast, ContrastSet):
        return contrast.labelled
    if not isinstance(contrast, LabelledTexts):
        raise ContrastError(
            f"collect needs a contrast, not {type(contrast).__name__}: ContrastSet(source, target), "
            "read_contrast(path) or LabelledTexts(texts, labels)"
        )
    return contrast


def _without_values(
    sites: tuple[Site, ...], texts: LabelledTexts, pool: Pool, provenance: Mapping[str, Any]
) -> Activations:
    """Return activations that know their texts; their values are of torch's meta device, which holds none."""
    return Activations(
        values=BySite(sites, lambda site: torch.empty(len(texts.texts), site.width, device="meta")),
        labels=torch.from_numpy(texts.labels.copy()),
        concepts=texts.concepts,
        pool=pool,
        provenance=provenance,
        blocks=torch.tensor(texts.blocks),
        hashes=torch.from_numpy(known_forms(texts.texts)),
    )


def _plan(provenance: Mapping[str, Any], sites: Sequence[Site]) -> dict[str, Any]:
    """Return what identifies a pass: with the same plan it gives the same activations."""
    kept = {name: value for name, value in provenance.items() if name not in _NAMES}
    return {**kept, "sites": [site.name for site in sites]}


def _run(
    model: nn.Module,
    tokens: Tokens,
    collected: _Collected,
    batch_size: int | None,
    saved: UnfinishedPass | None,
    progress: bool,
) -> None:
    """Run the texts that no shard holds yet."""
    if saved is not None:
        try:
            for shard in saved.shards():
                collected.restore_values(shard)
            collected.restore_sums(saved.sums())
        except (LookupError, RuntimeError) as error:  # another shape, a row or a site that is not there
            raise ArtifactError(f"what {saved.directory} holds is damaged ({error}): remove the directory") from error
    device = host_of(model).device
    remaining = (~collected.done).nonzero()[:, 0].tolist()
    batches = list(tokens.batches(batch_size, rows=remaining)) if remaining else []
    with torch.no_grad(), trunk(model, collected.visits) as run:
        for rows, batch in progress_bar(batches, desc="collect", unit="batch", show=progress):
            on_device = batch.to(device)
            collected.begin(rows, on_device)
            run(on_device)
            if not collected.finite:
                break
            collected.end()
            if saved is not None and saved.due:
                saved.write(collected.values_since_shard(), collected.sums())
    if not collected.finite:
        raise ActivationError(_not_finite(model, collected.visits, rows, on_device))


def _not_finite(model: nn.Module, sites: Iterable[Site], rows: list[int], batch: TokenBatch) -> str:
    """Run a batch again to name the first value in it that is not finite."""
    places: list[str] = []

    def look_at(site: Site) -> Visit:
        def look(activation: Tensor, batch: TokenBatch) -> None:
            bad = (~torch.isfinite(activation) & batch.pooled.to(activation.device)[..., None]).nonzero()
            if len(bad) and not places:
                row, token, unit = bad[0].tolist()
                value = float(activation[row, token, unit])
                places.append(f"{site.name}[{unit}] is {value} at token {token} of text {rows[row]}")

        return look

    with torch.no_grad(), trunk(model, {site: look_at(site) for site in sites}) as run:
        run(batch)
    return f"{places[0] if places else 'a sum over tokens overflows'}: the model or an edit attached to it overflows"


class _Collected:
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

    def activations(self, texts: LabelledTexts, tokens: Tokens, provenance: dict[str, Any]) -> Activations:
        """Return the result; ActivationError if a row is missing."""
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
            lengths=tuple(sum(row) for row in tokens.pooled),
            groups=texts.groups,
            provenance=provenance,
            blocks=torch.tensor(texts.blocks),
            hashes=torch.from_numpy(known_forms(texts.texts)),
            pairs=None if texts.pairs is None else torch.from_numpy(texts.pairs.copy()),
        )
