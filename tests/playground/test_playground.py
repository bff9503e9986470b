"""The playground: the texts of `generate`, writes that are measured, next words, and a page that escapes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lens_steer as ls
from lens_steer.playground.side_by_side import NextWord, Passage, SideBySide, continue_both
from tests.families import sentences

PROMPT = "the sad dog saw"
SAMPLING: Any = {"max_new_tokens": 8, "seed": 3}
SITE = "blocks.1.hook_resid_post"
WRITE = f"write of shift at {SITE}"


def shift(model: Any, size: float = 9.0) -> ls.Intervention:
    (site,) = ls.find_sites(model, SITE)
    offset = torch.zeros(site.width)
    offset[:4] = size
    return ls.Intervention((ls.Edit(site, ls.DiagonalAffine(torch.ones(site.width), offset)),), {"method": "shift"})


@pytest.fixture(scope="module")
def sides(tiny: Any) -> SideBySide:
    units = [f"{SITE}[0]"]
    return continue_both(tiny, {"shift": shift(tiny)}, PROMPT, strengths={"shift": 0.5}, units=units, **SAMPLING)


@pytest.mark.compat
def test_the_texts_are_those_of_generate(tiny: Any, sides: SideBySide) -> None:
    plain = ls.generate(tiny, [PROMPT], **SAMPLING, progress=False)
    steered = ls.generate(tiny, [PROMPT], intervention=shift(tiny), strength=0.5, **SAMPLING, progress=False)
    assert sides.before.continuation == plain[0]
    assert sides.after.continuation == steered[0]
    assert plain != steered


def test_a_write_is_the_norm_of_the_change(sides: SideBySide) -> None:
    # Half of a shift by 9 of four units: a norm of 9 at every token.
    assert sides.after.colours[WRITE] == pytest.approx([9.0] * len(sides.after.tokens), rel=1e-4)
    assert set(sides.before.colours[WRITE]) == {0.0}
    unit = f"{SITE}[0]"
    first = [passage.colours[unit][0] for passage in (sides.before, sides.after)]
    assert first[1] - first[0] == pytest.approx(4.5, rel=1e-4)  # the same token, BOS, in both


def test_an_edit_of_generated_tokens_writes_there_alone(tiny: Any) -> None:
    sides = continue_both(tiny, {"shift": shift(tiny)}, PROMPT, strengths={"shift": 1.0}, scope="generated", **SAMPLING)
    writes, prompt = sides.after.colours[WRITE], sides.after.prompt
    assert set(writes[:prompt]) == {0.0}
    assert min(writes[prompt:]) == pytest.approx(18.0, rel=1e-4)


def test_at_strength_0_nothing_differs(tiny: Any) -> None:
    sides = continue_both(tiny, {"shift": shift(tiny)}, PROMPT, strengths={"shift": 0.0}, **SAMPLING)
    assert sides.before == sides.after
    assert set(sides.after.colours[WRITE]) == {0.0}
    assert all(word.before == word.after for words in sides.after.next_words for word in words)


def test_next_words_are_the_laws_of_the_model(tiny: Any, sides: SideBySide) -> None:
    ids = torch.tensor([[1, *tiny.tokenizer(PROMPT, add_special_tokens=False).input_ids]])
    place = sides.before.prompt - 1
    laws = [tiny(ids)[0, -1].softmax(-1)]
    with shift(tiny).on(tiny, 0.5):
        laws.append(tiny(ids)[0, -1].softmax(-1))
    for word in sides.before.next_words[place]:
        token = tiny.tokenizer.convert_tokens_to_ids(word.text.strip())
        assert [word.before, word.after] == pytest.approx([float(law[token]) for law in laws], rel=1e-4)
    likeliest = {tiny.tokenizer.decode([int(law.argmax())]) for law in laws}
    assert likeliest <= {word.text for word in sides.before.next_words[place]}


def test_play_takes_one_several_and_named_edits(tiny: Any) -> None:
    edit = shift(tiny)
    contrast = ls.ContrastSet(sentences(9, must="sad"), sentences(9, must="happy", seed=1))
    assert list(ls.play(tiny, edit).edits) == ["shift"]
    assert list(ls.play(tiny, [edit, edit]).edits) == ["shift 1", "shift 2"]
    assert list(ls.play(tiny, {"mine": edit}).edits) == ["mine"]
    assert ls.play(tiny, edit).prompts == ("",)
    offered = ls.play(tiny, edit, contrast, prompt="the dog").prompts
    assert offered[0] == "the dog"
    assert offered[1:] == tuple(dict.fromkeys(ls.beginnings(contrast.source, words=6, most=6)))
    for wrong in ([], {}):
        with pytest.raises(ls.LensSteerError, match="at least one"):
            ls.play(tiny, wrong)
    with pytest.raises(ls.LensSteerError, match="temperature"):
        ls.play(tiny, edit, temperature=-1.0)


def test_what_goes_wrong_is_said_in_a_line(tiny: Any) -> None:
    playground = ls.play(tiny, shift(tiny), **SAMPLING)
    for given, said in (
        ({"prompt": "the " * 80}, "context is 64"),
        ({"strengths": {"other": 1.0}}, "there is no edit 'other'"),
    ):
        sides, line = playground.attempt(**given)
        assert sides is None
        assert said in line
        assert "\n" not in line
    sides, line = playground.attempt(prompt=PROMPT, strengths={"shift": 50.0})
    assert sides is not None
    assert "strength 50 lies far outside" in line


def test_the_page_is_static_and_escaped(tiny: Any, tmp_path: Path) -> None:
    word = NextWord("<script>2</script>", 0.25, 0.5)
    odd = Passage(("<script>1</script>", "\n"), 1, (False, False), {"<b>": (-1.0, 2.0)}, ((word,), (word,)))
    html = SideBySide(odd, odd)._repr_html_()
    assert "<script" not in html
    assert "<b>" not in html
    assert "&lt;script&gt;1" in html
    assert "25.0 %" in html
    playground = ls.play(tiny, {"<i>": shift(tiny)}, prompt=PROMPT, **SAMPLING)
    page = playground.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "<i>" not in page
    assert "http" not in page.replace("http-equiv", "")
    with pytest.raises(ls.LensSteerError, match="nothing is called 'x'"):
        playground.to_html(tmp_path / "page.html", measure="x")


def test_it_shows_itself_with_and_without_widgets(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    playground = ls.play(tiny, shift(tiny), prompt=PROMPT, **SAMPLING)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.delitem(sys.modules, "lens_steer.playground.controls", raising=False)
    shown = playground._repr_mimebundle_()
    assert list(shown) == ["text/plain", "text/html"]
    assert "ls-sides" in shown["text/html"]
