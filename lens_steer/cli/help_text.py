"""How --help is laid out: paragraphs fill the width, wherever the docstring breaks its lines."""

from __future__ import annotations

import re
from typing import Any

from cyclopts.help import DefaultFormatter


class FilledHelp(DefaultFormatter):
    """The default layout, with the single line breaks of docstrings as spaces."""

    def __call__(self, console: Any, options: Any, panel: Any) -> None:
        """Write a table of options or commands."""
        for entry in panel.entries:
            _fill(entry.description)
        super().__call__(console, options, panel)

    def render_description(self, console: Any, options: Any, description: Any) -> None:
        """Write what the command does."""
        _fill(description)
        super().render_description(console, options, description)


def _fill(described: Any) -> None:
    text: Any = getattr(described, "primary_renderable", None)
    if hasattr(text, "plain"):
        text.plain = re.sub(r"(?<!\n)\n(?!\n)[ \t]*(?=\S)", " ", text.plain)
