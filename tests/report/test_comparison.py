"""All evaluations side by side: one row per edit, values in the style of their unit, nothing that is no evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from lens_steer.report.comparison import comparison
from lens_steer.report.page import write_report
from lens_steer.report.run_folder import RunFolder
from lens_steer.report.study import Study
from tests.report.runs import edit_of, save, study_of

MINUS = "\N{MINUS SIGN}"


def scores(after: float, *, low: float = -0.3, high: float = -0.1) -> pd.DataFrame:
    columns = ["measure", "unit", "before", "after", "low", "high"]
    rows = [("effect", "mean score", 0.5, after, low, high), ("unreadable", "share of texts", 0.01, 0.024, -0.01, 0.04)]
    return pd.DataFrame(rows, columns=columns)


def run(frame: pd.DataFrame, name: str = "run", **parts: Any) -> RunFolder:
    return RunFolder(Path(name), Study({"scores": frame}, {}, ["Found"], **parts), {"name": name})


def test_runs_stand_below_each_other_and_measures_side_by_side() -> None:
    table = comparison([run(scores(0.3), "a"), run(scores(0.3).head(0), "none"), run(scores(0.45, high=0.2), "b")])
    assert table is not None
    assert table.measures == (("effect", "mean score"), ("unreadable", "share of texts"))
    assert [(row.run, row.edit) for row in table.edits] == [(1, "a"), (3, "b")]
    first, second = (row.changes for row in table.edits)
    assert first[0] is not None
    assert (first[0].values, first[0].change) == ("0.500 to 0.300", f"{MINUS}0.200 [{MINUS}0.300, {MINUS}0.100]")
    assert first[1] is not None
    assert (first[1].values, first[1].change) == ("1.0 % to 2.4 %", f"+1.4 points [{MINUS}1.0, +4.0]")
    assert [change.verdict for change in (first[0], second[0]) if change] == ["lower", "not shown"]


def test_rows_of_one_table_are_told_apart_by_their_texts() -> None:
    both = pd.concat([scores(0.3).assign(edit="caa", of="all"), scores(0.4).assign(edit="aura", of="all")])
    table = comparison([run(both)])
    assert table is not None
    assert [row.edit for row in table.edits] == ["caa", "aura"]


def test_numbers_name_no_edit_even_where_a_text_stands_among_them() -> None:
    mixed = pd.concat([scores(0.3).assign(k=1), scores(0.4).assign(k="many")])
    assert comparison([run(mixed)]) is None  # its rows cannot be told apart by texts alone


def test_what_is_no_evaluation_is_left_out() -> None:
    assert comparison([run(scores(0.3))]) is None  # one edit has nothing beside it
    twice = pd.concat([scores(0.3), scores(0.4)])
    assert comparison([run(twice), run(scores(0.3))]) is None  # the rows of the first cannot be told apart
    assert comparison([run(scores(0.3).drop(columns="low"))] * 2) is None
    many = pd.concat([scores(0.3).assign(edit=f"edit {number}") for number in range(30)])
    assert comparison([run(many)]) is None


def test_the_page_shows_it_and_takes_its_title_from_the_first_evaluation(tiny: Any, tmp_path: Path) -> None:
    folders = [save(study_of(tiny), tmp_path / "ranked", tiny)]
    for name, after in (("one", 0.3), ("other", 0.45)):
        edit = {"a_method": edit_of(tiny)}
        study = Study({"scores": scores(after)}, {}, [f"Edit {name} lowers it"], interventions=edit)
        folders.append(save(study, tmp_path / name, tiny))
    page = write_report(tmp_path / "report.html", folders).read_text(encoding="utf-8")
    assert "<h1>Edit one lowers it</h1>" in page
    assert page.index('id="effects"') < page.index('<section id="run1"')
    assert "0.500 to 0.300" in page
    assert page.count("This edit is drawn above") == 2
