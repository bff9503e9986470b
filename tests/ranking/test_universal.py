"""Universal units: none in random data, the planted one in data where it always stands out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lens_steer.activations.activations import Activations
from lens_steer.errors import ActivationError
from lens_steer.ranking.experts import rank_experts
from lens_steer.ranking.universal import universal_units

SITE = "blocks.0.mlp.hook_post"


def noise(texts: int, units: int = 300, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(texts, units, generator=torch.Generator().manual_seed(seed))


def activations(values: torch.Tensor, pool: str = "max") -> Activations:
    half = len(values) // 2
    return Activations.from_arrays(source={SITE: values[:half]}, target={SITE: values[half:]}, pool=pool)


@pytest.mark.parametrize("texts", [2, 5, 40])
def test_no_unit_of_random_data_is_universal(texts: int) -> None:
    for seed in range(20):
        found = universal_units(activations(noise(texts, seed=seed)))
        assert not found["universal"].any()
        assert found["top_share"].sum() == pytest.approx(1.0)  # one of 300 units of every text
        assert found["chance"].unique() == [1 / 300]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_unit_that_always_stands_out_is_universal(sign: int) -> None:
    values = noise(12)
    values[:, 7] = sign * 50.0
    values[0, 7] = 0.0
    found = universal_units(activations(values)).set_index("unit")
    assert found.index[found["universal"]].tolist() == [7]
    assert found.loc[7, "top_share"] == pytest.approx(11 / 12)


def test_few_texts_show_nothing() -> None:
    values = noise(4)
    values[:, 7] = 50.0
    assert not universal_units(activations(values))["universal"].any()
    assert universal_units(activations(torch.cat([values, values[:2]])))["universal"].sum() == 1


@pytest.mark.parametrize(("hits", "shown"), [(9, False), (10, True)])
def test_more_than_half_is_shown_by_an_exact_test(hits: int, shown: bool) -> None:
    """10 of 12 or more come up in 2 % of fair tosses, 9 or more in 7 %."""
    values = noise(12)
    values[:hits, 7], values[hits:, 7] = 50.0, 0.0
    assert universal_units(activations(values)).set_index("unit").loc[7, "universal"] == shown


def test_the_top_of_a_wide_site_is_its_thousandth_part() -> None:
    found = universal_units(activations(noise(6, 3000)))
    assert list(found.columns) == ["site", "layer", "unit", "top_share", "chance", "universal"]
    assert found[["site", "layer"]].drop_duplicates().to_numpy().tolist() == [[SITE, 0]]
    assert found["unit"].tolist() == list(range(3000))
    assert found["top_share"].sum() == pytest.approx(3)
    assert found["chance"].unique() == [3 / 3000]


def test_a_unit_alone_at_its_site_is_always_its_largest_and_not_universal() -> None:
    found = universal_units(activations(noise(12, 1)))
    assert found["chance"].item() == found["top_share"].item() == 1
    assert not found["universal"].item()


@pytest.mark.parametrize(("tied", "share"), [(2, 1.0), (3, 0.0)])
def test_two_may_tie_at_the_top_and_three_do_not_stand_out(tied: int, share: float) -> None:
    values = noise(6)
    values[:, :tied] = 50.0
    assert (universal_units(activations(values))["top_share"][:tied] == share).all()


def test_dead_texts_have_no_top() -> None:
    assert universal_units(activations(torch.zeros(8, 50)))["top_share"].max() == 0.0


def test_rankings_name_them() -> None:
    ranked = activations(noise(20, seed=1))
    values = noise(12)
    values[:, 7] = 50.0
    plain = rank_experts(ranked).frame
    named = rank_experts(ranked, unrelated=activations(values)).frame
    assert "universal" not in plain.columns
    assert named.loc[named["universal"], "unit"].tolist() == [7]
    assert np.array_equal(plain["unit"], named["unit"])  # the order is the same
    assert named["universal"].dtype == bool


def test_other_sites_or_pools_are_refused() -> None:
    ranked = activations(noise(8))
    with pytest.raises(ActivationError, match="pooled by mean"):
        rank_experts(ranked, holdout=None, unrelated=activations(noise(8), pool="mean"))
    with pytest.raises(ActivationError, match="lack blocks.0.mlp.hook_post with 300 units"):
        rank_experts(ranked, holdout=None, unrelated=activations(noise(8, units=4)))
