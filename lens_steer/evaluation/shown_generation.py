"""Units on generated text: what the model writes with and without an edit, side by side, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lens_steer.activations.show import UnitView, show_units
from lens_steer.activations.show_page import shown_text
from lens_steer.activations.shown_unit import ShownUnit, TopText
from lens_steer.display.paper import paper_style
from lens_steer.errors import ContrastError, SettingError
from lens_steer.evaluation.generation import generate
from lens_steer.host.units import Unit, UnitsLike
from lens_steer.interventions.intervention import Intervention, require_interventions
from lens_steer.settings import require_settings

if TYPE_CHECKING:
    import pandas as pd
    from jinja2 import Template


@dataclass(frozen=True, eq=False)
class GeneratedUnit:
    """A unit on prompts and on what follows them, unedited (`plain`) and edited, row by row.

    `low` and `high` are its extremes over the generated tokens of both.
    """

    unit: Unit
    low: float
    high: float
    prompts: tuple[str, ...]
    plain: tuple[TopText, ...]
    edited: tuple[TopText, ...]


@dataclass(frozen=True, eq=False, repr=False)
class GeneratedView:
    """Chosen units on what a model writes without and with an edit: displayed in Jupyter as static HTML."""

    units: tuple[GeneratedUnit, ...]

    def __repr__(self) -> str:
        return f"GeneratedView({', '.join(str(shown.unit) for shown in self.units)})"

    @property
    def frame(self) -> pd.DataFrame:
        """One row per generated token: unit, prompt, run ("unedited", "edited"), step (from 0), token, value."""
        import pandas as pd

        rows = [
            (str(shown.unit), prompt, run, step, token, value)
            for shown in self.units
            for run, texts in (("unedited", shown.plain), ("edited", shown.edited))
            for prompt, text in zip(shown.prompts, texts, strict=True)
            for step, (token, value) in enumerate(_new(text))
        ]
        return pd.DataFrame(rows, columns=["unit", "prompt", "run", "step", "token", "value"])

    def _repr_html_(self) -> str:
        return _template().render(style=paper_style(), units=[_shown(unit) for unit in self.units])


def show_generated(
    model: nn.Module,
    intervention: Intervention,
    prompts: Sequence[str],
    units: UnitsLike,
    *,
    top: int = 5,
    strength: float = 1.0,
    max_new_tokens: int = 40,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int | None = None,
) -> GeneratedView:
    """Show units on the tokens that a model writes itself, without an edit and with it.

    Both runs draw from the same random streams (see `generate`); a unit's values are those of a pass over (prompt,
    continuation), the edited ones with the edit in place.

    Parameters
    ----------
    model:
        A TransformerLens model.
    intervention, strength:
        The edit, and how much of it.
    prompts:
        Texts to continue.
    units:
        Whatever `as_units` takes; at most 100.
    top:
        Prompts per unit, by its largest activation in the unedited continuation.
    max_new_tokens, temperature, seed, batch_size:
        As for `generate`.

    Raises
    ------
    ContrastError
        No prompt is continued by both runs.
    UnitError, SiteError, SettingError, TokenError
        As for `show_units` and `generate`.

    """
    require_settings(show_generated, locals())
    require_interventions(intervention)
    if top < 1:
        raise SettingError(f"show_generated: top is 1 or more, not {top}")
    sampling: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    sampling |= {"batch_size": batch_size, "progress": False}
    plain = generate(model, prompts, **sampling)
    edited = generate(model, prompts, intervention=intervention, strength=strength, **sampling)
    rows = [row for row, texts in enumerate(zip(plain, edited, strict=True)) if all(text.strip() for text in texts)]
    if not rows:
        raise ContrastError(f"none of the {len(prompts)} prompts is continued in both runs: give others")

    def view(continuations: Sequence[str]) -> UnitView:
        pairs = [(prompts[row], continuations[row]) for row in rows]
        longest = max_new_tokens + max(len(prompts[row].encode()) for row in rows) + 1  # nothing is cut
        return show_units(model, pairs, units, top=len(rows), max_tokens=longest, batch_size=batch_size)

    before = view(plain)
    with intervention.on(model, strength):
        after = view(edited)
    kept = [prompts[row] for row in rows]
    return GeneratedView(tuple(_side_by_side(*both, kept, top) for both in zip(before.units, after.units, strict=True)))


def _side_by_side(plain: ShownUnit, edited: ShownUnit, prompts: Sequence[str], top: int) -> GeneratedUnit:
    by_row = {text.row: text for text in edited.top}
    return GeneratedUnit(
        plain.unit,
        min(plain.low, edited.low),
        max(plain.high, edited.high),
        tuple(prompts[text.row] for text in plain.top[:top]),
        plain.top[:top],
        tuple(by_row[text.row] for text in plain.top[:top]),
    )


def _new(text: TopText) -> list[tuple[str, float]]:
    """The generated tokens and their values."""
    tokens = zip(text.tokens, text.values.tolist(), text.pooled, strict=True)
    return [(token, value) for token, value, pooled in tokens if pooled]


def _shown(shown: GeneratedUnit) -> dict[str, Any]:
    scale = max(-shown.low, shown.high) or 1.0
    rows = zip(shown.prompts, shown.plain, shown.edited, strict=True)
    return {
        "name": str(shown.unit),
        "rows": [(prompt, shown_text(before, scale), shown_text(after, scale)) for prompt, before, after in rows],
    }


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    return environment.get_template("shown_generation.html.j2")
