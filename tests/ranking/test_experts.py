"""Rankings against scikit-learn unit by unit, and what keeps them honest: held-out halves and null controls."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import mannwhitneyu, wasserstein_distance, wilcoxon
from sklearn.metrics import average_precision_score, roc_auc_score

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.errors import ActivationError, ContrastError, SettingError, UnitError
from lens_steer.host.units import Unit
from lens_steer.ranking.confounds import confounds
from lens_steer.ranking.experts import rank_experts
from lens_steer.ranking.probe import probe_scores, probe_sites
from lens_steer.statistics.scores import auroc
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
    settings = {"confidence": 0.95, "permutations": 0, "seed": 0}
    assert ranking.settings == {"holdout": "other activations", **settings}
    assert rank_experts(acts, holdout=None).settings == {"holdout": "none", **settings}
    nothing = rank_experts(acts, holdout=None).frame
    assert nothing.heldout_auroc.isna().all()
    assert nothing.auroc.is_monotonic_decreasing


def concepts(*names: str, seed: int = 0, width: int = 10, pool: Any = "max") -> Activations:
    """Noise with one concept of each name, over the same texts."""
    rng = np.random.default_rng(seed)
    arrays = {side: {SITE: rng.normal(size=(20, width))} for side in ("source", "target")}
    one = Activations.from_arrays(**arrays, pool=pool)
    return replace(one, labels=one.labels.repeat(1, len(names)), concepts=names)


@pytest.mark.parametrize(
    ("heldout", "message"),
    [
        (concepts("sad", seed=1), "not of 'rude' but of 'sad': give texts of the same concept"),
        (concepts("rude", "sad", seed=1, pool="mean"), "pooled by mean, the ranked ones by max"),
        (concepts("rude", "sad", seed=1, width=9), r"hook_post has 9 units in the held-out activations and 10"),
        (concepts("rude", "sad"), "80 of the held-out texts are ranked as well"),
        (concepts("rude", "sad").rows(torch.tensor([0, 25, 26])), "6 of the held-out texts are ranked as well"),
    ],
    ids=["concept", "pool", "width", "same", "some"],
)
def test_a_holdout_that_cannot_measure_is_refused(heldout: Activations, message: str) -> None:
    ranked = concepts("rude", "sad")
    for call in (rank_experts, probe_sites):
        with pytest.raises(ActivationError, match=message):
            call(ranked, holdout=heldout)


def test_texts_are_known_by_their_hashes_else_by_their_values_at_all_sites() -> None:
    ranked, held = planted(seed=1), planted(seed=2)
    held.values[SITE][:] = ranked.values[SITE]
    assert rank_experts(ranked, holdout=held).frame.heldout_auroc.notna().all()
    hashes = torch.arange(70)[:, None]
    with pytest.raises(ActivationError, match="7 of the held-out texts are ranked as well"):
        rank_experts(replace(ranked, hashes=hashes), holdout=replace(held, hashes=hashes + 63))
    other = replace(planted(seed=2), hashes=hashes + 70)
    assert rank_experts(replace(ranked, hashes=hashes), holdout=other).frame.heldout_auroc.notna().all()


def test_a_holdout_of_ranked_texts_is_refused_by_what_they_say(tiny: Any) -> None:
    sad = ContrastSet(sentences(9, seed=1, must="sad"), sentences(9, seed=2, must="happy"))
    first, second = sad.split()
    acts, held = collect(tiny, first, progress=False), collect(tiny, second, progress=False)
    assert rank_experts(acts, holdout=held).frame.heldout_auroc.notna().all()
    overlap = ContrastSet((*second.source, first.source[0]), second.target)
    with pytest.raises(ActivationError, match="1 of the held-out texts are ranked as well"):
        rank_experts(acts, holdout=collect(tiny, overlap, progress=False))
    with pytest.raises(ActivationError, match="lack 1 sites, first blocks.0.mlp.hook_post"):
        rank_experts(acts, holdout=held.at(held.sites[1:]))


def test_a_concept_is_measured_by_its_own_holdout() -> None:
    """Of each concept of a table its own held-out column, not the first one's."""
    ranked, held = concepts("a", "b"), concepts("b", "a", seed=1)
    held = replace(held, labels=torch.stack([1 - held.labels[:, 0], held.labels[:, 1]], dim=1))
    frame = rank_experts(ranked, holdout=held).frame.set_index(["concept", "unit"]).heldout_auroc
    np.testing.assert_allclose(frame["b"].sort_index(), 1 - frame["a"].sort_index())


