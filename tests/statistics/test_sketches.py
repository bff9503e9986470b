"""Sketches against the values they saw: bounds that hold, counts that no order or split changes, exact moments."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lens_steer.errors import ActivationError, SettingError
from lens_steer.statistics.scores import auroc, auroc_and_average_precision
from lens_steer.statistics.significance import mann_whitney_p, normal_p
from lens_steer.statistics.sketched_scores import SketchedScores, sketched_scores
from lens_steer.statistics.sketches import Grid, Sketch


def adversarial(texts: int, seed: int) -> Tensor:
    """Normal, clipped, rounded, constant, heavy-tailed, two-valued, tiny, one outlier; both zeros."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(texts, 8))
    values[:, 1] = values[:, 1].clip(0)
    values[:, 2] = values[:, 2].round()
    values[:, 3] = -0.0 if seed % 2 else 7.5
    values[:, 4] = rng.standard_cauchy(texts) ** 3
    values[:, 5] = np.where(rng.random(texts) < 0.3, -0.0, 0.0) + (rng.random(texts) < 0.4)
    values[:, 6] *= 1e-44
    values[:, 7] = 1 + 1e-6 * values[:, 7]
    values[0, 7] = 1e30
    return torch.from_numpy(values).float()


def sketched(grid: Grid, values: Tensor, members: Tensor, *, batch: int = 1000) -> Sketch:
    sketch = Sketch(grid, len(members))
    for start in range(0, len(values), batch):
        rows = slice(start, start + batch)
        sketch.add(values[rows], members[:, rows])
    return sketch


def scores_of(sketch: Sketch) -> SketchedScores:
    return sketched_scores(sketch.counts[0].numpy(), sketch.counts[1].numpy(), sketch.grid.single.numpy())


def labelled(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    is_source = torch.arange(len(source) + len(target)) < len(source)
    return torch.cat([source, target]), torch.stack([is_source, ~is_source])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(0, 10_000),
    st.sampled_from([2, 3, 16, 256]),
    st.sampled_from(["same", "few", "elsewhere", "constant"]),
)
def test_every_error_lies_within_its_bound(n: int, m: int, seed: int, bins: int, pilot: str) -> None:
    source, target = adversarial(n, seed) + 0.5, adversarial(m, seed + 1)
    source[:, 3] = target[0, 3]
    values, members = labelled(source, target)
    of = {"same": values, "few": values[:2], "elsewhere": adversarial(50, seed) * 9 + 3, "constant": values[:1] * 0}
    got = scores_of(sketched(Grid.of(of[pilot], bins), values, members))
    area, precision = (score.numpy() for score in auroc_and_average_precision(source, target))
    assert (np.abs(got.auroc - area) <= got.auroc_error + 1e-12).all()
    assert (np.abs(got.average_precision - precision) <= got.average_precision_error + 1e-12).all()
    assert ((got.auroc_error >= 0) & (got.auroc_error <= 0.5)).all()


def test_the_bounds_are_reached() -> None:
    """One cell holds all: sources above, then targets above; and sources that tie above the targets."""
    grid = Grid(torch.tensor([[10.0, 20.0]]))
    low, high = torch.tensor([[11.0], [12.0]]), torch.tensor([[14.0], [15.0]])
    above, below = (scores_of(sketched(grid, *labelled(*sides))) for sides in ((high, low), (low, high)))
    assert (above.auroc, above.auroc_error) == (0.5, 0.5)
    assert below.average_precision - below.average_precision_error == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert below.average_precision + below.average_precision_error == pytest.approx(1.0)


def test_a_value_with_a_cell_of_its_own_is_exact() -> None:
    """A ReLU's zeros, a constant and a few levels: no error is left to bound."""
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.integers(0, 3, (400, 3))).float()
    values[:, 1], values[:, 2] = 2.5, values[:, 2].clamp(max=1)
    got = scores_of(sketched(Grid.of(values), *labelled(values[:150], values[150:])))
    area, precision = auroc_and_average_precision(values[:150], values[150:])
    assert not got.auroc_error.any()
    assert not got.average_precision_error.any()
    np.testing.assert_allclose(got.auroc, area, rtol=0, atol=1e-15)
    np.testing.assert_allclose(got.average_precision, precision, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        normal_p(torch.from_numpy(got.deviation)), mann_whitney_p(values[:150], values[150:]), rtol=1e-12, atol=0
    )


def test_bins_are_about_equally_full() -> None:
    values = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-6, 1.0, 1e9])
    sketch = sketched(Grid.of(values[:4096]), values, torch.ones(1, len(values), dtype=torch.bool))
    assert sketch.counts.shape == (1, 3, 256)
    assert int(sketch.counts.max()) < 4 * len(values) / 256
    got = scores_of(sketched(sketch.grid, *labelled(values[:10_000], values[10_000:])))
    assert got.auroc_error.max() < 0.003
    assert np.abs(got.auroc - auroc(values[:10_000], values[10_000:]).numpy()).max() < 2e-4


