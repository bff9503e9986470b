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
from lens_steer.texts.blocks import blocks_of
from lens_steer.texts.contrast import ContrastSet, Row, require_contrast
from lens_steer.texts.messages import Conversation

Texts = Literal["heldout", "neutral", "foreign"]
Sides = Mapping[str, Mapping[Site, Tensor]]
"""Side -> site -> pooled values, float32 [text, unit]."""


@dataclass(frozen=True)
class TextGroup:
    """Texts of one kind, tokenised: a source and a target, or (neutral) a source alone.

    `blocks` number per side what belongs together (see `ContrastSet.blocks`).
    """

    name: Texts
    tokens: Mapping[str, Tokens]
    blocks: Mapping[str, Int[np.ndarray, " text"]]


def tokenized_groups(
    model: nn.Module, contrast: ContrastSet, neutral: Sequence[Row | Conversation], foreign: ContrastSet | None
) -> list[TextGroup]:
    """Return the held-out group first, then neutral texts (without any, the contrast's control), then foreign."""
    if isinstance(neutral, str):
        raise SettingError("neutral is a list of texts: write a single one as [text]")
    groups = [_sided(model, "heldout", contrast)]
    if len(neutral):
        groups.append(_neutral(model, neutral, contrast, blocks_of(neutral)))
    elif contrast.control:
        groups.append(_neutral(model, contrast.control, contrast, contrast.blocks[-len(contrast.control) :]))
    if foreign is not None:
        groups.append(_sided(model, "foreign", foreign))
    return groups


def _sided(model: nn.Module, name: Texts, contrast: ContrastSet) -> TextGroup:
    require_contrast(contrast)
    sides = {"source": contrast.source, "target": contrast.target}
    blocks = np.split(contrast.blocks, np.cumsum([len(rows) for rows in sides.values()]))
    tokens = {side: tokenize(model, rows, chat=contrast.chat) for side, rows in sides.items()}
    return TextGroup(name, tokens, dict(zip(sides, blocks, strict=False)))


def _neutral(
    model: nn.Module, rows: Sequence[Row | Conversation], contrast: ContrastSet, blocks: Int[np.ndarray, " text"]
) -> TextGroup:
    return TextGroup("neutral", {"source": tokenize(model, rows, chat=contrast.chat)}, {"source": blocks})


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
