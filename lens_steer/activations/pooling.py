"""Pooling: one value per text and unit from the values at its tokens."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lens_steer.errors import SettingError

Pool = Literal["max", "mean", "last", "first"]


def checked_pool(pool: Pool) -> Pool:
    """Return the pool; SettingError where there is none of that name."""
    if pool not in get_args(Pool):
        raise SettingError(f"no pool is named {pool!r}; there are {', '.join(get_args(Pool))}")
    return pool


@dataclass(frozen=True)
class TokenPool:
    """The pools of one batch, each over the tokens where `mask` is True (at least one a row)."""

    mask: Bool[Tensor, "text pos"]

    def __call__(self, activation: Float[Tensor, "text pos unit"], pool: Pool) -> Float[Tensor, "text unit"]:
        """Pool an activation; float32 out, whatever came in, and differentiable."""
        values: Tensor = getattr(self, f"_{pool}")(activation)
        return values.float()

    def to(self, device: torch.device) -> TokenPool:
        """Return the pools for activations on a device; itself where its mask already lies there."""
        return self if self.mask.device == device else TokenPool(self.mask.to(device))

    @cached_property
    def span(self) -> slice:
        """From the first position that any row pools to the last."""
        used = self.mask.any(0).nonzero()[:, 0]
        return slice(int(used[0]), int(used[-1]) + 1)

    @cached_property
    def ragged(self) -> bool:
        """Whether some row leaves a position of the span out."""
        return not bool(self.mask[:, self.span].all())

    @cached_property
    def _weights(self) -> Float[Tensor, "text 1 pos"]:
        weights = self.mask.float()
        return (weights / weights.sum(1, keepdim=True))[:, None]

    @cached_property
    def _solid(self) -> tuple[int, int]:
        """The longest stretch of positions that every row pools: there no masking is needed."""
        best, start = (0, 0), 0
        for place, everywhere in enumerate([*self.mask.all(0).tolist(), False]):
            if not everywhere:
                best = max(best, (start, place), key=lambda span: span[1] - span[0])
                start = place + 1
        return best

    @cached_property
    def _ends(self) -> tuple[Int[Tensor, " text"], Int[Tensor, " text"], Int[Tensor, " text"]]:
        places = torch.arange(self.mask.shape[1], device=self.mask.device)
        rows = torch.arange(self.mask.shape[0], device=self.mask.device)
        first = torch.where(self.mask, places, self.mask.shape[1]).amin(1)
        last = torch.where(self.mask, places, -1).amax(1)
        return rows, first, last

    def _mean(self, activation: Tensor) -> Tensor:
        # Positions that no text pools are cut off: a value there that is not finite would not vanish by a weight of 0.
        weights, values = self._weights[..., self.span], activation[:, self.span].float()
        if _rounds_products(values):
            return (weights.mT * values).sum(1)
        return torch.bmm(weights, values)[:, 0]

    def _max(self, activation: Tensor) -> Tensor:
        if not self.ragged:
            return activation[:, self.span].amax(1)
        low, high = self._solid
        parts = [activation[:, low:high].amax(1)] if high > low else []
        for rest in (slice(self.span.start, low), slice(max(high, self.span.start), self.span.stop)):
            mask = self.mask[:, rest]
            if mask.shape[1]:
                parts.append(activation[:, rest].masked_fill(~mask[..., None], -torch.inf).amax(1))
        return functools.reduce(torch.maximum, parts)

    def _last(self, activation: Tensor) -> Tensor:
        rows, _, last = self._ends
        return activation[rows, last]

    def _first(self, activation: Tensor) -> Tensor:
        rows, first, _ = self._ends
        return activation[rows, first]


def _rounds_products(values: Tensor) -> bool:
    """Whether a product of float32 matrices is computed in less precision: under autocast, or TF32 where allowed."""
    return torch.is_autocast_enabled(values.device.type) or (values.is_cuda and torch.backends.cuda.matmul.allow_tf32)
