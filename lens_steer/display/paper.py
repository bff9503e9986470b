"""Paper: the colours that every page of ours shares, light or dark as the reader's system is; light when printed.

What stands on it has the class `ls-paper`.
"""

from __future__ import annotations

from functools import cache
from html import escape
from pathlib import Path
from typing import Any


@cache
def paper_style() -> Any:
    """Return the style sheet, safe to stand in a template."""
    from markupsafe import Markup

    return Markup(Path(__file__).with_name("paper.css").read_text(encoding="utf-8"))


def standalone(title: str, body: str) -> str:
    """Return one HTML document around a part of a page that brings its own style."""
    return f"""<!doctype html>
<html lang="en" class="ls-paper">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>
{paper_style()}body {{ margin: 12px; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""