@pytest.mark.parametrize(("texts", "bins"), [(1024, 256), (96, 3), (50, 2), (64, 64)])
def test_every_cell_holds_the_same_share_of_the_pilot(texts: int, bins: int) -> None:
    pilot = torch.randperm(texts, generator=torch.Generator().manual_seed(0))[:, None].float()
    grid = Grid.of(pilot, bins)
    assert (sketched(grid, pilot, torch.ones(1, texts, dtype=torch.bool)).counts == texts // bins).all()


@pytest.mark.parametrize("cuts", [1, 2, 3, 4, 7, 8])
def test_a_cell_holds_its_lower_cut(cuts: int) -> None:
    edges = torch.arange(cuts) * 2.0
    values = torch.arange(-2.0, 2 * cuts + 2)
    expected = torch.searchsorted(edges, values, right=True)
    assert torch.equal(Grid(torch.stack([edges, -edges.flip(0)])).cells(values[:, None].repeat(1, 2))[0], expected)


def test_a_value_that_fills_two_bins_is_an_atom() -> None:
    """Three zeros of eight texts hold two of the three cuts: zero has a cell of its own, the other cells are open."""
    pilot = torch.tensor([-3.0, -2.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0])[:, None]
    grid = Grid.of(pilot, 4)
    above = torch.nextafter(torch.tensor(0.0), torch.tensor(1.0)).item()
    assert grid.cuts.tolist() == [[0.0, above, 2.0]]
    assert grid.single.tolist() == [[False, True, False, False]]
    counts = sketched(grid, pilot, torch.ones(1, 8, dtype=torch.bool)).counts
    assert counts.tolist() == [[[2, 3, 1, 2]]]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(1, 9))
def test_no_order_and_no_split_changes_a_count(seed: int, texts: int, batch: int) -> None:
    values = adversarial(texts, seed)
    rng = np.random.default_rng(seed)
    members = torch.from_numpy(rng.random((3, texts)) < 0.5)
    grid = Grid.of(values[:5], 16)
    whole = sketched(grid, values, members)
    cut, order = int(rng.integers(0, texts + 1)), torch.from_numpy(rng.permutation(texts))
    parts = [sketched(grid, values[rows], members[:, rows], batch=batch) for rows in (order[:cut], order[cut:])]
    for merged in (parts[0].merged(parts[1]), parts[1].merged(parts[0])):
        for name in ("counts", "texts", "low", "high"):
            assert torch.equal(getattr(merged, name), getattr(whole, name)), name
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(merged.squares, whole.squares, rtol=1e-9, atol=1e-12)


def test_moments_and_extremes_are_those_of_the_values() -> None:
    values = torch.randn(300, 4, generator=torch.Generator().manual_seed(1)) + torch.tensor([0.0, 1e6, -3.0, 1e-3])
    members = torch.stack([torch.arange(300) < 100, torch.arange(300) >= 100, torch.zeros(300, dtype=torch.bool)])
    sketch = sketched(Grid.of(values), values, members, batch=7)
    assert sketch.texts.tolist() == [100, 200, 0]
    for group, part in enumerate((values[:100].double(), values[100:].double())):
        torch.testing.assert_close(sketch.mean[group], part.mean(0), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(sketch.squares[group], part.var(0, correction=0) * len(part), rtol=1e-10, atol=0)
        assert torch.equal(sketch.low[group].double(), part.amin(0))
        assert torch.equal(sketch.high[group].double(), part.amax(0))
    joint = sketch.together([0, 1])
    assert torch.equal(joint.counts[0], sketched(sketch.grid, values, torch.ones(1, 300, dtype=torch.bool)).counts[0])
    torch.testing.assert_close(joint.mean[0], values.double().mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(joint.squares[0], values.double().var(0, correction=0) * 300, rtol=1e-9, atol=0)
    assert joint.texts.tolist() == [300]
    assert torch.equal(joint.low[0], values.amin(0))
    assert torch.equal(joint.high[0], values.amax(0))


def test_what_cannot_be_sketched_is_refused() -> None:
    grid = Grid.of(torch.randn(20, 3))
    sketch = Sketch(grid, 1)
    values = torch.zeros(4, 3)
    values[2, 1] = torch.nan
    with pytest.raises(ActivationError, match="unit 1 is nan for text 2"):
        sketch.add(values, torch.ones(1, 4, dtype=torch.bool))
    assert not sketch.counts.any()
    with pytest.raises(ActivationError, match="on one grid"):
        sketch.merged(Sketch(Grid.of(torch.randn(20, 3)), 1))
    with pytest.raises(ActivationError, match="no texts"):
        scores_of(sketched(grid, torch.zeros(4, 3), torch.tensor([[True] * 4, [False] * 4])))
    with pytest.raises(SettingError, match="2 bins or more, not 1"):
        Grid.of(values, 1)
    with pytest.raises(ActivationError, match="one text or more"):
        Grid.of(values[:0])
