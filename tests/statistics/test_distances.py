from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from lens_steer.errors import LensSteerError
from lens_steer.statistics.distances import EnergyDistances, along_gap, squared_gap, unit_energy_distances


def pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a[:, None] - b[None]).sum(-1)


def test_a_units_energy_distance_is_the_u_statistic() -> None:
    rng = np.random.default_rng(0)
    source, target = rng.normal(size=(7, 3)), rng.integers(0, 3, size=(5, 3)).astype(float)
    for unit, distance in enumerate(unit_energy_distances(source, target)):
        x, y = source[:, [unit]], target[:, [unit]]
        within = pairs(x, x).sum() / (7 * 6) + pairs(y, y).sum() / (5 * 4)
        assert distance == pytest.approx(2 * pairs(x, y).mean() - within)


def test_beside_scipys_biased_one_it_lacks_each_texts_distance_to_itself() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=60), rng.normal(0.7, 2, size=50)
    biased = stats.energy_distance(x, y) ** 2
    correction = pairs(x[:, None], x[:, None]).mean() / 59 + pairs(y[:, None], y[:, None]).mean() / 49
    assert unit_energy_distances(x[:, None], y[:, None])[0] == pytest.approx(biased - correction)


def test_added_up_over_units_it_is_the_sum_of_the_units_and_cases_choose_rows() -> None:
    rng = np.random.default_rng(2)
    source, target = rng.normal(size=(12, 4)), rng.normal(1, 1, size=(9, 4))
    distances = EnergyDistances(np.concatenate([source, target]))
    is_source = np.arange(21) < 12
    whole = distances.between(is_source[None].astype(float), (~is_source)[None].astype(float))
    assert whole[0] == pytest.approx(unit_energy_distances(source, target).sum())
    less = is_source.astype(float)
    less[:3] = 0
    part = distances.between(less[None], (~is_source)[None].astype(float))
    assert part[0] == pytest.approx(unit_energy_distances(source[3:], target).sum())


@pytest.mark.parametrize("texts", [5, 15, 60, 120])
def test_two_samples_of_one_law_lie_at_0_on_average(texts: int) -> None:
    rng = np.random.default_rng(texts)
    distances = np.array([unit_energy_distances(*rng.normal(size=(2, texts, 40))).sum() for _ in range(200)])
    assert abs(distances.mean()) < 3 * distances.std() / np.sqrt(200)


@pytest.mark.parametrize("texts", [15, 30, 60, 120])
def test_the_gap_and_an_exact_arrival_have_no_bias(texts: int) -> None:
    """A constant effect that moves the source's mean exactly onto the target's goes the whole way: 1, at any n."""
    rng = np.random.default_rng(texts)
    way = np.full(30, 0.3)
    gaps, alongs, naive = [], [], []
    for _ in range(400):
        source, target = rng.normal(size=(texts, 30)), way + rng.normal(size=(texts, 30))
        effects = np.tile(way, (texts, 1))
        gaps.append(squared_gap(source, target))
        alongs.append(along_gap(effects, source, target, of="source").mean())
        plain = target.mean(0) - source.mean(0)
        naive.append((effects.mean(0) @ plain) / (plain @ plain))
    assert np.mean(gaps) == pytest.approx(way @ way, abs=4 * np.std(gaps) / 20)
    assert np.mean(alongs) / np.mean(gaps) == pytest.approx(1, abs=0.08 if texts < 60 else 0.03)
    if texts == 15:
        assert np.mean(naive) < 0.6


@pytest.mark.parametrize("of", ["source", "target"])
def test_effects_that_follow_a_texts_own_noise_are_not_pulled(of: str) -> None:
    """Effects in proportion to the text itself, as a scale makes them: their product with the way is unbiased."""
    rng = np.random.default_rng(5)
    way, products, effects_on_truth = np.full(20, 0.4), [], []
    for _ in range(600):
        source, target = rng.normal(size=(12, 20)), way + rng.normal(size=(12, 20))
        own = source if of == "source" else target
        effects = -0.5 * own
        products.append(along_gap(effects, source, target, of=of).mean())  # type: ignore[arg-type]
        effects_on_truth.append((effects @ way).mean())
    expected = 0.0 if of == "source" else -0.5 * float(way @ way)
    assert np.mean(products) == pytest.approx(expected, abs=4 * np.std(products) / np.sqrt(600))
    assert np.mean(effects_on_truth) == pytest.approx(expected, abs=0.2)


def test_each_product_is_that_with_the_way_that_leaves_the_text_out() -> None:
    rng = np.random.default_rng(6)
    source, target, effects = rng.normal(size=(6, 3)), rng.normal(size=(5, 3)), rng.normal(size=(6, 3))
    products = along_gap(effects, source, target, of="source")
    for text in range(6):
        way = target.mean(0) - np.delete(source, text, 0).mean(0)
        assert products[text] == pytest.approx(effects[text] @ way)
    others = along_gap(effects, source, target, of="others")
    np.testing.assert_allclose(others, effects @ (target.mean(0) - source.mean(0)))


def test_too_few_texts_effects_of_others_and_a_row_on_both_sides_are_refused() -> None:
    with pytest.raises(LensSteerError, match="two texts"):
        unit_energy_distances(np.ones((1, 2)), np.ones((4, 2)))
    with pytest.raises(LensSteerError, match="one per text"):
        along_gap(np.ones((4, 2)), np.ones((3, 2)), np.ones((3, 2)), of="source")
    with pytest.raises(LensSteerError, match="one side"):
        EnergyDistances(np.ones((3, 2))).between(np.ones((1, 3)), np.ones((1, 3)))
    assert np.isnan(EnergyDistances(np.ones((3, 2))).between(np.eye(3)[:1], np.eye(3)[1:2])).all()
