"""The demo's study at test size: its choice of gamma, its averages, and that its sentences follow from its frames."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import lens_steer as ls
from analyses import demo

SMALL: dict[str, Any] = {
    "steps": 2,
    "gamma_shares": (0.2,),
    "fit_texts": 4,
    "draws": 2,
    "prompts": 2,
    "neutral": 2,
    "max_new_tokens": 8,
}


def test_the_gamma_that_keeps_the_nearest_share_is_studied() -> None:
    path = pd.DataFrame({"support": [0, 4, 20, 80], "share": [0.0, 0.04, 0.2, 0.8]})
    assert [demo.nearest(path, share) for share in (0.0, 0.1, 0.15, 0.6)] == [1, 1, 2, 3]
    with pytest.raises(ls.LensSteerError, match="no edit of the path moves a unit"):
        demo.nearest(path.assign(support=0), 0.2)


def test_draws_are_averaged_with_a_t_interval() -> None:
    rows = [
        {"edit": "one", "prompts": "open", "draw": draw, "units": 3, "of_units": 9, "concept_before": 0.5,
         "concept_after": after}
        for draw, after in enumerate((0.1, 0.2, 0.3))
    ]  # fmt: skip
    rows.append({**rows[0], "edit": "control"})
    found = demo.over_draws(pd.DataFrame(rows)).set_index("edit")
    assert found.loc["one", "change"] == pytest.approx(-0.3)
    half = 4.302653 * 0.1 / np.sqrt(3)  # t at .975 with 2 degrees of freedom
    assert found.loc["one", ["change_low", "change_high"]].tolist() == pytest.approx([-0.3 - half, -0.3 + half])
    assert found.loc["control", ["change_low", "change_high"]].isna().all()
    assert found["draws"].tolist() == [3, 1]


@pytest.fixture(scope="module")
def study(embedded: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[ls.Study, Path]:
    out = tmp_path_factory.mktemp("demo") / "run"
    return demo.run(embedded, ls.read_contrast("microworld:rude", n=24), out=out, **SMALL), out


def test_it_compares_the_edit_with_its_controls(study: tuple[ls.Study, Path], embedded: Any) -> None:
    effect, draws = study[0].frames["effect"], study[0].frames["draws"]
    assert effect["edit"].unique().tolist() == [demo.LINEAS, demo.SHUFFLED, demo.RANDOM]
    assert effect["draws"].tolist() == [2, 2, 1, 1, 1, 1]
    first = draws[draws["draw"] == 0]
    for _, group in first.groupby("prompts"):
        assert group["concept_before"].nunique() == 1  # the unedited model is the same beside every edit
    units = first.set_index(["edit", "prompts"])["units"]
    assert units[demo.RANDOM, demo.OPEN] == units[demo.LINEAS, demo.OPEN]
    saved = study[0].interventions["lineas"]
    assert saved.support()["kept"].sum() == units[demo.LINEAS, demo.OPEN]


def test_its_sentences_are_its_numbers(study: tuple[ls.Study, Path]) -> None:
    found, out = study
    row = found.frames["effect"].iloc[0]
    assert f"{row['concept_before']:.0%} to {row['concept_after']:.0%}" in found.summary[0]
    assert "in 2 steps" in " ".join(found.summary)
    assert len(found.summary) <= 20
    assert ls.Study.load(out).summary == found.summary
    page = ls.write_report(out.parent / "report.html", out).read_text(encoding="utf-8")
    assert found.summary[0] in page
