"""Streaming ranking against the exact one: bounds, the best units, halves, concepts, merging."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from lens_steer.activations.activations import Activations
from lens_steer.activations.by_site import BySite
from lens_steer.activations.collect import collect
from lens_steer.activations.sketch import ActivationSketch, Sketching
from lens_steer.errors import ActivationError, SettingError
from lens_steer.ranking.experts import rank_experts
from lens_steer.ranking.halves import halves
from lens_steer.statistics.scores import auroc
from lens_steer.statistics.significance import delong_variance, interval_of_variance
from lens_steer.statistics.sketches import Grid, Sketch
from lens_steer.statistics.ties import tie_groups
from lens_steer.texts.contrast import ContrastSet, LabelledTexts
from tests.families import sentences

SITE = "blocks.0.mlp.hook_post"


def sad(n: int = 40, *, seed: int = 1) -> ContrastSet:
    return ContrastSet(sentences(n, seed=seed, must="sad"), sentences(n, seed=seed + 100, must="happy"))


def by_unit(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.set_index(["concept", "site", "unit"]).sort_index()


def assert_within_bounds(sketched: pd.DataFrame, exact: pd.DataFrame) -> None:
    one, other = by_unit(sketched), by_unit(exact)
    scores = {"auroc": "auroc", "selection_auroc": "selection", "heldout_auroc": "heldout"}
    for score, of in (*scores.items(), ("average_precision", "average_precision")):
        bound = one[f"{of}_error"]
        assert ((one[score] - other[score]).abs() <= bound + 1e-12).all(), score
    for mean in ("source_mean", "target_mean"):
        np.testing.assert_allclose(one[mean], other[mean], rtol=1e-5, atol=1e-6)


@pytest.mark.compat
def test_a_sketch_ranks_within_its_bounds(tiny: Any) -> None:
    contrast = sad()
    exact = rank_experts(collect(tiny, contrast, progress=False))
    for reduce in ("sketch", Sketching(bins=8, pilot=10)):
        sketch = collect(tiny, contrast, reduce=reduce, progress=False)
        ranking = rank_experts(sketch)
        assert_within_bounds(ranking.frame, exact.frame)
        assert ranking.units(3)[0].site in sketch.sites
        assert np.array_equal(ranking.seen, exact.seen)
    same_tests = by_unit(rank_experts(collect(tiny, contrast, reduce="sketch", progress=False)).frame)
    fine = same_tests["auroc_error"] == 0
    assert fine.any()
    np.testing.assert_allclose(same_tests["p_value"][fine], by_unit(exact.frame)["p_value"][fine], rtol=1e-9)
    np.testing.assert_allclose(same_tests["auroc_low"][fine], by_unit(exact.frame)["auroc_low"][fine], rtol=1e-9)


def test_halves_and_concepts_are_sketches_of_one_pass(tiny: Any) -> None:
    texts = sentences(60, seed=3)
    labels = np.array([[i % 2, (i // 2) % 2, i % 3 - 1] for i in range(60)], dtype=np.int8)
    table = LabelledTexts(tuple(texts), labels, ("a", "b", "c"))
    sketch = collect(tiny, table, reduce=Sketching(bins=16, pilot=20), progress=False)
    exact = collect(tiny, table, progress=False)
    for holdout in (0.5, None):
        ranking = rank_experts(sketch, holdout=holdout)
        whole = rank_experts(exact, holdout=holdout).frame
        if holdout is None:
            assert ranking.frame["heldout_auroc"].isna().all()
            ranking = replace(ranking, frame=ranking.frame.fillna(0))
            whole = whole.fillna(0)
        assert_within_bounds(ranking.frame, whole)
    assert ranking.frame.groupby("concept")["source_texts"].first().tolist() == [30, 30, 20]


def of_arrays(
    source: torch.Tensor, target: torch.Tensor, *, holdout: float | None = None, **settings: Any
) -> ActivationSketch:
    """Sketch arrays, as `collect` sketches a model's activations."""
    acts = Activations.from_arrays(source={SITE: source}, target={SITE: target})
    label = acts.labels[:, 0]
    held = halves(acts, holdout, 0)[1] if holdout else label == 2
    members = torch.stack([(label == side) & part for side in (1, 0) for part in (~held, held)])
    values = acts.values[SITE]
    sketch = Sketch(Grid.of(values[torch.randperm(len(values))[:1024]], **settings), 4)
    sketch.add(values, members)
    return ActivationSketch(BySite(acts.sites, lambda _: sketch), acts, holdout, 0)


