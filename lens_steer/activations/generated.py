"""Generated tokens: activations of what the model itself writes, read in the run that samples it.

The activations of one batch of prompts are held until its texts are written, then pooled like those of given texts. So
that the last token of a text is read too, a run is one step longer than its texts.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.given import fill, finish, finished, row_bytes
from lens_steer.activations.pooled_rows import PooledRows
from lens_steer.activations.pooling import Pool
from lens_steer.activations.saved import shard_paths
from lens_steer.activations.store import Store, shards_of
from lens_steer.activations.tensor_file import read_tensors
from lens_steer.errors import ActivationError, LensSteerWarning, SettingError, SiteError
from lens_steer.host.adapter import host_of
from lens_steer.host.clock import PositionClock, TokenPositions
from lens_steer.host.decode import Decoding, Sampling, decode
from lens_steer.host.prompts import continuation, prompt_batches, prompt_tokens
from lens_steer.host.scope import Scope, special_ids
from lens_steer.host.sites import Site
from lens_steer.host.tokens import Tokens
from lens_steer.host.trunk import as_hook
from lens_steer.processes import process_number, wait_for_all
from lens_steer.progress import progress_bar
from lens_steer.texts.beginnings import prompt_of
from lens_steer.texts.contrast import LabelledTexts

_HELD = 2**30  # bytes of activations that are held for one batch, where the batch size is ours to choose


@dataclass(frozen=True)
class ContinuedTexts:
    """Texts as prompts, how they are continued, and which of the new tokens pools read."""

    texts: LabelledTexts
    prompts: Tokens
    decoding: Decoding
    scope: Scope
    special: frozenset[int]
    tokenizer: Any

    @property
    def provenance(self) -> dict[str, Any]:
        """What activations say of how their tokens were generated."""
        return {"of": "generated", "sampling": asdict(self.decoding)}

    def written(self, rows: Sequence[int], new: Sequence[Sequence[int]]) -> Tokens:
        """Return the new ids of some rows as texts: pools read those in the scope that are not special."""
        pooled = []
        for row, ids in zip(rows, new, strict=True):
            first = len(self.prompts.ids[row])
            places = TokenPositions(
                position=first + torch.arange(len(ids))[None],
                prompt_length=torch.tensor([first]),
                real=torch.ones(1, len(ids), dtype=torch.bool),
                ids=torch.tensor([list(ids)], dtype=torch.long),
            )
            inside = self.scope.mask(places)[0].tolist()
            pooled.append(tuple(kept and token not in self.special for token, kept in zip(ids, inside, strict=True)))
        return Tokens(tuple(tuple(ids) for ids in new), tuple(pooled), self.prompts.pad_id)


def continued_texts(
    model: nn.Module, texts: LabelledTexts, scope: Scope, sampling: Sampling, *, special_in_pool: bool
) -> ContinuedTexts:
    """Return texts as they will be continued; SettingError and TokenError as `generate` says, and for `prompt`."""
    if scope.name == "prompt":
        raise SettingError('the scope prompt holds no generated token: leave it out, or collect of="given"')
    decoding, tokenizer = Decoding(**sampling), host_of(model).tokenizer
    prompts = prompt_tokens(model, [prompt_of(row) for row in texts.texts], texts.chat, decoding.max_new_tokens)
    special = frozenset() if special_in_pool else frozenset(special_ids(tokenizer))
    return ContinuedTexts(texts, prompts, decoding, scope, special, tokenizer)


def collect_generated(
    model: nn.Module,
    continued: ContinuedTexts,
    pooled: PooledRows,
    provenance: dict[str, Any],
    batch_size: int | None,
    *,
    progress: bool,
) -> Activations:
    """Continue all texts, pool what was written, and return the rows that wrote something.

    The model is run as it stands, edits included. ActivationError where a value is not finite or a side wrote nothing.
    """
    new = _run(model, continued, pooled, batch_size, progress)
    spoken = _spoken(continued, new)
    lengths = spoken.lengths.tolist()
    everything = pooled.activations(continued.texts, lengths, {**provenance, "silent": spoken.silent})
    everything = replace(everything, continuations=spoken.continuations)
    if not spoken.silent:
        return everything
    # Moments are sums over tokens, so that rows without one are in none of them.
    return replace(everything.rows(spoken.kept), moments=everything.moments)


def store_generated(
    model: nn.Module,
    continued: ContinuedTexts,
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
    """Continue the texts of which no undamaged shard is there, and return what lies stored."""
    if (whole := finished(saved)) is not None:
        return whole
    everyone = range(len(continued.prompts))
    shards = shards_of(
        _batches(continued, model, sites, everyone, saved.batch),
        row_bytes(sites, dtype),
        2 * len(continued.texts.concepts),
    )

    def run(chosen: list[int]) -> dict[str, Tensor]:
        pooled = rows_of(chosen)
        new = _run(model, continued, pooled, batch_size, progress)
        return {**pooled.shard(dtype), **_padded([new[row] for row in chosen])}

    fill(
        saved,
        shards,
        run,
        lambda chosen: len(_batches(continued, model, sites, chosen, batch_size)),
        progress=progress,
    )
    if process_number() == 0:
        new: dict[int, list[int]] = {}
        for path in shard_paths(saved.directory, len(shards)):
            held = read_tensors(path, ["rows", "lengths", "new"])
            ids = zip(held["rows"].tolist(), held["lengths"].tolist(), held["new"].tolist(), strict=True)
            new |= {row: tokens[:length] for row, length, tokens in ids}
        spoken = _spoken(continued, new)
        finish(
            saved,
            len(shards),
            continued.texts,
            spoken.kept.nonzero()[:, 0],
            spoken.lengths.tolist(),
            {**provenance, "silent": spoken.silent},
            sites=sites,
            pool=pool,
            continuations=spoken.continuations,
        )
    wait_for_all("the store was finished")
    return Activations.load(saved.directory)


def _run(
    model: nn.Module, continued: ContinuedTexts, pooled: PooledRows, batch_size: int | None, progress: bool
) -> dict[int, list[int]]:
    """Continue the texts of `pooled`, pool them, and return the new ids of each."""
    new: dict[int, list[int]] = {}
    decoding = replace(continued.decoding, max_new_tokens=continued.decoding.max_new_tokens + 1)
    with torch.no_grad(), _reading(model, pooled.sites, decoding.max_new_tokens - 1) as held:
        batches = _batches(continued, model, pooled.sites, pooled.rows.tolist(), batch_size)
        for rows in progress_bar(batches, desc="generate and collect", unit="batch", show=progress):
            ids = [continued.prompts.ids[row] for row in rows]
            held.begin(max(map(len, ids)))
            cut = [row[: held.steps] for row in decode(model, ids, decoding, rows=rows)]
            _pool(continued.written(rows, cut), rows, pooled, held)
            new |= dict(zip(rows, cut, strict=True))
    return new


class _Held:
    """What the sites had at the steps of one batch: [text, step, unit] each; `begin` forgets it."""

    def __init__(self, clock: PositionClock, steps: int) -> None:
        self.steps = steps
        self._clock, self._width = clock, 0
        self._at: dict[Site, Tensor] = {}

    def begin(self, width: int) -> None:
        """Prepare for prompts that are padded to a width."""
        self._width = width
        self._at.clear()

    def keeping(self, site: Site) -> Callable[[Tensor], None]:
        """Return what copies a site's activation at generated tokens."""

        def keep(flat: Tensor) -> None:
            forward = self._clock.now
            if forward is None or forward.end <= self._width:
                return
            fresh = flat[:, max(self._width - forward.start, 0) :]
            if site not in self._at:
                self._at[site] = flat.new_empty(len(flat), self.steps, flat.shape[2])
            end = forward.end - self._width
            self._at[site][:, end - fresh.shape[1] : end] = fresh

        return keep

    def at(self, site: Site, rows: Sequence[int], steps: int) -> Tensor:
        """Return the first steps of some rows; SiteError for a site that did not fire."""
        if site not in self._at:
            raise SiteError(f"{site.name} did not fire while the model generated: collect given texts there")
        whole = self._at[site][:, :steps]
        return whole if len(rows) == len(whole) else whole[list(rows)]


