"""Activation maps: functions h -> h' on one site, of which nearly every steering method is one instance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lens_steer.errors import MapError
from lens_steer.settings import require_settings

BuildMap = Callable[[Mapping[str, Any], Mapping[str, Tensor]], "ActivationMap"]
"""Makes a map of any kind from its spec and tensors: `map_kinds.build_map`."""


class Obstacle(NamedTuple):
    """Why a map cannot be folded into weights, and what is nearest to it that can."""

    reason: str
    nearest: str


class StoredTensors(nn.Module):
    """A module of float32 buffers, with a copy of them wherever it was last used."""

    _copies: tuple[tuple[torch.dtype, torch.device], dict[str, Tensor]] | None = None

    def stored(self, like: Tensor) -> dict[str, Tensor]:
        """Return this module's own buffers on the device of `like` and, where they are real numbers, in its dtype.

        The copy is made once; on the CPU in float32 it is the buffers themselves.
        """
        wanted = (like.dtype, like.device)
        if self._copies is None or self._copies[0] != wanted:
            own = dict(self.named_buffers(recurse=False))
            copies = {
                name: value.to(like.device, like.dtype if value.is_floating_point() else None)
                for name, value in own.items()
            }
            self._copies = (wanted, copies)
        return self._copies[1]


class ActivationMap(StoredTensors, ABC):
    """A map on the activations [..., unit] of one site.

    Parameters are float32. An activation of less precision is brought to float32, mapped, and rounded once to its own
    dtype, so that a scale of 1.003 is an edit in bfloat16 too.
    """

    @property
    @abstractmethod
    def width(self) -> int:
        """Number of units."""

    @property
    @abstractmethod
    def unit_by_unit(self) -> bool:
        """Whether the map neither mixes units nor decides by one what happens to another."""

    def obstacle(self) -> Obstacle | None:
        """Return what keeps the map from being folded into weights; None for one that is affine everywhere."""
        return Obstacle(
            f"its map is a {type(self).__name__}, weights can only scale, mix and shift units",
            "a method with diagonal maps, such as LinEAS or MeanAcT",
        )

    @abstractmethod
    def act(self, h: Float[Tensor, "*token unit"], rows: Sequence[int] | None) -> Float[Tensor, "*token unit"]:
        """Map an activation of float32 or float64; `rows` number its rows where that is known."""

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

    def forward(self, h: Float[Tensor, "*token unit"]) -> Float[Tensor, "*token unit"]:
        """Map activations of any dtype; rows, where they matter, are numbered by their place."""
        return self.on_rows(h, None)

    def on_rows(self, h: Float[Tensor, "*token unit"], rows: Sequence[int] | None) -> Float[Tensor, "*token unit"]:
        """Map activations whose rows have these numbers; they matter to a map that draws something for each row."""
        if h.dtype == torch.float32 or h.dtype == torch.float64:
            return self.act(h, rows)
        return self.act(h.float(), rows).to(h.dtype)

    def spec(self) -> dict[str, Any]:
        """Return the kind of the map and its plain settings, from which `build_map` makes it again."""
        return {"kind": type(self).__name__}

    @classmethod
    @abstractmethod
    def rebuilt(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor], build: BuildMap) -> ActivationMap:
        """Return the map that `spec` and `tensors` describe; `build` makes the maps inside it."""

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


def full_precision(h: Tensor) -> AbstractContextManager[Any]:
    """Return the context in which products of matrices are of the dtype of their factors, autocast or not."""
    kind = h.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


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
        require_settings(DiagonalAffine.__init__, {"scale": scale, "shift": shift, "low": low, "high": high})
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

    @property
    def unit_by_unit(self) -> bool:
        """True."""
        return True

    def obstacle(self) -> Obstacle | None:
        """Return how many units are mapped inside an interval only, if any is."""
        if self.low is None or self.high is None:
            return None
        inside = self.moved(0.0) & (torch.isfinite(self.low) | torch.isfinite(self.high))
        if not bool(inside.any()):
            return None
        return Obstacle(
            f"{int(inside.sum())} units are mapped inside an interval only, and weights act on every value",
            'fit with support="unbounded"',
        )

    def act(self, h: Float[Tensor, "*token unit"], rows: Sequence[int] | None) -> Float[Tensor, "*token unit"]:
        """Scale and shift, inside the interval where there is one."""
        stored = self.stored(h)
        # In place of h * scale + shift: one pass over the activation instead of two.
        mapped = torch.addcmul(stored["shift"], h, stored["scale"])
        if self.low is None:
            return mapped
        return torch.where((h > stored["low"]) & (h < stored["high"]), mapped, h)

    @classmethod
    def rebuilt(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor], build: BuildMap) -> DiagonalAffine:
        """Return the map of these tensors; MapError where scale or shift is missing."""
        if not {"scale", "shift"} <= tensors.keys() <= {"scale", "shift", "low", "high"}:
            raise MapError(f"a diagonal map has scale, shift and maybe low and high, not {', '.join(tensors)}")
        return cls(**tensors)

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

    @classmethod
    def rebuilt(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor], build: BuildMap) -> Chain:
        """Return the chain of the parts that `spec` and `tensors` describe."""
        parts = [build(part, tensors_below(f"parts.{place}.", tensors)) for place, part in enumerate(spec["parts"])]
        return cls(tuple(parts), spec["strength"])

    @property
    def _maps(self) -> tuple[ActivationMap, ...]:
        return tuple(part for part in self.parts if isinstance(part, ActivationMap))

    @property
    def width(self) -> int:
        """Number of units."""
        return self._maps[0].width

    @property
    def unit_by_unit(self) -> bool:
        """Whether every part is."""
        return all(part.unit_by_unit for part in self._maps)

    def obstacle(self) -> Obstacle | None:
        """Return that of the first part that has one."""
        return next((obstacle for part in self._maps if (obstacle := part.obstacle()) is not None), None)

    def act(self, h: Float[Tensor, "*token unit"], rows: Sequence[int] | None) -> Float[Tensor, "*token unit"]:
        """Apply the parts in order."""
        mapped = h
        for part in self._maps:
            mapped = part.act(mapped, rows)
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


def tensors_below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, named without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
