"""The low-rank affine map: a few directions of a site are set to an affine function of its activation (2404.03592)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lens_steer.errors import MapError
from lens_steer.interventions.maps import ActivationMap, BuildMap, full_precision

_ORTHONORMAL = 1e-4  # largest deviation of the rows' products from 0 and 1
_SINGULAR = 1e-3  # below this singular value an inverse would blow rounding errors up a thousandfold


class LowRankAffine(ActivationMap):
    """h -> h + strength * R^T (W h + b - R h): at strength 1 what lies along the rows of R becomes W h + b.

    The rows of `rotation` R are orthonormal (MapError otherwise); across them nothing changes. This is the map of
    LoReFT (arXiv 2404.03592).
    """

    rotation: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        rotation: Float[Tensor, "rank unit"],
        weight: Float[Tensor, "rank unit"],
        bias: Float[Tensor, " rank"],
        strength: float = 1.0,
    ) -> None:
        super().__init__()
        if not all(bool(torch.isfinite(part).all()) for part in (rotation, weight, bias)):
            raise MapError("a low-rank map's rotation, weight or bias is not finite")
        products = rotation.double() @ rotation.double().T
        off = float((products - torch.eye(len(rotation), device=products.device)).abs().max())
        if off > _ORTHONORMAL:
            raise MapError(f"the rows of a low-rank map's rotation are orthonormal, and these are off by {off:.2g}")
        for name, value in {"rotation": rotation, "weight": weight, "bias": bias}.items():
            self.register_buffer(name, value.detach().float().clone())
        self.strength = float(strength)

    @classmethod
    def rebuilt(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor], build: BuildMap) -> LowRankAffine:
        """Return the map that `spec` and `tensors` describe."""
        return cls(**tensors, strength=spec["strength"])

    def spec(self) -> dict[str, Any]:
        """Return the strength."""
        return {"kind": "LowRankAffine", "strength": self.strength}

    @property
    def width(self) -> int:
        """Number of units."""
        return self.rotation.shape[1]

    @property
    def rank(self) -> int:
        """Number of directions along which the map acts."""
        return self.rotation.shape[0]

    @property
    def unit_by_unit(self) -> bool:
        """False: units are mixed."""
        return False

    def obstacle(self) -> None:
        """Return None: the map is affine."""

    def act(self, h: Float[Tensor, "*token unit"], rows: Sequence[int] | None) -> Float[Tensor, "*token unit"]:
        """Move every token along the map's directions."""
        stored = self.stored(h)
        rotation, weight, bias = (stored[name] for name in ("rotation", "weight", "bias"))
        with full_precision(h):
            return move_along(h, rotation, weight - rotation, bias, self.strength)

    def scaled(self, strength: float) -> LowRankAffine:
        """Return the map at another strength, in closed form."""
        return self if strength == 1.0 else self._with(self.weight, self.bias, self.strength * strength)

    def then(self, later: ActivationMap) -> None:
        """Return None: what comes later reads units that this map has mixed."""

    def inverse(self) -> LowRankAffine:
        """Return the map that gives h back, of the same directions; MapError where a direction is lost.

        With D = W - R and s the strength, it adds -s R^T M (D h + b) for M = (1 + s D R^T)^-1 (Woodbury's identity).
        """
        rotation, difference = self.rotation.double(), (self.weight - self.rotation).double()
        kept = torch.eye(self.rank, dtype=torch.float64) + self.strength * difference @ rotation.T
        smallest = float(torch.linalg.svdvals(kept).min())
        if smallest < _SINGULAR:
            raise MapError(
                f"no inverse: of what lies along the map's {self.rank} directions some is lost (its smallest singular "
                f"value is {smallest:.2g}); at another strength (`scaled`) it may be left"
            )
        back = torch.linalg.inv(kept)
        return self._with((rotation + back @ difference).float(), (back @ self.bias.double()).float(), -self.strength)

    def restrict(self, keep: Bool[Tensor, " unit"]) -> LowRankAffine:
        """Return this map if it moves no other unit; otherwise MapError, because it reads and writes them together."""
        others = int((self.rotation.abs().amax(0) > 0)[~keep].sum())
        if others:
            raise MapError(
                f"a low-rank map moves the units of its directions together: it cannot leave {others} of them out; "
                "restrict to whole sites"
            )
        return self

    def moved(self, tol: float) -> Bool[Tensor, " unit"]:
        """Units that change by more than `tol` at some activation of length at most 1."""
        by_activation = (self.rotation.T @ (self.weight - self.rotation)).norm(dim=1)
        by_bias = (self.rotation.T @ self.bias).abs()
        moves: Tensor = abs(self.strength) * (by_activation + by_bias) > tol
        return moves

    def extra_repr(self) -> str:
        """Return width, rank and strength, for printing."""
        return f"width={self.width}, rank={self.rank}, strength={self.strength}"

    def _with(self, weight: Tensor, bias: Tensor, strength: float) -> LowRankAffine:
        return LowRankAffine(self.rotation, weight, bias, strength)


def move_along(
    h: Float[Tensor, "*token unit"],
    rotation: Float[Tensor, "rank unit"],
    difference: Float[Tensor, "rank unit"],
    bias: Float[Tensor, " rank"],
    strength: float = 1.0,
) -> Float[Tensor, "*token unit"]:
    """Return h + strength * rotation^T (difference h + bias), differentiable in all of them."""
    exact = torch.promote_types(h.dtype, torch.float32)
    rotation, difference, bias = (part.to(exact) for part in (rotation, difference, bias))
    along = h.to(exact) @ difference.T + bias
    moved: Tensor = h.to(exact) + strength * (along @ rotation)
    return moved.to(h.dtype)
