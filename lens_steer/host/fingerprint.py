"""Fingerprints: what a model's sites look like on fixed token ids, to tell one set of weights from another.

Names do not identify a model: checkpoints of one training, two models made in memory and a model whose weights changed
in place all share one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lens_steer.host.adapter import Host, host_of
from lens_steer.host.sites import Site
from lens_steer.host.trunk import flatten_heads

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

    @classmethod
    def rebuilt(cls, content: Mapping[str, Any]) -> SiteReading:
        """Return the reading that `asdict` wrote."""
        return cls(content["mean"], content["spread"], tuple(content["token_means"]), tuple(content["sample"]))


@dataclass(frozen=True)
class ModelFingerprint:
    """A whole model as it runs: the stream after some of its blocks and its logits, the dtype, and what is attached.

    `readings` maps a hook point (or "logits") to its reading on the probe; `edits` are the content hashes of the
    interventions that are on, outermost first.
    """

    readings: Mapping[str, SiteReading]
    dtype: str
    edits: tuple[str, ...] = ()

    def content(self) -> dict[str, Any]:
        """Return it as plain data, for JSON."""
        readings = {name: asdict(reading) for name, reading in self.readings.items()}
        return {"readings": readings, "dtype": self.dtype, "edits": list(self.edits)}

    @classmethod
    def rebuilt(cls, content: Mapping[str, Any]) -> ModelFingerprint:
        """Return the fingerprint that `content` describes."""
        readings = {name: SiteReading.rebuilt(reading) for name, reading in content["readings"].items()}
        return cls(readings, str(content["dtype"]), tuple(content["edits"]))

    def difference(self, other: ModelFingerprint) -> str:
        """Say how `other` differs from this beyond what dtype and host explain; empty if it does not."""
        if self.edits != other.edits:
            return f"{_count(self.edits)} attached there, {_count(other.edits)} here"
        if self.readings.keys() != other.readings.keys():
            return "their layers differ"
        float32 = self.dtype == other.dtype == "float32"
        return compare_fingerprints(self.readings, other.readings, float32=float32, what="probed places")


def model_fingerprint(model: nn.Module, *, users_hooks: bool = False) -> ModelFingerprint:
    """Return what identifies `model` as it runs now, the interventions that are attached to it included.

    Two models that differ in weights, or in what is attached, have fingerprints whose `difference` is not empty,
    whatever their names; the same weights on another host or in another dtype have none. What hangs on the model as a
    plain hook takes part only with `users_hooks`: it then sees one pass over 16 tokens. One pass per state of the
    weights; repeated calls cost next to nothing.
    """
    host = host_of(model)
    host.refresh()
    if users_hooks or "model" not in host.readings:
        readings = _read_model(host, bare=not users_hooks)
        if not users_hooks:
            host.readings["model"] = readings
    else:
        readings = host.readings["model"]
    edits = tuple(content for attached in host.attached if (content := attached()))
    return ModelFingerprint(readings, str(host.dtype).removeprefix("torch."), edits)


@contextmanager
def identified(model: nn.Module, content: Callable[[], str]) -> Iterator[None]:
    """Let what is attached inside be part of the model's fingerprint, as the hash that `content` gives when asked."""
    attached = host_of(model).attached
    attached.append(content)
    try:
        yield
    finally:
        attached.remove(content)


def read_fingerprint(model: nn.Module, sites: Sequence[Site]) -> dict[str, SiteReading]:
    """Return site name -> reading of the bare model, from one pass over fixed token ids."""
    host = host_of(model)
    return _read(host, [site.name for site in dict.fromkeys(sites)], bare=True)


def _read_model(host: Host, *, bare: bool) -> dict[str, SiteReading]:
    layers = sorted({0, host.n_layers // 2, host.n_layers - 1})
    names = [f"blocks.{layer}.{kind}" for layer in layers for kind in ("hook_resid_post", "hook_out")]
    points: dict[str, str] = {}
    for name in names:
        if name in host.hook_names:
            points.setdefault(host.canonical(name), name)
    return _read(host, list(points.values()), bare=bare, logits=True)


def _read(host: Host, names: Sequence[str], *, bare: bool, logits: bool = False) -> dict[str, SiteReading]:
    readings: dict[str, SiteReading] = {}

    def reader(name: str) -> Callable[..., None]:
        def read(tensor: Tensor, hook: Any) -> None:
            readings[name] = _reading(flatten_heads(tensor))

        return read

    ids = host.probe_ids(_TOKENS)
    real = torch.ones_like(ids, dtype=torch.bool)
    # An intervention that is attached while another is tried or fitted must not show, and keeps no count of the probe.
    with torch.no_grad(), host.bare() if bare else host.silent(), host.hooks((name, reader(name)) for name in names):
        if logits:
            readings["logits"] = _reading(host.logits(ids, real))
        else:
            host.trunk(ids, real)
    return readings


def _reading(activation: Tensor) -> SiteReading:
    values = activation[0].float().cpu()
    flat = values.flatten()
    chosen = torch.linspace(0, flat.numel() - 1, _SAMPLES).long()
    token_means, sample = (tuple(round(float(v), 6) for v in part) for part in (values.mean(1), flat[chosen]))
    return SiteReading(float(values.mean()), float(values.std()), token_means, sample)


def compare_fingerprints(
    expected: Mapping[str, SiteReading],
    found: Mapping[str, SiteReading],
    *,
    float32: bool = True,
    what: str = "edited sites",
) -> str:
    """Say which sites differ beyond what dtype and host explain; empty if none does.

    `float32` says whether both models compute in float32; otherwise only other weights are told apart, not folded ones.
    """
    tolerances = _FLOAT32 if float32 else _OTHERWISE
    different = [name for name in expected if not _alike(expected[name], found[name], *tolerances)]
    if not different:
        return ""
    first = different[0]
    fitted, now = expected[first], found[first]
    return (
        f"{len(different)} of {len(expected)} {what} differ, first {first}: mean {fitted.mean:.4g} and spread "
        f"{fitted.spread:.4g} there, {now.mean:.4g} and {now.spread:.4g} here"
    )


def _count(edits: Sequence[str]) -> str:
    if not edits:
        return "no intervention"
    return f"{len(edits)} intervention{'' if len(edits) == 1 else 's'} ({', '.join(edits)})"


def _alike(one: SiteReading, other: SiteReading, mean_tolerance: float, value_tolerance: float) -> bool:
    spread = max(one.spread, 1e-6)
    means = zip((one.mean, *one.token_means), (other.mean, *other.token_means), strict=True)
    values = zip((one.spread, *one.sample), (other.spread, *other.sample), strict=True)
    return all(abs(a - b) <= mean_tolerance * spread for a, b in means) and all(
        abs(a - b) <= value_tolerance * spread for a, b in values
    )
