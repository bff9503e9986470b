"""The study of sparsity: shares of the dense effect, and sentences that say no more than the intervals do."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

import lens_steer as ls
from analyses import sparsity
from analyses.sparsity import AGAINST, CONCEPT, DENSE, LINEAS, PERPLEXITY, RANDOM, SHUFFLED
from tests.families import sentences

SETTINGS: dict[str, Any] = {
    "kinds": ("mlp.hook_post", "hook_resid_post"), "shares": (0.1, 0.3), "draws": 2, "fit_texts": 6, "steps": 2,
    "most_prompts": 4, "most_neutral": 4, "max_new_tokens": 4, "scorer": ls.WordList(["sad"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tiny: Any) -> ls.Study:
    contrast = ls.ContrastSet(sentences(24, seed=1, must="sad"), sentences(24, seed=2, must="happy"), name="sad")
    return sparsity.run(tiny, contrast, out=None, **SETTINGS)


def test_every_number_of_units_has_its_controls(study: ls.Study) -> None:
    kept = study.frames["kept"]
    assert list(kept["sites"].unique()) == list(SETTINGS["kinds"])
    for _, rows in kept[kept["choice"] != DENSE].groupby(["sites", "asked"]):
        assert rows["choice"].tolist() == [LINEAS, SHUFFLED, RANDOM]
        assert (rows["units"] <= rows["asked"]).all()
    dense = kept[kept["choice"] == DENSE]
    assert dense["value"].dropna().eq(1).all()
    assert set(study.frames["effects"]["measure"]) == {CONCEPT, PERPLEXITY}


def test_units_are_held_against_those_of_controls(study: ls.Study) -> None:
    against, effects = study.frames[AGAINST], study.frames["effects"].set_index(["sites", "choice", "asked", "measure"])
    assert len(against) == len(SETTINGS["kinds"]) * len(SETTINGS["shares"]) * 2 * 2  # controls, measures
    assert against["confidence"].eq(1 - 0.05 / 4).all()
    for row in against.to_dict("records"):
        names = [(row["sites"], choice, row["asked"], row["measure"]) for choice in (row["control"], LINEAS)]
        theirs, ours = (effects.loc[name, "after"] for name in names)
        assert (row["before"], row["after"]) == pytest.approx((theirs, ours))


def test_shares_that_are_none_are_refused(tiny: Any) -> None:
    contrast = ls.ContrastSet(sentences(24, seed=1, must="sad"), sentences(24, seed=2, must="happy"), name="sad")
    with pytest.raises(ls.LensSteerError, match="between 0 and 1"):
        sparsity.run(tiny, contrast, out=None, **{**SETTINGS, "shares": (0.1, 50)})


def _frames(low: float, high: float, *, random_high: float = -0.1) -> dict[str, pd.DataFrame]:
    """One kind of site, 10 and 100 units; `low` and `high` are of what the 100 keep.

    `random_high` is the upper end of the score under them less that under random units.
    """
    kept = [("mlp", DENSE, 1000, 1000.0, 1000, 6.0, 1.0, 1.0, 1.0)]
    kept += [("mlp", LINEAS, 10, 10.0, 1000, 1.0, 0.1, low - 0.8, low - 0.7)]
    kept += [("mlp", choice, 100, 100.0, 1000, 2.0, (low + high) / 2, low, high) for choice in (LINEAS, RANDOM)]
    columns = ["sites", "choice", "asked", "units", "of", "layers", "value", "low", "high"]
    effects = [
        ("mlp", choice, asked, measure, 0.5, 0.1, -0.4, -0.5, -0.3, 0.95)
        for choice, asked in ((DENSE, 1000), (LINEAS, 10), (LINEAS, 100))
        for measure in (CONCEPT, PERPLEXITY)
    ]
    names = ["sites", "choice", "asked", "measure", "before", "after", "change", "low", "high", "confidence"]
    against = [("mlp", RANDOM, 100, CONCEPT, 0.3, 0.1, -0.2, -0.3, random_high, 0.95)]
    against += [("mlp", control, 100, PERPLEXITY, 0.3, 0.1, -0.2, -0.3, -0.1, 0.95) for control in (RANDOM, SHUFFLED)]
    return {
        "kept": pd.DataFrame(kept, columns=columns),
        "effects": pd.DataFrame(effects, columns=names),
        AGAINST: pd.DataFrame(against, columns=["sites", "control", "asked", *names[3:]]),
    }


def test_a_number_of_units_is_named_only_where_the_interval_is_above_the_share() -> None:
    dense, kept, cost, _ = sparsity.summary("rude", _frames(0.81, 0.95), 0.8, "texts")
    assert "lowers" in dense
    assert "100 of 1,000 (10.0%), in 2 layers; they keep 0.88 [0.81, 0.95]; asked for as many, random units (" in kept
    assert cost.startswith("They lower")
    frames = _frames(0.81, 0.95)
    frames["effects"].loc[frames["effects"]["measure"] == PERPLEXITY, "high"] = 0.1
    assert sparsity.summary("rude", frames, 0.8, "texts")[2].startswith("They were not shown to change")
    assert "No number of units is shown" in sparsity.summary("rude", _frames(0.79, 0.95), 0.8, "texts")[1]


def test_nothing_is_said_of_shares_of_an_effect_that_is_not_shown() -> None:
    frames = _frames(0.9, 0.95)
    frames["kept"].loc[frames["kept"]["choice"] != DENSE, ["low", "high"]] = float("nan")
    assert "not known" in sparsity.summary("rude", frames, 0.8, "texts")[1]
    frames = _frames(0.9, 0.95)
    frames["effects"].loc[frames["effects"]["choice"] == DENSE, "high"] = 0.1
    dense, unknown, *fewer, _ = sparsity.summary("rude", frames, 0.8, "texts")
    assert "was not shown to change" in dense
    assert "not known" in unknown
    assert [text.split()[4] for text in fewer] == ["lowers", "lowers"]


def test_more_than_random_units_do_is_said_only_where_the_difference_is_shown() -> None:
    in_place = "LinEAS asked for 100, in place of as many random units,"
    *_, said = sparsity.summary("rude", _frames(0.81, 0.95), 0.8, "texts")
    assert said.startswith(f"{in_place} lowers the mean score of rude from 0.300 to 0.100")
    *_, said = sparsity.summary("rude", _frames(0.81, 0.95, random_high=0.1), 0.8, "texts")
    assert said.startswith(f"{in_place} was not shown to change the mean score of rude")
