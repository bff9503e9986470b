"""What the checks of a contrast look at: its source and target rows as texts, their blocks, and their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Int

from lens_steer.texts.blocks import Row, pooled_text, row_hashes, row_parts

SIDES = ("source", "target")


@dataclass(frozen=True)
class Material:
    """Source rows, then target rows: `size` of them are source rows, `blocks` number what belongs together."""

    rows: tuple[Row, ...]
    size: int
    blocks: Int[np.ndarray, " text"]

    @cached_property
    def pooled(self) -> tuple[str, ...]:
        """Of every row what enters pools."""
        return tuple(pooled_text(row) for row in self.rows)

    @cached_property
    def whole(self) -> tuple[str, ...]:
        """Every row with its prompt."""
        return tuple(" ".join(row_parts(row)) for row in self.rows)

    @cached_property
    def hashes(self) -> Int[np.ndarray, " text"]:
        """Equal for equal rows."""
        return row_hashes(self.rows)

    @cached_property
    def is_source(self) -> Bool[np.ndarray, " text"]:
        """Which rows are of the source."""
        return np.arange(len(self.rows)) < self.size

    @property
    def sizes(self) -> tuple[int, int]:
        """How many rows a side has."""
        return self.size, len(self.rows) - self.size

    @cached_property
    def independent(self) -> tuple[int, int]:
        """How many blocks a side has."""
        source, target = (len(np.unique(self.blocks[side])) for side in (self.is_source, ~self.is_source))
        return source, target

    def place(self, number: int) -> str:
        """Say where a row stands, as the contrast is indexed: source[3]."""
        return f"source[{number}]" if number < self.size else f"target[{number - self.size}]"

    def places(self, numbers: Int[np.ndarray, " row"] | Sequence[int], most: int = 5) -> tuple[str, ...]:
        """Return the places of the first rows."""
        return tuple(self.place(int(number)) for number in numbers[:most])
