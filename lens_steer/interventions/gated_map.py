"""Gated maps: how strongly any map acts is decided token by token, on the activation that it is about to change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_steer.errors import MapError
from lens_steer.interventions.maps import (
    ActivationMap,
    BuildMap,
    Obstacle,
    StoredTensors,
    full_precision,
    tensors_below,
)


class LogisticGate(StoredTensors):
    """h -> sigmoid(weights . h + bias): a number from 0 (closed) to 1 (open) for every token.

    With `projection` [component, unit] the weights are those of the components of h; both are folded into one vector
    over the units, so that nothing but that vector and the bias is kept. MapError for widths that do not fit and for
    values that are not finite. The gate is float32, and so are its numbers whatever the activation's dtype.
    """

    weights: Tensor
    bias: Tensor

    def __init__(
        self,
        weights: Float[Tensor, " component"],
        bias: float | Float[Tensor, ""],
        *,
        projection: Float[Tensor, "rows unit"] | None = None,
    ) -> None:
        super().__init__()
        if projection is not None:
            if len(projection) != len(weights):
                raise MapError(f"a gate of {len(weights)} weights does not fit a projection to {len(projection)}")
            weights = weights.double() @ projection.double()
        bias = torch.as_tensor(bias)
        if not (bool(torch.isfinite(weights).all()) and bool(torch.isfinite(bias))):
            raise MapError("a gate's weights or bias are not finite")
        self.register_buffer("weights", weights.detach().float().clone())
        self.register_buffer("bias", bias.detach().float().clone())

    @property
    def width(self) -> int:
        """Number of units."""
        return self.weights.shape[0]

    def forward(self, h: Float[Tensor, "*token unit"]) -> Float[Tensor, "*token"]:
        """Return how far the gate is open at each token."""
        exact = h.float()
        stored = self.stored(exact)
        with full_precision(exact):
            return torch.sigmoid(exact @ stored["weights"] + stored["bias"])


class Gated(ActivationMap):
    """h -> h + strength * gate(h) * (map(h) - h): a map whose strength at a token is what its gate says there.

    The gate reads the whole site at the same token, before the map acts.
    """

    def __init__(self, inner: ActivationMap, gate: LogisticGate, strength: float = 1.0) -> None:
        super().__init__()
        if inner.width != gate.width:
            raise MapError(f"a gate of {gate.width} units does not fit a map of {inner.width}")
        self.map = inner
        self.gate = gate
        self.strength = float(strength)

    @classmethod
    def rebuilt(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor], build: BuildMap) -> Gated:
        """Return the map that `spec` and `tensors` describe."""
        gate = LogisticGate(tensors["gate.weights"], tensors["gate.bias"])
        return cls(build(spec["map"], tensors_below("map.", tensors)), gate, spec["strength"])

    def spec(self) -> dict[str, Any]:
        """Return the strength and the inner map's spec; a gate is its tensors."""
        return {"kind": "Gated", "strength": self.strength, "map": self.map.spec()}

    @property
    def width(self) -> int:
        """Number of units."""
        return self.map.width

    @property
    def unit_by_unit(self) -> bool:
        """False: the gate reads all units."""
        return False

    def obstacle(self) -> Obstacle:
        """Return that the gate decides."""
        return Obstacle(
            "its map is a Gated, its gate decides token by token how far it acts, and weights act on every one alike",
            "the map without its gate (Gated.map)",
        )

    def act(self, h: Float[Tensor, "*token unit"], rows: Sequence[int] | None) -> Float[Tensor, "*token unit"]:
        """Move every token as far as the gate is open there."""
        if self.strength == 0.0:
            return h
        openness = self.gate(h)[..., None].to(h.dtype)
        moved: Tensor = h + self.strength * openness * (self.map.act(h, rows) - h)
        return moved

    def scaled(self, strength: float) -> Gated:
        """Return the map at another strength: the gate stays as it is."""
        return self if strength == 1.0 else Gated(self.map, self.gate, self.strength * strength)

    def then(self, later: ActivationMap) -> None:
        """Return None: what the gate reads here is not what a later map sees."""

    def inverse(self) -> ActivationMap:
        """Raise MapError: there is none."""
        raise MapError(
            "a gated map has no inverse: how far its gate was open is told by the activation that the map has changed"
        )

    def restrict(self, keep: Bool[Tensor, " unit"]) -> Gated:
        """Return the map that leaves every other unit alone; its gate still reads all of them."""
        return Gated(self.map.restrict(keep), self.gate, self.strength)

    def moved(self, tol: float) -> Bool[Tensor, " unit"]:
        """Units that change by more than `tol` where the gate is open."""
        return self.map.scaled(self.strength).moved(tol)

    def extra_repr(self) -> str:
        """Return the strength, for printing."""
        return f"strength={self.strength}"
