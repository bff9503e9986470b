"""The texts that an effect is measured on, by kind: tokenised, in blocks, and their pooled activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from lens_steer.activations.pooling import Pool
from lens_steer.activations.whole_texts import pool_texts
from lens_steer.errors import ActivationError, SettingError
from lens_steer.host.sites import Site
from lens_steer.host.tokens import Tokens, tokenize
from lens_steer.texts.contrast import ContrastSet, Row

Texts = Literal["heldout", "neutral", "foreign"]
Sides = Mapping[str, Mapping[Site, Tensor]]
"""Side -> site -> pooled values, float32 [text, unit]."""


@dataclass(frozen=True)
class TextGroup:
    """Texts of one kind, tokenised: a source and a target, or (neutral) a source alone.

    `blocks` number per side what belongs together: equal texts, and completions of one prompt.
    """

    name: Texts
    tokens: Mapping[str, Tokens]
    blocks: Mapping[str, Int[np.ndarray, " text"]]


def tokenized_groups(
    model: nn.Module, contrast: ContrastSet, neutral: Sequence[Row], foreign: ContrastSet | None
) -> list[TextGroup]:
    """Return the held-out group first, then neutral texts (without any, the contrast's control), then foreign."""
    if isinstance(neutral, str):
        raise SettingError("neutral is a list of texts: write a single one as [text]")
    groups = [_group(model, "heldout", contrast, source=contrast.source, target=contrast.target)]
    if rows := tuple(neutral) or contrast.control:
        groups.append(_group(model, "neutral", contrast, source=rows))
    if foreign is not None:
        groups.append(_group(model, "foreign", foreign, source=foreign.source, target=foreign.target))
    return groups


def _group(model: nn.Module, name: Texts, contrast: ContrastSet, **sides: Sequence[Row]) -> TextGroup:
    tokens = {side: tokenize(model, rows, chat=contrast.chat) for side, rows in sides.items()}
    number: dict[Row, int] = {}
    blocks = {
        side: np.array([number.setdefault(row, len(number)) for row in rows], dtype=np.int64)
        for side, rows in sides.items()
    }
    if contrast.paired and "target" in sides:
        blocks["target"] = blocks["source"]
    return TextGroup(name, tokens, blocks)


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
