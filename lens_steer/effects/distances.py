"""Distances of texts' activations before and after an edit, for each kind of text that a study measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.activations.pooling import Pool
from lens_steer.activations.whole_texts import pool_texts
from lens_steer.errors import ActivationError, SettingError
from lens_steer.host.sites import Site
from lens_steer.host.tokens import Tokens, tokenize
from lens_steer.statistics.wasserstein import wasserstein
from lens_steer.texts.contrast import ContrastSet, Row

Texts = Literal["heldout", "neutral", "foreign"]
Sides = Mapping[str, Mapping[Site, Tensor]]
"""Side -> site -> pooled values, float32 [text, unit]."""

_CONSTANT = 1e-6  # a spread below this share of a unit's largest value is rounding, not variation


@dataclass(frozen=True)
class TextGroup:
    """Texts of one kind, tokenised: a source and a target, or (neutral) a source alone."""

    name: Texts
    tokens: Mapping[str, Tokens]


def tokenized_groups(
    model: nn.Module, contrast: ContrastSet, neutral: Sequence[Row], foreign: ContrastSet | None
) -> list[TextGroup]:
    """Return the held-out group first, then neutral texts (without any, the contrast's control), then foreign."""

    def sides(texts: ContrastSet) -> dict[str, Tokens]:
        both = {"source": texts.source, "target": texts.target}
        return {side: tokenize(model, rows, chat=texts.chat) for side, rows in both.items()}

    if isinstance(neutral, str):
        raise SettingError("neutral is a list of texts: write a single one as [text]")
    groups = [TextGroup("heldout", sides(contrast))]
    if rows := tuple(neutral) or contrast.control:
        groups.append(TextGroup("neutral", {"source": tokenize(model, rows, chat=contrast.chat)}))
    if foreign is not None:
        groups.append(TextGroup("foreign", sides(foreign)))
    return groups


def pooled_sides(
    model: nn.Module, group: TextGroup, sites: Sequence[Site], pool: Pool, batch_size: int | None, what: str
) -> Sides:
    """Run one group's texts, side by side; ActivationError for the first value that is not finite, of `what`."""
    sides: dict[str, dict[Site, Tensor]] = {}
    for side, tokens in group.tokens.items():
        pooled = pool_texts(model, tokens, sites, pool, batch_size)
        sides[side] = {site: values.cpu() for site, values in pooled.items()}
        for site, values in sides[side].items():
            if len(bad := (~torch.isfinite(values)).nonzero()):
                row, unit = bad[0].tolist()
                raise ActivationError(
                    f"{site.name}[{unit}] of {what} is {float(values[row, unit])} on {group.name} {side} text {row}: "
                    "the model overflows there, or the edit is too strong"
                )
    return sides


class Untouched:
    """One group's values [text, unit] in the unedited model: what every edited run is held against."""

    def __init__(self, sides: Sides) -> None:
        self._sides = sides
        self._before: dict[Site, Tensor] = {}

    def deviation(self, site: Site) -> Float[Tensor, " unit"]:
        """Return the standard deviation over the texts of both sides taken together; nan where a unit is constant."""
        both = torch.cat([pooled[site] for pooled in self._sides.values()]).double()
        spread = both.std(0, correction=0)
        return spread.masked_fill(spread <= _CONSTANT * both.abs().amax(0), torch.nan)

    def compare(self, edited: Sides, site: Site, *, ruler: Float[Tensor, " unit"]) -> dict[str, Float[Tensor, " unit"]]:
        """Return the columns of a `DownstreamShift` at one site, float64; `ruler` is the standard deviation."""
        source, moved_source = self._sides["source"][site], edited["source"][site]
        gap = torch.zeros(site.width, dtype=torch.float64)
        if "target" in edited:
            target = self._sides["target"][site]
            gap = target.double().mean(0) - source.double().mean(0)
            if site not in self._before:
                self._before[site] = wasserstein(source, target)
            before, after = self._before[site], wasserstein(moved_source, target)
            target_moved = wasserstein(edited["target"][site], target)
        else:
            after = wasserstein(moved_source, source)
            before, target_moved = torch.zeros_like(after), torch.full_like(after, torch.nan)
        return {
            "before": before,
            "after": after,
            "removed": before - after,
            "target_moved": target_moved,
            "gap": gap,
            "moved": moved_source.double().mean(0) - source.double().mean(0),
            "sd": ruler,
            "before_sd": before / ruler,
            "after_sd": after / ruler,
        }
