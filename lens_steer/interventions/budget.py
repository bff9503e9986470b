"""Budgets: what an edit may cost on neutral texts, and the strength up to which it stays within that."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from lens_steer.errors import ModelError, SettingError
from lens_steer.host.next_tokens import read_divergences, read_losses
from lens_steer.texts.contrast import ChatFormat, Row

LARGEST = 8.0
"""The strength at which the search for the largest one ends."""
_SMALLEST = 2.0**-7
_PRECISION = 1.02  # of the largest strength: two strengths this near are one

EditedAt = Callable[[float], AbstractContextManager[object]]
"""Brings an edit of some strength onto the model."""
_LOWEST = {"ppl": 1.0, "kl": 0.0}
_COSTS = {"ppl": "perplexity of neutral texts times {:.4g}", "kl": "{:.3g} nats per token from the unedited model"}


@dataclass(frozen=True)
class Budget:
    """What an edit may cost: "ppl:1.1" or "kl:0.1".

    Attributes
    ----------
    kind:
        "ppl": the perplexity of neutral texts, as a multiple of the unedited model's. "kl": the mean over their tokens
        of KL(unedited || edited) between next-token distributions, in nats.
    limit:
        The highest cost that is within it; from 1 (ppl) or 0 (kl).

    """

    kind: Literal["ppl", "kl"]
    limit: float

    @classmethod
    def of(cls, written: str | Budget) -> Budget:
        """Read a budget; SettingError for what is none."""
        if isinstance(written, Budget):
            return written
        kind, _, number = str(written).partition(":")
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if kind == "ppl" and 1 <= limit < math.inf:
            return cls("ppl", limit)
        if kind == "kl" and 0 <= limit < math.inf:
            return cls("kl", limit)
        raise SettingError(
            f'a budget is "ppl:1.1" (perplexity at most 1.1 times the unedited one; 1 or more) or "kl:0.1" (nats per '
            f"token from the unedited model; 0 or more), not {written!r}"
        )

    def __str__(self) -> str:
        return f"{self.kind}:{self.limit:g}"

    @property
    def of_no_edit(self) -> float:
        """The cost of no edit."""
        return _LOWEST[self.kind]

    def allows(self, cost: float) -> bool:
        """Whether a cost is within the budget; one that is not a number never is."""
        return cost <= self.limit

    def said(self, cost: float) -> str:
        """Say a cost in words."""
        return _COSTS[self.kind].format(cost)

    def measure(
        self,
        model: nn.Module,
        neutral: Sequence[Row],
        edited_at: EditedAt,
        *,
        chat: ChatFormat = None,
        batch_size: int | None = None,
        progress: bool = True,
    ) -> Callable[[float], float]:
        """Return the function from strength to cost; infinite where the edited model overflows.

        The unedited model is read at once: TokenError and ModelError of the texts themselves are raised here.
        """
        pairs_chat = None if all(isinstance(row, str) for row in neutral) else chat
        about: dict[str, Any] = {"chat": pairs_chat, "batch_size": batch_size, "progress": progress}
        unedited = read_losses(model, neutral, **about).perplexity()

        def cost(strength: float) -> float:
            try:
                if self.kind == "kl":
                    return read_divergences(model, neutral, lambda: edited_at(strength), **about).mean
                with edited_at(strength):
                    return read_losses(model, neutral, **about).perplexity() / unedited
            except ModelError:
                return math.inf

        return cost


def largest_within(budget: Budget, cost: Callable[[float], float]) -> tuple[float, dict[float, float]]:
    """Return the largest strength whose cost is within the budget, to 2 %, and all costs that were measured.

    Strengths are doubled from 1 while they are within it, up to 8, or halved until one is, and the last interval is
    bisected: the answer is the largest where the cost grows with strength, and within the budget in any case.
    SettingError where no strength down to 1/128 is; it names the cheapest.
    """
    measured: dict[float, float] = {}

    def allows(strength: float) -> bool:
        measured[strength] = cost(strength)
        return budget.allows(measured[strength])

    low = 1.0
    if allows(low):
        while low < LARGEST and allows(2 * low):
            low *= 2
        if low >= LARGEST:
            return low, measured
    else:
        while not allows(low := low / 2):
            if low <= _SMALLEST:
                cheapest = min(measured, key=lambda strength: measured[strength])
                raise SettingError(
                    f"no strength is within the budget {budget}: the cheapest of those measured, {cheapest:g}, costs "
                    f"{budget.said(measured[cheapest])}"
                )
    high = 2 * low
    while high > _PRECISION * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if allows(middle) else (low, middle)
    return low, measured
