"""Activation maps: functions h -> h' on one site, of which nearly every steering method is one instance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lens_steer.errors import MapError


class ActivationMap(nn.Module, ABC):
    """A map on the activations [..., unit] of one site; parameters are float32, applied in the activation's dtype."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Number of units."""

    @abstractmethod
    def scaled(self, strength: float) -> ActivationMap:
        """Return h -> (1 - strength) h + strength * map(h)."""

    @abstractmethod
    def then(self, later: ActivationMap) -> ActivationMap | None:
        """Return the closed form of this map followed by `later`; None where there is none."""

    @abstractmethod
    def inverse(self) -> ActivationMap:
        """Return the inverse map; MapError where there is none."""

    @abstractmethod
    def restrict(self, keep: Bool[Tensor, " unit"]) -> ActivationMap:
        """Return the map that leaves every other unit alone."""

    @abstractmethod
    def moved(self, tol: float) -> Bool[Tensor, " unit"]:
        """Which units the map changes by more than `tol`."""

    def on_rows(self, h: Float[Tensor, "text pos unit"], rows: Sequence[int]) -> Float[Tensor, "text pos unit"]:
        """Map activations whose rows have these numbers; they matter to a map that draws something for each row."""
        mapped: Tensor = self(h)
        return mapped

    def spec(self) -> dict[str, Any]:
        """Return the kind of the map and its plain settings, from which `build_map` makes it again."""
        return {"kind": type(self).__name__}

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved beside the spec: the map's tensors by name."""
        return dict(self.named_buffers(remove_duplicate=False))

    def same_as(self, other: ActivationMap) -> bool:
        """Whether both are the same map, to the bit."""
        mine, theirs = self.tensors(), other.tensors()
        return (
            self.spec() == other.spec()
            and mine.keys() == theirs.keys()
            and all(torch.equal(value, theirs[name]) for name, value in mine.items())
        )


class DiagonalAffine(ActivationMap):
    """h -> scale * h + shift, unit by unit; inside an interval only, where `low` and `high` are given.

    Every unit is mapped on its own, so AurA, Damp, Det0, self-conditioning, the three AcT maps, LinEAS, CAA and
    ablations are all of this form. With bounds, a value is mapped only where low < h < high (strictly, as AcT has it).
    Strength s gives scale 1 + s (scale - 1) and shift s * shift.
    """

    scale: Tensor
    shift: Tensor
    low: Tensor | None
    high: Tensor | None

    def __init__(
        self,
        scale: Float[Tensor, " unit"],
        shift: Tensor,
        *,
        low: Tensor | None = None,
        high: Tensor | None = None,
    ) -> None:
        super().__init__()
        given = [t for t in (scale, shift, low, high) if t is not None]
        if len({t.shape for t in given}) > 1 or scale.ndim != 1:
            raise MapError(
                f"scale, shift and bounds need one width, got {', '.join(str(tuple(t.shape)) for t in given)}"
            )
        if (low is None) != (high is None):
            raise MapError("an interval needs both bounds; leave a side open with -inf or inf")
        if not all(bool(torch.isfinite(t).all()) for t in (scale, shift)):
            raise MapError("a map's scale or shift is not finite")
        for name, value in {"scale": scale, "shift": shift, "low": low, "high": high}.items():
            self.register_buffer(name, None if value is None else value.detach().float().clone())
        self._cast: tuple[tuple[torch.dtype, torch.device], list[Tensor | None]] | None = None

    @classmethod
    def identity(cls, width: int) -> DiagonalAffine:
        """Return the map that changes nothing."""
        return cls(torch.ones(width), torch.zeros(width))

    @property
    def width(self) -> int:
        """Number of units."""
        return self.scale.shape[0]

    @property
    def bounded(self) -> bool:
        """Whether the map acts inside an interval only."""
        return self.low is not None

    def forward(self, h: Float[Tensor, "*token unit"]) -> Float[Tensor, "*token unit"]:
        """Map activations of any dtype."""
        scale, shift, low, high = self._as(h)
        # In place of h * scale + shift: one pass over the activation instead of two.
        mapped = torch.addcmul(shift, h, scale)  # type: ignore[arg-type]
        if low is None or high is None:
            return mapped
        return torch.where((h > low) & (h < high), mapped, h)

    def _as(self, h: Tensor) -> list[Tensor | None]:
        """Return the tensors in the activation's dtype and place, cast once."""
        wanted = (h.dtype, h.device)
        if self._cast is None or self._cast[0] != wanted:
            parts = (self.scale, self.shift, self.low, self.high)
            self._cast = (wanted, [None if part is None else part.to(h.device, h.dtype) for part in parts])
        return self._cast[1]

    def scaled(self, strength: float) -> DiagonalAffine:
        """Return the map at another strength, in closed form."""
        if strength == 1.0:
            return self
        return DiagonalAffine(1 + strength * (self.scale - 1), strength * self.shift, low=self.low, high=self.high)

    def then(self, later: ActivationMap) -> DiagonalAffine | None:
        """Return later(self(h)) as one map: scale s2 s1, shift s2 b1 + b2; None where an interval is in the way."""
        if not isinstance(later, DiagonalAffine) or self.bounded or later.bounded:
            return None
        return DiagonalAffine(later.scale * self.scale, later.scale * self.shift + later.shift)

    def inverse(self) -> DiagonalAffine:
        """Return h -> (h - shift) / scale; MapError naming the units whose scale is near zero."""
        if self.bounded:
            raise MapError("a map that acts inside an interval only has no inverse: two values may share an image")
        flat = (self.scale.abs() < 1e-3).nonzero()[:, 0].tolist()
        if flat:
            raise MapError(
                f"no inverse: the scale is near zero at {len(flat)} units ({', '.join(map(str, flat[:8]))}...)"
            )
        return DiagonalAffine(1 / self.scale, -self.shift / self.scale)

    def restrict(self, keep: Bool[Tensor, " unit"]) -> DiagonalAffine:
        """Return the map with scale 1 and shift 0 at every other unit."""
        scale = torch.where(keep, self.scale, torch.ones_like(self.scale))
        return DiagonalAffine(
            scale, torch.where(keep, self.shift, torch.zeros_like(self.shift)), low=self.low, high=self.high
        )

    def moved(self, tol: float) -> Bool[Tensor, " unit"]:
        """Units with |scale - 1| > tol or |shift| > tol."""
        return ((self.scale - 1).abs() > tol) | (self.shift.abs() > tol)

    def extra_repr(self) -> str:
        """Return the width, for printing."""
        return f"width={self.width}" + (", bounded" if self.bounded else "")