@contextmanager
def _reading(model: nn.Module, sites: Sequence[Site], steps: int) -> Iterator[_Held]:
    """Hold what the sites have at generated tokens; behind the hooks that are there, so edits are seen."""
    clock = PositionClock(model)
    held = _Held(clock, steps)
    try:
        with host_of(model).hooks([(site.name, as_hook(held.keeping(site))) for site in sites]):
            yield held
    finally:
        clock.stop()


def _batches(
    continued: ContinuedTexts, model: nn.Module, sites: Sequence[Site], rows: Sequence[int], batch_size: int | None
) -> list[list[int]]:
    """Batches of `generate`, smaller ones where their activations would not fit into memory."""
    steps = continued.decoding.max_new_tokens
    wanted = set(rows)
    batches = [
        kept
        for batch in prompt_batches(continued.prompts, steps, batch_size)
        if (kept := [row for row in batch if row in wanted])
    ]
    per_row = steps * sum(site.width for site in sites) * host_of(model).dtype.itemsize
    most = batch_size or max(1, _HELD // per_row)
    return [batch[start : start + most] for batch in batches for start in range(0, len(batch), most)]


def _pool(written: Tokens, rows: Sequence[int], pooled: PooledRows, held: _Held) -> None:
    """Pool the rows of a batch that wrote something."""
    places = [place for place, inside in enumerate(written.pooled) if any(inside)]
    if silent := [row for row, inside in zip(rows, written.pooled, strict=True) if not any(inside)]:
        pooled.skip(silent)
    if not places:
        return
    batch = written.batch(places)
    for number, (site, visit) in enumerate(pooled.visits.items()):
        values = held.at(site, places, batch.ids.shape[1])
        if number == 0:
            batch = batch.to(values.device)
            pooled.begin([rows[place] for place in places], batch)
        visit(values, batch)
    if not pooled.finite:
        raise ActivationError(_not_finite(held, pooled.sites, places, [rows[place] for place in places], batch.pooled))
    pooled.end()


def _not_finite(held: _Held, sites: Sequence[Site], places: list[int], rows: list[int], inside: Tensor) -> str:
    for site in sites:
        values = held.at(site, places, inside.shape[1])
        bad = (~torch.isfinite(values) & inside.to(values.device)[..., None]).nonzero()
        if len(bad):
            row, step, unit = bad[0].tolist()
            where = (
                f"{site.name}[{unit}] is {float(values[row, step, unit])} at generated token {step} of text {rows[row]}"
            )
            return f"{where}: the model or an edit attached to it overflows"
    return "a sum over generated tokens overflows: the model or an edit attached to it does"


def _padded(new: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    longest = max(map(len, new))
    ids = [[*row, *[0] * (longest - len(row))] for row in new]
    return {"new": torch.tensor(ids, dtype=torch.long), "lengths": torch.tensor([len(row) for row in new])}


@dataclass(frozen=True)
class _Spoken:
    """What was written: pooled tokens of each text, which texts have some, which have none, and all as texts."""

    lengths: Tensor
    kept: Tensor
    silent: list[int]
    continuations: tuple[str, ...]


def _spoken(continued: ContinuedTexts, by_row: Mapping[int, Sequence[int]]) -> _Spoken:
    """Return who wrote something; ActivationError where a side of a concept wrote nothing, a warning where a text did.

    No token of a silent text is pooled.
    """
    texts = continued.texts
    new = [by_row[row] for row in range(len(texts.texts))]
    written = continued.written(range(len(new)), new)
    lengths = torch.tensor([sum(inside) for inside in written.pooled])
    kept = lengths > 0
    labels = torch.from_numpy(texts.labels.copy())
    for concept, before, after in zip(texts.concepts, labels.T, labels[kept].T, strict=True):
        for side, label in (("source", 1), ("target", 0)):
            if bool((before == label).any()) and not bool((after == label).any()):
                raise ActivationError(
                    f"no {side} text of {concept!r} was continued by a token that a pool reads: the model ends them at "
                    "once. Give other prompts or another seed, or texts that do not end where the model would"
                )
    silent = (~kept).nonzero()[:, 0].tolist()
    if silent:
        warnings.warn(
            f"{len(silent)} of {len(new)} texts were left out: the model ended them before it wrote a token that a "
            "pool reads (their numbers are in the provenance, `silent`)",
            LensSteerWarning,
            5,
        )
    pairs = zip(continued.prompts.ids, new, strict=True)
    continuations = tuple(continuation(continued.tokenizer, prompt, ids) for prompt, ids in pairs)
    return _Spoken(lengths, kept, silent, continuations)
