"""Choices of units: the criteria rank as they say, and chance is what random choices give."""

from __future__ import annotations

from math import isnan

import pandas as pd
import pytest

import lens_steer as ls
from analyses.selection import agreement, best_sites, best_units, random_alike

SITES = tuple(ls.Site(f"blocks.{layer}.hook_resid_post", layer, "hook_resid_post", 40) for layer in range(3))


def units(*pairs: tuple[int, int]) -> tuple[ls.Unit, ...]:
    return tuple(ls.Unit(SITES[layer], index) for layer, index in pairs)


def table(scores: dict[tuple[int, int], float]) -> pd.DataFrame:
    rows = [
        {"site": site.name, "unit": unit, "score": scores.get((site.layer, unit), 0.0)}
        for site in SITES
        for unit in range(site.width)
    ]
    return pd.DataFrame(rows)


def test_best_units_are_those_with_the_largest_score() -> None:
    scores = table({(2, 7): 3.0, (0, 1): 2.0, (1, 39): 1.0})
    assert best_units(scores, "score", 3, SITES) == units((2, 7), (0, 1), (1, 39))


def test_sites_are_filled_in_the_order_of_their_norm() -> None:
    """Layer 1 has the larger norm though layer 2 has the single largest unit."""
    scores = table({(1, unit): 1.0 + unit / 100 for unit in range(40)} | {(2, 5): 4.0, (2, 6): 1.0})
    chosen = best_sites(scores, "score", 42, SITES)
    assert chosen[0] == units((1, 39))[0]
    assert {unit.site.layer for unit in chosen[:40]} == {1}
    assert chosen[40:] == units((2, 5), (2, 6))


def test_random_choices_keep_the_counts_of_every_site() -> None:
    choice = units((0, 1), (2, 3), (2, 4), (2, 5))
    first, again, other = (random_alike(choice, SITES, seed=seed) for seed in (4, 4, 5))
    assert [unit.site.layer for unit in first] == [0, 2, 2, 2]
    assert first == again != other


def test_agreement_of_a_choice_with_itself_and_with_none() -> None:
    choice = units((0, 1), (2, 3))
    itself = agreement(choice, choice, SITES)
    assert (itself["share"], itself["jaccard"], itself["common"]) == (1.0, 1.0, 2)
    nothing = agreement(choice, (), SITES)
    assert nothing["other_units"] == 0
    assert isnan(nothing["jaccard"])
    assert isnan(nothing["share_chance"])


def test_chance_is_the_mean_over_random_choices() -> None:
    """Ten units of one layer against twenty: anywhere 20/120 are shared, in their layer 20/40."""
    one, other = units(*((1, u) for u in range(10))), units(*((1, u) for u in range(20)))
    found = agreement(one, other, SITES)
    assert found["share_chance"] == pytest.approx(20 / 120, abs=0.01)
    assert found["share_chance_in_sites"] == pytest.approx(20 / 40, abs=0.01)
    drawn = [agreement(one, random_alike(other, SITES, seed=seed), SITES)["jaccard"] for seed in range(300)]
    assert found["jaccard_chance_in_sites"] == pytest.approx(sum(drawn) / 300, abs=0.02)
