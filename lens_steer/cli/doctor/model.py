"""The model on this host: what it is, whether its sites can be written and are left as they were, and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lens_steer.cli.doctor.check import Check
from lens_steer.errors import LensSteerError
from lens_steer.host.adapter import Host, host_of
from lens_steer.host.guards import check_edit_sites
from lens_steer.host.scope import special_ids
from lens_steer.host.sites import Site, find_sites
from lens_steer.host.tokens import tokenize
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine

_STREAM = "hook_resid_post"
_KINDS = (_STREAM, "mlp.hook_post", "hook_mlp_out", "hook_attn_out", "attn.hook_z")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # names of one thing in configs
_TOKENS = 12


def facts_of(model: Any) -> dict[str, Any]:
    """Return what a bug report needs to know of a model; no path."""
    host, cfg = host_of(model), model.cfg
    config = getattr(getattr(model, "original_model", None), "config", None)
    return {
        "architecture": str(
            getattr(config, "model_type", "") or getattr(cfg, "original_architecture", "") or "unknown"
        ),
        "layers": host.n_layers,
        "width": int(cfg.d_model),
        "heads": int(cfg.n_heads),
        "vocabulary": host.vocabulary,
        "context": host.context,
        "parameters": sum(one.numel() for one in {id(one): one for one in model.parameters()}.values()),
        "host": host.kind,
        "weights": host.weight_processing,
        "dtype": str(host.dtype).removeprefix("torch."),
        "device": str(host.device),
    }


def check_traps(model: Any) -> Iterator[Check]:
    """Name what is known to surprise with models like this one."""
    host = host_of(model)
    config = getattr(getattr(model, "original_model", None), "config", None)
    experts = next((count for name in _EXPERTS if (count := getattr(config, name, None))), None)
    if experts and experts > 1:
        detail = f"a mixture of {experts} experts: the units of one expert see the tokens that are routed to it alone"
        yield Check("mixture of experts", "note", detail, "edit hook_resid_post or hook_mlp_out")
    if host.weight_processing != "raw":
        detail = f"the weights are processed ({host.weight_processing}): edits fitted here are refused on the raw model"
        yield Check("weights", "note", detail)
    if host.dtype != torch.float32:
        detail = f"weights are kept as {str(host.dtype).removeprefix('torch.')}: values are rounded to 2 or 3 digits"
        yield Check("precision", "note", detail, "give --dtype float32 where a difference is small")


def check_sites(model: Any) -> Iterator[Check]:
    """Try a write at every site of the usual kinds."""
    writable, refused = [], {}
    for kind in _KINDS:
        try:
            check_edit_sites(model, find_sites(model, kind))
            writable.append(kind)
        except (LensSteerError, RuntimeError) as error:  # what a foreign hook or model raises
            refused[kind] = str(error)
    if _STREAM in refused:
        yield Check("sites", "fault", f"{_STREAM} cannot be written: {refused.pop(_STREAM)}", "nothing can be steered")
    else:
        yield Check("sites", "ok", f"can be written: {', '.join(writable)}")
    for kind, why in refused.items():
        yield Check("sites", "note", f"{kind} cannot be written on this model: {why}")


def check_edit(model: Any) -> Iterator[Check]:
    """Attach an edit: it must move the logits, at strength 0 leave them to the bit, and be gone when it is left."""
    host = host_of(model)
    site = find_sites(model, _STREAM)[host.n_layers // 2]
    ids = host.probe_ids(_TOKENS)
    before = _logits(host, ids)
    if not torch.equal(before, _logits(host, ids)):
        yield Check(
            "edits", "note", "this device does not give the same logits twice, so that no edit can be told exactly"
        )
        return
    edit = Intervention((Edit(site, _shift(model, site, ids)),))
    try:
        with edit.on(model, 0.0):
            at_zero = _logits(host, ids)
        with edit.on(model):
            inside = _logits(host, ids)
    except (LensSteerError, RuntimeError) as error:
        yield Check("edits", "fault", f"no edit can be attached at {site}: {error}")
        return
    after = _logits(host, ids)
    moved = float((inside - before).abs().max())
    if not moved > 1e-6 * float(before.abs().max()):
        yield Check("edits", "fault", f"a shift at {site} does not move the logits: hooks do not act here")
    elif not torch.equal(at_zero, before):
        yield Check("edits", "fault", f"an edit at {site} acts at strength 0, where it must change nothing")
    elif not torch.equal(after, before):
        yield Check("edits", "fault", f"an edit at {site} is still felt after it was left: the model stays changed")
    else:
        yield Check(
            "edits", "ok", f"a shift at {site} moves the logits by up to {moved:.3g}, and is gone to the bit after"
        )


def _logits(host: Host, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return host.logits(ids, torch.ones_like(ids, dtype=torch.bool)).float().cpu()


def _shift(model: Any, site: Site, ids: Tensor) -> DiagonalAffine:
    """Return a shift of the stream's own spread there, another in every unit."""
    host, seen = host_of(model), []
    with torch.no_grad(), host.hooks([(site.name, lambda tensor, hook: seen.append(tensor.float().std()))]):
        host.trunk(ids, torch.ones_like(ids, dtype=torch.bool))
    size = float(seen[0]) if seen else 1.0
    noise = torch.randn(site.width, generator=torch.Generator().manual_seed(0))
    return DiagonalAffine(torch.ones(site.width), size * noise)


