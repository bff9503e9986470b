"""The page of a prompt continued twice: static HTML that opens a token's next words without a script."""

from __future__ import annotations

from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from lens_steer.display.shown_table import number

if TYPE_CHECKING:
    from jinja2 import Template

_HERE = Path(__file__).parent
_POSITIVE, _NEGATIVE = "155, 70, 190", "15, 145, 70"
_DEEPEST = 0.55  # of the colour at the largest value: text stays readable on it, dark or light
_KEYS = count()


@runtime_checkable
class TwoTexts(Protocol):
    """What is shown: two passages, as a `SideBySide` holds them."""

    @property
    def before(self) -> Any:
        """The passage without edits."""
        ...

    @property
    def after(self) -> Any:
        """The passage under edits."""
        ...


def side_by_side_html(sides: TwoTexts, measure: str | None = None) -> str:
    """Return both texts, coloured by a measure, as a part of a page; by the first one where none is named."""
    measures = dict.fromkeys([*sides.after.colours, *sides.before.colours])
    chosen = measure if measure in measures else next(iter(measures), None)
    values = [
        value for passage in (sides.before, sides.after) for value in passage.colours.get(chosen or "", ()) or (0.0,)
    ]
    low, high = min(0.0, *values), max(0.0, *values)
    return _template("side_by_side.html.j2").render(
        style=_style(),
        key=f"ls-token-{next(_KEYS)}",  # of the tokens of one page, one is open
        sides=[("before", sides.before), ("after", sides.after)],
        measure=chosen,
        low=low,
        high=high,
        end=max(-low, high) or 1.0,
    )


def side_by_side_page(sides: TwoTexts, measure: str | None, *, title: str, about: str) -> str:
    """Return both texts as a file of its own: it loads nothing, and follows the reader's light or dark."""
    from markupsafe import Markup

    body = Markup(side_by_side_html(sides, measure))
    return _template("side_by_side_page.html.j2").render(title=title, about=about, body=body)


def _colour(value: float, end: float) -> str:
    share = _DEEPEST * min(abs(value) / end, 1.0)
    return "transparent" if share == 0 else f"rgba({_POSITIVE if value > 0 else _NEGATIVE}, {share:.3f})"


def _percent(share: float) -> str:
    return "<0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def _visible(token: str) -> str:
    return token.replace("\n", "↵\n") or "·"


@cache
def _template(name: str) -> Template:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(colour=_colour, visible=_visible, number=number, percent=_percent)
    return environment.get_template(name)


@cache
def _style() -> Any:
    from markupsafe import Markup

    return Markup((_HERE / "side_by_side.css").read_text(encoding="utf-8"))