def test_what_is_not_finite_is_named() -> None:
    rng = np.random.default_rng(0)
    acts = Activations.from_arrays(**{side: {SITE: rng.normal(size=(10, 4))} for side in ("source", "target")})
    acts.values[SITE][3, 2] = torch.nan  # as a file may hold it: `from_arrays` refuses it itself
    good = concepts("contrast", width=4)
    for call in (lambda: rank_experts(acts), lambda: probe_sites(acts), lambda: rank_experts(good, holdout=acts)):
        with pytest.raises(ActivationError, match=r"blocks\.0\.mlp\.hook_post\[2\] is nan for text 3"):
            call()


def test_arrays_of_any_kind_are_taken() -> None:
    values = torch.randn(6, 3, requires_grad=True)
    for kind in (values, values.bfloat16(), values.detach().numpy(), values.detach().tolist()):
        acts = Activations.from_arrays(source={SITE: kind}, target={SITE: kind})
        torch.testing.assert_close(acts.source[SITE], values.detach(), rtol=1e-2, atol=1e-2)
    with pytest.raises(ActivationError, match="5 for 12 texts"):
        Activations.from_arrays(source={SITE: values}, target={SITE: values}, blocks=[0] * 5)


def test_texts_that_take_no_part_change_nothing() -> None:
    rng = np.random.default_rng(0)
    alone = planted(n=10, m=10, gap=1.0)
    others = {
        site.name: torch.cat([alone.target[site], torch.tensor(rng.normal(size=(200, 50)))]) for site in alone.sites
    }
    many = Activations.from_arrays(source={site.name: alone.source[site] for site in alone.sites}, target=others)
    labels = many.labels.clone()
    labels[20:] = -1
    frames = [rank_experts(acts, permutations=50).frame for acts in (alone, replace(many, labels=labels))]
    pd.testing.assert_frame_equal(*frames)


