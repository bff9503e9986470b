"""show_units: token values are the model's own, and the page is static and escaped."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from lens_steer.activations.collect import collect
from lens_steer.activations.show import UnitView, show_units, token_texts
from lens_steer.errors import ActivationError, ContrastError, SettingError, SiteError, UnitError
from lens_steer.host.sites import find_sites
from lens_steer.host.units import Unit
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.ranking.experts import rank_experts
from lens_steer.texts.contrast import ContrastSet, LabelledTexts
from tests.families import sentences

CONTRAST = ContrastSet(sentences(10, seed=1, must="sad"), sentences(8, seed=2, must="happy"))
UNITS = ["blocks.0.mlp.hook_post[3]", "blocks.1.attn.hook_z[2, 5]", "blocks.0.mlp.hook_post[90]"]


class Page(HTMLParser):
    """Tags that were opened and not closed, all tags, and the token spans as (text, title, class)."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.tokens: list[tuple[str, str, str | None]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        self.about = dict(attrs)
        if tag != "br":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "span" and "title" in self.about:
            self.tokens.append((data, self.about["title"], self.about.get("class")))


@pytest.fixture(scope="module")
def view(tiny: Any) -> UnitView:
    return show_units(tiny, CONTRAST, UNITS, top=4)


def test_token_values_are_those_of_run_with_cache(tiny: Any, view: UnitView) -> None:
    rows = CONTRAST.labelled.texts
    assert view.frame.groupby("unit", sort=False).size().index.tolist() == UNITS
    for (unit, text), shown in view.frame.groupby(["unit", "text"]):
        found = Unit.parse(str(unit), find_sites(tiny, "blocks.*"))
        ids = torch.tensor([[1, *tiny.tokenizer(rows[int(str(text))], add_special_tokens=False).input_ids]])
        _, cache = tiny.run_with_cache(ids)
        values = cache[found.site.name].flatten(2)[0, :, found.index]
        torch.testing.assert_close(torch.tensor(shown["value"].to_numpy()).float(), values, rtol=1e-5, atol=1e-6)
        assert shown["token"].iloc[0] == "<bos>"
        assert shown["pooled"].tolist() == [False] + [True] * (len(shown) - 1)
        assert "".join(shown["token"][1:]).strip() == rows[int(str(text))]


def test_texts_come_in_the_order_of_their_largest_activation(tiny: Any, view: UnitView) -> None:
    values = collect(tiny, CONTRAST, ["mlp.hook_post", "attn.hook_z"], pool="max")
    for shown in view.units:
        pooled = values.values[shown.unit.site][:, shown.unit.index]
        torch.testing.assert_close(shown.largest, pooled, rtol=1e-5, atol=1e-6)
        assert [text.row for text in shown.top] == pooled.argsort(descending=True)[:4].tolist()
        assert shown.sides == ("source",) * 10 + ("target",) * 8


def test_batch_size_changes_nothing(tiny: Any, view: UnitView) -> None:
    pd.testing.assert_frame_equal(show_units(tiny, CONTRAST, UNITS, top=4, batch_size=3).frame, view.frame, rtol=1e-4)


