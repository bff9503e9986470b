"""Units on generated text: the values are those of the runs that wrote it, side by side for one prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lens_steer.errors import SettingError
from lens_steer.evaluation.generation import generate
from lens_steer.evaluation.shown_generation import GeneratedView, show_generated
from lens_steer.host.sites import find_sites
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.report.token_view import TokenView

UNIT = "blocks.1.mlp.hook_post[3]"
PROMPTS = ["the sad dog", "a happy <cat>", "the cat"]
SAMPLING: dict[str, Any] = {"max_new_tokens": 6, "seed": 4}


def held_at(model: Any, value: float) -> Intervention:
    site = find_sites(model, "blocks.1.mlp.hook_post")[0]
    scale, shift = torch.ones(site.width), torch.zeros(site.width)
    scale[3], shift[3] = 0.0, value
    return Intervention.fitted(model, [Edit(site, DiagonalAffine(scale, shift))], method="hold", settings={})


@pytest.fixture(scope="module")
def view(tiny: Any) -> GeneratedView:
    return show_generated(tiny, held_at(tiny, 2.5), PROMPTS, [UNIT], top=2, **SAMPLING)


def test_both_texts_of_a_prompt_are_what_generate_writes(tiny: Any, view: GeneratedView) -> None:
    (shown,) = view.units
    assert len(shown.prompts) == 2
    edits = {"unedited": None, "edited": held_at(tiny, 2.5)}
    for run, edit in edits.items():
        texts = dict(zip(PROMPTS, generate(tiny, PROMPTS, intervention=edit, **SAMPLING), strict=True))
        for prompt, rows in view.frame[view.frame["run"] == run].groupby("prompt"):
            assert "".join(rows["token"]).strip() == texts[str(prompt)].strip()


def test_edited_tokens_have_the_value_that_the_edit_sets(view: GeneratedView) -> None:
    values = view.frame.groupby("run")["value"]
    assert values.get_group("edited").eq(2.5).all()
    assert not values.get_group("unedited").eq(2.5).any()


def test_an_edit_that_changes_nothing_shows_two_equal_texts(tiny: Any) -> None:
    (shown,) = show_generated(tiny, held_at(tiny, 2.5), PROMPTS, [UNIT], strength=0.0, **SAMPLING).units
    for before, after in zip(shown.plain, shown.edited, strict=True):
        assert before.tokens == after.tokens
        torch.testing.assert_close(before.values, after.values)


def test_the_page_escapes_and_the_report_takes_it(view: GeneratedView) -> None:
    page = view._repr_html_()
    assert "<cat>" not in page
    assert page.count("<h3>") == 1
    (unit,) = TokenView.of(view).units
    assert [text.prompt for text in unit.texts] == [text.prompt for text in unit.edited]
    assert set(unit.edited[0].values) == {2.5}


def test_wrong_input_is_named(tiny: Any) -> None:
    with pytest.raises(SettingError, match="top is 1 or more"):
        show_generated(tiny, held_at(tiny, 1.0), PROMPTS, [UNIT], top=0)
    with pytest.raises(SettingError, match="no prompt"):
        show_generated(tiny, held_at(tiny, 1.0), [], [UNIT])
