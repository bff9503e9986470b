"""The transport maps against the reference numbers, plain formulas and their own identities."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lens_steer.errors import ActivationError
from lens_steer.methods.activation_transport import ActivationTransport, GaussianAcT, LinearAcT, MeanAcT
from lens_steer.methods.transport_maps import (
    ScaleAndShift,
    gaussian_transport,
    linear_transport,
    mean_transport,
    unit_quantiles,
    without_spread,
)

Transport = Callable[[torch.Tensor, torch.Tensor], ScaleAndShift]
TRANSPORTS: list[Transport] = [mean_transport, gaussian_transport, linear_transport]
DEAD_IN_GOLDEN = 9  # zero on every source text, not on target texts

COUNTS = st.integers(2, 25)


def draw(n: int, m: int, seed: int, *, ties: bool = False, units: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(n, units, generator=generator)
    target = 2 * torch.randn(m, units, generator=generator) + 1
    return (source.round(), target.round()) if ties else (source, target)


class TestReferenceNumbers:
    @pytest.fixture(scope="class")
    def golden(self, shared: Path) -> Any:
        return np.load(shared / "golden" / "transport.npz")

    @pytest.mark.real
    @pytest.mark.parametrize("strength", [1.0, 0.5])
    @pytest.mark.parametrize(("support", "key"), [("unbounded", "q_all"), ("observed", "q_0_100")])
    @pytest.mark.parametrize("method", [MeanAcT, GaussianAcT, LinearAcT])
    def test_tokens(
        self, golden: Any, method: type[ActivationTransport], support: Any, key: str, strength: float
    ) -> None:
        source, target, tokens = (torch.from_numpy(golden[name]) for name in ("source", "target", "tokens"))
        fitted = method(support=support).map_between(source, target)
        expected = golden[f"{method.__name__.removesuffix('AcT').lower()}_{key}_{strength}"]
        # The reference divides by noise at the dead unit and gives -1.5e6 for a slope; here it stays as it is.
        units = [unit for unit in range(64) if unit != DEAD_IN_GOLDEN or method is not LinearAcT]
        got = fitted.scaled(strength)(tokens).numpy()
        np.testing.assert_allclose(got[..., units], expected[..., units], rtol=1e-4, atol=1e-6)
        assert np.array_equal(got[..., DEAD_IN_GOLDEN], golden["tokens"][..., DEAD_IN_GOLDEN])

    @pytest.mark.real
    def test_linear_fit(self, golden: Any) -> None:
        scale, shift = linear_transport(torch.from_numpy(golden["source"]), torch.from_numpy(golden["target"]))
        live = np.arange(64) != DEAD_IN_GOLDEN
        np.testing.assert_allclose(scale[live], golden["linear_scale"][live], rtol=1e-5)
        np.testing.assert_allclose(shift[live], golden["linear_shift"][live], rtol=1e-4, atol=1e-6)


@settings(max_examples=40)
@given(COUNTS, st.integers(0, 1000), st.booleans())
def test_linear_is_least_squares_between_sorted_samples(n: int, seed: int, ties: bool) -> None:
    source, target = draw(n, n, seed, ties=ties)
    scale, shift = linear_transport(source, target)
    for unit in (~without_spread(source)).nonzero()[:, 0].tolist():
        slope, intercept = np.polyfit(source[:, unit].sort().values.double(), target[:, unit].sort().values.double(), 1)
        assert scale[unit].item() == pytest.approx(slope, rel=1e-6, abs=1e-9)
        assert shift[unit].item() == pytest.approx(intercept, rel=1e-6, abs=1e-6)


@settings(max_examples=40)
@given(COUNTS, COUNTS, st.integers(0, 1000), st.booleans())
def test_unequal_counts_equal_texts_repeated_to_a_common_count(n: int, m: int, seed: int, ties: bool) -> None:
    source, target = draw(n, m, seed, ties=ties)
    common = np.lcm(n, m)
    same_laws = source.repeat(common // n, 1), target.repeat(common // m, 1)
    for got, expected in zip(linear_transport(source, target), linear_transport(*same_laws), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@settings(max_examples=40)
@given(COUNTS, COUNTS, st.integers(0, 1000), st.booleans(), st.sampled_from(TRANSPORTS))
def test_the_mean_arrives_and_no_order_is_reversed(n: int, m: int, seed: int, ties: bool, transport: Transport) -> None:
    source, target = draw(n, m, seed, ties=ties)
    scale, shift = transport(source, target)
    live = ~without_spread(source)
    assert bool((scale >= 0).all())
    arrived = (scale * source.double() + shift).mean(0)
    torch.testing.assert_close(arrived[live], target.double().mean(0)[live], rtol=1e-9, atol=1e-9)


@settings(max_examples=40)
@given(COUNTS, COUNTS, st.integers(0, 1000), st.sampled_from(TRANSPORTS))
def test_units_and_the_order_of_texts_do_not_matter_to_each_other(
    n: int, m: int, seed: int, transport: Transport
) -> None:
    source, target = draw(n, m, seed)
    shuffled = source.flip(0).roll(1, 0), target.roll(1, 0)
    for whole, mixed, first in zip(
        transport(source, target), transport(*shuffled), transport(source[:, :1], target[:, :1]), strict=True
    ):
        torch.testing.assert_close(mixed, whole, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(first, whole[:1], rtol=1e-12, atol=1e-12)


@settings(max_examples=40)
@given(COUNTS, st.integers(0, 1000), st.floats(0.2, 5), st.floats(-5, 5))
def test_an_affine_target_is_recovered(n: int, seed: int, scale: float, shift: float) -> None:
    source, _ = draw(n, n, seed)
    target = scale * source.double() + shift
    for transport in (gaussian_transport, linear_transport):
        got_scale, got_shift = transport(source, target)
        torch.testing.assert_close(got_scale, torch.full_like(got_scale, scale), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(got_shift, torch.full_like(got_shift, shift), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean_transport(source, source + shift)[1], torch.full((5,), shift).double())


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("value", [0.0, 3.7, -1e4, 1e-30])
def test_a_unit_without_spread_stays_at_the_identity(transport: Transport, value: float) -> None:
    source, target = draw(12, 9, 0)
    source[:, 1] = value
    # What averaging a constant over different numbers of tokens leaves of it.
    source[:, 3] = value * (1 + 2e-7 * torch.randn(12))
    target[:, 2] = value
    scale, shift = transport(source, target)
    assert scale[[1, 3]].tolist() == [1.0, 1.0]
    assert shift[[1, 3]].tolist() == [0.0, 0.0]
    if transport is not mean_transport:
        assert scale[2].item() == pytest.approx(0, abs=1e-9)
        assert shift[2].item() == pytest.approx(value)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_small_spread_on_a_large_value_is_a_spread(transport: Transport) -> None:
    source = 100 + torch.linspace(0, 0.01, 8)[:, None]
    scale, shift = transport(source, source + 1)
    assert scale.item() == pytest.approx(1, rel=1e-3)
    assert (scale * source.double() + shift).mean().item() == pytest.approx(source.double().mean().item() + 1)
    assert not without_spread(source).any()


def test_linear_tends_to_the_gaussian_map_on_gaussian_samples() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(20_000, 3, generator=generator), 0.5 + 2 * torch.randn(15_000, 3, generator=generator)
    for transport in (gaussian_transport, linear_transport):
        scale, shift = transport(source, target)
        torch.testing.assert_close(scale, torch.full_like(scale, 2.0), rtol=0.03, atol=0)
        torch.testing.assert_close(shift, torch.full_like(shift, 0.5), rtol=0, atol=0.05)
    narrow = target / 2
    shifts = torch.stack([transport(source, narrow)[1] for transport in TRANSPORTS])
    torch.testing.assert_close(shifts, shifts[:1].expand_as(shifts), rtol=0, atol=0.03)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_what_cannot_be_carried_is_refused(transport: Transport) -> None:
    for sides in [(1, 5), (5, 1), (1, 1)]:
        with pytest.raises(ActivationError, match="two texts a side"):
            transport(torch.zeros(sides[0], 2), torch.zeros(sides[1], 2))
    with pytest.raises(ActivationError, match="source side"):
        transport(torch.zeros(0, 2), torch.zeros(3, 2))
    with pytest.raises((ActivationError, TypeError), match="unit"):  # the tests' type checker is the first to see it
        transport(torch.zeros(3, 2), torch.zeros(3, 4))


@settings(max_examples=30)
@given(COUNTS, st.integers(0, 1000), st.floats(0, 1))
def test_quantiles_are_numpys(n: int, seed: int, share: float) -> None:
    values, _ = draw(n, n, seed)
    np.testing.assert_allclose(unit_quantiles(values, share), np.quantile(values, share, axis=0), rtol=1e-5, atol=1e-6)
    assert torch.equal(unit_quantiles(values, 0.0), values.amin(0))
    assert torch.equal(unit_quantiles(values, 1.0), values.amax(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", [MeanAcT(), GaussianAcT(), LinearAcT(support=(0.1, 0.9))])
def test_any_dtype(method: ActivationTransport, dtype: torch.dtype) -> None:
    source, target = draw(11, 7, 3)
    fitted = method.map_between(source.to(dtype), target.to(dtype))
    assert {value.dtype for value in fitted.tensors().values()} == {torch.float32}
    expected = method.map_between(source.to(dtype).float(), target.to(dtype).float())
    torch.testing.assert_close(fitted.scale, expected.scale)


def test_support_is_strictly_inside_and_may_be_narrowed() -> None:
    source = torch.arange(11.0)[:, None]
    tokens = torch.tensor([[-1.0], [0.0], [0.5], [1.0], [5.0], [9.0], [9.5], [10.0], [11.0]])

    def moved(support: Any) -> list[float]:
        mapped = MeanAcT(support=support).map_between(source, source + 100)(tokens)
        return tokens[mapped != tokens].tolist()

    assert moved("unbounded") == tokens[:, 0].tolist()
    assert moved("observed") == [0.5, 1.0, 5.0, 9.0, 9.5]
    assert moved((0.1, 0.9)) == [5.0]
