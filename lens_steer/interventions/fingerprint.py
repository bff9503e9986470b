"""Fingerprints: what edited sites look like on fixed token ids, to tell one set of weights from another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lens_steer.errors import ArtifactError
from lens_steer.host.adapter import host_of
from lens_steer.host.sites import Site
from lens_steer.host.tokens import TokenBatch
from lens_steer.host.trunk import Visit, trunk

_TOKENS = 16
_SAMPLES = 16
# Tolerances of (means, single values), in shares of a site's spread. Between float32 models the hosts differ by 1e-5,
# and centred weights move a token's mean over units by 0.036 and more. A half-precision copy moves single values by up
# to 0.3, on the models measured; other weights by about 1.4.
_FLOAT32 = (0.02, 0.02)
_OTHERWISE = (0.1, 0.5)


@dataclass(frozen=True)
class SiteReading:
    """One site on the probe: mean and spread of its values, the mean over units of each token, some single values."""

    mean: float
    spread: float
    token_means: tuple[float, ...]
    sample: tuple[float, ...]


def read_fingerprint(model: nn.Module, sites: Sequence[Site]) -> dict[str, SiteReading]:
    """Return site name -> reading, from one pass over fixed token ids."""
    readings: dict[str, SiteReading] = {}

    def reader(site: Site) -> Visit:
        def read(activation: Tensor, batch: TokenBatch) -> None:
            values = activation[0].float().cpu()
            flat = values.flatten()
            chosen = torch.linspace(0, flat.numel() - 1, _SAMPLES).long()
            token_means, sample = (tuple(round(float(v), 6) for v in part) for part in (values.mean(1), flat[chosen]))
            readings[site.name] = SiteReading(float(values.mean()), float(values.std()), token_means, sample)

        return read

    host = host_of(model)
    ids = host.probe_ids(_TOKENS)
    real = torch.ones_like(ids, dtype=torch.bool)
    distinct = {site: reader(site) for site in sites}
    # Of the bare model: an intervention that is attached while another is tried or fitted must not show.
    with torch.no_grad(), host.bare(), trunk(model, distinct) as run:
        run(TokenBatch(ids, real, real))
    return readings


def compare_fingerprints(
    expected: Mapping[str, SiteReading], found: Mapping[str, SiteReading], *, float32: bool = True
) -> str:
    """Say which sites differ beyond what dtype and host explain; empty if none does.

    `float32` says whether both models compute in float32; otherwise only other weights are told apart, not folded ones.
    """
    tolerances = _FLOAT32 if float32 else _OTHERWISE
    different = [name for name in expected if not _alike(expected[name], found[name], *tolerances)]
    if not different:
        return ""
    first = different[0]
    there, here = expected[first], found[first]
    return (
        f"{len(different)} of {len(expected)} edited sites differ, first {first}: mean {there.mean:.4g} and spread "
        f"{there.spread:.4g} where it was fitted, {here.mean:.4g} and {here.spread:.4g} here"
    )


def require_same_model(
    model: nn.Module, expected: Mapping[str, SiteReading], sites: Sequence[Site], *, dtype: str
) -> None:
    """Raise ArtifactError if the model's edited sites are not those of the fingerprint, taken in `dtype`.

    A model is tried once.
    """
    host = host_of(model)
    key = hash(tuple(sorted(expected.items(), key=lambda item: item[0])))
    if not expected or key in host.checked_fingerprints:
        return
    difference = compare_fingerprints(
        expected, read_fingerprint(model, sites), float32=dtype == "float32" and host.dtype == torch.float32
    )
    if difference:
        raise ArtifactError(
            f"this intervention was fitted on other weights: {difference}. Load the model it names (its provenance), "
            "or pass check_model=False to use it here all the same"
        )
    host.checked_fingerprints.add(key)


def _alike(one: SiteReading, other: SiteReading, mean_tolerance: float, value_tolerance: float) -> bool:
    spread = max(one.spread, 1e-6)
    means = zip((one.mean, *one.token_means), (other.mean, *other.token_means), strict=True)
    values = zip((one.spread, *one.sample), (other.spread, *other.sample), strict=True)
    return all(abs(a - b) <= mean_tolerance * spread for a, b in means) and all(
        abs(a - b) <= value_tolerance * spread for a, b in values
    )
