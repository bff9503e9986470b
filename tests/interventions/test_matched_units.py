"""Matched units: controls of the sites, scale and spread of the choice they stand beside."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.errors import ActivationError, LensSteerWarning, SettingError, UnitError
from lens_steer.host.units import Unit
from lens_steer.interventions.ablation import random_units
from lens_steer.interventions.matched_units import matched_units
from lens_steer.texts.contrast import ContrastSet
from tests.families import sentences


@pytest.fixture(scope="module")
def acts(tiny: Any) -> Activations:
    contrast = ContrastSet(sentences(12, seed=1, must="sad"), sentences(12, seed=2, must="happy"))
    return collect(tiny, contrast, "mlp.hook_post")


@pytest.fixture(scope="module")
def large(acts: Activations) -> tuple[Unit, ...]:
    """Every other one of the units of widest spread: 16 of the first site, 6 of the second."""
    units: list[Unit] = []
    for site, count in zip(acts.sites, (16, 6), strict=True):
        widest = acts.token_std(site, "source").sort(descending=True).indices[: 2 * count : 2]
        units += [Unit(site, index) for index in widest.tolist()]
    return tuple(units)


def ratios(acts: Activations, drawn: tuple[Unit, ...], chosen: tuple[Unit, ...]) -> list[float]:
    """Return the medians over the drawn units of |token mean| and spread, over those of the chosen ones."""

    def medians(units: tuple[Unit, ...]) -> torch.Tensor:
        rows = [
            torch.stack([acts.token_mean(u.site, "all")[u.index].abs(), acts.token_std(u.site, "source")[u.index]])
            for u in units
        ]
        return torch.stack(rows).median(0).values

    return [float(value) for value in medians(drawn) / medians(chosen)]


def test_draws_have_the_sites_scale_and_spread_of_the_choice(acts: Activations, large: tuple[Unit, ...]) -> None:
    draws = matched_units(large, acts, draws=20, seed=0)
    assert len(draws) == 20
    for drawn in draws:
        assert [unit.site for unit in drawn] == [unit.site for unit in large]
        assert len(set(drawn)) == len(drawn)
        assert not set(drawn) & set(large)
    typical = torch.tensor([ratios(acts, drawn, large) for drawn in draws]).mean(0)
    assert typical.tolist() == pytest.approx([1, 1], abs=0.25)
    # The null: units drawn without regard to the choice are of another scale, and of other sites.
    plain = [random_units(acts.sites, len(large), seed=seed) for seed in range(20)]
    assert float(torch.tensor([ratios(acts, drawn, large) for drawn in plain]).mean(0)[1]) < 0.7
    assert any(Counter(u.site for u in drawn) != Counter(u.site for u in large) for drawn in plain)


def test_draws_differ_and_seeds_repeat(acts: Activations, large: tuple[Unit, ...]) -> None:
    draws = matched_units(large, acts, draws=20, seed=3)
    assert len(set(draws)) == 20
    assert matched_units([str(unit) for unit in large], acts, draws=20, seed=3) == draws
    assert matched_units(large, acts, draws=20, seed=4) != draws
    # One unit has twenty different stand-ins, where twenty are asked for.
    assert len(set(matched_units(large[:1], acts, draws=20, seed=0))) > 10


def test_refusals_name_the_site(acts: Activations, large: tuple[Unit, ...]) -> None:
    first = acts.sites[0]
    most = [Unit(first, index) for index in range(first.width // 2 + 1)]
    with pytest.raises(UnitError, match=f"{first.name} has {first.width} units, of which {len(most)} are chosen"):
        matched_units(most, acts, draws=1)
    assert len(matched_units(most[:-1], acts, draws=1)[0]) == first.width // 2
    with pytest.raises(ActivationError, match="lack blocks.1"):
        matched_units(large, acts.at(acts.sites[:1]), draws=1)
    with pytest.raises(UnitError, match="more than once"):
        matched_units([large[0], large[0]], acts, draws=1)
    with pytest.raises(SettingError, match="draws is 1 or more"):
        matched_units(large, acts, draws=0)


def test_a_choice_beyond_compare_warns(acts: Activations) -> None:
    """The single largest unit, made a thousand times larger, has no like."""

    class Stretched(Activations):
        def token_std(self, site: Any, side: Any) -> torch.Tensor:
            std = acts.token_std(site, side).clone()
            std[5] *= 1000
            return std

        def token_mean(self, site: Any, side: Any) -> torch.Tensor:
            return acts.token_mean(site, side)

    stretched = Stretched(**{name: getattr(acts, name) for name in acts.__dataclass_fields__})
    with pytest.warns(LensSteerWarning, match="no units of the scale of the chosen"):
        matched_units([Unit(acts.sites[0], 5)], stretched, draws=3)
