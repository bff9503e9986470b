"""Given texts: run through the trunk in length-sorted batches, each site pooled as it passes and then forgotten."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.pooled_rows import PooledRows, activations_of, moments_of_shards
from lens_steer.activations.pooling import Pool
from lens_steer.activations.saved import shard_paths, write_activations
from lens_steer.activations.store import Store, shards_of
from lens_steer.activations.stored_values import StoredValues
from lens_steer.errors import ActivationError, ContrastError
from lens_steer.host.adapter import host_of
from lens_steer.host.padding import most_pads
from lens_steer.host.sites import Site
from lens_steer.host.tokens import TokenBatch, Tokens
from lens_steer.host.trunk import Visit, trunk
from lens_steer.processes import is_mine, process_number, wait_for_all
from lens_steer.progress import one_bar, progress_bar
from lens_steer.texts.contrast import ContrastSet, LabelledTexts


def collect_given(
    model: nn.Module,
    texts: LabelledTexts,
    tokens: Tokens,
    rows: PooledRows,
    provenance: dict[str, Any],
    batch_size: int | None,
    *,
    progress: bool,
) -> Activations:
    """Run all texts and keep their values in memory."""
    _run(model, tokens, rows, batch_size, progress)
    return rows.activations(texts, pooled_lengths(tokens), provenance)


def store_given(
    model: nn.Module,
    texts: LabelledTexts,
    tokens: Callable[[], Tokens],
    rows_of: Callable[[Sequence[int]], PooledRows],
    provenance: dict[str, Any],
    batch_size: int | None,
    *,
    sites: tuple[Site, ...],
    pool: Pool,
    dtype: torch.dtype,
    saved: Store,
    progress: bool,
) -> Activations:
    """Run the texts of which no whole shard is there, one shard in memory at a time, and return what lies stored."""
    if (whole := finished(saved)) is not None:
        return whole
    ready = tokens()
    shards = shards_of(list(ready.batch_rows(saved.batch)), row_bytes(sites, dtype), 2 * len(texts.concepts))

    def run(chosen: list[int]) -> dict[str, Tensor]:
        pooled = rows_of(chosen)
        _run(model, ready, pooled, batch_size, progress)
        return pooled.shard(dtype)

    def batches(chosen: list[int]) -> int:
        return len(list(ready.batch_rows(batch_size, rows=chosen, most_pads=most_pads(model))))

    fill(saved, shards, run, batches, progress=progress)
    if process_number() == 0:
        every = torch.arange(len(texts.texts))
        finish(saved, len(shards), texts, every, pooled_lengths(ready), provenance, sites=sites, pool=pool)
    wait_for_all("the store was finished")
    return Activations.load(saved.directory)


def pooled_lengths(tokens: Tokens) -> list[int]:
    """Return the number of pooled tokens of each text."""
    return [sum(row) for row in tokens.pooled]


def finished(saved: Store) -> Activations | None:
    """Return what a store holds where all of it is there undamaged; damaged shards are taken away."""

    def check() -> bool:
        values = Activations.load(saved.directory).values
        whole = [saved.whole(path.stem) for path in values.shards] if isinstance(values, StoredValues) else [False]
        return all(whole)

    return Activations.load(saved.directory) if saved.finished("activations.json", check) else None


def row_bytes(sites: Sequence[Site], dtype: torch.dtype) -> int:
    """Return the bytes of one text's values."""
    return sum(site.width for site in sites) * dtype.itemsize


def fill(
    saved: Store,
    shards: Sequence[list[int]],
    run: Callable[[list[int]], dict[str, Tensor]],
    batches: Callable[[list[int]], int],
    *,
    progress: bool,
) -> None:
    """Write this process's shards that are not there yet, and wait for those of the others."""
    names = [path.stem for path in shard_paths(saved.directory, len(shards))]
    missing = [number for number in range(len(shards)) if is_mine(number) and not saved.whole(names[number])]
    with one_bar(sum(batches(shards[number]) for number in missing), desc="collect", unit="batch", show=progress):
        for number in missing:
            saved.write(names[number], run(shards[number]))
    wait_for_all("all shards were written")


def finish(
    saved: Store,
    shards: int,
    texts: LabelledTexts,
    rows: Tensor,
    lengths: Sequence[int],
    provenance: dict[str, Any],
    *,
    sites: tuple[Site, ...],
    pool: Pool,
    continuations: tuple[str, ...] | None = None,
) -> None:
    """Write what stands beside the shards; of the texts the `rows` are kept."""
    paths = shard_paths(saved.directory, shards)
    held = (saved.read(path.stem) for path in paths)
    moments = moments_of_shards(sites, 2 * len(texts.concepts), held)
    every = torch.arange(len(texts.texts))
    whole = activations_of(texts, StoredValues(sites, paths, every), moments, pool, lengths, provenance)
    kept = replace(whole, continuations=continuations).rows(rows)
    kept = replace(kept, values=StoredValues(sites, paths, rows), moments=whole.moments)
    write_activations(kept, saved.directory, paths)


def _run(model: nn.Module, tokens: Tokens, collected: PooledRows, batch_size: int | None, progress: bool) -> None:
    """Run the texts of `collected`; ActivationError that names site, token and text where a value is not finite."""
    device = host_of(model).device
    batches = list(tokens.batches(batch_size, rows=collected.rows.tolist(), most_pads=most_pads(model)))
    with torch.no_grad(), trunk(model, collected.visits) as run:
        for rows, batch in progress_bar(batches, desc="collect", unit="batch", show=progress):
            on_device = batch.to(device)
            collected.begin(rows, on_device)
            run(on_device)
            if not collected.finite:
                break
            collected.end()
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


def labelled(contrast: ContrastSet | LabelledTexts) -> LabelledTexts:
    """Return the table of texts and labels behind what is to be collected; ContrastError where it is no contrast."""
    if isinstance(contrast, ContrastSet):
        return contrast.labelled
    if not isinstance(contrast, LabelledTexts):
        raise ContrastError(
            f"a contrast is needed, not {type(contrast).__name__}: ContrastSet(source, target), read_contrast(path) or "
            "LabelledTexts(texts, labels)"
        )
    return contrast
