"""One sort against one call per statistic: the same numbers, of all texts and of both halves."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lens_steer.errors import ActivationError
from lens_steer.statistics import ties
from lens_steer.statistics.comparison import Comparison, compare_sides
from lens_steer.statistics.scores import auroc, average_precision
from lens_steer.statistics.significance import auroc_interval, interval_of_variance, mann_whitney_p, normal_p
from lens_steer.statistics.wasserstein import wasserstein


def drawn(texts: int, seed: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Continuous, clipped, rounded, constant and two-valued units; labels of three kinds; half held out."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(texts, 7)).astype(np.float32)
    label = np.r_[[1, 1, 0, 0, -1], rng.integers(-1, 2, texts - 5)]
    held = np.r_[[True, False, True, False, True], rng.random(texts - 5) < 0.5]
    values[:, 1] = values[:, 1].clip(0)
    values[:, 2] = values[:, 2].round()
    values[:, 3], values[:, 4] = -0.0, 3e4 + (label == 1)
    values[:, 5] = np.where(rng.random(texts) < 0.5, 0.0, -0.0)
    return torch.from_numpy(values), label, held


@pytest.mark.filterwarnings("error::RuntimeWarning")
@settings(max_examples=40, deadline=None)
@given(st.integers(5, 90), st.integers(0, 10_000), st.sampled_from([torch.float32, torch.float64]))
def test_every_statistic_is_that_of_its_own_call(texts: int, seed: int, dtype: torch.dtype) -> None:
    values, label, held = drawn(texts, seed)
    values = values.to(dtype)
    got = compare_sides(values, label, held)
    source, target = values[label == 1], values[label == 0]
    assert torch.equal(got.auroc, auroc(source, target))
    assert torch.equal(got.average_precision, average_precision(source, target))
    torch.testing.assert_close(got.wasserstein, wasserstein(source, target), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.source_mean, source.double().mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.target_mean, target.double().mean(0), rtol=1e-12, atol=1e-12)
    if max(len(source), len(target)) >= 20:
        assert torch.equal(normal_p(got.deviation), mann_whitney_p(source, target))
    for area, variance, part in (
        (got.auroc, got.variance, label >= -1),
        (got.heldout_auroc, got.heldout_variance, held),
    ):
        sides = values[(label == 1) & part], values[(label == 0) & part]
        assert torch.equal(area, auroc(*sides))
        expected = auroc_interval(*sides, area, confidence=0.9)
        interval = interval_of_variance(area, variance, (len(sides[0]), len(sides[1])), confidence=0.9)
        torch.testing.assert_close(interval.low, expected.low, rtol=1e-12, atol=0)
        assert torch.equal(interval.degenerate, expected.degenerate)
    chosen = values[(label == 1) & ~held].double(), values[(label == 0) & ~held].double()
    assert torch.equal(got.selection_auroc, auroc(*chosen))
    spread = ((chosen[0].var(0, correction=0) + chosen[1].var(0, correction=0)) / 2).sqrt()
    expected = torch.nan_to_num((chosen[0].mean(0) - chosen[1].mean(0)) / spread, nan=0.0)
    torch.testing.assert_close(got.distance, expected, rtol=1e-9, atol=1e-12)


def same(one: Comparison, other: Comparison) -> bool:
    return all(
        np.array_equal(a, b, equal_nan=True) for a, b in zip(vars(one).values(), vars(other).values(), strict=True)
    )


def test_texts_too_many_for_one_integer_are_counted_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    values, label, held = drawn(90, 0)
    expected = compare_sides(values, label, held)
    for bits in (20, 10):  # 90 texts need 7: two sets share an integer, then none
        monkeypatch.setattr(ties, "_COUNT_BITS", bits)
        assert same(compare_sides(values, label, held), expected)


def test_without_a_held_out_part_its_values_are_missing() -> None:
    values, label, held = drawn(30, 1)
    got = compare_sides(values, label)
    assert all(bool(column.isnan().all()) for column in (got.selection_auroc, got.heldout_auroc, got.heldout_variance))
    assert torch.equal(got.auroc, compare_sides(values, label, held).auroc)


@pytest.mark.parametrize("side", [1, 0])
def test_a_side_or_half_without_texts_is_refused(side: int) -> None:
    values, label, held = drawn(30, 2)
    for lacking in (
        (np.where(label == side, 1 - side, label), None),
        (label, held | (label == side)),
        (label, held & (label != side)),
    ):
        with pytest.raises(ActivationError, match="has no texts"):
            compare_sides(values, *lacking)
