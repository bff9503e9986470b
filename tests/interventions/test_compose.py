"""Composition: the three policies, what collides, and how much the order matters there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.errors import ActivationError, LensSteerWarning, MapError, SettingError
from lens_steer.host.scope import Scope
from lens_steer.host.sites import Site, find_sites
from lens_steer.interventions.collisions import Collisions, collisions
from lens_steer.interventions.compose import compose
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import ActivationMap, DiagonalAffine
from lens_steer.interventions.project_out import ProjectOut
from lens_steer.texts.contrast import ContrastSet
from tests.families import sentences

SITE = Site("blocks.0.hook_resid_post", 0, "hook_resid_post", 8)
OTHER = Site("blocks.1.hook_resid_post", 1, "hook_resid_post", 8)


def diagonal(seed: int, units: slice = slice(None), **bounds: Any) -> DiagonalAffine:
    """Return a random map that moves some of 8 units."""
    generator = torch.Generator().manual_seed(seed)
    scale, shift = torch.ones(8), torch.zeros(8)
    scale[units], shift[units] = (
        1 + torch.randn(8, generator=generator)[units],
        torch.randn(8, generator=generator)[units],
    )
    return DiagonalAffine(scale, shift, **bounds)


def edit(of_site: ActivationMap, site: Site = SITE, method: str = "one") -> Intervention:
    return Intervention((Edit(site, of_site),), {"method": method})


def applied(intervention: Intervention, h: torch.Tensor, site: Site = SITE) -> torch.Tensor:
    for one in intervention.edits:
        if one.site == site:
            h = one.map(h)
    return h


H = torch.randn(5, 8, generator=torch.Generator().manual_seed(3))
LEFT, RIGHT = slice(0, 5), slice(3, 8)  # overlap at units 3 and 4


class TestSequential:
    def test_is_then(self) -> None:
        a, b = edit(diagonal(1)), edit(diagonal(2))
        assert compose(a, b) == a.then(b)
        assert isinstance(compose(a, b).edits[0].map, DiagonalAffine)
        torch.testing.assert_close(applied(compose(a, b), H), applied(b, applied(a, H)))

    def test_of_three_acts_in_order(self) -> None:
        a, b, c = (edit(diagonal(seed), method=f"m{seed}") for seed in range(3))
        together = compose(a, b, c)
        torch.testing.assert_close(applied(together, H), applied(c, applied(b, applied(a, H))))
        assert [part["method"] for part in together.provenance["parts"]] == ["m0", "m1", "m2"]
        assert together.provenance["method"] == "compose"

    @pytest.mark.compat
    def test_on_a_model_equals_nesting(self, tiny: Any) -> None:
        sites = find_sites(tiny, "hook_resid_post")
        width = sites[0].width
        generator = torch.Generator().manual_seed(0)
        scaled = Intervention(
            tuple(Edit(s, DiagonalAffine(torch.rand(width, generator=generator), torch.zeros(width))) for s in sites)
        )
        projected = Intervention(tuple(Edit(s, ProjectOut(torch.randn(width, generator=generator))) for s in sites))
        ids = torch.tensor([[1, 5, 9, 7, 30]])
        with scaled.on(tiny), projected.on(tiny):
            nested = tiny(ids)
        with compose(scaled, projected).on(tiny):
            torch.testing.assert_close(tiny(ids), nested, rtol=1e-4, atol=1e-4)


class TestFirst:
    def test_keeps_the_earlier_edit_of_a_unit_and_the_later_of_the_others(self) -> None:
        a, b = edit(diagonal(1, LEFT)), edit(diagonal(2, RIGHT))
        together = compose(a, b, policy="first")
        got = applied(together, H)
        torch.testing.assert_close(got[:, LEFT], applied(a, H)[:, LEFT])
        torch.testing.assert_close(got[:, 5:], applied(b, H)[:, 5:])
        assert together.provenance["dropped"] == [{"intervention": 2, "site": SITE.name, "units": 2}]
        assert compose(b, a, policy="first") != together

    def test_without_a_collision_is_sequential(self) -> None:
        a, b = edit(diagonal(1, slice(0, 3))), edit(diagonal(2, slice(3, 8)))
        assert compose(a, b, policy="first") == compose(a, b) == compose(a, b, policy="error")
        assert compose(a, b, policy="first").provenance["dropped"] == []
        elsewhere = edit(diagonal(2), OTHER)
        assert compose(a, elsewhere, policy="first") == a.then(elsewhere)

    def test_drops_whole_sites_where_units_are_mixed(self) -> None:
        out = Intervention((Edit(SITE, ProjectOut(torch.eye(8)[0] + torch.eye(8)[1])),))
        b = Intervention((Edit(SITE, diagonal(2, RIGHT)), Edit(OTHER, diagonal(3))))
        together = compose(out, b, policy="first")
        assert together == out.then(edit(diagonal(3), OTHER))
        assert together.provenance["dropped"] == [{"intervention": 2, "site": SITE.name, "units": 5}]
        both = out.then(edit(diagonal(4, RIGHT)))
        assert (
            compose(b, both.then(edit(diagonal(4), Site("blocks.2.x", 2, "x", 8))), policy="first").edits[:2] == b.edits
        )

    def test_of_three_counts_every_earlier_one(self) -> None:
        a, b, c = edit(diagonal(1, slice(0, 2))), edit(diagonal(2, slice(1, 4))), edit(diagonal(3))
        got = applied(compose(a, b, c, policy="first"), H)
        for intervention, units in ((a, slice(0, 2)), (b, slice(2, 4)), (c, slice(4, 8))):
            torch.testing.assert_close(got[:, units], applied(intervention, H)[:, units])

    def test_says_when_nothing_is_left(self) -> None:
        a, b = edit(diagonal(1)), edit(diagonal(2, LEFT), method="second")
        with pytest.warns(LensSteerWarning, match=r"nothing is left of intervention 2 \(second\).*hook_resid_post"):
            assert compose(a, b, policy="first") == a

    def test_an_interval_is_kept(self) -> None:
        ends = {"low": torch.full((8,), -0.5), "high": torch.full((8,), 0.5)}
        a, b = edit(diagonal(1, LEFT)), edit(diagonal(2, RIGHT, **ends))
        got = applied(compose(a, b, policy="first"), H)
        torch.testing.assert_close(got[:, 5:], applied(b, H)[:, 5:])
        torch.testing.assert_close(got[:, LEFT], applied(a, H)[:, LEFT])


class TestError:
    def test_names_sites_and_units(self) -> None:
        a, b = edit(diagonal(1, LEFT)), edit(diagonal(2, RIGHT))
        named = (
            r"intervention 2 .* at 2 units of 1 sites .*hook_resid_post\[3\], blocks.0.hook_resid_post\[4\]\. policy"
        )
        with pytest.raises(MapError, match=named):
            compose(a, b, policy="error")
        with pytest.raises(MapError, match=r"intervention 3 .* 8 units .* and 2 more"):
            compose(edit(diagonal(1), OTHER), edit(diagonal(1)), edit(ProjectOut(torch.ones(8))), policy="error")

    @pytest.mark.parametrize(
        ("one", "other", "share"),
        [
            ("prompt", "generated", False),
            ("prompt", "last", True),
            ("all", "generated", True),
            (Scope(stop=3), Scope.from_position(3), False),
            (Scope(stop=4), Scope.from_position(3), True),
            (Scope.of_tokens([3, 4]), Scope.of_tokens([5]), False),
            (Scope.of_tokens([3, 4]), Scope.of_tokens([4, 5]), True),
        ],
    )
    def test_other_tokens_do_not_collide(self, one: Any, other: Any, share: bool) -> None:
        a, b = edit(diagonal(1)).scoped(one), edit(diagonal(2)).scoped(other)
        assert bool(collisions(a, b)) == share
        if share:
            with pytest.raises(MapError, match="collides"):
                compose(a, b, policy="error")
        else:
            assert len(compose(a, b, policy="error").edits) == 2


def test_bad_input_is_named() -> None:
    a = edit(diagonal(1))
    with pytest.raises((SettingError, TypeError)):  # the tests' own type checks come first
        compose(a, a, policy="last")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="two or more interventions make a composition, not 1"):
        compose(a)
    wide = edit(DiagonalAffine.identity(9), Site(SITE.name, 0, SITE.kind, 9))
    for call in (compose, collisions):
        with pytest.raises(MapError, match="8 units in one intervention and 9 in the other"):
            call(a, wide)


class TestCollisions:
    @settings(max_examples=25)
    @given(st.integers(0, 10**6), st.integers(0, 10**6))
    def test_closed_form_is_the_difference_of_the_two_orders(self, one: int, other: int) -> None:
        a, b = edit(diagonal(one)), edit(diagonal(other))
        found = collisions(a, b).frame
        assert (found["how"] == "closed form").all()
        apart = (applied(b, applied(a, H.double())) - applied(a, applied(b, H.double()))).abs()
        for row in apart:  # the same at every h
            np.testing.assert_allclose(found["order"], row[found["unit"].tolist()], atol=1e-9)
        np.testing.assert_allclose(collisions(b, a).frame["order"], found["order"], atol=1e-12)

    def test_names_what_both_move(self) -> None:
        a = Intervention((Edit(SITE, diagonal(1, LEFT)), Edit(OTHER, diagonal(2, slice(0, 2)))), {"method": "A"})
        b = Intervention((Edit(SITE, diagonal(3, RIGHT)), Edit(OTHER, diagonal(4, slice(6, 8)))), {"method": "B"})
        found = collisions(a, b)
        assert list(zip(found.frame["site"], found.frame["unit"], strict=True)) == [(SITE.name, 3), (SITE.name, 4)]
        np.testing.assert_array_equal(found.frame["first_scale"], diagonal(1).scale[3:5])
        np.testing.assert_array_equal(found.frame["later_shift"], diagonal(3).shift[3:5])
        assert repr(found) == "Collisions(A and B: 2 at 1 sites)"
        (row,) = found.by_site().to_dict("records")
        assert (row["site"], row["units"], row["order_matters"]) == (SITE.name, 2, 2)
        assert row["order_max"] == found.frame["order"].max()

    def test_none(self) -> None:
        empty = collisions(edit(diagonal(1)), edit(diagonal(1), OTHER))
        assert len(empty) == 0
        assert isinstance(empty, Collisions)
        assert empty.by_site().empty
        assert list(empty.frame.columns) == list(collisions(edit(diagonal(1)), edit(diagonal(2))).frame.columns)

    def test_scalings_and_shifts_commute(self) -> None:
        shift = edit(DiagonalAffine(torch.ones(8), torch.rand(8)))
        scale = edit(DiagonalAffine(torch.rand(8), torch.zeros(8)))
        for pair in ((shift, shift), (scale, scale)):
            assert (collisions(*pair).frame["order"] == 0).all()
            assert collisions(*pair).by_site()["order_matters"].item() == 0
        assert (collisions(shift, scale).frame["order"] > 0).all()

    def test_is_measured_in_standard_deviations(self) -> None:
        generator = np.random.default_rng(0)
        sides = [{SITE.name: generator.normal(size=(n, 8)) * np.arange(1, 9)} for n in (6, 4)]
        for side in sides:
            side[SITE.name][:, 5] = 2.0
        activations = Activations.from_arrays(source=sides[0], target=sides[1])
        frame = collisions(edit(diagonal(1)), edit(diagonal(2)), activations=activations).frame
        both = np.concatenate([side[SITE.name] for side in sides])
        spread = both.std(0)
        spread[5] = np.nan
        np.testing.assert_allclose(frame["sd"], spread, rtol=1e-6)
        np.testing.assert_allclose(frame["order_sd"], frame["order"] / spread, rtol=1e-6)

    def test_what_has_no_closed_form_is_measured(self) -> None:
        values = H.numpy()
        activations = Activations.from_arrays(source={SITE.name: values[:3]}, target={SITE.name: values[3:]})
        ends = {"low": torch.full((8,), -0.5), "high": torch.full((8,), 0.5)}
        for of_site in (ProjectOut(torch.ones(8)), diagonal(5, slice(None), **ends)):
            a, b = edit(diagonal(1)), edit(of_site)
            unknown = collisions(a, b).frame
            assert (unknown["how"] == "unknown").all()
            assert unknown["order"].isna().all()
            found = collisions(a, b, activations=activations).frame
            assert (found["how"] == "measured").all()
            apart = (applied(b, applied(a, H)) - applied(a, applied(b, H))).abs().mean(0)
            np.testing.assert_allclose(found["order"], apart, atol=1e-5)

    def test_on_collected_activations(self, tiny: Any) -> None:
        contrast = ContrastSet(sentences(6, seed=1), sentences(6, seed=2))
        activations = collect(tiny, contrast, "blocks.0.hook_resid_post", pool="mean")
        (site,) = activations.sites
        a, b = (edit(DiagonalAffine(torch.rand(32) + 0.1, torch.rand(32)), site) for _ in range(2))
        assert collisions(a, b, activations=activations).frame["order_sd"].notna().all()
        (far,) = find_sites(tiny, "blocks.1.hook_resid_post")
        with pytest.raises(ActivationError, match="no activations of blocks.1.hook_resid_post"):
            collisions(edit(a.edits[0].map, far), edit(b.edits[0].map, far), activations=activations)
