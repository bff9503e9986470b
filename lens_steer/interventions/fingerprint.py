"""What identifies an intervention and the model it was fitted on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch
from torch import nn

from lens_steer.errors import ArtifactError, SiteError
from lens_steer.host.adapter import host_of
from lens_steer.host.fingerprint import SiteReading, compare_fingerprints, read_fingerprint
from lens_steer.host.sites import Site
from lens_steer.interventions.edit import Edit


def content_hash(edits: Sequence[Edit], strengths: float | tuple[float, ...]) -> str:
    """Return a short hash of what edits do at a strength: sites, maps, scopes, gates; empty for strength 0."""
    if strengths == 0.0:
        return ""
    digest = hashlib.sha256()
    for edit in edits:
        gate = None if edit.gate is None else edit.gate.spec()
        about = {"site": edit.site.name, "map": edit.map.spec(), "scope": asdict(edit.scope), "gate": gate}
        digest.update(json.dumps(about, sort_keys=True, default=str).encode())
        tensors = dict(edit.map.tensors())
        if edit.gate is not None:
            tensors["gate"] = edit.gate.direction
        for name, value in sorted(tensors.items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().float().numpy().tobytes())
    digest.update(repr(strengths).encode())
    return digest.hexdigest()[:16]


def require_same_model(
    model: nn.Module, expected: Mapping[str, SiteReading], sites: Sequence[Site], *, dtype: str
) -> None:
    """Raise ArtifactError if the model's edited sites are not those of the fingerprint, taken in `dtype`.

    SiteError where it has no such site. A model is tried once, and again after its weights changed.
    """
    host = host_of(model)
    host.refresh()
    key = hash(tuple(sorted(expected.items(), key=lambda item: item[0])))
    if not expected or key in host.checked_fingerprints:
        return
    try:
        reading = read_fingerprint(model, sites)
    except SiteError as error:
        raise SiteError(f"this intervention was fitted on another model: {error}") from error
    difference = compare_fingerprints(expected, reading, float32=dtype == "float32" and host.dtype == torch.float32)
    if difference:
        raise ArtifactError(
            f"this intervention was fitted on other weights: {difference}. Load the model it names (its provenance), "
            "or pass check_model=False to use it here all the same"
        )
    host.checked_fingerprints.add(key)
