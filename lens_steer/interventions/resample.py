"""Resampling: the map that holds units, row by row, at what a randomly drawn text has there."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_steer.errors import MapError
from lens_steer.interventions.maps import ActivationMap, BuildMap, Obstacle


class Resample(ActivationMap):
    """h -> h + strength * (values of a drawn text - h) at some units, with one drawn text for all tokens of a row.

    `values` [text, held] are what the texts have at the `units` [held]. The text of row r depends on the seed, r and
    the number of texts alone: it is the same at every site, and does not change with the batch. A row's number is that
    of its text where lens_steer runs the texts of a call (`generate`, `collect`, ...), else its place in the batch.
    """

    values: Tensor
    units: Tensor

    def __init__(
        self,
        width: int,
        units: Int[Tensor, " held"],
        values: Float[Tensor, "text held"],
        *,
        seed: int = 0,
        strength: float = 1.0,
    ) -> None:
        super().__init__()
        if len(units) and not 0 <= int(units.min()) <= int(units.max()) < width:
            raise MapError(f"units to resample lie between 0 and {width - 1}")
        if not len(values) or not bool(torch.isfinite(values).all()):
            raise MapError("resampling needs the values of at least one text, all of them finite")
        self.register_buffer("units", units.detach().long().clone())
        self.register_buffer("values", values.detach().float().clone())
        self.seed, self.strength, self._width = seed, float(strength), width

    @classmethod
    def rebuilt(cls, spec: Mapping[str, Any], tensors: Mapping[str, Tensor], build: BuildMap) -> Resample:
        """Return the map that `spec` and `tensors` describe."""
        return cls(spec["width"], tensors["units"], tensors["values"], seed=spec["seed"], strength=spec["strength"])

    def spec(self) -> dict[str, Any]:
        """Return width, seed and strength."""
        return {"kind": "Resample", "width": self.width, "seed": self.seed, "strength": self.strength}

    @property
    def width(self) -> int:
        """Number of units."""
        return self._width

    def drawn(self, rows: Sequence[int]) -> Float[Tensor, "row held"]:
        """Return the values that rows of these numbers are held at."""
        return self.values[self._texts(rows)]

    def _texts(self, rows: Sequence[int]) -> list[int]:
        return [_text_of(self.seed, row, len(self.values)) for row in rows]

    @property
    def unit_by_unit(self) -> bool:
        """True."""
        return True

    def obstacle(self) -> Obstacle:
        """Return that every row has a constant of its own."""
        return Obstacle(
            "its map is a Resample, every row has drawn a constant of its own, and weights know no rows",
            'the same units at their mean, ablate(mode="target_mean")',
        )

    def act(self, h: Float[Tensor, "*token unit"], rows: Sequence[int] | None) -> Float[Tensor, "*token unit"]:
        """Hold the units at the values drawn for each row [text, pos, unit]; what has fewer axes is one text."""
        if self.strength == 0.0:
            return h
        if h.ndim < 3:
            return self.act(h.reshape(1, -1, self.width), rows or [0]).reshape(h.shape)
        stored = self.stored(h)
        texts = self._texts(range(len(h)) if rows is None else rows)
        held = stored["values"][texts][:, None].expand(-1, h.shape[1], -1)
        if self.strength != 1.0:
            held = torch.lerp(h[..., stored["units"]], held, self.strength)
        return h.index_copy(2, stored["units"], held)

    def scaled(self, strength: float) -> Resample:
        """Return the map at another strength."""
        if strength == 1.0:
            return self
        return Resample(self.width, self.units, self.values, seed=self.seed, strength=self.strength * strength)

    def then(self, later: ActivationMap) -> None:
        """Return None: what follows is done to a value that each row has drawn for itself."""

    def inverse(self) -> ActivationMap:
        """Raise MapError: there is none."""
        raise MapError("resampling has no inverse: it forgets what stood there")

    def restrict(self, keep: Bool[Tensor, " unit"]) -> Resample:
        """Return the map that leaves every other unit alone."""
        kept = keep[self.units]
        values = self.values[:, kept]
        return Resample(self.width, self.units[kept], values, seed=self.seed, strength=self.strength)

    def moved(self, tol: float) -> Bool[Tensor, " unit"]:
        """Units that are held, at strengths above `tol`."""
        return torch.zeros(self.width).index_fill(0, self.units, abs(self.strength)) > tol

    def extra_repr(self) -> str:
        """Return width and number of texts, for printing."""
        return f"width={self.width}, {len(self.units)} units held, {len(self.values)} texts, seed={self.seed}"


@functools.lru_cache(maxsize=2**16)
def _text_of(seed: int, row: int, texts: int) -> int:
    return int(np.random.default_rng((seed, row)).integers(texts))
