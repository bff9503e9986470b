"""Tokens of given or generated texts, with the activations of chosen units: what a report draws as coloured text."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any

from lens_steer.activations.show import UnitView
from lens_steer.activations.shown_unit import TopText
from lens_steer.display.shown_result import shown_result
from lens_steer.errors import SettingError
from lens_steer.evaluation.shown_generation import GeneratedUnit, GeneratedView


@dataclass(frozen=True)
class TokenText:
    """One text: its tokens, the unit's activation at each, the side it comes from, and whether text is cut off.

    Of a generated text these are the new tokens; `prompt` is what they continue.

    SettingError unless every token, and there is one at least, has a finite value.
    """

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    side: str | None = None
    cut_before: bool = False
    cut_after: bool = False
    prompt: str = ""

    def __post_init__(self) -> None:
        if not self.tokens or len(self.tokens) != len(self.values) or not all(map(isfinite, self.values)):
            raise SettingError(f"{len(self.tokens)} tokens need as many finite values, not {self.values[:8]}")


@dataclass(frozen=True)
class UnitTokens:
    """A unit's texts; its extremes over the tokens of all texts, `low` and `high`, are the ends of the colours.

    `edited` is empty, or holds what an edited model made of the prompt of every text. SettingError for another number.
    """

    unit: str
    low: float
    high: float
    texts: tuple[TokenText, ...]
    edited: tuple[TokenText, ...] = ()

    def __post_init__(self) -> None:
        if self.edited and len(self.edited) != len(self.texts):
            raise SettingError(f"{len(self.texts)} texts stand beside as many edited ones, not {len(self.edited)}")


@dataclass(frozen=True)
class TokenView:
    """Chosen units, each with the texts where it is largest.

    Tokens that no pool reads are left out: special tokens, and the prompts of (prompt, completion) pairs.
    """

    units: tuple[UnitTokens, ...]

    @classmethod
    def of(cls, view: UnitView | GeneratedView) -> TokenView:
        """Take over what `show_units` or `show_generated` returned."""
        if isinstance(view, GeneratedView):
            return cls(tuple(_side_by_side(shown) for shown in view.units))
        units = (
            UnitTokens(str(shown.unit), shown.low, shown.high, tuple(_text(text) for text in shown.top))
            for shown in view.units
        )
        return cls(tuple(units))

    def _repr_html_(self) -> str:
        import pandas as pd

        rows = [(unit.unit, len(unit.texts), unit.low, unit.high) for unit in self.units]
        table = pd.DataFrame(rows, columns=["unit", "texts", "smallest", "largest"])
        return shown_result("Tokens with the activations of units", table=table, rest=".units")

    def content(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def _side_by_side(shown: GeneratedUnit) -> UnitTokens:
    plain, edited = (
        tuple(replace(_text(text), prompt=prompt) for prompt, text in zip(shown.prompts, texts, strict=True))
        for texts in (shown.plain, shown.edited)
    )
    return UnitTokens(str(shown.unit), shown.low, shown.high, plain, edited)


def _text(text: TopText) -> TokenText:
    """Return the tokens that a pool reads."""
    kept = [place for place, pooled in enumerate(text.pooled) if pooled]
    values = text.values.tolist()
    return TokenText(
        tokens=tuple(text.tokens[place] for place in kept),
        values=tuple(values[place] for place in kept),
        side=text.side,
        cut_before=text.start > 0,
        cut_after=text.start + len(text.tokens) < text.length,
    )