class Chain(ActivationMap):
    """Maps of one site applied in turn, where they have no closed form; blended with the input at other strengths."""

    def __init__(self, parts: tuple[ActivationMap, ...], strength: float = 1.0) -> None:
        super().__init__()
        if len({part.width for part in parts}) != 1:
            raise MapError(f"a chain needs maps of one width, got {[part.width for part in parts]}")
        self.parts = nn.ModuleList(parts)
        self.strength = strength

    def spec(self) -> dict[str, Any]:
        """Return the strength and the parts' specs."""
        return {"kind": "Chain", "strength": self.strength, "parts": [part.spec() for part in self._maps]}

    @property
    def _maps(self) -> tuple[ActivationMap, ...]:
        return tuple(part for part in self.parts if isinstance(part, ActivationMap))

    @property
    def width(self) -> int:
        """Number of units."""
        return self._maps[0].width

    def forward(self, h: Float[Tensor, "*token unit"]) -> Float[Tensor, "*token unit"]:
        """Apply the parts in order."""
        mapped = h
        for part in self._maps:
            mapped = part(mapped)
        return mapped if self.strength == 1.0 else torch.lerp(h, mapped, self.strength)

    def on_rows(self, h: Float[Tensor, "text pos unit"], rows: Sequence[int]) -> Float[Tensor, "text pos unit"]:
        """Apply the parts in order, each to these rows."""
        mapped = h
        for part in self._maps:
            mapped = part.on_rows(mapped, rows)
        return mapped if self.strength == 1.0 else torch.lerp(h, mapped, self.strength)

    def scaled(self, strength: float) -> Chain:
        """Return the blend of input and chain."""
        return Chain(self._maps, self.strength * strength)

    def then(self, later: ActivationMap) -> Chain | None:
        """Return the longer chain; None at other strengths than 1."""
        return Chain((*self._maps, later)) if self.strength == 1.0 else None

    def inverse(self) -> ActivationMap:
        """Undo the parts from the last to the first."""
        if self.strength != 1.0:
            raise MapError("a chain has an inverse at strength 1 only")
        return Chain(tuple(part.inverse() for part in reversed(self._maps)))

    def restrict(self, keep: Bool[Tensor, " unit"]) -> Chain:
        """Restrict every part."""
        return Chain(tuple(part.restrict(keep) for part in self._maps), self.strength)

    def moved(self, tol: float) -> Bool[Tensor, " unit"]:
        """Units that any part moves."""
        return torch.stack([part.moved(tol) for part in self._maps]).any(0)


# Kinds with a file of their own, which is loaded when a saved map is of that kind: each has `rebuilt(spec, tensors)`.
_HOMES = {
    "Gated": "lens_steer.interventions.gated_map",
    "LowRankAffine": "lens_steer.interventions.low_rank",
    "ProjectOut": "lens_steer.interventions.project_out",
    "Resample": "lens_steer.interventions.resample",
}


def build_map(spec: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> ActivationMap:
    """Make a map from what `spec` and `tensors` gave; MapError for a kind this version does not know."""
    if spec["kind"] in _HOMES:
        home = getattr(import_module(_HOMES[spec["kind"]]), spec["kind"])
        rebuilt: ActivationMap = home.rebuilt(spec, tensors)
        return rebuilt
    if spec["kind"] == "DiagonalAffine":
        return DiagonalAffine(**tensors)
    if spec["kind"] == "Chain":
        parts = [build_map(part, _below(f"parts.{place}.", tensors)) for place, part in enumerate(spec["parts"])]
        return Chain(tuple(parts), spec["strength"])
    raise MapError(f"no map of kind {spec['kind']!r} is known to this version of lens_steer")


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
