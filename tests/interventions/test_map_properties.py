"""What every kind of map obeys, over shapes, dtypes and single rows; a new kind is added to `KINDS`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_steer.errors import MapError
from lens_steer.interventions.gated_map import Gated, LogisticGate
from lens_steer.interventions.low_rank import LowRankAffine
from lens_steer.interventions.map_kinds import build_map
from lens_steer.interventions.maps import ActivationMap, Chain, DiagonalAffine, StoredTensors
from lens_steer.interventions.project_out import ProjectOut
from lens_steer.interventions.resample import Resample

Draw = Callable[..., torch.Tensor]


def diagonal(width: int, randn: Draw) -> DiagonalAffine:
    return DiagonalAffine(randn(width), randn(width))


def bounded(width: int, randn: Draw) -> DiagonalAffine:
    low = randn(width)
    return DiagonalAffine(randn(width), randn(width), low=low, high=low + 1)


def low_rank(width: int, randn: Draw) -> LowRankAffine:
    rank = (width + 1) // 2
    return LowRankAffine(torch.linalg.qr(randn(width, rank)).Q.T, randn(rank, width) / width, randn(rank))


def project_out(width: int, randn: Draw) -> ProjectOut:
    return ProjectOut(randn(width) + 0.1, 0.8)


def gate(width: int, randn: Draw) -> LogisticGate:
    return LogisticGate(randn(width) / width**0.5, 0.2)


KINDS: dict[str, Callable[[int, Draw], ActivationMap]] = {
    "diagonal": diagonal,
    "bounded": bounded,
    "low rank": low_rank,
    "project out": project_out,
    "chain": lambda width, randn: Chain((bounded(width, randn), project_out(width, randn)), 0.6),
    "gated diagonal": lambda width, randn: Gated(diagonal(width, randn), gate(width, randn)),
    "gated low rank": lambda width, randn: Gated(low_rank(width, randn), gate(width, randn), 0.7),
}

CASES = st.tuples(st.sampled_from(list(KINDS)), st.integers(1, 9), st.integers(0, 10**6))
SHAPES = st.lists(st.integers(1, 3), max_size=3)  # of the tokens: none, [pos], [text, pos], and more
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def drawn(kind: str, width: int, seed: int) -> tuple[ActivationMap, Draw]:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return KINDS[kind](width, randn), randn


@given(CASES, SHAPES, DTYPES)
def test_shape_and_dtype_stay(case: tuple[str, int, int], shape: list[int], dtype: torch.dtype) -> None:
    one, randn = drawn(*case)
    h = randn(*shape, one.width).to(dtype)
    before = h.clone()
    mapped = one(h)
    assert (mapped.shape, mapped.dtype) == (h.shape, h.dtype)
    assert torch.equal(h, before)
    assert all(value.dtype == torch.float32 for value in one.tensors().values())


@given(CASES, DTYPES)
def test_strength_zero_is_the_identity_to_the_bit(case: tuple[str, int, int], dtype: torch.dtype) -> None:
    one, randn = drawn(*case)
    h = 10 * randn(3, one.width).to(dtype)
    assert torch.equal(one.scaled(0.0)(h), h)


@given(CASES, st.floats(-1, 2), DTYPES)
def test_strength_blends_input_and_map(case: tuple[str, int, int], strength: float, dtype: torch.dtype) -> None:
    one, randn = drawn(*case)
    h = randn(4, one.width).to(dtype)
    expected = (1 - strength) * h.float() + strength * one(h).float()
    room = 32 * torch.finfo(dtype).eps * float(1 + h.float().abs().max() + one(h).float().abs().max())
    assert float((one.scaled(strength)(h).float() - expected).abs().max()) <= room


@given(CASES, DTYPES)
def test_a_token_is_mapped_alone(case: tuple[str, int, int], dtype: torch.dtype) -> None:
    """A row, or a constant row, gets the same map whatever stands beside it."""
    one, randn = drawn(*case)
    h = randn(5, one.width).to(dtype)
    h[3] = h[3, 0]  # the same value at all units
    h[4] = h[0]  # a tie
    together = one(h).float()
    room = 16 * torch.finfo(dtype).eps * float(1 + together.abs().max())
    for row in range(5):
        assert float((one(h[row]).float() - together[row]).abs().max()) <= room
    assert float((together[4] - together[0]).abs().max()) <= room


@given(CASES, DTYPES)
def test_half_precision_is_the_float32_map_rounded_once(case: tuple[str, int, int], dtype: torch.dtype) -> None:
    one, randn = drawn(*case)
    h = randn(4, one.width).to(dtype)
    assert torch.equal(one(h), one(h.float()).to(dtype))


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_weak_edit_is_one_in_half_precision(strength: float) -> None:
    """A scale of 1.003 is 1 in bfloat16; the value that it makes is another one in most cases."""
    weak = DiagonalAffine(torch.full((1000,), 1.006), torch.zeros(1000)).scaled(strength)
    h = torch.randn(500, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = (h.float() * (1 + 0.006 * strength)).bfloat16()
    assert float((expected != h).float().mean()) > 0.5
    assert float((weak(h) != expected).float().mean()) < 1e-3
    chain = Chain((weak, weak.inverse()))
    assert torch.equal(chain(h), h)


def test_a_projection_is_taken_out_to_one_rounding() -> None:
    h = torch.randn(500, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    h[:, 3] = 300.0
    direction = torch.nn.functional.normalize(torch.ones(64), dim=0)
    left, rounding = (
        (out.float() @ direction).abs().max()
        for out in (ProjectOut(direction)(h), (h.float() - (h.float() @ direction)[:, None] * direction).bfloat16())
    )
    assert float(left) <= float(rounding) * 1.001


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_changes_nothing(kind: str) -> None:
    one, randn = drawn(kind, 64, 1)
    h = 10 * randn(4, 5, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(one(h), one.on_rows(h, None))
        inside = one(h)
    assert torch.equal(inside, one(h))


@pytest.mark.parametrize("kind", [*KINDS, "resample"])
def test_tensors_are_brought_to_a_place_once(kind: str) -> None:
    """A copy for every token of a generation would be a wait for the device each time."""
    kinds = {**KINDS, "resample": lambda width, randn: Resample(width, torch.arange(2), randn(3, 2))}
    one = kinds[kind](8, torch.randn)
    h = torch.randn(2, 3, 8, dtype=torch.float64)
    first = one(h)
    stores = [module for module in one.modules() if isinstance(module, StoredTensors)]
    copies = [[id(value) for value in module.stored(h).values()] for module in stores]
    assert torch.equal(one(h), first)
    assert copies == [[id(value) for value in module.stored(h).values()] for module in stores]
    assert all(value.dtype in (torch.float64, torch.int64) for module in stores for value in module.stored(h).values())


@given(CASES)
def test_what_is_not_said_to_move_does_not(case: tuple[str, int, int]) -> None:
    one, randn = drawn(*case)
    h = randn(6, one.width)
    still = ~one.moved(0.0)
    assert torch.equal(one(h)[:, still], h[:, still])


@given(CASES)
def test_it_comes_back_from_its_spec(case: tuple[str, int, int]) -> None:
    one, randn = drawn(*case)
    back = build_map(one.spec(), one.tensors())
    h = randn(2, one.width)
    assert back.same_as(one)
    assert torch.equal(back(h), one(h))


@given(CASES)
def test_inverse_undoes_the_map_or_says_why_not(case: tuple[str, int, int]) -> None:
    one, randn = drawn(*case)
    h = randn(3, one.width)
    try:
        back = one.inverse()
    except MapError as error:
        assert len(str(error)) > 30
        return
    image = one(h)
    # What is small in the map is large in its inverse: rounding errors grow by as much.
    growth = max(1.0, float((back(image + 1) - back(image)).abs().max()))
    assert float((back(image) - h).abs().max()) <= 1e-4 * growth * (1 + float(image.abs().max()))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(0, 10**6))
def test_gradient_equals_central_differences(kind: str, width: int, seed: int) -> None:
    one, randn = drawn(kind, width, seed)
    h, direction, weights = (randn(3, width).double() for _ in range(3))
    step = 1e-2
    if kind in ("bounded", "chain"):  # at the edge of an interval there is no slope
        inside = one if isinstance(one, DiagonalAffine) else next(iter(one.children()))[0]  # type: ignore[index]
        for edge in (inside.low, inside.high):
            near = (h - edge).abs() < 2 * step * direction.abs()
            h = torch.where(near, edge + 3 * step * direction.abs() + 0.01, h)
    leaf = h.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((one(leaf) * weights).sum(), leaf)
    up, down = (float((one(h + sign * step * direction) * weights).sum()) for sign in (1, -1))
    slope = (up - down) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=5e-3, abs=1e-3)
