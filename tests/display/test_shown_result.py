"""How results show themselves: all of them do, escaped, rounded, and never the texts."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser

import pandas as pd
import pytest
import torch

import lens_steer as ls
from lens_steer.display.shown_result import shown_result, with_interval

HOSTILE = '<script>alert("1")</script>&amp;'
# Settings and small values: their repr, one line, says all that there is.
PLAIN = {
    *("AgainstDraws", "Budget", "Change", "ConceptProbability", "Edit", "Interval", "KLToClean", "LogProbability"),
    *("LogitDifference", "RowGate", "Scope", "Site", "Sketching", "TextStream", "Unit"),
}


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.cells: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data.strip()


@pytest.mark.parametrize("name", ls.__all__)
def test_every_public_result_shows_itself(name: str) -> None:
    public = getattr(ls, name)
    settings = hasattr(public, "sites") and hasattr(public, "fit")  # of a method
    if not isinstance(public, type) or not dataclasses.is_dataclass(public) or settings:
        return
    shows = any(hasattr(public, f"_repr_{kind}_") for kind in ("html", "markdown"))
    assert shows or name in PLAIN, f"give {name} a _repr_html_, by lens_steer.display.shown_result"


def test_text_is_escaped_wherever_it_stands() -> None:
    table = pd.DataFrame({HOSTILE: [HOSTILE, "b"], "x": [1, 2]})
    html = shown_result(HOSTILE, sentences=[HOSTILE], facts=[(HOSTILE, HOSTILE)], table=table, rest=HOSTILE)
    assert "script" not in Tags(html).seen
    assert HOSTILE in Tags(html).cells


def test_the_head_of_a_table_is_shown_and_the_rest_is_named() -> None:
    table = pd.DataFrame({"share": torch.linspace(0, 1, 12).tolist(), "of": [*"abcdefghijkl"]})
    cells = Tags(shown_result("T", table=table, rest=".rows")).cells
    assert cells[:4] == ["share", "of", "0.000", "a"]
    assert len(cells) == 2 + 20
    assert "10 of 12 rows; all are in .rows" in shown_result("T", table=table, rest=".rows")
    assert "rows; all" not in shown_result("T", table=table.head(10))


def test_nothing_is_shown_of_what_is_not_there() -> None:
    assert Tags(shown_result("T")).seen == {"style", "div", "p"}
    assert Tags(shown_result("T", facts=[("a", None), ("b", "")], table=pd.DataFrame({"x": []}))).seen == {
        "style",
        "div",
        "p",
    }


def test_an_interval_stands_beside_its_value_where_there_is_one() -> None:
    assert with_interval(-0.5, -0.75, 0.25) == "\N{MINUS SIGN}0.5 [\N{MINUS SIGN}0.75, 0.25]"
    assert with_interval(0.5, float("nan"), float("nan")) == "0.5"


def test_texts_are_counted_and_not_shown() -> None:
    secrets = [f"secret {number}" for number in range(4)]
    contrast = ls.ContrastSet(secrets, [f"{text} kept" for text in secrets], paired=True, name=HOSTILE)
    for shown in (contrast, contrast.labelled):
        html = shown._repr_html_()
        assert "secret" not in html
        assert "script" not in Tags(html).seen
    cells = Tags(contrast._repr_html_()).cells
    assert cells[6:12] == ["source", "4", "4", "8", "8", "8"]
    assert cells[12:18] == ["target", "4", "4", "13", "13", "13"]


def test_an_intervention_says_what_stands_against_baking() -> None:
    site = ls.Site("blocks.0.mlp.hook_post", 0, "mlp.hook_post", 3)
    stream = ls.Site("blocks.0.hook_resid_post", 0, "hook_resid_post", 3)
    ones, shift = torch.ones(3), torch.tensor([0.0, 2.0, 0.0])

    def html(at: ls.Site, scale: torch.Tensor) -> str:
        return ls.Intervention((ls.Edit(at, ls.DiagonalAffine(scale, shift)),), {"method": HOSTILE})._repr_html_()

    assert "nothing in the edits is against it" in html(site, 2 * ones)
    assert "nothing in the edits is against it" in html(stream, ones)
    assert "no: blocks.0.hook_resid_post is the residual stream" in html(stream, 2 * ones)
    edit = ls.Edit(site, ls.DiagonalAffine(ones, shift))
    assert "it is for some tokens only" in ls.Intervention((edit.scoped("generated"),))._repr_html_()
    assert "script" not in Tags(html(site, ones)).seen
    assert "1 of 3, by 1 of 1 edits" in html(site, ones)
