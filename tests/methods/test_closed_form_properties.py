"""What every closed-form method obeys whatever the activations: ties, constant units, single rows, half precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lens_steer.activations.activations import Activations
from lens_steer.errors import ContrastError
from lens_steer.host.sites import find_sites
from lens_steer.methods.activation_transport import GaussianAcT, LinearAcT, MeanAcT
from lens_steer.methods.aura import AurA, aura_scale
from lens_steer.methods.caa import CAA
from lens_steer.methods.damp import Damp, Det0
from lens_steer.methods.fitting import Method
from lens_steer.methods.self_conditioning import SelfCond
from lens_steer.methods.transport_maps import gaussian_transport, linear_transport, mean_transport
from lens_steer.texts.contrast import ContrastSet

SITES = "hook_resid_post"
RANKING: list[Method] = [AurA(sites=SITES), Damp(k=7, sites=SITES), Det0(k=7, sites=SITES)]
MOVING: list[Method] = [
    MeanAcT(causal=False),
    GaussianAcT(causal=False, support="unbounded"),
    LinearAcT(causal=False, support=(0.1, 0.9)),
    CAA(layers="all", pool="mean"),
]
METHODS = [*RANKING, *MOVING, SelfCond(k=7, sites=SITES), SelfCond(k=64, value="mean", sites=SITES)]
CONSTANT = 3  # this unit holds one value on all texts
COUNTS = st.integers(2, 9)
FEW = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=METHODS, ids=lambda each: f"{type(each).__name__} {getattr(each, 'k', '')}")
def method(request: pytest.FixtureRequest) -> Any:
    return request.param


def drawn(n: int, m: int, seed: int, *, ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two sites' worth of pooled values, in eighths, which every dtype holds exactly."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-3 if ties else -64, 4 if ties else 65, (n + m, 64), generator=generator) / 8
    values[:, CONSTANT] = 0.5
    return values[:n], values[n:]


def fitted(model: Any, method: Any, source: torch.Tensor, target: torch.Tensor) -> Any:
    sites = find_sites(model, SITES)
    sides = [{site.name: part.numpy() for site, part in zip(sites, side.split(32, 1))} for side in (source, target)]
    given = Activations.from_arrays(source=sides[0], target=sides[1], pool=method.pool)
    texts = ContrastSet(
        [f"the dog {'sat ' * i}" for i in range(len(source))], [f"a cat {'sat ' * i}" for i in range(len(target))]
    )
    return method.fit(model, texts, activations=given)


@FEW
@given(COUNTS, COUNTS, st.integers(0, 10**6), st.booleans())
def test_maps_are_finite_and_the_order_of_texts_does_not_matter(
    tiny: Any, method: Any, n: int, m: int, seed: int, ties: bool
) -> None:
    source, target = drawn(n, m, seed, ties=ties)
    edit = fitted(tiny, method, source, target)
    for each in edit.edits:
        for value in (each.map.scale, each.map.shift):
            assert value.dtype == torch.float32
            assert torch.isfinite(value).all()
    shuffled = fitted(tiny, method, source.flip(0), target.flip(0))
    for one, other in zip(edit.edits, shuffled.edits, strict=True):
        torch.testing.assert_close(one.map.scale, other.map.scale)
        torch.testing.assert_close(one.map.shift, other.map.shift)


@pytest.mark.parametrize("method", [RANKING[0], *MOVING], ids=lambda each: type(each).__name__)
@FEW
@given(COUNTS, COUNTS, st.integers(0, 10**6), st.booleans())
def test_a_constant_unit_is_left_alone(tiny: Any, method: Any, n: int, m: int, seed: int, ties: bool) -> None:
    first = fitted(tiny, method, *drawn(n, m, seed, ties=ties)).edits[0].map
    assert first.scale[CONSTANT] == 1
    assert first.shift[CONSTANT] == 0


@pytest.mark.parametrize("method", RANKING, ids=lambda each: type(each).__name__)
@FEW
@given(COUNTS, COUNTS, st.integers(0, 10**6), st.booleans())
def test_ranks_alone_decide(tiny: Any, method: Any, n: int, m: int, seed: int, ties: bool) -> None:
    """A rising function of a unit's activation changes nothing."""
    source, target = drawn(n, m, seed, ties=ties)
    assert fitted(tiny, method, source, target) == fitted(tiny, method, source**3 + 4, target**3 + 4)


@FEW
@given(COUNTS, COUNTS, st.integers(0, 10**6))
def test_the_units_of_measurement_go_along(tiny: Any, n: int, m: int, seed: int) -> None:
    """Activations four times as large: the same scales, shifts four times as large."""
    source, target = drawn(n, m, seed, ties=False)
    for method in MOVING:
        plain, large = (fitted(tiny, method, c * source, c * target) for c in (1.0, 4.0))
        for one, other in zip(plain.edits, large.edits, strict=True):
            torch.testing.assert_close(one.map.scale, other.map.scale)
            torch.testing.assert_close(4 * one.map.shift, other.map.shift)


@FEW
@given(st.integers(0, 10**6), st.booleans())
def test_a_single_row_on_each_side(tiny: Any, seed: int, ties: bool) -> None:
    source, target = drawn(1, 1, seed, ties=ties)
    aura = torch.cat([each.map.scale for each in fitted(tiny, RANKING[0], source, target).edits])
    assert torch.equal(aura, 1 - (source > target).float()[0])  # one text above the other: AUROC 1
    shift = torch.cat([each.map.shift for each in fitted(tiny, CAA(layers="all", pool="mean"), source, target).edits])
    torch.testing.assert_close(shift, (target - source)[0])
    held = fitted(tiny, SelfCond(k=64, sites=SITES), source, target).edits
    torch.testing.assert_close(torch.cat([each.map.shift for each in held]), target[0])
    for method in MOVING[:3]:
        with pytest.raises(ContrastError, match="at least 2 texts per side"):
            fitted(tiny, method, source, target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@given(COUNTS, COUNTS, st.integers(0, 10**6), st.booleans())
def test_half_precision_in_is_float32_in(dtype: torch.dtype, n: int, m: int, seed: int, ties: bool) -> None:
    source, target = drawn(n, m, seed, ties=ties)
    half = source.to(dtype), target.to(dtype)
    assert torch.equal(aura_scale(*half), aura_scale(source, target))
    for transport in (mean_transport, gaussian_transport, linear_transport):
        for got, expected in zip(transport(*half), transport(source, target), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
