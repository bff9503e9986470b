"""AUROC, average precision and midranks against scikit-learn, scipy and the golden numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score, roc_auc_score
from torch import Tensor

from lens_steer.errors import ActivationError
from lens_steer.statistics import unit_chunks
from lens_steer.statistics.scores import auroc, auroc_and_average_precision, average_precision, midranks

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden" / "transport.npz"


@st.composite
def sides(draw: st.DrawFn, *, units: int = 4) -> tuple[Tensor, Tensor]:
    """Two sides of unequal size with ties, both zeros, a constant unit, huge and subnormal values."""
    n, m = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    some = st.one_of(
        st.sampled_from([-1.5, -0.0, 0.0, 1e-45, -1e-45, 0.5, 2.0, 3e38]),
        st.floats(-100, 100, width=32),
    )
    rows = draw(st.lists(st.lists(some, min_size=units, max_size=units), min_size=n + m, max_size=n + m))
    values = torch.tensor(rows, dtype=torch.float32)
    values[:, 0] = draw(some)
    return values[:n], values[n:]


def reference(source: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    labels = np.r_[np.ones(len(source)), np.zeros(len(target))]
    values = torch.cat([source, target]).double().numpy()
    areas = [roc_auc_score(labels, column) for column in values.T]
    precisions = [average_precision_score(labels, column) for column in values.T]
    return np.array(areas), np.array(precisions)


def mixed(n: int, m: int, units: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A third of the units continuous, a third clipped at zero, a third rounded to bfloat16."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(n + m, units, generator=generator)
    values[:n] += torch.linspace(-1, 1, units)
    values[:, units // 3 : 2 * units // 3].clamp_(min=0)
    values[:, 2 * units // 3 :] = values[:, 2 * units // 3 :].bfloat16().float()
    return values[:n], values[n:]


@settings(max_examples=60, deadline=None)
@given(sides())
def test_scores_equal_scikit_learn(both: tuple[Tensor, Tensor]) -> None:
    for dtype in (torch.float32, torch.float64):
        source, target = (side.to(dtype) for side in both)
        areas, precisions = auroc_and_average_precision(source, target)
        expected = reference(source, target)
        np.testing.assert_allclose(areas, expected[0], rtol=0, atol=1e-12)
        np.testing.assert_allclose(precisions, expected[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("n", "m"), [(1, 40), (40, 1), (37, 64), (500, 300)])
def test_scores_of_many_texts_equal_scikit_learn(n: int, m: int) -> None:
    source, target = mixed(n, m, 30)
    expected = reference(source, target)
    np.testing.assert_allclose(auroc(source, target), expected[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(average_precision(source, target), expected[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_equals_the_same_values_in_float32(dtype: torch.dtype) -> None:
    source, target = (side.to(dtype) for side in mixed(50, 60, 12))
    torch.testing.assert_close(auroc(source, target), auroc(source.float(), target.float()), rtol=0, atol=0)


def test_float64_is_not_rounded_to_float32() -> None:
    target = torch.ones(3, 1, dtype=torch.float64)
    assert auroc(target + 1e-12, target).item() == 1
    assert auroc(target.float() + 1, target + 1 + 1e-12).item() == 0


def test_both_zeros_are_one_value() -> None:
    for dtype in (torch.float32, torch.float64):
        zeros = torch.zeros(3, 2, dtype=dtype)
        assert auroc(zeros, -zeros).tolist() == [0.5, 0.5]
        assert average_precision(-zeros, zeros).tolist() == [0.5, 0.5]


def test_infinities_are_ordinary_extremes() -> None:
    source = torch.tensor([[torch.inf], [torch.inf], [0.0]])
    target = torch.tensor([[-torch.inf], [torch.inf], [3e38]])
    assert auroc(source, target).item() == pytest.approx((2 * (0.5 + 1 + 1) + 1) / 9)


@settings(max_examples=40, deadline=None)
@given(sides())
def test_swapping_sides_mirrors_auroc(both: tuple[Tensor, Tensor]) -> None:
    source, target = both
    torch.testing.assert_close(auroc(source, target), 1 - auroc(target, source), rtol=0, atol=1e-15)


@settings(max_examples=40, deadline=None)
@given(sides())
def test_scores_do_not_change_under_a_monotone_map(both: tuple[Tensor, Tensor]) -> None:
    rounded = torch.cat(both).clamp(-100, 100).round()
    stretched = rounded**3 + 7
    n = len(both[0])
    for a, b in zip(
        auroc_and_average_precision(rounded[:n], rounded[n:]),
        auroc_and_average_precision(stretched[:n], stretched[n:]),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_chunks_and_threads_do_not_change_a_score(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = mixed(60, 45, 100)
    expected = auroc_and_average_precision(source, target)
    monkeypatch.setattr(unit_chunks, "_CHUNK_VALUES", 1)
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        got = auroc_and_average_precision(source, target)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


def test_any_memory_layout_is_read_and_none_is_written() -> None:
    source, target = mixed(20, 30, 9)
    expected = auroc(source, target)
    columnwise = source.T.contiguous().T
    assert torch.equal(auroc(columnwise.requires_grad_(), target.repeat(1, 2)[:, :9]), expected)
    one = source[:, :1].clone()
    before = one.clone()
    auroc(one, one)
    assert torch.equal(one, before)


def test_no_units_give_no_scores() -> None:
    assert auroc(torch.zeros(3, 0), torch.zeros(2, 0)).shape == (0,)
    assert midranks(torch.zeros(3, 0)).shape == (3, 0)


def test_sides_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ActivationError, match="source side has no texts"):
        auroc(torch.zeros(0, 3), torch.zeros(2, 3))
    with pytest.raises(ActivationError, match="target side has no texts"):
        average_precision(torch.zeros(2, 3), torch.zeros(0, 3))
    with pytest.raises(ActivationError, match="2 units and target 3"):
        unit_chunks.check_sides(torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises((ActivationError, TypeError)):  # the shapes in the signature, where they are checked, are first
        auroc_and_average_precision(torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(ActivationError, match="at least one text"):
        midranks(torch.zeros(0, 3))


@settings(max_examples=40, deadline=None)
@given(sides())
def test_midranks_equal_scipy(both: tuple[Tensor, Tensor]) -> None:
    values = torch.cat(both)
    expected = rankdata(values.numpy(), axis=0)
    assert np.array_equal(midranks(values).numpy(), expected)
    assert np.array_equal(midranks(values.double()).numpy(), expected)


@pytest.mark.real
def test_golden_scores() -> None:
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN} is not there; the reference numbers lie beside the repository.")
    golden = np.load(GOLDEN)
    areas, precisions = auroc_and_average_precision(torch.tensor(golden["source"]), torch.tensor(golden["target"]))
    np.testing.assert_allclose(areas, golden["auroc"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(precisions, golden["average_precision"], rtol=0, atol=1e-9)
    scale = torch.where(areas > 0.5, 1 - 2 * (areas - 0.5), 1.0)
    np.testing.assert_allclose(scale, golden["aura_scale"], rtol=1e-4, atol=1e-7)
