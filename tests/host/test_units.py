"""Units: what lists them, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from lens_steer.activations.show import show_units
from lens_steer.errors import UnitError
from lens_steer.host.sites import Site, all_sites
from lens_steer.host.units import Unit, as_units

NAME = "blocks.0.mlp.hook_post"
SITE = Site(NAME, 0, "mlp.hook_post", 8)
HEADS = Site("blocks.1.attn.hook_z", 1, "attn.hook_z", 8, 2)


def test_every_way_to_list_them(tmp_path: Path) -> None:
    frame = pd.DataFrame({"site": [NAME, NAME], "unit": [3, 1], "width": [8, 8]})
    frame.to_csv(tmp_path / "units.csv", index=False)
    expected = (Unit(SITE, 3), Unit(SITE, 1))
    for units in (frame, tmp_path / "units.csv", str(tmp_path / "units.csv"), expected):
        assert as_units(units) == expected
    for units in ([(NAME, 3), (NAME, 1)], [f"{NAME}[3]", f"{NAME}[1]"], iter(expected)):
        assert as_units(units, sites=[SITE]) == expected
    assert as_units(["blocks.1.attn.hook_z[1, 2]"], sites=[HEADS]) == (Unit(HEADS, 6),)
    assert str(Unit(HEADS, 6)) == "blocks.1.attn.hook_z[1, 2]"


def test_a_table_may_have_a_column_named_units() -> None:
    frame = pd.DataFrame({"site": [NAME], "unit": [3], "width": [8], "units": [5]})
    assert as_units(frame) == (Unit(SITE, 3),)


def test_a_column_of_whole_numbers_written_as_floats() -> None:
    assert as_units(pd.DataFrame({"site": [NAME], "unit": [3.0], "width": [8.0]})) == (Unit(SITE, 3),)


@pytest.mark.parametrize(
    ("units", "says"),
    [
        (f"{NAME}[3]", r"is a single unit: write it as a list"),
        ("nowhere.csv", "there is no file 'nowhere.csv'"),
        (".", "there is no file"),
        ([], "the list of units is empty"),
        (7, "int lists no units"),
        ([7], "7 is no unit"),
        ([(NAME, 3, 1)], "is no unit"),
        ([(NAME, None)], "the unit None is no whole number"),
        ([(NAME, 2.5)], "the unit 2.5 is no whole number"),
        ([(NAME, float("nan"))], "the unit nan is no whole number"),
        ([(NAME, 8)], "has 8 units: there is no unit 8"),
        ([(NAME, -1)], "there is no unit -1"),
        (["mlp[3"], "is not a unit; write it as"),
        ([("blocks.0.hook_resid_post", 1)], "the width of blocks.0.hook_resid_post is unknown"),
        (pd.DataFrame({"unit": [1]}), "needs columns site and unit; it has unit"),
        (pd.DataFrame({"site": [], "unit": []}), "has no rows"),
        (pd.DataFrame({"site": [NAME], "unit": [1], "width": ["x"]}).set_index("width", drop=False), None),
        (
            pd.DataFrame({"site": ["blocks.0.x"], "unit": [1], "width": [float("nan")]}),
            "width of .* is unknown",
        ),
        (pd.DataFrame({"site": ["blocks.0.x"], "unit": [1], "width": ["wide"]}), "width of .* is unknown"),
        (
            pd.DataFrame({"site": [NAME] * 2, "unit": [1, 1], "concept": ["sad", "dog"]}),
            "several concepts .sad, dog",
        ),
    ],
)
def test_mistakes(units: Any, says: str | None) -> None:
    if says is None:  # a site that is known needs no width
        assert as_units(units, sites=[SITE]) == (Unit(SITE, 1),)
        return
    with pytest.raises(UnitError, match=says):
        as_units(units, sites=[SITE])


def test_a_csv_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00\x81")
    for name in ("empty.csv", "bytes.csv"):
        with pytest.raises(UnitError, match=rf"{name}' is no csv"):
            as_units(tmp_path / name)


def test_every_name_of_a_point_can_be_shown(tiny: Any) -> None:
    """Also those that a glob leaves out because another name comes first."""
    for name in ("blocks.0.mlp.out.hook_in", "blocks.0.hook_out", NAME):
        assert name in {site.name for site in all_sites(tiny)}
        assert str(show_units(tiny, ["a dog ran"], [f"{name}[3]"]).units[0].unit) == f"{name}[3]"
