"""Row gates: whether a row is steered at all, decided once on its prompt and held while it is continued."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from lens_steer.activations.pooling import TokenPool
from lens_steer.errors import MapError, SettingError
from lens_steer.host.clock import TokenPositions
from lens_steer.host.scope import ALL_TOKENS, Scope
from lens_steer.host.sites import Site

Similarity = Literal["projection", "cosine"]
Side = Literal["above", "below"]


@dataclass(frozen=True, eq=False)
class RowGate:
    """Open for the rows whose prompt is like a direction: similarity(mean prompt token, direction) beyond a threshold.

    A gate belongs to an edit and not to its map (as `Gated` does, which decides token by token on what it is about to
    change), because it reads another site, at another time: the decision falls once per row, at `site`, in the pass
    that holds the whole prompt, and is kept for all edits that carry the gate and all passes that go on with the
    prompt. So the site has to come no later in a pass than what it opens or closes; `Intervention.on` refuses another
    order. Of a (prompt, completion) pair the prompt alone is read; a prompt in chunks or on a kept cache (ModelError)
    and a plain text that lens_steer runs, which has no prompt (SettingError), are refused.

    site:
        Where the prompt is read. There it is seen as it stands before the first edit that carries the gate, after
        whatever acts earlier.
    direction:
        [unit], of any length.
    threshold, side:
        Open where the similarity is above the threshold, or below it.
    similarity:
        "projection": the cosine of the mean token with its projection on the direction, from 0 to 1 (arXiv 2409.05907),
        which does not know the direction's sign; "cosine": that with the direction itself, from -1 to 1.
    tokens:
        Which of the prompt's tokens are averaged. A prompt without any keeps the gate closed.
    """

    site: Site
    direction: Float[Tensor, " unit"]
    threshold: float
    side: Side = "above"
    similarity: Similarity = "projection"
    tokens: Scope = ALL_TOKENS

    def __post_init__(self) -> None:
        if self.side not in get_args(Side) or self.similarity not in get_args(Similarity):
            raise SettingError(
                f"a gate's side is 'above' or 'below' and its similarity 'projection' or 'cosine', not {self.side!r} "
                f"and {self.similarity!r}"
            )
        if self.direction.shape != (self.site.width,):
            raise MapError(
                f"{self.site.name} has {self.site.width} units, the gate's direction has {tuple(self.direction.shape)}"
            )
        if not (bool(torch.isfinite(self.direction).all()) and bool(self.direction.any())):
            raise MapError("a gate's direction has a finite length above 0")
        if not math.isfinite(self.threshold):
            raise MapError(f"a gate's threshold is a finite number, not {self.threshold}")
        object.__setattr__(self, "direction", self.direction.detach().float().cpu().clone())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RowGate):
            return NotImplemented
        return self.spec() == other.spec() and torch.equal(self.direction, other.direction)

    def similarities(self, pooled: Float[Tensor, "text unit"]) -> Float[Tensor, " text"]:
        """Return how like the direction each mean token is, in float32."""
        cosine = F.cosine_similarity(pooled.float(), self.direction.to(pooled.device), dim=1)
        return cosine.abs() if self.similarity == "projection" else cosine

    def opens(self, pooled: Float[Tensor, "text unit"]) -> Bool[Tensor, " text"]:
        """Return for which mean tokens the gate is open; for one that is no number it is closed."""
        similarities = self.similarities(pooled)
        return similarities > self.threshold if self.side == "above" else similarities < self.threshold

    def decide(self, activation: Float[Tensor, "text pos unit"], positions: TokenPositions) -> Bool[Tensor, " text"]:
        """Return for which rows of a pass that holds whole prompts the gate is open."""
        prompt = self.tokens.mask(positions) & (positions.position < positions.prompt_end)
        return self.opens(TokenPool(prompt)(activation, "mean"))

    def spec(self) -> dict[str, Any]:
        """Return all but the direction, as plain data."""
        plain = {"threshold": self.threshold, "side": self.side, "similarity": self.similarity}
        return {"site": asdict(self.site), "tokens": asdict(self.tokens), **plain}

    @classmethod
    def rebuilt(cls, spec: Mapping[str, Any], direction: Tensor) -> RowGate:
        """Return the gate that `spec` and a direction describe."""
        parts = {"site": Site(**spec["site"]), "tokens": Scope.rebuilt(spec["tokens"])}
        return cls(direction=direction, **{**spec, **parts})
