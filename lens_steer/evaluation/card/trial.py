"""A trial: the held-out prompts and texts on which a card tries every edit, with the same random streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from einops import reduce
from jaxtyping import Float
from torch import nn

from lens_steer.evaluation.generation import generate
from lens_steer.evaluation.perplexity import text_losses
from lens_steer.host.next_tokens import TextLosses
from lens_steer.host.prompts import Prompt, prompt_text
from lens_steer.interventions.intervention import Intervention
from lens_steer.texts.contrast import ChatFormat, Row


@dataclass(frozen=True, eq=False)
class Tried:
    """What a model wrote behind the prompts (all of them, as often as there are samples), and its neutral losses."""

    texts: tuple[str, ...]
    losses: TextLosses


@dataclass(frozen=True, eq=False)
class Trial:
    """Prompts and neutral texts, what they come from where that is named, and how they are run."""

    model: nn.Module
    prompts: tuple[Prompt, ...]
    neutral: tuple[Row, ...]
    samples: int
    max_new_tokens: int
    temperature: float
    chat: ChatFormat
    seed: int
    batch_size: int | None
    confidence: float
    prompt_groups: Sequence[str] | None = None
    neutral_groups: Sequence[str] | None = None

    @property
    def sampling(self) -> dict[str, Any]:
        """How continuations are drawn."""
        return {
            "seed": self.seed,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
            "chat": self.chat,
        }

    @property
    def drawn(self) -> dict[str, Any]:
        """How intervals are drawn."""
        return {"confidence": self.confidence, "seed": self.seed}

    @property
    def pairs_chat(self) -> ChatFormat:
        """The chat format of neutral pairs; plain neutral texts are measured as they are."""
        return None if all(isinstance(row, str) for row in self.neutral) else self.chat

    @cached_property
    def laid_out(self) -> tuple[str, ...]:
        """The prompts as texts, as often as they are continued."""
        plain = [prompt if isinstance(prompt, str) else prompt_text(self.model, prompt, 0) for prompt in self.prompts]
        return tuple(plain * self.samples)

    def run(self, edit: Intervention | None) -> Tried:
        """Continue the prompts and read the neutral texts, under an edit or none."""
        given: dict[str, Any] = {"intervention": edit, "batch_size": self.batch_size, "progress": False}
        texts = generate(self.model, list(self.prompts) * self.samples, **self.sampling, **given)
        return Tried(tuple(texts), text_losses(self.model, self.neutral, chat=self.pairs_chat, **given))

    @cached_property
    def unedited(self) -> Tried:
        """What the model does without an edit."""
        return self.run(None)


def by_prompt(trial: Trial, values: Float[np.ndarray, " text"]) -> Float[np.ndarray, " prompt"]:
    """Add up the values of a prompt's continuations."""
    return np.asarray(reduce(values, "(sample prompt) -> prompt", "sum", prompt=len(trial.prompts)))
