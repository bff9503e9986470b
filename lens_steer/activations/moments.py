"""Token moments: mean and standard deviation of every unit over tokens, accumulated batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lens_steer.activations.pooling import TokenPool


@dataclass(frozen=True, eq=False)
class TokenMoments:
    """Per concept and side (0 source, 1 target): number of pooled tokens, and mean and deviation of every unit there.

    The deviation is that of the tokens themselves (divided by n).
    """

    count: Float[Tensor, "concept 2"]
    mean: Float[Tensor, "concept 2 unit"]
    std: Float[Tensor, "concept 2 unit"]


class Scratch:
    """Memory for one site's activation, used again and again: fresh pages cost more than the arithmetic on them."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def like(self, tensor: Tensor) -> Tensor:
        """Return float32 memory of a tensor's shape and place, with whatever was in it."""
        if self._memory.numel() < tensor.numel() or self._memory.device != tensor.device:
            self._memory = torch.empty(tensor.numel(), device=tensor.device)
        return self._memory[: tensor.numel()].view(tensor.shape)


class MomentSums:
    """Running sums of one site; float64, around the first batch's mean, so that large means cost no digits."""

    def __init__(self, groups: int, width: int) -> None:
        self.count = torch.zeros(groups, dtype=torch.float64)
        self.first = torch.zeros(groups, width, dtype=torch.float64)
        self.second = torch.zeros(groups, width, dtype=torch.float64)
        self.centre: Tensor | None = None

    def add(
        self,
        activation: Float[Tensor, "text pos unit"],
        tokens: TokenPool,
        sides: Float[Tensor, "group text"],
        scratch: Scratch,
    ) -> None:
        """Add the tokens that a batch pools; `sides` is 1 where a text belongs to a group."""
        if self.centre is None:
            self.centre = activation[tokens.mask].float().mean(0)
        # Metal has no float64: there the sums stay on the CPU.
        place = torch.device("cpu") if activation.device.type == "mps" else activation.device
        if self.first.device != place:
            self.restore({part: value.to(place) for part, value in self.state().items()})
        centre = self.centre.to(activation.device)
        # Positions that no text pools (BOS, above all) are cut off rather than multiplied away.
        inside = activation[:, tokens.span]
        shifted = torch.sub(inside, centre, out=scratch.like(inside))
        if tokens.ragged:
            # Filled, not multiplied: zero times infinity is not a number.
            shifted.masked_fill_(~tokens.mask[:, tokens.span, None], 0.0)
        self.count += (sides @ tokens.mask.sum(1).float()).to(place)
        self.first += (sides @ shifted.sum(1)).to(place)
        self.second += (sides @ shifted.square_().sum(1)).to(place)

    PARTS = ("count", "first", "second", "centre")

    def state(self) -> dict[str, Tensor]:
        """Return the sums, to be restored later."""
        centre = torch.zeros(self.first.shape[1]) if self.centre is None else self.centre
        return {"count": self.count, "first": self.first, "second": self.second, "centre": centre}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from sums that `state` gave."""
        self.count, self.first, self.second, self.centre = (state[part] for part in self.PARTS)

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Take the sums of other tokens, as `state` gave them: moved to this one's centre, in float64."""
        if self.centre is None:
            self.restore({part: state[part].clone() for part in self.PARTS})
            return
        away = state["centre"].double() - self.centre.double()
        count = state["count"][:, None]
        self.second += state["second"] + 2 * away * state["first"] + count * away.square()
        self.first += state["first"] + count * away
        self.count += state["count"]

    def moments(self) -> TokenMoments:
        """Return the moments; a group of a concept's side without tokens has nan."""
        sums = {part: value.cpu() for part, value in self.state().items()}
        mean = sums["first"] / sums["count"][:, None]
        variance = (sums["second"] / sums["count"][:, None] - mean.square()).clamp_min(0)
        shape = (-1, 2, mean.shape[1])
        return TokenMoments(
            sums["count"].reshape(-1, 2).float(),
            (mean + sums["centre"]).reshape(shape).float(),
            variance.sqrt().reshape(shape).float(),
        )
