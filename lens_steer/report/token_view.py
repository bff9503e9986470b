"""Tokens with the activations of chosen units: what a report draws as coloured text."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from lens_steer.activations.show import UnitView
from lens_steer.display.shown_result import shown_result
from lens_steer.errors import SettingError


@dataclass(frozen=True)
class TokenText:
    """One text: its tokens, the unit's activation at each, the side it comes from, and whether text is cut off.

    SettingError unless every token, and there is one at least, has a finite value.
    """

    tokens: tuple[str, ...]
    values: tuple[float, ...]
    side: str | None = None
    cut_before: bool = False
    cut_after: bool = False

    def __post_init__(self) -> None:
        if not self.tokens or len(self.tokens) != len(self.values) or not all(map(isfinite, self.values)):
            raise SettingError(f"{len(self.tokens)} tokens need as many finite values, not {self.values[:8]}")


@dataclass(frozen=True)
class UnitTokens:
    """A unit's texts; its extremes over the tokens of all texts, `low` and `high`, are the ends of the colours."""

    unit: str
    low: float
    high: float
    texts: tuple[TokenText, ...]


@dataclass(frozen=True)
class TokenView:
    """Chosen units, each with the texts where it is largest.

    Tokens that no pool reads are left out: special tokens, and the prompts of (prompt, completion) pairs.
    """

    units: tuple[UnitTokens, ...]

    @classmethod
    def of(cls, view: UnitView) -> TokenView:
        """Take over what `show_units` returned."""
        units = []
        for shown in view.units:
            texts = []
            for text in shown.top:
                kept = [place for place, pooled in enumerate(text.pooled) if pooled]
                values = text.values.tolist()
                texts.append(
                    TokenText(
                        tokens=tuple(text.tokens[place] for place in kept),
                        values=tuple(values[place] for place in kept),
                        side=text.side,
                        cut_before=text.start > 0,
                        cut_after=text.start + len(text.tokens) < text.length,
                    )
                )
            units.append(UnitTokens(str(shown.unit), shown.low, shown.high, tuple(texts)))
        return cls(tuple(units))

    def _repr_html_(self) -> str:
        import pandas as pd

        rows = [(unit.unit, len(unit.texts), unit.low, unit.high) for unit in self.units]
        table = pd.DataFrame(rows, columns=["unit", "texts", "smallest", "largest"])
        return shown_result("Tokens with the activations of units", table=table, rest=".units")

    def content(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)