@pytest.mark.parametrize("holdout", [None, 0.4])
def test_of_values_with_cells_of_their_own_every_column_is_exact(holdout: float | None) -> None:
    """Whole numbers: what ranks the texts themselves says the same, unit by unit and in the same order."""
    generator = torch.Generator().manual_seed(3)
    source, target = (torch.randn(n, 30, generator=generator).mul(2).round() for n in (40, 60))
    source += torch.linspace(-1, 2, 30).round()
    source[:, 7], target[:, 7] = 1.0, 1.0  # where nothing varies the sides are no distance apart
    sketch = of_arrays(source, target, holdout=holdout)
    got, exact = (rank_experts(one, holdout=holdout, confidence=0.9).frame for one in (sketch, sketch.texts))
    for column in exact.columns.drop("wasserstein"):
        if exact[column].dtype.kind == "f":
            np.testing.assert_allclose(got[column], exact[column], rtol=1e-6, atol=1e-7, err_msg=column)
        else:
            assert got[column].tolist() == exact[column].tolist(), column
    assert got.index.tolist() == list(range(30))
    assert got["wasserstein"].isna().all()
    errors = got.filter(regex="_error$")
    assert errors.shape[1] == 4
    if holdout is None:
        assert errors.pop("heldout_error").isna().all()
        assert errors.pop("selection_error").isna().all()
    assert errors.eq(0).all(axis=None)
    by_number = got.sort_values("unit")
    for side, values in (("source", source), ("target", target)):
        assert got[f"{side}_texts"].eq(len(values)).all()
        np.testing.assert_allclose(by_number[f"{side}_std"], values.double().std(0, correction=0), rtol=1e-9)
        assert by_number[f"{side}_min"].tolist() == values.amin(0).tolist()
        assert by_number[f"{side}_max"].tolist() == values.amax(0).tolist()


def test_units_that_tie_are_ordered_by_distance_in_standard_deviations() -> None:
    """Both tell the sides perfectly: ten deviations of a narrow unit are more than four of a wide one."""
    narrow, wide = torch.tensor([-1.0, 1.0] * 4), torch.tensor([-10.0, 10.0] * 4)
    source, target = torch.stack([wide + 40, narrow + 10], 1), torch.stack([wide, narrow], 1)
    assert rank_experts(of_arrays(source, target), holdout=None).frame["unit"].tolist() == [1, 0]
    assert rank_experts(of_arrays(-source, -target), holdout=None).frame["unit"].tolist() == [0, 1]  # signed


