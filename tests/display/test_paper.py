"""Paper: the pages of units, of generated text and of a card have one style sheet of colours, light or dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import lens_steer as ls
from lens_steer.display.paper import paper_style
from tests.families import sentences
from tests.notebooks.browser import open_page

UNIT = "blocks.0.mlp.hook_post[3]"
TEXTS = sentences(6, seed=1)


@pytest.fixture(scope="module")
def pages(tiny: Any) -> dict[str, Any]:
    edit = ls.ablate([UNIT], model=tiny)
    return {
        "units": ls.show_units(tiny, TEXTS, [UNIT], top=2),
        "generated": ls.show_generated(tiny, edit, TEXTS[:2], [UNIT], max_new_tokens=3),
        "unit": ls.unit_page(tiny, UNIT, texts=TEXTS),
    }


def test_colours_of_paper_and_ink_are_in_one_style_sheet(pages: dict[str, Any]) -> None:
    for name, page in pages.items():
        html = page._repr_html_()
        own = html.replace(str(paper_style()), "")
        assert own != html, name
        assert "ls-paper" in own
        assert not any(colour in own for colour in ("#fff", "#222", "#666", "#ddd", "rgb(")), name


def test_a_saved_page_is_dark_where_the_reader_is_and_light_on_paper(pages: dict[str, Any], tmp_path: Path) -> None:
    at = pages["unit"].save(tmp_path / "unit.html")
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    ink = "getComputedStyle(document.querySelector('.lens-units td.tokens span:not(.aside)')).color"
    below = "getComputedStyle(document.querySelector('.lens-unit-page .wide td')).backgroundColor"
    with open_page(at.as_uri(), tmp_path / "browser") as page:
        page.resize(900, 700)
        assert page.read(f"[{paper}, {ink}, {below}]") == [
            "rgb(255, 255, 255)",
            "rgb(31, 35, 40)",
            "rgb(255, 255, 255)",
        ]
        page.resize(900, 700, dark=True)
        assert page.read(f"[{paper}, {ink}, {below}]") == ["rgb(21, 24, 28)", "rgb(230, 233, 236)", "rgb(21, 24, 28)"]
        dark = [{"name": "prefers-color-scheme", "value": "dark"}]
        page.call("Emulation.setEmulatedMedia", media="print", features=dark)
        assert page.read(paper) == "rgb(255, 255, 255)"
        assert page.read("document.querySelector('.lens-unit-page .wide').scrollWidth <= innerWidth")
