"""Steering vectors in and out: what other libraries add to the residual stream, as an intervention and back."""

from __future__ import annotations

import math
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from lens_steer.directories import require_new_file
from lens_steer.errors import ArtifactError, MapError, SettingError, SiteError
from lens_steer.host.adapter import host_of
from lens_steer.host.sites import find_sites, split_name
from lens_steer.interventions.edit import Edit
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.interventions.vector_files import DECODER_BLOCK, RESIDUAL, vectors_in, write_gguf, write_safetensors
from lens_steer.settings import require_settings

_OUTPUT_OF_LAYER = (RESIDUAL, "hook_out")
_HINTS = {"self_attn": "hook_attn_out", "mlp": "hook_mlp_out"}


def read_vectors(source: Any, model: nn.Module, *, kind: str | None = None) -> Intervention:
    """Return the intervention that adds one vector per layer, as repeng, steering-vectors and llama.cpp do.

    At strength s it adds s times the vector to every token, BOS and the prompt included (`scoped` narrows that).

    Parameters
    ----------
    source:
        A GGUF control vector (repeng, llama.cpp), safetensors, JSON or npz with a vector per layer; a dict {layer:
        vector}; or a repeng `ControlVector` or a `SteeringVector` in hand. Layers are counted from 0; negative ones
        from the last.
    model:
        The model that the vectors are for: the intervention takes its fingerprint, as no file has one.
    kind:
        The kind of sites at which the vectors are added. None: what the source says, else the output of the layer,
        `hook_resid_post`.

    Raises
    ------
    ArtifactError
        The source is damaged, is no source of vectors, or is a pickle, which is never opened; vectors have another
        width than the sites.
    SiteError
        The model lacks a layer or the kind; the source's kind of place (`layer_type`) has no one hook.
    ModelError
        A GGUF file is damaged, or the `gguf` package is missing.

    """
    require_settings(read_vectors, locals())
    vectors = vectors_in(Path(source) if isinstance(source, PathLike) else source)
    if kind is not None and vectors.kind not in (None, kind):
        raise SiteError(f"these vectors are for {vectors.kind}, not for {kind}")
    place = kind or vectors.kind or (RESIDUAL if vectors.layer_type == DECODER_BLOCK else None)
    if place is None:
        known = _HINTS.get(vectors.layer_type, "a kind of find_sites")
        raise SiteError(
            f"these vectors are for layers' {vectors.layer_type!r}: say at which hooks they are added, kind={known!r}"
        )
    sites = {site.layer: site for site in find_sites(model, place)}
    count = host_of(model).n_layers
    edits: dict[int, Edit] = {}
    for given, vector in vectors.by_layer.items():
        layer = given + count if given < 0 else given
        if layer not in sites:
            raise SiteError(f"there is a vector for layer {given}; this model has {count} layers, from 0, with {place}")
        if layer in edits:
            raise ArtifactError(f"there are two vectors for layer {layer}, of which one is called {layer - count}")
        site = sites[layer]
        if len(vector) != site.width:
            raise ArtifactError(
                f"the vector of layer {given} has {len(vector)} numbers, {site.name} has {site.width} units: it was "
                "made on another model"
            )
        edits[layer] = Edit(site, DiagonalAffine(torch.ones(site.width), torch.from_numpy(vector)))
    return Intervention.fitted(model, [edits[layer] for layer in sorted(edits)], method="read_vectors", **vectors.about)


def write_vectors(edit: Intervention, path: str | PathLike[str], *, strength: float = 1.0) -> Path:
    """Write an edit that only adds to the residual stream as a file that others read; return its path.

    `.gguf`: a control vector for llama.cpp (`--control-vector FILE`) and repeng. `.safetensors`: tensors
    `blocks.N.hook_resid_post`, float32, [unit]. Both are added to the output of layer N, counted from 0, of every
    token, and both are read by `read_vectors`. Vectors of one layer are added up, and multiplied by `strength`.

    Raises
    ------
    MapError
        The edit does more than add the same to all tokens' residual streams: what is in the way is named.
    SettingError
        The suffix is another one, the strength is not finite, or layer 0 is edited and the file a control vector.
    OutputError
        There is a file already, or it cannot be written.

    """
    require_settings(write_vectors, locals())
    place = Path(path).expanduser()
    if place.suffix.lower() not in (".gguf", ".safetensors"):
        raise SettingError(f"{place}: vectors are written to .gguf (llama.cpp, repeng) or .safetensors")
    if not math.isfinite(strength):
        raise SettingError(f"strength must be finite, not {strength}")
    require_new_file(place)
    by_layer = _added(edit, strength)
    about = edit.provenance
    hint = str(about.get("model_hint") or Path(str(about.get("model", ""))).name or "unknown")
    if place.suffix.lower() == ".gguf":
        write_gguf(place, by_layer, hint)
    else:
        write_safetensors(place, by_layer, hint, str(about.get("method", "intervention")))
    return place


def _added(edit: Intervention, strength: float) -> dict[int, Float[np.ndarray, " unit"]]:
    """What is added to the output of each layer; MapError for an edit that does anything else."""
    by_layer: dict[int, Float[np.ndarray, " unit"]] = {}
    for one in edit.edits:
        if reason := _in_the_way(one):
            raise MapError(
                f"{one.site.name}: {reason}; a file of vectors adds the same to every token, `save` keeps all"
            )
        layer = split_name(one.site.name)[0]
        shift = one.map.tensors()["shift"].numpy() * np.float32(strength)
        by_layer[layer] = by_layer.get(layer, np.zeros_like(shift)) + shift
    return dict(sorted(by_layer.items()))


def _in_the_way(edit: Edit) -> str | None:
    """Why an edit is no vector that is added to the output of a layer; None where it is one."""
    if split_name(edit.site.name)[1] not in _OUTPUT_OF_LAYER:
        return 'it is not the output of a layer (fit with sites="hook_resid_post")'
    if not isinstance(edit.map, DiagonalAffine):
        return f"its map is a {type(edit.map).__name__} and no shift"
    if scaled := int((edit.map.scale != 1).sum()):
        return f"{scaled} units are scaled, not only shifted"
    if (obstacle := edit.map.obstacle()) is not None:
        return obstacle.reason
    if not edit.scope.is_all:
        return f"it is for the tokens '{edit.scope}' only (edit.scoped(\"all\") is for all)"
    if edit.gate is not None:
        return "a gate decides for which rows it is"
    return None
