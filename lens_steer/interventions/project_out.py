"""Projecting out: the map that takes a direction out of a site's activations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from lens_steer.errors import MapError
from lens_steer.interventions.maps import ActivationMap, BuildMap, full_precision


class ProjectOut(ActivationMap):
    """h -> h - strength (h . v) v for a unit direction v; at strength 1 nothing of h is left along v.

    A direction of any other length is brought to length 1; MapError where it is zero or not finite. Strength s of the
    map is the same map with strength s times as large, so -1 doubles what lies along v.
    """

    direction: Tensor

    def __init__(self, direction: Float[Tensor, " unit"], strength: float = 1.0) -> None:
        super().__init__()
        length = float(direction.double().norm())
        if not (math.isfinite(length) and length > 0):
            raise MapError(f"a direction to project out has a finite length above 0, not {length}")
        if not math.isfinite(strength):
            raise MapError(f"the strength of a projection is a finite number, not {strength}")
        # One that has length 1 already stays as it is, to the bit: a saved map comes back equal.
        unit = direction if abs(length - 1) < 1e-6 else direction.double() / length
        self.register_buffer("direction", unit.detach().float().clone())
        self.strength = float(strength)

    @classmethod
    def rebuilt(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor], build: BuildMap) -> ProjectOut:
        """Return the map that `spec` and `tensors` describe."""
        return cls(tensors["direction"], spec["strength"])

    def spec(self) -> dict[str, Any]:
        """Return the strength."""
        return {"kind": "ProjectOut", "strength": self.strength}

    @property
    def width(self) -> int:
        """Number of units."""
        return self.direction.shape[0]

    @property
    def unit_by_unit(self) -> bool:
        """False: units are mixed."""
        return False

    def obstacle(self) -> None:
        """Return None: the map is linear."""

    def act(self, h: Float[Tensor, "*token unit"], rows: Sequence[int] | None) -> Float[Tensor, "*token unit"]:
        """Take out what lies along the direction, or a share of it."""
        direction = self.stored(h)["direction"]
        with full_precision(h):
            along: Tensor = h @ direction
        return h - along[..., None] * (self.strength * direction)

    def scaled(self, strength: float) -> ProjectOut:
        """Return the map at another strength, in closed form."""
        return self if strength == 1.0 else ProjectOut(self.direction, self.strength * strength)

    def then(self, later: ActivationMap) -> None:
        """Return None: what comes later reads units that this map has mixed."""

    def inverse(self) -> ProjectOut:
        """Return the map that gives h back; MapError near strength 1, where nothing along the direction is left."""
        left = 1 - self.strength
        if abs(left) < 1e-3:
            raise MapError(
                "no inverse: a projection loses what lay along its direction; at a strength other than 1 "
                "(`scaled`) some of it is left"
            )
        return ProjectOut(self.direction, -self.strength / left)

    def restrict(self, keep: Bool[Tensor, " unit"]) -> ProjectOut:
        """Return this map if it moves no other unit; otherwise MapError, because it reads and writes them together."""
        others = int(((self.direction != 0) & ~keep).sum())
        if others:
            raise MapError(
                f"a projection moves the units of its direction together: it cannot leave {others} of them out; "
                "restrict to whole sites"
            )
        return self

    def moved(self, tol: float) -> Bool[Tensor, " unit"]:
        """Units that change by more than `tol` where an activation has length 1 along the direction."""
        return (self.strength * self.direction).abs() > tol

    def extra_repr(self) -> str:
        """Return width and strength, for printing."""
        return f"width={self.width}, strength={self.strength}"