def test_a_concept_does_not_depend_on_its_column(tiny: Any) -> None:
    texts = sentences(24, seed=3)
    labels = np.array([[i % 2, i % 2, (i // 2) % 2] for i in range(24)], dtype=np.int8)
    ranking = rank_experts(collect(tiny, LabelledTexts(tuple(texts), labels, ("a", "b", "c")), progress=False))
    first, second = (ranking.concept(name).frame.drop(columns="concept").reset_index(drop=True) for name in "ab")
    pd.testing.assert_frame_equal(first, second)
    alone = rank_experts(ranking.activations.concept("b"))
    pd.testing.assert_frame_equal(second, alone.frame.drop(columns="concept"))


def test_units_that_tie_are_ordered_by_distance_and_counted() -> None:
    rng = np.random.default_rng(0)
    source, target = rng.uniform(0, 1, (12, 30)), rng.uniform(0, 1, (12, 30))
    source[:, 5:20] += np.linspace(2, 5, 15)
    ranking = rank_experts(Activations.from_arrays(source={SITE: source}, target={SITE: target}))
    top = ranking.frame.head(15)
    assert top.selection_auroc.eq(1).all()
    assert top.tied.eq(15).all()
    assert sorted(top.unit) == list(range(5, 20))
    assert top.unit.iloc[:5].mean() > top.unit.iloc[-5:].mean() + 5
    assert "one of 15 units that tie" in repr(ranking)
    assert ranking.frame.tied.iloc[-1] < 15


def test_probes_are_measured_on_what_the_ranking_held_out() -> None:
    acts, other = planted(seed=1, gap=1.0), planted(seed=2, gap=1.0)
    probes = rank_experts(acts, holdout=other).probes().set_index("site")
    assert probes.best_unit[OTHER] == 7
    for site in (SITE, OTHER):
        best = int(auroc(acts.source[site], acts.target[site]).argmax())
        alone = auroc(other.source[site][:, [best]], other.target[site][:, [best]])
        assert (probes.best_unit[site], probes.best_unit_auroc[site]) == (best, pytest.approx(float(alone)))
    shares = rank_experts(acts, holdout=0.3, seed=5)
    for row in shares.probes().itertuples():
        in_frame = shares.frame[(shares.frame.site == row.site) & (shares.frame.unit == row.best_unit)].iloc[0]
        assert row.best_unit_auroc == pytest.approx(in_frame.heldout_auroc)
        assert in_frame.selection_auroc == shares.frame[shares.frame.site == row.site].selection_auroc.max()
    everything = rank_experts(acts, holdout=None, seed=5).probes()
    pd.testing.assert_frame_equal(everything, probe_sites(acts, holdout=0.5, seed=5))


@pytest.mark.parametrize("alike", [1, 0])
def test_a_probe_that_nothing_can_choose_has_the_middle_penalty(alike: int) -> None:
    """One block on a side: at the optimum weights are C times the residuals' sums of the standardised values."""
    acts = planted(gap=1.0, width=8)
    blocks = torch.arange(70).masked_fill(acts.labels[:, 0] == alike, 99)
    values = acts.values[OTHER]
    score = probe_scores(replace(acts, blocks=blocks), values, values, 0)[:, 0].numpy()
    standard = values.double().numpy()
    standard = (standard - standard.mean(0)) / standard.std(0)
    *weights, _ = np.linalg.lstsq(np.column_stack([standard, np.ones(70)]), score, rcond=None)[0]
    residual = (acts.labels[:, 0].numpy() == 1) - 1 / (1 + np.exp(-score))
    np.testing.assert_allclose(weights, 1e-2 * standard.T @ residual, atol=1e-4)
    assert np.abs(weights).max() > 0.05


def test_the_seed_chooses_the_halves_and_the_permutations() -> None:
    acts = planted(gap=0.5)
    one, again, other = (rank_experts(acts, seed=seed, permutations=40).frame for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, again)
    merged = one.merge(other, on=["site", "unit"])
    assert (merged.heldout_auroc_x != merged.heldout_auroc_y).mean() > 0.9
    assert (merged.family_wise_p_x != merged.family_wise_p_y).any()


def copies(seed: int) -> Activations:
    """Twenty texts of noise, each five times."""
    values = np.random.default_rng(seed).normal(size=(20, 80)).repeat(5, axis=0)
    blocks = np.arange(20).repeat(5).tolist()
    return Activations.from_arrays(source={SITE: values[:50]}, target={SITE: values[50:]}, blocks=blocks)


def topics(seed: int) -> Activations:
    """Twenty topics in six sentence forms; sides are drawn by chance."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(20, 1, 80)) + rng.normal(size=(1, 6, 80)) + 0.3 * rng.normal(size=(20, 6, 80))
    blocks = np.arange(10).repeat(6)
    arrays = {"source": values[:10], "target": values[10:]}
    return Activations.from_arrays(
        **{side: {SITE: half.reshape(60, 80)} for side, half in arrays.items()},
        blocks=np.concatenate([blocks, blocks + 10]),
    )


@pytest.mark.parametrize("make", [copies, topics])
def test_blocks_of_noise_have_no_experts_on_held_out_texts(make: Any) -> None:
    """With single texts split at random these read .78 and 1.0."""
    rankings = [rank_experts(make(seed), seed=seed) for seed in range(24)]
    measured = {
        "unit": np.array([ranking.frame.heldout_auroc[0] for ranking in rankings]),
        "probe": np.array([ranking.probes().probe_auroc[0] for ranking in rankings[:12]]),
    }
    for name, values in measured.items():
        assert abs(values.mean() - 0.5) < 3 * values.std(ddof=1) / len(values) ** 0.5, name
    assert np.mean([(ranking.frame.p_value < 0.05).mean() for ranking in rankings]) < 0.075
    covered = [((r.frame.heldout_low <= 0.5) & (r.frame.heldout_high >= 0.5)).mean() for r in rankings]
    assert np.mean(covered) > 0.88


def test_pairs_are_tested_within_pairs() -> None:
    """A small shift inside pairs that differ much from each other."""
    rng = np.random.default_rng(0)
    pair = rng.normal(size=(30, 20))
    source, target = pair + 0.1 * rng.normal(size=(30, 20)) + 0.1, pair + 0.1 * rng.normal(size=(30, 20))
    blocks = [*range(30), *range(30)]
    acts = Activations.from_arrays(source={SITE: source}, target={SITE: target}, blocks=blocks)
    paired = replace(acts, pairs=torch.tensor(blocks)[:, None])
    frame = rank_experts(paired, holdout=None).frame.sort_values("unit")
    assert frame.test.eq("signed_rank").all()
    np.testing.assert_allclose(frame.p_value, wilcoxon(source - target, method="exact").pvalue, rtol=1e-4)
    loose = rank_experts(replace(acts, blocks=torch.arange(60)), holdout=None).frame
    assert loose.test.eq("mann_whitney").all()
    assert (frame.p_value < 0.01).mean() >= 0.7 > 0.2 > (loose.p_value < 0.01).mean()
    # The order of the pairs is that of their numbers, not of the rows.
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    shuffled = rank_experts(paired.rows(order), holdout=None).frame.sort_values("unit")
    np.testing.assert_allclose(frame.p_value, shuffled.p_value)
    assert rank_experts(acts, holdout=None).frame.test.eq("van_elteren").all()


def test_blocks_and_pairs_go_with_the_texts(tiny: Any, tmp_path: Path) -> None:
    texts = sentences(12, seed=1)
    pairs = ContrastSet(texts[:6], texts[6:], paired=True, source_groups=["g", "g", *"abcd"], target_groups=["e"] * 6)
    acts = collect(tiny, pairs, progress=False)
    assert acts.blocks.tolist() == pairs.blocks.tolist()
    assert rank_experts(acts, holdout=None).frame.test.eq("signed_rank").all()
    back = Activations.load(acts.save(tmp_path / "acts"))
    assert acts.hashes is not None
    assert acts.pairs is not None
    for name in ("blocks", "hashes", "pairs"):
        assert torch.equal(getattr(back, name), getattr(acts, name))
        part = acts.rows(torch.tensor([3, 1]))
        assert part.labels.shape == (2, 1)
        assert torch.equal(getattr(part, name), getattr(acts, name)[[3, 1]])


def test_older_files_hold_no_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = copies(0).save(tmp_path / "acts")
    assert Activations.load(saved).blocks.tolist() == copies(0).blocks.tolist()
    monkeypatch.setattr("lens_steer.activations.saved._ROWS", ())
    assert Activations.load(saved).blocks.tolist() == list(range(100))


def test_units_by_number_and_threshold() -> None:
    ranking = rank_experts(planted())
    assert [str(unit) for unit in ranking.units(1)] == [f"{OTHER}[7]"]
    assert ranking.units(min_auroc=0.9, max_q=0.01) == ranking.units(1)
    assert len(ranking.units()) == 100
    with pytest.raises(UnitError, match=r"no unit reaches heldout_auroc >= 0.9999"):
        ranking.units(min_auroc=0.9999, max_q=1e-30)
    assert len(ranking.units(5, max_q=0.01)) == 1
    for k in (0, -1, 101, 10**9):
        with pytest.raises(SettingError, match=f"1 to the 100 that are ranked, not {k}"):
            ranking.units(k)
    with pytest.raises(SettingError, match="1 or more, not -1"):
        ranking.top(-1)
    assert len(ranking.top(10**9)) == 100


def test_too_few_texts_to_hold_out() -> None:
    with pytest.raises(ContrastError, match="holdout=None"):
        rank_experts(planted(n=3))
    fewest = rank_experts(planted(n=4, m=4)).frame  # two texts a side in either half
    assert set(fewest["heldout_auroc"]) <= {0, 0.25, 0.5, 0.75, 1}
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
    shown = ranking._repr_html_()
    assert [shown.count(f">{name}</td>") for name in ("odd", "second bit")] == [3, 3]
    assert "The best 3 units of each of 2 concepts; all are in .frame" in shown
    assert re.findall(r"of (odd|second bit) blocks", repr(ranking)) == ["odd", "second bit"]
    assert "concepts;" not in one._repr_html_()
    assert " of odd" not in repr(one)
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
    assert row.probe_auroc > 0.75
    assert row.best_unit_auroc < row.probe_auroc
    pd.testing.assert_frame_equal(probe_sites(acts), probe_sites(acts, holdout=0.5, seed=0))
    noise = rank_experts(planted(gap=0.0)).probes()
    assert abs(noise.probe_auroc.mean() - 0.5) < 0.25


class TestConfounds:
    def test_length_and_groups(self, tiny: Any) -> None:
        """Every column against scikit-learn on the texts that it speaks of."""
        short, long = sentences(13, seed=1, length=(2, 4)), sentences(13, seed=2, length=(9, 12))
        groups = ("home", "away") * 13
        contrast = ContrastSet(
            sentences(26, seed=3, must="sad"), short + long, source_groups=groups, target_groups=groups
        )
        acts = collect(tiny, contrast, progress=False)
        ranking = rank_experts(acts, holdout=None)
        table = ranking.confounds(5)
        assert list(table.columns) == ["site", "unit", "auroc", "auroc in away", "auroc in home", "auroc for length"]
        label, lengths = acts.labels[:, 0].numpy(), np.array(acts.lengths)
        target = label == 0
        longer = lengths > torch.tensor(lengths[target]).median().item()
        for row in table.to_dict("records"):
            values = acts.values[row["site"]][:, row["unit"]].numpy()
            assert row["auroc"] == pytest.approx(roc_auc_score(label, values))
            assert row["auroc for length"] == pytest.approx(roc_auc_score(longer[target], values[target]))
            for group in ("home", "away"):
                inside = np.array(groups * 2) == group
                assert row[f"auroc in {group}"] == pytest.approx(roc_auc_score(label[inside], values[inside]))
        assert [f"{row.site}[{row.unit}]" for row in table.itertuples()] == [str(unit) for unit in ranking.units(5)]

    def test_a_group_of_one_side_has_no_area(self) -> None:
        acts = planted(n=4, m=6)
        known = replace(acts, groups=(*"aabb", *"aaaaac"), lengths=tuple(range(1, 11)))
        row = confounds(known, [Unit(known.sites[0], 0)]).iloc[0]
        assert np.isfinite(row["auroc in a"])
        assert np.isnan(row["auroc in b"])
        assert np.isnan(row["auroc in c"])

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
