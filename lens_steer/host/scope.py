"""Scopes: which tokens an edit changes or a pool reads; a rule on position, prompt length and token id alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from lens_steer.errors import ModelError, SettingError, TokenError
from lens_steer.host.clock import TokenPositions
from lens_steer.settings import require_settings

ScopeName = Literal["all", "prompt", "generated", "last", "no_special", "tokens"]


@dataclass(frozen=True)
class Scope:
    """Which tokens are meant.

    Where a prompt ends is known of a generation (with what was given to it) and of a (prompt, completion) pair (where
    the completion begins); a forward pass in own code is a prompt (`lens_steer.host.clock` has the table of routes). A
    plain text that lens_steer runs, in `collect`, `perplexity` or a fit, counts as generated behind its first token,
    BOS, so that an edit of generated tokens costs there what it costs in generation; it has no prompt, and what is for
    prompts alone (`prompt`, and gates) is refused on it.

    name:
        `all`; `prompt`: up to the prompt's last token; `generated`: after it; `last`: the prompt's last token and every
        generated one; `no_special`: all but the ids in `special`; `tokens`: the ids in `tokens`, wherever they stand.
    start:
        Only positions from this one on (0 is a row's first real token).
    special:
        Token ids that `no_special` leaves alone.
    stop:
        Only positions before this one; None for no end.
    tokens:
        Token ids that `tokens` means.
    start_step, stop_step:
        Of `generated` and `last`, only the decoding steps from the first on, before the second (None for no end): step
        k gives the generated token k, counted from 0. `generated` means the tokens that the steps wrote; `last` those
        that they read, one place earlier: the prompt's last token is read by step 0.
    """

    name: ScopeName = "all"
    start: int = 0
    special: tuple[int, ...] = ()
    stop: int | None = None
    tokens: tuple[int, ...] = ()
    start_step: int = 0
    stop_step: int | None = None

    def __post_init__(self) -> None:
        require_settings(type(self), vars(self))
        if self.start < 0:
            raise SettingError(f"a scope starts at position 0 or later, not {self.start}")
        if self.stop is not None and self.stop <= self.start:
            raise SettingError(f"a scope from position {self.start} to before {self.stop} holds no token")
        if self.start_step < 0:
            raise SettingError(f"decoding steps are counted from 0, not from {self.start_step}")
        if self.stop_step is not None and self.stop_step <= self.start_step:
            raise SettingError(f"a scope from step {self.start_step} to before {self.stop_step} holds no token")
        if self._has_steps and self.name not in ("generated", "last"):
            raise SettingError(f"the scope {self.name} knows no decoding steps: those of generated and last do")
        if (self.name == "no_special") != bool(self.special):
            raise SettingError(
                "the scope no_special needs the ids to leave alone: Scope.without_special(model.tokenizer)"
            )
        if (self.name == "tokens") != bool(self.tokens):
            raise SettingError('the scope tokens needs ids, at least one: Scope.of_tokens([" not"], model.tokenizer)')

    @classmethod
    def without_special(cls, tokenizer: object) -> Scope:
        """Return the scope of all tokens but this tokenizer's special ones."""
        return cls("no_special", special=tuple(sorted(special_ids(tokenizer))))

    @classmethod
    def of_tokens(cls, tokens: Iterable[int | str], tokenizer: Any = None) -> Scope:
        """Return the scope of the tokens in a set, given as ids or as strings that are one token each.

        A string is taken as it stands, so that where a tokenizer keeps the space before a word in the word's token,
        "dog" and " dog" are two tokens. TokenError for a string that is no single known token; SettingError for
        strings without a tokenizer and for an empty set.
        """
        if isinstance(tokens, str):
            raise SettingError(f"a set of tokens is a list: write a single one as [{tokens!r}]")
        ids = {_single_token(token, tokenizer) if isinstance(token, str) else int(token) for token in tokens}
        return cls("tokens", tokens=tuple(sorted(ids)))

    @classmethod
    def of_steps(cls, stop: int, start: int = 0, *, name: Literal["generated", "last"] = "generated") -> Scope:
        """Return the scope of decoding steps `start` to `stop` - 1: `Scope.of_steps(8)` is the first 8 new tokens."""
        return cls(name, start_step=start, stop_step=stop)

    @classmethod
    def from_position(cls, start: int) -> Scope:
        """Return the scope of every token at position `start` or later."""
        return cls("all", start=start)

    @property
    def is_all(self) -> bool:
        """Whether every token is meant, so that no clock is needed."""
        return self.name == "all" and self.start == 0 and self.stop is None

    @property
    def _has_steps(self) -> bool:
        return self.start_step > 0 or self.stop_step is not None

    @property
    def everywhere(self) -> Scope:
        """The same scope at all positions."""
        return replace(self, start=0, stop=None)

    @classmethod
    def rebuilt(cls, spec: Mapping[str, Any]) -> Scope:
        """Return the scope that was written down as plain data."""
        lists = {name: tuple(value) for name, value in spec.items() if isinstance(value, list | tuple)}
        return cls(**{**spec, **lists})

    def mask(self, positions: TokenPositions) -> Bool[Tensor, "text pos"]:
        """Return which real tokens of a forward pass are meant; pads never are.

        ModelError where the pass does not tell what the scope asks for; SettingError for `prompt` on plain texts.
        """
        inside = positions.real & (positions.position >= self.start)
        if self.stop is not None:
            inside = inside & (positions.position < self.stop)
        if self.name == "prompt":
            require_prompts(positions, "the scope prompt is")
            inside = inside & (positions.position < positions.prompt_end)
        elif self.name in ("generated", "last"):
            step = positions.position - positions.prompt_end + (self.name == "last")
            inside = inside & (step >= self.start_step)
            if self.stop_step is not None:
                inside = inside & (step < self.stop_step)
        elif self.name in ("no_special", "tokens"):
            if positions.ids is None:
                raise ModelError(f"the scope {self.name} needs token ids, and this forward pass had none")
            listed = torch.tensor(self.special or self.tokens, device=positions.ids.device)
            inside = inside & torch.isin(positions.ids, listed, invert=self.name == "no_special")
        return inside

    def within(self, window: Scope) -> Scope | None:
        """Return this scope at the positions that another one has too; None where they share none.

        Only the other's `start` and `stop` are looked at.
        """
        start = max(self.start, window.start)
        stop = min((end for end in (self.stop, window.stop) if end is not None), default=None)
        return None if stop is not None and stop <= start else replace(self, start=start, stop=stop)

    def __str__(self) -> str:
        """Return the name, and what narrows it."""
        ids = f" {list(self.special or self.tokens)}" if self.special or self.tokens else ""
        window = "" if self.start == 0 else f" from position {self.start}"
        window += "" if self.stop is None else f" before position {self.stop}"
        window += "" if self.start_step == 0 else f" from step {self.start_step}"
        return f"{self.name}{ids}{window}" + ("" if self.stop_step is None else f" before step {self.stop_step}")


def require_prompts(positions: TokenPositions, what: str) -> None:
    """Raise SettingError where something is for prompts alone ("the scope prompt is") and the texts have none."""
    if positions.plain:
        raise SettingError(
            f"{what} for prompts, and plain texts have none (they count as generated): give (prompt, completion) pairs"
        )


def _single_token(text: str, tokenizer: Any) -> int:
    if tokenizer is None:
        raise SettingError(f"{text!r} is a string: give model.tokenizer to turn it into a token, or give token ids")
    ids: list[int] = list(tokenizer(text, add_special_tokens=False).input_ids)
    if len(ids) != 1 or (ids[0] == tokenizer.unk_token_id and text != tokenizer.unk_token):
        pieces = ", ".join(repr(piece) for piece in tokenizer.convert_ids_to_tokens(ids))
        raise TokenError(
            f"a set of tokens takes strings that are one token each, and {text!r} is {len(ids)} for this tokenizer "
            f"({pieces}): mind the space before a word, or give the ids that are meant"
        )
    return ids[0]


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