def test_page_is_static_and_balanced(view: UnitView, tmp_path: Path) -> None:
    html = view._repr_html_()
    page = Page(html)
    assert not page.open
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert "<script" not in html
    assert "http" not in html
    assert [token for token, *_ in page.tokens] == view.frame["token"].tolist()
    assert [float(title) for _, title, _ in page.tokens] == pytest.approx(view.frame["value"].tolist(), rel=1e-3)
    assert {kind for token, _, kind in page.tokens if token == "<bos>"} == {"aside"}
    path = view.save(tmp_path / "units.html")
    assert html in path.read_text("utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["units.html"]


def test_text_is_escaped() -> None:
    from lens_steer.activations.show import ShownUnit, TopText
    from lens_steer.host.sites import Site

    unit = Unit(Site("blocks.0.mlp.hook_post", 0, "mlp.hook_post", 4), 0)
    tokens = ("<script>alert(1)</script>", ' "&amp;', "\n", "")
    values = torch.tensor([1.0, -2.0, 0.0, 0.5])
    text = TopText(0, None, 1.0, 3, 9, tokens, (True,) * 4, values)
    html = UnitView((ShownUnit(unit, torch.tensor([1.0]), (None,), -2.0, 1.0, (text,)),))._repr_html_()
    assert "<script" not in html
    assert "&amp;amp;" in html
    assert [token for token, *_ in Page(html).tokens] == [*tokens[:2], "↵\n", "·"]
    assert html.count("…") == 2


def test_takes_a_ranking_frame_labelled_texts_and_plain_texts(tiny: Any) -> None:
    experts = rank_experts(collect(tiny, CONTRAST, "mlp.hook_post"))
    names = [str(unit) for unit in experts.units(3)]
    view = show_units(tiny, CONTRAST, experts.top(3))
    assert [str(shown.unit) for shown in view.units] == names
    plain = show_units(tiny, list(CONTRAST.source), experts.units(1), top=100)
    assert len(plain.units[0].top) == 10
    assert plain.units[0].sides == (None,) * 10
    labels = [[label, 0] for label in (1, 0, -1, 1)]
    labels[1][1] = 1
    many = LabelledTexts(tuple(sentences(4, seed=3)), labels, ("first", "second"))  # type: ignore[arg-type]
    assert show_units(tiny, many, experts.units(1)).units[0].sides == (None,) * 4
    one = LabelledTexts(many.texts, many.labels[:, :1], ("first",))
    assert show_units(tiny, one, experts.units(1)).units[0].sides == ("source", "target", None, "source")


def test_prompts_of_pairs_are_shown_and_not_read(tiny: Any) -> None:
    pairs = [("the dog sat", " and cried"), ("", "a sad bird")]
    frame = show_units(tiny, pairs, UNITS[:1]).frame
    by_text = {text: rows["pooled"].tolist() for text, rows in frame.groupby("text")}
    assert by_text == {0: [False] * 4 + [True] * 2, 1: [False] + [True] * 3}


def test_long_texts_are_cut_around_the_largest_activation(tiny: Any) -> None:
    frame = show_units(tiny, sentences(3, seed=0, length=(30, 40)), UNITS, max_tokens=7).frame
    for _, shown in frame.groupby(["unit", "rank"]):
        assert len(shown) == 7
        assert (shown["position"].diff().dropna() == 1).all()
    whole = show_units(tiny, sentences(3, seed=0, length=(30, 40)), UNITS).frame
    peaks = [part[part["pooled"]].groupby(["unit", "text"])["value"].max() for part in (frame, whole)]
    pd.testing.assert_series_equal(*peaks)


@pytest.mark.real
def test_token_texts_join_to_the_text(tinytalk: Any, stories: Any) -> None:
    text = "Tom “said” café 日本 & left.\nThen  he\twent."
    for model in (tinytalk, stories):
        ids = model.tokenizer(text, add_special_tokens=False).input_ids
        pieces = token_texts(model.tokenizer, ids)
        assert len(pieces) == len(ids)
        assert "".join(pieces).strip() == text


def test_bad_input_is_named(tiny: Any) -> None:
    with pytest.raises(ContrastError, match=r"\[text\]"):
        show_units(tiny, [], UNITS)
    with pytest.raises(SettingError, match="top"):
        show_units(tiny, CONTRAST, UNITS, top=0)
    with pytest.raises(UnitError, match="at most 100"):
        show_units(tiny, CONTRAST, rank_experts(collect(tiny, CONTRAST, "mlp.hook_post")))
    frame = pd.DataFrame({"site": ["blocks.0.mlp.hook_post"], "unit": [3], "width": [99]})
    frame_elsewhere = frame.assign(site="blocks.9.mlp.hook_post")
    with pytest.raises(SiteError, match=r"blocks\.9"):
        show_units(tiny, CONTRAST, frame_elsewhere)
    with pytest.raises(UnitError, match="no unit 9999"):
        show_units(tiny, CONTRAST, frame.assign(unit=9999))
    site = find_sites(tiny, "blocks.0.mlp.hook_post")[0]
    huge = Intervention((Edit(site, DiagonalAffine(torch.full((site.width,), 3e38), torch.full((site.width,), 3e38))),))
    with huge.on(tiny), pytest.raises(ActivationError, match=r"\[\d+\] is (-?inf|nan) at token \d+ of text \d+"):
        show_units(tiny, CONTRAST, ["blocks.1.hook_resid_post[0]"])


@pytest.mark.real
def test_an_expert_of_sad_is_largest_in_sad_texts(tinytalk: Any, shared: Path) -> None:
    from lens_steer.texts.readers import read_contrast

    contrast = read_contrast(shared / "data" / "story_concepts" / "sad.json").subsample(60, seed=0)
    best = rank_experts(collect(tinytalk, contrast, "mlp.hook_post")).top(1)
    view = show_units(tinytalk, contrast, best, top=5)
    assert [text.side for text in view.units[0].top].count("source") >= 4
    assert view.frame.groupby("rank")["value"].max().is_monotonic_decreasing
