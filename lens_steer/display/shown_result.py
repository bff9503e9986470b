"""A result as it shows itself in a notebook: a heading, facts, and the head of a table; in light and in dark alike."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_steer.display.shown_table import shown_table

if TYPE_CHECKING:
    import pandas as pd
    from jinja2 import Template

_HERE = Path(__file__).parent
MOST_ROWS = 10


def shown_result(
    heading: str,
    *,
    sentences: Iterable[str] = (),
    facts: Iterable[tuple[str, object]] = (),
    table: pd.DataFrame | None = None,
    rows: str = "",
    rest: str = ".frame",
) -> str:
    """Return the HTML of a result, every text in it escaped.

    Parameters
    ----------
    heading:
        What it is, in one line.
    sentences, facts:
        What it says, and pairs of a word and a value; facts without a value (None, "") are left out.
    table:
        Its first ten rows are shown, rounded as in reports; columns in their order, so that with the sort key first.
    rows:
        What rows of the result the table holds, where they were chosen for it: then all of them are shown.
    rest:
        Where the other rows are.

    """
    total = 0 if table is None else len(table)
    if not rows and total > MOST_ROWS:
        rows = f"{MOST_ROWS} of {total:,} rows"
        table = None if table is None else table.head(MOST_ROWS)
    shown = None if table is None or table.empty else shown_table(table)
    return _template().render(
        style=_style(),
        heading=heading,
        sentences=list(sentences),
        facts=[(name, str(value)) for name, value in facts if value is not None and value != ""],
        table=shown,
        more=f"{rows}; all are in {rest}" if rows else "",
    )


def with_interval(value: float, low: float, high: float) -> str:
    """Return a value and its interval, such as `0.86 [0.73, 0.93]`."""
    text = f"{value:.3g}" if not low <= high else f"{value:.3g} [{low:.3g}, {high:.3g}]"
    return text.replace("-", "\N{MINUS SIGN}")


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("shown_result.html.j2")


@cache
def _style() -> Any:
    from markupsafe import Markup

    return Markup((_HERE / "shown_result.css").read_text(encoding="utf-8"))
