"""The demo's study at test size: its choice of gamma, its draws and controls, and verbs that follow from intervals."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import lens_steer as ls
from analyses import demo
from analyses.demo import CONCEPT, LINEAS, OPEN, RANDOM, SHOWN, SHUFFLED
from tests.analyses.contrasts import contrast
from tests.analyses.verbs import FEW, changes, check_verbs

SMALL: dict[str, Any] = {
    "steps": 4,
    "gamma_shares": (0.2,),
    "fit_texts": 4,
    "draws": 2,
    "prompts": 2,
    "neutral": 2,
    "max_new_tokens": 8,
    "random_edits": 1,
}


@pytest.fixture(scope="module")
def study(embedded: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[ls.Study, Path]:
    out = tmp_path_factory.mktemp("demo") / "run"
    return demo.run(embedded, ls.read_contrast("microworld:negative", n=24), out=out, **SMALL), out


def test_every_fit_has_its_controls(study: tuple[ls.Study, Path]) -> None:
    effect, draws = study[0].frames["effect"], study[0].frames["draws"]
    assert set(zip(effect["edit"], effect["prompts"], strict=True)) == {
        (LINEAS, OPEN), (LINEAS, SHOWN), (SHUFFLED, OPEN), (RANDOM, OPEN)
    }  # fmt: skip
    assert set(effect["draws"]) == {2}
    open_prompts = draws[draws["edit"].str.endswith(OPEN)]
    for _, group in open_prompts.groupby(["draw", "measure"]):
        assert group["before"].nunique(dropna=False) == 1  # the unedited model is the same beside every edit
    units = effect.set_index(["edit", "prompts"])["units"].groupby(level=[0, 1]).first()
    assert units[RANDOM, OPEN] <= units[LINEAS, OPEN]
    assert study[0].card is not None
    assert study[0].card.settings["draws"] == 1
    saved = study[0].interventions["lineas"]
    assert saved.support()["kept"].sum() == units[LINEAS, OPEN]


def test_no_two_draws_share_a_text(embedded: Any) -> None:
    train, _ = ls.read_contrast("microworld:rude", n=40).split(test=0.5, seed=0)
    draws = demo.Experiment.begin(
        "demo", demo.run, {"model": embedded, "contrast": train, "out": None, "seed": 3}
    ).fit_texts(32, 4)
    texts = [row for draw in draws for row in (*draw.source, *draw.target)]
    assert len(texts) == len(set(texts))
    assert {len(draw.source) for draw in draws} == {len(draws[0].source)}


def test_the_folder_and_the_page_tell_of_the_concept_of_the_contrast(study: tuple[ls.Study, Path]) -> None:
    result, out = study
    assert "negative" in result.summary[0]
    assert "“negative”" in result.summary[1]
    assert len(result.summary) <= 20
    assert ls.Study.load(out).summary == result.summary
    page = ls.write_report(out.parent / "report.html", out).read_text(encoding="utf-8")
    assert "share of negative texts" in page


def test_texts_that_no_oracle_reads_are_refused(embedded: Any) -> None:
    with pytest.raises(ls.LensSteerError, match="no contrast of the microworld"):
        demo.run(embedded, contrast("sad", "happy"), out=None, **SMALL)


@st.composite
def frames(draw: st.DrawFn) -> dict[str, pd.DataFrame]:
    rows = [
        {"edit": edit, "prompts": prompts, "measure": measure, "units": 3, "of_units": 9, "draws": 5, **draw(changes())}
        for edit, prompts in ((LINEAS, OPEN), (LINEAS, SHOWN), (SHUFFLED, OPEN), (RANDOM, OPEN))
        for measure in (CONCEPT, "grammatical", "unreadable", "perplexity")
    ]
    overlaps = [{"best_experts": 2.0, "share_moved": 0.5, "low": 0.0, "high": 1.0}]
    return {
        "effect": pd.DataFrame(rows),
        "experts": pd.DataFrame([{"site": "blocks.0.mlp.hook_post", "unit": 1, "heldout_auroc": 0.9}]),
        "draws": pd.DataFrame([{"edit": SHUFFLED, "draw": 0, "measure": "unreadable", "after": 0.25}]),
        "overlap": pd.DataFrame(overlaps),
    }


@FEW
@given(frames())
def test_verbs_follow_from_intervals(tables: dict[str, pd.DataFrame]) -> None:
    summary = demo.summary("rude", tables, fit_texts=20, units=9)
    assert check_verbs(summary) == 16
    # The unreadable texts of the controls are told as well.
    assert "25.0%" in " ".join(summary)


def test_a_share_of_experts_stands_beside_that_of_random_units() -> None:
    site = ls.Site("blocks.0.mlp.hook_post", 0, "mlp.hook_post", 100)
    units = [ls.Unit(site, index) for index in range(20)]
    edit = ls.ablate(units, mode="value", value=1.0)

    class Ranking:
        frame = range(100)

        def units(self, k: int) -> list[ls.Unit]:
            return units[10 : 10 + k] if k <= 10 else [ls.Unit(site, index) for index in range(10, 10 + k)]

    table = demo.overlap(edit, Ranking())  # type: ignore[arg-type]
    assert table["best_experts"].tolist() == [2, 20]
    assert table["share_moved"].tolist() == [1.0, 0.5]
    assert (table["by_chance"] == 0.2).all()
    assert (table["low"] <= 0.2).all()
    assert (table["high"] >= 0.2).all()
    assert demo.overlap_sentence(table).count("random choices") == 2
