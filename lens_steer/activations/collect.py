"""Collecting: what is asked for, in words that can be checked and stored; the passes are elsewhere.

Texts that are given are run by `lens_steer.activations.given`; what a model writes itself is read in the run that
writes it (`generated`), and a pass that keeps counts alone is a sketch (`sketch`).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import torch
from torch import nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.generated import collect_generated, continued_texts, store_generated
from lens_steer.activations.given import collect_given, labelled, store_given
from lens_steer.activations.pooled_rows import PooledRows
from lens_steer.activations.pooling import Pool, checked_pool
from lens_steer.activations.sketch import ActivationSketch, Sketching
from lens_steer.activations.sketch_file import valueless
from lens_steer.activations.sketch_pass import sketch_plan, sketch_texts
from lens_steer.activations.store import open_store
from lens_steer.errors import LensSteerWarning, SettingError
from lens_steer.host.adapter import host_of
from lens_steer.host.attach import Attachable, edited
from lens_steer.host.decode import Sampling
from lens_steer.host.fingerprint import model_fingerprint
from lens_steer.host.guards import require_eval
from lens_steer.host.scope import Scope, ScopeName, as_scope
from lens_steer.host.sites import Site, SitePattern, find_sites
from lens_steer.host.tokens import Overflow, Tokens, checked_batch_size, tokenize
from lens_steer.processes import process_number
from lens_steer.settings import require_settings
from lens_steer.texts.blocks import Row
from lens_steer.texts.contrast import ContrastSet, LabelledTexts
from lens_steer.texts.seen import known_forms
from lens_steer.texts.streams import TextStream


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
    intervention: Attachable | None = None,
    strength: Any = 1.0,
    of: Literal["given"] = "given",
    store: str | Path | None = None,
    store_dtype: StoreDtype = "float32",
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
    intervention: Attachable | None = None,
    strength: Any = 1.0,
    of: Literal["generated"],
    store: str | Path | None = None,
    store_dtype: StoreDtype = "float32",
    progress: bool = True,
    reduce: None = None,
    **sampling: Unpack[Sampling],
) -> Activations: ...


@overload
def collect(
    model: nn.Module,
    contrast: ContrastSet | LabelledTexts | TextStream,
    sites: SitePattern = "mlp.hook_post",
    *,
    pool: Pool = "max",
    batch_size: int | None = None,
    scope: Scope | ScopeName = "all",
    special_in_pool: bool = False,
    format_in_pool: bool = False,
    overflow: Overflow = "truncate",
    intervention: Attachable | None = None,
    strength: Any = 1.0,
    of: Literal["given"] = "given",
    store: str | Path | None = None,
    store_dtype: StoreDtype = "float32",
    progress: bool = True,
    reduce: Literal["sketch"] | Sketching,
) -> ActivationSketch: ...


def collect(
    model: nn.Module,
    contrast: ContrastSet | LabelledTexts | TextStream,
    sites: SitePattern = "mlp.hook_post",
    *,
    pool: Pool = "max",
    batch_size: int | None = None,
    scope: Scope | ScopeName = "all",
    special_in_pool: bool = False,
    format_in_pool: bool = False,
    overflow: Overflow = "truncate",
    intervention: Attachable | None = None,
    strength: Any = 1.0,
    of: Literal["given", "generated"] = "given",
    store: str | Path | None = None,
    store_dtype: StoreDtype = "float32",
    progress: bool = True,
    reduce: Literal["sketch"] | Sketching | None = None,
    **sampling: Unpack[Sampling],
) -> Activations | ActivationSketch:
    """Run every text once and keep one value per text and unit, and the token moments of each side.

    With `of="generated"` every text is continued, as `generate` does it, and the values are those of the tokens that
    the model writes: row r is what `generate` gives for prompt r of the contrast (source texts first), with the same
    settings and seed, and the result's `continuations` hold it. A pair is continued behind its prompt, as if it had no
    completion. The values are those of a pass over (prompt, continuation) pairs; over the same words as a plain text an
    edit with a scope would act on other tokens, for a plain text counts as generated from its second token on. Rows
    that end before a token is written that a pool reads have no value: they are left out, with a warning that counts
    them, and the provenance names them (`silent`).

    Parameters
    ----------
    model:
        A TransformerLens model. Interventions that are attached to it take part.
    contrast:
        Source and target texts, or texts x labels, to rank many concepts in one pass; for a sketch also a stream of
        texts (`stream_texts`).
    sites:
        A pattern for `find_sites`.
    pool:
        max, mean, last or first over a text's tokens (a pair: over its completion).
    batch_size:
        Texts per batch; chosen by length when None. It changes nothing beyond rounding, also when an interrupted call
        is resumed with another one.
    scope:
        Which tokens the pools read; of generated ones, `Scope.of_steps(8)` is the first 8 of each row.
    special_in_pool, format_in_pool, overflow:
        See `tokenize`: whether BOS and whether the chat format's own words count, and what becomes of texts longer than
        the context. Of generated tokens: the format's words are none of them, EOS never counts, and texts that leave no
        room are refused.
    intervention, strength:
        An edit under which the texts run, beside what is attached already, and how much of it: one number, or one per
        text (source texts first).
    of:
        Whether the tokens are the given texts', or those that the model generates after them.
    store:
        A directory for the result, written in shards, so that memory holds one at a time. An interrupted call resumes
        there, a finished one is read back, and a damaged shard is run again. Batches are those of the store's first
        call where `batch_size` is the same: then a call that was killed ends with the bytes of one that was not.
        Processes that `torchrun` or `accelerate launch` started share the work, with the same bytes. What a model is
        known by is its fingerprint: hooks of your own that hang on the model see one pass over 16 tokens.
    store_dtype:
        In what the values are stored, float32, float16 or bfloat16; they are read back as float32.
    progress:
        Whether to show a progress bar.
    reduce:
        "sketch", or `Sketching(...)`, keeps counts per unit in the place of a value per text, so that memory does not
        grow with the texts: the result is an `ActivationSketch`, for `rank_experts`. With `store` it resumes too.
    sampling:
        With `of="generated"`, how: max_new_tokens, temperature, top_p, top_k, repetition_penalty, seed, as `generate`.

    Raises
    ------
    ContrastError, SettingError
        No contrast was given; there is no such pool; a batch size below 1; a setting of sampling without
        `of="generated"`, or the scope `prompt` with it.
    ActivationError
        A value is not finite (the site and the text are named), or no row of a side generated a token.
    SiteError, TokenError, ModelError
        As `find_sites` and `tokenize` say; the model is in training mode.
    OutputError
        `store` holds the activations of other texts, sites or settings, of another model (other weights, whatever its
        name), or of this one under other interventions or hooks.

    """
    require_settings(collect, locals())
    require_eval(model)
    checked_pool(pool)
    size = checked_batch_size(batch_size)
    texts = contrast if isinstance(contrast, TextStream) else labelled(contrast)
    progress = progress and (store is None or process_number() == 0)
    chosen = find_sites(model, sites)
    meant = as_scope(scope)
    continued = None
    if isinstance(texts, TextStream) and reduce is None:
        raise SettingError('a stream of texts is not held in memory: give reduce="sketch", or read_contrast(...)')
    if of == "generated":
        if reduce is not None or isinstance(texts, TextStream):
            raise SettingError('a sketch is of given texts: leave of="generated" or reduce= away')
        continued = continued_texts(model, texts, meant, sampling, special_in_pool=special_in_pool)
    elif sampling:
        raise SettingError(f'collect: {", ".join(sampling)} goes with of="generated": given texts are not sampled')

    def tokens_of(rows: Sequence[Row], numbers: Sequence[int] | None = None) -> Tokens:
        return tokenize(
            model,
            rows,
            chat=texts.chat,
            scope=meant,
            special_in_pool=special_in_pool,
            format_in_pool=format_in_pool,
            overflow=overflow,
            numbers=numbers,
        )

    with edited(model, intervention, strength):
        provenance = {
            **host_of(model).provenance,
            "fingerprint": model_fingerprint(model, users_hooks=store is not None).content(),
            "data": texts.data_hash,
            "pool": pool,
            "scope": repr(meant),
            "format": "pooled" if format_in_pool else "not pooled" if texts.chat else "none",
            "bos": "pooled" if special_in_pool else "not pooled" if host_of(model).prepends_bos else "none",
            "batch": size or "by length",
            **_edit_provenance(intervention, strength),
            **(continued.provenance if continued else {}),
        }
        if reduce is not None or isinstance(texts, TextStream):
            known = _without_values(chosen, texts, pool, provenance)
            settings = reduce if isinstance(reduce, Sketching) else Sketching()
            rows = texts.rows if isinstance(texts, TextStream) else partial(iter, texts.texts)
            plan = {**_plan(provenance, chosen), "sketch": sketch_plan(settings)}
            if store is not None:
                plan["tokens"] = _first_tokens(rows(), tokens_of)
            with nullcontext() if store is None else open_store(Path(store), plan, size) as saved:
                return sketch_texts(
                    model, rows, tokens_of, known, settings, batch_size=size, saved=saved, progress=progress
                )
        table, labels = texts, torch.from_numpy(texts.labels.copy())

        def given() -> Tokens:
            return tokens_of(table.texts)

        def rows_of(rows: Sequence[int] | None) -> PooledRows:
            return PooledRows(chosen, labels, pool, rows)

        if store is None:
            if continued is not None:
                return collect_generated(model, continued, rows_of(None), provenance, size, progress=progress)
            return collect_given(model, texts, given(), rows_of(None), provenance, size, progress=progress)
        how: Any = {"sites": chosen, "pool": pool, "dtype": getattr(torch, store_dtype), "progress": progress}
        prompts = None if continued is None else continued.prompts.ids[:_FIRST]
        first = _first_tokens(texts.texts, tokens_of) if prompts is None else _digest(prompts)
        plan = {**_plan(provenance, chosen), "stored as": store_dtype, "tokens": first}
        with open_store(Path(store), plan, size) as saved:
            if continued is not None:
                return store_generated(model, continued, rows_of, provenance, size, saved=saved, **how)
            return store_given(model, texts, given, rows_of, provenance, size, saved=saved, **how)


StoreDtype = Literal["float32", "float16", "bfloat16"]
_FIRST = 256  # texts whose tokens a store is known by
_NAMES = ("model", "revision", "origin", "batch")  # of the provenance: they change nothing that is collected


def _edit_provenance(intervention: Attachable | None, strength: Any) -> dict[str, Any]:
    """Return what names the edit that was given; what it does is in the fingerprint."""
    if intervention is None:
        return {}
    about = getattr(intervention, "provenance", {})
    named = {name: about[name] for name in ("method", "seed") if name in about}
    return {"edit": {**named, "strength": torch.as_tensor(strength, dtype=torch.float64).tolist()}}


def _without_values(
    sites: tuple[Site, ...], texts: LabelledTexts | TextStream, pool: Pool, provenance: Mapping[str, Any]
) -> Activations:
    """Return activations that know their texts and hold no values."""
    return Activations(
        values=valueless(sites, len(texts.labels)),
        labels=torch.from_numpy(texts.labels.copy()),
        concepts=texts.concepts,
        pool=pool,
        provenance=provenance,
        blocks=torch.tensor(texts.blocks),
        hashes=torch.from_numpy(texts.forms if isinstance(texts, TextStream) else known_forms(texts.texts)),
    )


def _first_tokens(rows: Iterable[Row], tokens_of: Callable[[Sequence[Row]], Tokens]) -> str:
    """Return a hash of the first texts' tokens: by these another tokenizer is known."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LensSteerWarning)  # of texts that are cut the pass itself warns
        tokens = tokens_of(list(islice(rows, _FIRST)))
    return _digest((tokens.ids, tokens.pooled))


def _digest(content: object) -> str:
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _plan(provenance: Mapping[str, Any], sites: Sequence[Site]) -> dict[str, Any]:
    """Return what identifies a pass: with the same plan it gives the same activations."""
    kept = {name: value for name, value in provenance.items() if name not in _NAMES}
    return {**kept, "sites": [site.name for site in sites]}
