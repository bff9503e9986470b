"""Scopes: which tokens an edit changes or a pool reads; a rule on position, prompt length and token id alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool
from torch import Tensor

from lens_steer.errors import ModelError, SettingError
from lens_steer.host.clock import TokenPositions

ScopeName = Literal["all", "prompt", "generated", "last", "no_special"]


@dataclass(frozen=True)
class Scope:
    """Which tokens are meant.

    name:
        `all`; `prompt`: up to the prompt's last token; `generated`: after it; `last`: the prompt's last token and every
        generated one; `no_special`: all but the ids in `special`.
    start:
        Only positions from this one on (0 is a row's first real token).
    special:
        Token ids that `no_special` leaves alone.
    stop:
        Only positions before this one; None for no end.
    """

    name: ScopeName = "all"
    start: int = 0
    special: tuple[int, ...] = ()
    stop: int | None = None

    def __post_init__(self) -> None:
        if self.name not in get_args(ScopeName):
            raise SettingError(f"no scope is named {self.name!r}; there are {', '.join(get_args(ScopeName))}")
        if self.start < 0:
            raise SettingError(f"a scope starts at position 0 or later, not {self.start}")
        if self.stop is not None and self.stop <= self.start:
            raise SettingError(f"a scope from position {self.start} to before {self.stop} holds no token")
        if (self.name == "no_special") != bool(self.special):
            raise SettingError(
                "the scope no_special needs the ids to leave alone: Scope.without_special(model.tokenizer)"
            )

    @classmethod
    def without_special(cls, tokenizer: object) -> Scope:
        """Return the scope of all tokens but this tokenizer's special ones."""
        return cls("no_special", special=tuple(sorted(special_ids(tokenizer))))

    @classmethod
    def from_position(cls, start: int) -> Scope:
        """Return the scope of every token at position `start` or later."""
        return cls("all", start=start)

    @property
    def is_all(self) -> bool:
        """Whether every token is meant, so that no clock is needed."""
        return self.name == "all" and self.start == 0 and self.stop is None

    def mask(self, positions: TokenPositions) -> Bool[Tensor, "text pos"]:
        """Return which real tokens of a forward pass are meant; pads never are."""
        inside = positions.real & (positions.position >= self.start)
        if self.stop is not None:
            inside = inside & (positions.position < self.stop)
        end = positions.prompt_length[:, None]
        if self.name == "prompt":
            inside = inside & (positions.position < end)
        elif self.name == "generated":
            inside = inside & (positions.position >= end)
        elif self.name == "last":
            inside = inside & (positions.position >= end - 1)
        elif self.name == "no_special":
            if positions.ids is None:
                raise ModelError("the scope no_special needs token ids, and this forward pass had none")
            special = torch.tensor(self.special, device=positions.ids.device)
            inside = inside & ~torch.isin(positions.ids, special)
        return inside


def special_ids(tokenizer: Any) -> set[int]:
    """Return the ids of a tokenizer's special tokens: BOS and its like, and the turn markers of a chat template.

    Llama-3 and others list their markers among the added tokens only.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(int(number) for number, token in added.items() if token.special)}


ALL_TOKENS = Scope()


def as_scope(scope: Scope | ScopeName) -> Scope:
    """Turn a scope's name into the scope."""
    return scope if isinstance(scope, Scope) else Scope(scope)
