"""Identity: what an edit is, where it acts, what it has seen, and whether it can be folded into the weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import nn

from lens_steer.interventions.folding import why_not_bakeable
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine

_MOST_SITES = 4
_MOST_SETTINGS = 12
_QUIET = {"progress", "batch_size", "micro_batch"}  # settings that change nothing
_TOL = 1e-5

Facts = tuple[tuple[str, str], ...]


def facts_of(model: nn.Module, edit: Intervention, *, strength: float) -> Facts:
    """Return what an edit is, as pairs of a word and what there is to say."""
    about = edit.provenance
    support = edit.support()
    moved = support[support["kept"] > 0]
    units = f"{int(moved['kept'].sum()):,} of {int(support['units'].sum()):,}"
    facts = [
        ("Method", _method(about)),
        ("Strength", f"{strength:g} of the edit as it is saved"),
        ("Sites", _sites(edit)),
        ("Units moved", f"{units}, at {len(moved)} of {len(support)} edits"),
        ("Parameters", f"{sum(_parameters(one.map) for one in edit.edits):,}"),
        ("Tokens", ", ".join(dict.fromkeys(str(one.scope) for one in edit.edits)) + _gates(edit)),
        ("Bakes", _bakes(model, edit)),
        ("Fitted on", _seen(about)),
        ("Model", _model(about)),
    ]
    return tuple(facts)


def _method(about: Mapping[str, Any]) -> str:
    name = str(about.get("method", "not said"))
    settings = about.get("settings") or {}
    plain = {
        key: value for key, value in settings.items() if key not in _QUIET and isinstance(value, str | int | float)
    }
    shown = ", ".join(f"{key} {value}" for key, value in list(plain.items())[:_MOST_SETTINGS])
    return f"{name} ({shown})" if shown else name


def _sites(edit: Intervention) -> str:
    names = [site.name for site in edit.sites]
    more = f" and {len(names) - _MOST_SITES} more" if len(names) > _MOST_SITES else ""
    return ", ".join(names[:_MOST_SITES]) + more


def _gates(edit: Intervention) -> str:
    gated = sum(one.gate is not None for one in edit.edits)
    return f"; {gated} of {len(edit.edits)} edits behind a gate" if gated else ""


def _parameters(edit_map: nn.Module) -> int:
    """How many numbers a map holds that are not those of the identity."""
    if isinstance(edit_map, DiagonalAffine):
        return int(((edit_map.scale - 1).abs() > _TOL).sum() + (edit_map.shift.abs() > _TOL).sum())
    return int(sum(value.numel() for value in edit_map.buffers() if torch.is_floating_point(value)))


def _model(about: Mapping[str, Any]) -> str:
    """Name, revision and dtype; of a directory its own name alone."""
    named = PurePath(str(about.get("model", "unnamed")))
    parts = [named.name if named.is_absolute() else str(named), about.get("revision"), about.get("dtype")]
    return " ".join(str(part) for part in parts if part)


def _bakes(model: nn.Module, edit: Intervention) -> str:
    obstacle = why_not_bakeable(edit.edits, model)
    return "yes, into the weights of a plain Hugging Face model" if obstacle is None else f"no: {obstacle}"


def _seen(about: Mapping[str, Any]) -> str:
    texts = about.get("texts")
    if not isinstance(texts, Mapping):
        return "not said: nothing tells which texts it was made from"
    counts = " + ".join(f"{count} {side}" for side, count in texts.items())
    return f"{counts} texts of {about.get('contrast', 'a contrast')} (data {str(about.get('data', ''))[:12]})"