def check_tokenizer(model: Any) -> Iterator[Check]:
    """Look for the traps of tokenizers: BOS twice, templates, pads that are felt, offsets."""
    host = host_of(model)
    tokenizer = host.tokenizer
    text = tokenizer.decode(host.probe_ids(_TOKENS)[0].tolist(), skip_special_tokens=True).strip() or "a"
    template = bool(getattr(tokenizer, "chat_template", None))
    bos = tokenizer.bos_token_id
    parts = [
        f"BOS {'is put in front of every text' if host.prepends_bos else 'is not added'}",
        "has a chat template" if template else "has no chat template",
        f"pads on the {tokenizer.padding_side} by itself (lens_steer pads on the right for reading, and masks)",
    ]
    twice = []
    for name, chat in (("a text", None), *((("a chat", True),) if template else ())):
        ids = tokenize(model, [text], chat=chat).ids[0]
        if bos is not None and list(ids[:2]) == [bos, bos]:
            twice.append(name)
    if twice:
        yield Check("tokenizer", "fault", f"{' and '.join(twice)} begin with two BOS tokens: {'; '.join(parts)}")
    else:
        yield Check("tokenizer", "ok", "; ".join(parts))
    if template:
        yield Check(
            "chat", "note", "this is a chat model", "give --chat template, or texts are not what it was tuned on"
        )
    if not tokenizer.is_fast:
        yield Check("offsets", "note", "a slow tokenizer tells no offsets: lens_steer finds them, which takes longer")
    elif lost := _lost_by_offsets(tokenizer, text):
        yield Check("offsets", "fault", f"the tokenizer's offsets leave out {lost} characters of a text")
    yield _check_padding(host)


def _lost_by_offsets(tokenizer: Any, text: str) -> int:
    """Return how many characters that are no blanks lie in no token."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    unknown = special_ids(tokenizer)
    covered = {place for start, stop in encoding.offset_mapping for place in range(start, stop)}
    if any(token in unknown for token in encoding.input_ids):
        return 0  # a special token in the middle of a probe is its own affair
    return sum(not letter.isspace() and place not in covered for place, letter in enumerate(text))


def _check_padding(host: Host) -> Check:
    """Read a short text alone, and with pads on its right and on its left beside longer ones: they must not be felt."""
    ids = host.probe_ids(_TOKENS)
    short = _TOKENS // 2
    alone = _read(host, ids[:, :short], [0])
    on_the_right = _read(host, ids.expand(2, -1), [0, -short])[1:, :short]
    shifted = torch.cat([ids[:, short:], ids[:, :short]], 1)
    on_the_left = _read(host, torch.cat([ids, shifted]), [0, short])[1:, short:]
    size = float(alone.abs().max())
    differences = [float((alone - padded).abs().max()) / size for padded in (on_the_right, on_the_left)]
    if max(differences) > (1e-4 if host.dtype == torch.float32 else 0.05):
        side = "right" if differences[0] > differences[1] else "left"
        detail = f"a text's logits move by {max(differences):.2g} of their size when it is padded on the {side}"
        return Check("padding", "fault", detail, "give --batch-size 1")
    return Check("padding", "ok", f"is not felt on either side (logits differ by {max(differences):.1g} of their size)")


def _read(host: Host, ids: Tensor, pads: list[int]) -> Tensor:
    """Return logits of rows that have so many pads on their left, or (below 0) on their right."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    for row, count in enumerate(pads):
        mask[row, : max(count, 0)] = False
        mask[row, ids.shape[1] + min(count, 0) :] = False
    with torch.no_grad():
        return host.logits(ids, mask).float()