@pytest.mark.parametrize(("sizes", "fewest"), [((2, 3), 12), ((12, 18), 2)])
def test_blocks_widen_an_interval_by_their_size(sizes: tuple[int, int], fewest: int) -> None:
    """Blocks of so many texts at most make so few clusters at least; the largest is the factor."""
    """The variance is DeLong's times the texts of the largest block, and times n / (n - 1) of clusters, not texts."""
    source, target = (torch.randn(n, 20, generator=torch.Generator().manual_seed(n)).round() for n in (24, 36))
    sketch = of_arrays(source, target)
    blocks = torch.cat([torch.arange(24) // sizes[0], 50 + torch.arange(36) // sizes[1]])
    blocked = replace(sketch, texts=replace(sketch.texts, blocks=blocks))
    got = rank_experts(blocked, holdout=None, confidence=0.9).frame.sort_values("unit")
    area = auroc(source, target)
    variance = torch.from_numpy(delong_variance(tie_groups(source.T.numpy(), target.T.numpy())))
    wider = variance * sizes[1] * fewest / (fewest - 1) * (1 - 1 / 36)
    clusters = np.arange(fewest), np.arange(fewest)
    ends = interval_of_variance(area, wider, (24, 36), confidence=0.9, clusters=clusters)
    np.testing.assert_allclose(got["auroc_low"], ends.low, rtol=1e-9)
    np.testing.assert_allclose(got["auroc_high"], ends.high, rtol=1e-9)


def test_the_best_hundred_are_the_best_hundred() -> None:
    """Of 2,000 units with a spread of effects; a swap lies within the bounds of its two units."""
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randn(600, 2000, generator=generator) for _ in range(2))
    source = source + torch.linspace(-1, 1, 2000)
    source[:, ::3], target[:, ::3] = source[:, ::3].clamp(min=0), target[:, ::3].clamp(min=0)
    frame = rank_experts(of_arrays(source, target), holdout=None).frame
    exact = rank_experts(Activations.from_arrays(source={SITE: source}, target={SITE: target}), holdout=None).frame
    best, sketched_best = set(exact.unit[:100]), set(frame.unit[:100])
    assert len(best & sketched_best) >= 95
    true, error = exact.set_index("unit").auroc, frame.set_index("unit").auroc_error
    for lost in best - sketched_best:
        for taken in sketched_best - best:
            assert true[lost] - true[taken] <= error[lost] + error[taken]


def test_sketches_of_parts_merge_to_the_sketch_of_all(tiny: Any) -> None:
    """Two processes that share a grid and take a half of the texts each: count for count the same."""
    both = [sad(20, seed=1), sad(20, seed=7)]
    whole = ContrastSet(both[0].source + both[1].source, both[0].target + both[1].target)
    settings = Sketching(bins=16, pilot=30, holdout=None)
    sketch = collect(tiny, whole, reduce=settings, batch_size=1, progress=False)
    on_grid = replace(settings, grid=sketch)
    parts = [collect(tiny, part, reduce=on_grid, batch_size=1, progress=False) for part in both]
    for merged in (parts[0].merged(parts[1]), parts[1].merged(parts[0])):
        for site in sketch.sites:
            assert torch.equal(merged.sketches[site].counts, sketch.sketches[site].counts)
        frame, expected = (by_unit(rank_experts(one, holdout=None).frame) for one in (merged, sketch))
        pd.testing.assert_frame_equal(frame, expected, rtol=1e-6, atol=1e-9)
    with pytest.raises(ActivationError, match="on one grid"):
        parts[0].merged(collect(tiny, both[1], reduce=settings, progress=False))
    with pytest.raises(ActivationError, match="same sites"):
        parts[0].merged(collect(tiny, both[1], pool="mean", reduce=on_grid, progress=False))


def test_memory_does_not_grow_with_texts(tiny: Any) -> None:
    settings = Sketching(bins=16, pilot=10)
    sizes = []
    for n in (10, 60):
        sketch = collect(tiny, sad(n), reduce=settings, progress=False)
        sizes.append([sketch.sketches[site].counts.numel() for site in sketch.sites])
    assert sizes[0] == sizes[1]


def test_blocks_widen_a_sketch_as_far_as_they_may_and_leave_no_p_value(tiny: Any) -> None:
    contrast = sad(12)
    copies = ContrastSet(contrast.source + contrast.source[:3], contrast.target)
    frame = rank_experts(collect(tiny, copies, reduce="sketch", progress=False)).frame
    assert frame[["p_value", "q_value"]].isna().all(axis=None)
    assert frame["test"].eq("none").all()
    assert frame[["auroc", "auroc_low", "heldout_low"]].notna().all(axis=None)


@pytest.mark.parametrize("mixed", [False, True])
def test_no_interval_of_a_sketch_is_narrower_than_that_between_blocks(mixed: bool) -> None:
    """Values with cells of their own, so that the counts are exact; blocks of up to three texts, of one side or two."""
    generator = torch.Generator().manual_seed(5)
    shared = torch.randn(40, 300, generator=generator)
    source, target = ((shared + torch.randn(40, 300, generator=generator)).round() + side for side in (0.0, 0.5))
    source, target = source.round().repeat(2, 1), target.round().repeat(2, 1)
    source[40:60] += torch.randn(20, 300, generator=generator).round()
    blocks = [*range(40), *range(40), *range(40, 80), *range(40, 80)]
    if mixed:
        blocks = [*range(40), *range(40), *range(20), *range(40, 60), *range(40, 80)]
    sketch = of_arrays(source, target)
    acts = Activations.from_arrays(source={SITE: source}, target={SITE: target}, blocks=blocks)
    sketch = replace(sketch, texts=acts)
    got, exact = (rank_experts(one, holdout=None).frame.set_index("unit").sort_index() for one in (sketch, acts))
    assert (got["auroc_error"] == 0).all()
    assert (got["auroc_low"] <= exact["auroc_low"] + 1e-9).all()
    assert (got["auroc_high"] >= exact["auroc_high"] - 1e-9).all()
    assert (got["auroc_low"] > 0.5).sum() + (got["auroc_high"] < 0.5).sum() > 0  # wide, and not void


def test_noise_is_not_told_from_noise_and_a_perfect_unit_is() -> None:
    generator = torch.Generator().manual_seed(2)
    source, target = (torch.randn(300, 200, generator=generator) for _ in range(2))
    source[:, 5] += 100
    frame = rank_experts(of_arrays(source, target), holdout=None).frame.set_index("unit")
    assert frame.index[0] == 5
    assert frame.auroc[5] + frame.auroc_error[5] >= 1 - 1e-12
    assert frame.q_value.drop(5).min() > 0.05
    assert ((frame.auroc_low <= 0.5) & (frame.auroc_high >= 0.5)).drop(5).mean() > 0.9


def test_what_a_sketch_cannot_give_is_refused(tiny: Any) -> None:
    contrast = sad(12)
    sketch = collect(tiny, contrast, reduce="sketch", progress=False)
    assert repr(sketch) == "ActivationSketch(24 texts, 2 sites, 256 units)"
    with pytest.raises(SettingError, match=r"made with holdout=0\.5, seed=0"):
        rank_experts(sketch, holdout=0.3)
    with pytest.raises(SettingError, match=r"made with holdout=0\.5, seed=0"):
        rank_experts(sketch, seed=1)
    with pytest.raises(SettingError, match="permutations=0"):
        rank_experts(sketch, permutations=10)
    with pytest.raises(SettingError, match="a sketch is of given texts"):
        collect(tiny, contrast, reduce="sketch", of="generated")
    with pytest.raises(SettingError, match="bins are 2 or more"):
        Sketching(bins=1)
    with pytest.raises(SettingError, match="holdout must lie between"):
        Sketching(holdout=1.0)
    ranking = rank_experts(sketch, unrelated=collect(tiny, contrast, progress=False))
    assert ranking.frame["top_share"].between(0, 1).all()
    for call in (ranking.probes, ranking.confounds):
        with pytest.raises(ActivationError, match="keeps no text's value"):
            call()


def test_what_is_not_finite_is_named(tiny: Any) -> None:
    contrast = sad(12)
    weight = next(parameter for name, parameter in tiny.named_parameters() if "mlp" in name and parameter.ndim == 1)
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[3] = torch.nan
    try:
        with pytest.raises(ActivationError, match=r"blocks\.0\.mlp\.hook_post\[\d+\] is nan for text \d+"):
            collect(tiny, contrast, reduce="sketch", progress=False)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
