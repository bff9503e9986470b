"""Collecting: texts through the trunk in length-sorted batches, each site pooled as it passes and then forgotten.

What a model writes itself is read in the run that writes it: see `lens_steer.activations.generated`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack, overload

import torch
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.activations.by_site import BySite
from lens_steer.activations.generated import collect_generated, continued_texts
from lens_steer.activations.pooled_rows import PooledRows
from lens_steer.activations.pooling import Pool, checked_pool
from lens_steer.activations.sketch import ActivationSketch, Sketching, sketch_texts
from lens_steer.activations.store import UnfinishedPass
from lens_steer.errors import ActivationError, ContrastError, SettingError, require_choice
from lens_steer.host.adapter import host_of
from lens_steer.host.attach import Attachable, edited
from lens_steer.host.decode import Sampling
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
    intervention: Attachable | None = None,
    strength: Any = 1.0,
    of: Literal["given", "generated"] = "given",
    store: str | Path | None = None,
    progress: bool = True,
    reduce: None = None,
    **sampling: Unpack[Sampling],
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
    of: Literal["given", "generated"] = "given",
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
    intervention: Attachable | None = None,
    strength: Any = 1.0,
    of: Literal["given", "generated"] = "given",
    store: str | Path | None = None,
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
        Source and target texts, or texts x labels, to rank many concepts in one pass.
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
        A directory for the result. An interrupted call resumes there, and a finished one is read back. What is known by
        it is the model's fingerprint: hooks of your own that hang on the model see one pass over 16 tokens.
    progress:
        Whether to show a progress bar.
    reduce:
        "sketch", or `Sketching(...)`, keeps counts per unit in the place of a value per text, so that memory does not
        grow with the texts: the result is an `ActivationSketch`, for `rank_experts`. It is not stored.
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
    require_eval(model)
    checked_pool(pool)
    size = checked_batch_size(batch_size)
    require_choice("collect: of", of, Literal["given", "generated"])
    texts = _labelled(contrast)
    chosen = find_sites(model, sites)
    meant = as_scope(scope)
    continued = None
    if of == "generated":
        continued = continued_texts(model, texts, meant, sampling, special_in_pool=special_in_pool)
    elif sampling:
        raise SettingError(f'collect: {", ".join(sampling)} goes with of="generated": given texts are not sampled')
    if reduce is not None and (store is not None or continued is not None):
        raise SettingError('a sketch is of given texts, and not stored: leave store=, of="generated" or reduce= away')

    def given() -> Tokens:
        return tokenize(
            model,
            texts.texts,
            chat=texts.chat,
            scope=meant,
            special_in_pool=special_in_pool,
            format_in_pool=format_in_pool,
            overflow=overflow,
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
        if reduce is not None:
            known = _without_values(chosen, texts, pool, provenance)
            settings = Sketching() if reduce == "sketch" else reduce
            return sketch_texts(model, given(), known, settings, batch_size=size, progress=progress)
        saved = None if store is None else UnfinishedPass(Path(store), _plan(provenance, chosen))
        if saved is not None and saved.finished:
            return Activations.load(saved.directory)
        rows = PooledRows(chosen, torch.from_numpy(texts.labels.copy()), pool)
        if continued is not None:
            activations = collect_generated(model, continued, rows, provenance, size, saved=saved, progress=progress)
        else:
            tokens = given()
            _run(model, tokens, rows, size, saved, progress)
            activations = rows.activations(texts, [sum(row) for row in tokens.pooled], provenance)
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


def _edit_provenance(intervention: Attachable | None, strength: Any) -> dict[str, Any]:
    """Return what names the edit that was given; what it does is in the fingerprint."""
    if intervention is None:
        return {}
    about = getattr(intervention, "provenance", {})
    named = {name: about[name] for name in ("method", "seed") if name in about}
    return {"edit": {**named, "strength": torch.as_tensor(strength, dtype=torch.float64).tolist()}}


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
    collected: PooledRows,
    batch_size: int | None,
    saved: UnfinishedPass | None,
    progress: bool,
) -> None:
    """Run the texts that no shard holds yet."""
    if saved is not None:
        collected.restore(saved)
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
