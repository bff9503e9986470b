"""Rankings against scikit-learn unit by unit, and what keeps them honest: held-out halves and null controls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, wasserstein_distance
from sklearn.metrics import average_precision_score, roc_auc_score

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.errors import ActivationError, SettingError, UnitError
from lens_steer.ranking.experts import rank_experts
from lens_steer.texts.contrast import ContrastSet, LabelledTexts
from tests.families import sentences

SITE, OTHER = "blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"


def planted(n: int = 30, m: int = 40, width: int = 50, *, seed: int = 0, gap: float = 4.0) -> Activations:
    """Noise, in which unit 7 of the second site tells source from target."""
    rng = np.random.default_rng(seed)
    source = {name: rng.normal(size=(n, width)) for name in (SITE, OTHER)}
    target = {name: rng.normal(size=(m, width)) for name in (SITE, OTHER)}
    source[OTHER][:, 7] += gap
    return Activations.from_arrays(source=source, target=target)


def test_every_column_is_what_it_says() -> None:
    acts = planted()
    frame = rank_experts(acts).frame.set_index(["site", "unit"])
    for site in (SITE, OTHER):
        source, target = acts.source[site].numpy(), acts.target[site].numpy()
        labels = [1] * len(source) + [0] * len(target)
        for unit in (0, 7, 33):
            row = frame.loc[(site, unit)]
            values = np.concatenate([source[:, unit], target[:, unit]])
            assert row.auroc == pytest.approx(roc_auc_score(labels, values), abs=1e-9)
            assert row.average_precision == pytest.approx(average_precision_score(labels, values), abs=1e-9)
            assert row.p_value == pytest.approx(mannwhitneyu(source[:, unit], target[:, unit]).pvalue, rel=1e-6)
            distance = wasserstein_distance(source[:, unit], target[:, unit])
            assert row.wasserstein == pytest.approx(distance, rel=1e-5)
            assert row.source_mean == pytest.approx(source[:, unit].mean(), abs=1e-5)
            assert row.auroc_low < row.auroc <= row.auroc_high
            assert row.q_value >= row.p_value


def test_the_planted_unit_is_found_and_held_out_values_are_of_other_texts() -> None:
    acts = planted()
    ranking = rank_experts(acts, seed=1)
    assert (ranking.frame.site[0], ranking.frame.unit[0]) == (OTHER, 7)
    assert ranking.frame.heldout_auroc[0] > 0.95
    assert ranking.frame.selection_auroc.is_monotonic_decreasing
    # The second best of 100 units of noise is good on the half that chose it, and chance on the other.
    rest = ranking.frame.iloc[1:6]
    assert rest.selection_auroc.mean() > 0.65
    assert abs(rest.heldout_auroc.mean() - 0.5) < 0.15
    halves = (ranking.frame.selection_auroc + ranking.frame.heldout_auroc) / 2
    assert np.corrcoef(halves, ranking.frame.auroc)[0, 1] > 0.9


def test_noise_has_no_experts() -> None:
    ranking = rank_experts(planted(gap=0.0, seed=5), permutations=200)
    assert ranking.frame.q_value.min() > 0.05
    assert ranking.frame.family_wise_p.min() > 0.05
    planted_one = rank_experts(planted(seed=5), permutations=200).frame.iloc[0]
    assert planted_one.family_wise_p == pytest.approx(1 / 201)
    assert planted_one.q_value < 1e-6


def test_holdout_may_be_other_activations_or_none() -> None:
    acts, other = planted(seed=1), planted(seed=2)
    ranking = rank_experts(acts, holdout=other)
    row = ranking.frame[(ranking.frame.site == OTHER) & (ranking.frame.unit == 3)].iloc[0]
    values = torch.cat([other.source[OTHER][:, 3], other.target[OTHER][:, 3]])
    assert row.heldout_auroc == pytest.approx(roc_auc_score([1] * 30 + [0] * 40, values))
    assert row.selection_auroc == pytest.approx(row.auroc)
    nothing = rank_experts(acts, holdout=None).frame
    assert nothing.heldout_auroc.isna().all()
    assert nothing.auroc.is_monotonic_decreasing


def test_units_by_number_and_threshold() -> None:
    ranking = rank_experts(planted())
    assert [str(unit) for unit in ranking.units(1)] == [f"{OTHER}[7]"]
    assert ranking.units(min_auroc=0.9, max_q=0.01) == ranking.units(1)
    assert len(ranking.units()) == 100
    with pytest.raises(UnitError, match=r"no unit reaches heldout_auroc >= 0.9999"):
        ranking.units(min_auroc=0.9999, max_q=1e-30)


def test_too_few_texts_to_hold_out() -> None:
    with pytest.raises(SettingError, match="holdout=None"):
        rank_experts(planted(n=3))
    assert len(rank_experts(planted(n=3), holdout=None).frame) == 100
    with pytest.raises(SettingError, match="between 0 and 1"):
        rank_experts(planted(), holdout=1.5)


def test_many_concepts_are_ranked_in_one_call(tiny: Any) -> None:
    texts = sentences(24, seed=3)
    labels = np.array([[i % 2, (i // 2) % 2] for i in range(24)], dtype=np.int8)
    acts = collect(tiny, LabelledTexts(tuple(texts), labels, ("odd", "second bit")))
    ranking = rank_experts(acts)
    assert ranking.frame.groupby("concept").size().to_dict() == {"odd": 256, "second bit": 256}
    one = rank_experts(acts.concept("odd"))
    got = ranking.concept("odd").frame.set_index(["site", "unit"]).auroc.sort_index()
    np.testing.assert_allclose(got, one.frame.set_index(["site", "unit"]).auroc.sort_index())
    assert len(ranking.top(3)) == 6
    with pytest.raises(UnitError, match="choose a concept first"):
        ranking.units(3)


def test_a_probe_finds_what_no_single_unit_holds() -> None:
    rng = np.random.default_rng(0)
    label = np.array([1] * 80 + [0] * 80)
    values = rng.normal(size=(160, 40))
    # The concept is a small shift of every unit: invisible in one, plain in their sum.
    values += 0.35 * label[:, None]
    acts = Activations.from_arrays(source={SITE: values[:80]}, target={SITE: values[80:]})
    row = rank_experts(acts).probes().iloc[0]
    assert row.probe_auroc > 0.85
    assert row.best_unit_auroc < 0.8
    noise = rank_experts(planted(gap=0.0)).probes()
    assert abs(noise.probe_auroc.mean() - 0.5) < 0.25


class TestConfounds:
    def test_length_and_groups(self, tiny: Any) -> None:
        short, long = sentences(12, seed=1, length=(2, 4)), sentences(12, seed=2, length=(9, 12))
        groups = ("home", "away") * 6
        contrast = ContrastSet(
            sentences(12, seed=3, must="sad"), short[:6] + long[:6], source_groups=groups, target_groups=groups
        )
        table = rank_experts(collect(tiny, contrast)).confounds(5)
        assert list(table.columns) == ["site", "unit", "auroc", "auroc in away", "auroc in home", "auroc for length"]
        # A maximum over more tokens is larger: every unit is an expert of length to some degree.
        assert (table["auroc for length"] > 0.5).mean() > 0.5

    def test_pooled_arrays_know_no_length(self) -> None:
        with pytest.raises(ActivationError, match="lens_steer.collect"):
            rank_experts(planted()).confounds()


@pytest.mark.real
def test_a_real_concept_has_experts_and_shuffled_labels_have_none(tinytalk: Any, shared: Path) -> None:
    from lens_steer.texts.readers import read_contrast

    contrast = read_contrast(shared / "data" / "story_concepts" / "sad.json", n=60)
    ranking = rank_experts(collect(tinytalk, contrast))
    assert ranking.frame.heldout_auroc[0] > 0.8
    null = rank_experts(collect(tinytalk, contrast.shuffled(0)))
    assert abs(null.frame.heldout_auroc[0] - 0.5) < 0.2
    assert (null.frame.q_value < 0.05).sum() == 0


def test_the_held_out_interval_is_that_of_the_held_out_half() -> None:
    acts = planted(gap=1.0)
    generator = torch.Generator().manual_seed(3)
    held = torch.rand(len(acts.labels), generator=generator) < 0.5
    frame = rank_experts(acts.rows(~held), holdout=acts.rows(held)).frame.set_index(["site", "unit"])
    alone = rank_experts(acts.rows(held), holdout=None).frame.set_index(["site", "unit"]).loc[frame.index]
    for column, of_half in (("heldout_auroc", "auroc"), ("heldout_low", "auroc_low"), ("heldout_high", "auroc_high")):
        np.testing.assert_allclose(frame[column], alone[of_half])
    assert rank_experts(acts, holdout=None).frame["heldout_low"].isna().all()
