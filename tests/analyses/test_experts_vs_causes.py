"""Experts beside causes: what the measures read where nothing is there and where everything is, and the sentences."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import lens_steer as ls
from analyses import experts_vs_causes
from analyses.causal_scores import (
    ATTRIBUTED,
    AUROC,
    BARE,
    CHEAP,
    EXACT,
    GRADIENT,
    LINEAS,
    MEANS,
    RELP,
    SHUFFLED,
    SIGNED,
    attributed,
    clamped,
    concept_pairs,
    concept_words,
    drawn_units,
    lineas_weights,
    ridge_weights,
    signed_name,
    steered,
    telling_scores,
)
from analyses.experts_vs_causes import CHOICES
from analyses.experts_vs_causes_findings import ABLATED, CLAMPED, CONCEPT, RANDOM, summary
from analyses.levels import over_levels
from analyses.measurements import PERPLEXITY
from analyses.score_agreement import (
    CAUSE,
    SCORES,
    STEER,
    Measured,
    correlated,
    places,
    precisions,
    rank_correlation,
    sizes,
    tables,
)
from tests.analyses.contrasts import GENERATION, contrast
from tests.analyses.verbs import FEW, changes, check_verbs, hundredths

SITES = "mlp.hook_post"
SMALL: dict[str, Any] = {
    **GENERATION,
    "most_prompts": 4,
    "samples": 1,
    "context_words": 4,
    "pairs": 4,
    "units": 24,
    "tops": 2,
    "ks": (2,),
    "draws": 1,
    "matched_to": (AUROC,),
    "fit_texts": 6,
    "steps": 8,
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("causes") / "run"


@pytest.fixture(scope="module")
def study(tiny: Any, out: Path) -> ls.Study:
    return experts_vs_causes.run(tiny, contrast("sad", "happy"), out=out, **SMALL)


def test_every_score_of_every_unit_stands_beside_the_effect_of_those_measured(study: ls.Study, tiny: Any) -> None:
    scores = study.frames["scores"]
    assert len(scores) == sum(site.width for site in ls.find_sites(tiny, SITES))
    assert not scores[[*CHEAP]].isna().any(axis=None)
    assert (scores[[*CHEAP]] >= 0).all(axis=None)
    drawn = scores["drawn"]
    assert drawn.sum() == 24
    assert set(scores[drawn].groupby("layer").size()) == {12}
    assert scores.loc[drawn, [CAUSE, EXACT, STEER]].notna().all(axis=None)
    for name in CHEAP:  # the top of every score was measured too
        assert scores.loc[scores[name].sort_values(ascending=False, kind="stable").index[:2], CAUSE].notna().all()
    assert scores[CAUSE].isna().any()
    assert list(study.frames["correlations"]["score"]) == list(SCORES)


def test_the_same_seed_gives_the_same_study_and_the_folder_holds_it(study: ls.Study, out: Path) -> None:
    saved = ls.Study.load(out)
    assert saved.summary == study.summary
    again = tables(study.frames["scores"], study.frames["effect_cases"], seed=0)
    for name, frame in again.items():
        pd.testing.assert_frame_equal(study.frames[name], frame)
        pd.testing.assert_frame_equal(saved.frames[name], frame, check_dtype=False)


def test_choices_are_edited_beside_their_controls(study: ls.Study) -> None:
    effects, against = study.frames["effects"], study.frames["against_controls"]
    assert set(effects["act"]) == {ABLATED, CLAMPED}
    assert {*CHOICES, RANDOM} <= {*effects["choice"], LINEAS}  # a fit may keep fewer than k units
    assert set(against["control"]) == {RANDOM, "units matched to AUROC"}
    wide: Any = effects.set_index(["act", "choice", "k", "measure"])
    for row in study.frames["relp_against_auroc"].to_dict("records"):
        for column, choice, k in (("before", AUROC, row["of_auroc"]), ("after", RELP, row["k"])):
            assert row[column] == pytest.approx(wide.loc[(row["act"], choice, k, row["measure"]), "after"])


def columns(n: int, seed: int) -> pd.DataFrame:
    """Draw a table of scores that know nothing of the effect."""
    random = np.random.default_rng(seed)
    table = pd.DataFrame({name: np.abs(random.normal(size=n)) for name in (*SCORES, CAUSE, STEER)})
    signed = {signed_name(name): table[name] * random.choice([-1, 1], size=n) for name in SIGNED}
    return table.assign(drawn=True, layer=np.arange(n) % 2, site="a", unit=np.arange(n), **signed)


def cases(table: pd.DataFrame, *, noise: float = 0.01, groups: int = 20, seed: int = 0) -> pd.DataFrame:
    """Jackknife cases of the effects, where pairs differ by this much in every unit on its own."""
    random = np.random.default_rng(seed)
    rows = [table[CAUSE], *(table[CAUSE].to_numpy() + noise * random.normal(size=(groups, len(table))))]
    parts = [table[["site", "unit"]].assign(case=case, **{CAUSE: row}) for case, row in enumerate(rows)]
    return pd.concat(parts, ignore_index=True)


def measured_tables(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return tables(table, cases(table), seed=0)


def test_the_effect_itself_reads_as_everything() -> None:
    table = columns(60, 0).assign(**{EXACT: lambda frame: frame[CAUSE]})
    found = tables(table, cases(table, noise=0), seed=0)
    row = found["correlations"].set_index("score").loc[EXACT]
    assert row["value"] == pytest.approx(1)
    assert row["low"] == pytest.approx(1)
    precision = found["precision"].set_index(["at", "score"])["value"]
    assert precision.loc[("50", EXACT)] == 1
    assert (found["by_layer"].query("score == @EXACT")["value"] > 1 - 1e-9).all()
    # A sign is a direction: sizes are compared.
    effects = Measured.of(table, table[CAUSE])
    assert correlated(table.assign(**{EXACT: -table[CAUSE]}), effects, seed=0)["value"].iloc[-1] == pytest.approx(1)


def test_shuffled_scores_read_as_nothing() -> None:
    held = said = 0
    for seed in range(8):
        table = columns(60, seed)
        found = correlated(table, Measured.of(table, table[CAUSE]), seed=seed)
        held += int(((found["low"] <= 0) & (found["high"] >= 0)).sum())
        said += int((found["value"].abs() <= found["shuffled"]).sum())
    assert held >= 0.85 * 8 * len(SCORES)
    assert said >= 0.85 * 8 * len(SCORES)
    precision = precisions(columns(400, 0)).query("at == '50'")
    assert precision["value"].mean() == pytest.approx(precision["chance"].iloc[0], abs=0.05)
    assert (precision["p"] > 0.05 / len(SCORES)).all()


def test_what_pairs_have_in_common_widens_intervals() -> None:
    """Effects that pairs move all at once, along what a score follows by chance: units alone would call it shown."""
    random, units, pairs, held, by_units = np.random.default_rng(0), 80, 30, 0, 0
    for _ in range(40):
        score = random.normal(size=units)
        along, own = score + random.normal(size=units), random.normal(size=units)
        effects = own + 2 * random.normal(size=(pairs, 1)) * along  # of every pair; in the long run `own` alone
        left_out = [np.delete(effects, pair, axis=0).mean(0) for pair in range(pairs)]
        measured = Measured(np.array([effects.mean(0), *left_out]), np.zeros(units), np.arange(units) % 20)
        both = measured.correlations(places(score), places)
        known = over_levels(*both), over_levels(*both[:2])
        held += known[0].low <= 0 <= known[0].high
        by_units += known[1].low <= 0 <= known[1].high
    assert held >= 33
    assert by_units <= 28


def test_shuffled_labels_tell_nothing(tiny: Any) -> None:
    activations = ls.collect(tiny, contrast("sad", "happy"), SITES, pool="mean", progress=False)
    table = telling_scores(activations, seed=0)
    assert table[f"{AUROC}, shuffled labels"].mean() < table[AUROC].mean()
    assert table[f"{MEANS}, shuffled labels"].mean() < table[MEANS].mean()


def test_rank_correlation_is_scipys_along_the_last_axis() -> None:
    random = np.random.default_rng(0)
    one, other = random.integers(-4, 5, size=(2, 3, 20))
    wanted = [stats.spearmanr(abs(a), abs(b)).statistic for a, b in zip(one, other, strict=True)]
    placed = [np.stack([sizes(row) for row in rows]) for rows in (one, other)]
    np.testing.assert_allclose(rank_correlation(*placed, (1,)), wanted)
    drawn = random.integers(20, size=19)  # a resample, which lacks some of the values
    again = rank_correlation(placed[0][0, drawn], placed[1][0, drawn], 0)
    assert again == pytest.approx(stats.spearmanr(abs(one[0, drawn]), abs(other[0, drawn])).statistic)
    assert np.isnan(rank_correlation(np.zeros(4), np.arange(4.0), 0))


def test_a_ridge_probe_is_the_primal_solution() -> None:
    torch.manual_seed(0)
    source, target = torch.randn(7, 5) + 1, torch.randn(6, 5)
    values = torch.cat([source, target]).double()
    scaled = (values - values.mean(0)) / values.std(0)
    labels = torch.tensor([1.0] * 7 + [-1.0] * 6, dtype=torch.double)
    primal = torch.linalg.solve(scaled.T @ scaled / 5 + torch.eye(5), scaled.T @ (labels - labels.mean()) / 5)
    np.testing.assert_allclose(ridge_weights(source, target), primal.numpy(), atol=1e-10)


def test_drawn_units_are_spread_over_sites_and_all_where_asked() -> None:
    table = pd.DataFrame({"site": ["a"] * 30 + ["b"] * 10})
    marked = drawn_units(table, 8, seed=0)
    assert table[marked].groupby("site").size().to_dict() == {"a": 6, "b": 2}
    assert (drawn_units(table, 8, seed=0) == marked).all()
    assert drawn_units(table, 40, seed=0).all()


def test_words_are_those_that_tell_the_source(tiny: Any) -> None:
    texts = contrast("sad", "happy", n=30)
    scorer = ls.WordList(["cried"])
    assert concept_words(tiny, texts, None, scorer) == ("cried",)
    assert concept_words(tiny, texts, ["dog"], scorer) == ("dog",)
    found = concept_words(tiny, texts, None, lambda rows: np.zeros(len(rows)))  # type: ignore[arg-type]
    assert found[0] == "sad"
    assert "happy" not in found
    with pytest.raises(ls.LensSteerError, match="no single-token word tells"):
        concept_words(tiny, ls.ContrastSet(["a dog", "a cat"], ["the dog", "the cat"]), None, lambda rows: rows)  # type: ignore[arg-type, return-value]


def test_drawn_pairs_are_compared_at_as_many_tokens(tiny: Any) -> None:
    metric = ls.ConceptProbability(["sad"])
    pairs = concept_pairs(tiny, contrast("sad", "happy"), metric, most=5, words=4, seed=0)
    assert len(pairs.clean) == len(pairs.corrupted) <= 5
    assert pairs.places == (-4, -3, -2, -1)
    assert all(len(text.split()) == 4 for text in (*pairs.clean, *pairs.corrupted))
    with pytest.raises(ls.LensSteerError, match="0 pairs of texts have 50 tokens"):
        concept_pairs(tiny, contrast("sad", "happy"), metric, most=5, words=50, seed=0)
    paired = ls.ContrastSet(["the sad dog", "a sad cat"], ["the happy dog", "a happy cat"], paired=True)
    whole = concept_pairs(tiny, paired, metric, most=5, words=1, seed=0)
    assert set(zip(whole.clean, whole.corrupted, strict=True)) == set(zip(paired.source, paired.target, strict=True))


def test_the_bare_gradient_is_what_a_small_step_does(tiny: Any) -> None:
    """With one pair and the last place alone, gradient times difference is the gradient attribution."""
    texts = ls.ContrastSet(["the sad dog ran", "the sad dog ran"], ["a happy cat sat", "a happy cat sat"], paired=True)
    pairs = concept_pairs(tiny, texts, ls.ConceptProbability(["sad"]), most=2, words=1, seed=0)
    last = pairs.attribute(tiny, SITES, ATTRIBUTED[GRADIENT], positions=[-1]).frame
    bare = attributed(tiny, pairs, SITES)[BARE]
    np.testing.assert_allclose(bare * last["difference"].abs(), last["value"].abs(), rtol=1e-4, atol=1e-9)


def test_a_clamped_unit_is_held_beyond_the_source(tiny: Any) -> None:
    activations = ls.collect(tiny, contrast("sad", "happy"), SITES, progress=False)
    site = activations.sites[0]
    edit = clamped([ls.Unit(site, 3)], activations, 2.0)
    (one,) = edit.edits
    assert isinstance(one.map, ls.DiagonalAffine)
    source, target = (activations.token_mean(site, side)[3] for side in ("source", "target"))
    held, std = one.map.shift[3], activations.token_std(site, "source")[3]
    assert one.map.scale[3] == 0
    assert (held - source).abs() == pytest.approx(float(2 * std), rel=1e-4)
    assert (held - source) * (source - target) > 0
    assert edit.units() == (ls.Unit(site, 3),)
    # What an edit leaves alone has no weight.
    moved = lineas_weights(edit, activations)
    assert moved.loc[moved[LINEAS] > 0, "unit"].tolist() == [3]
    pairs = concept_pairs(tiny, contrast("sad", "happy"), ls.ConceptProbability(["sad"]), most=3, words=4, seed=0)
    table = steered(tiny, pairs, [ls.Unit(site, 3)], activations, 2.0)
    with edit.on(tiny):
        after = pairs.attribute(tiny, SITES, "attribution").settings["corrupted"]
    before = pairs.attribute(tiny, SITES, "attribution").settings["corrupted"]
    assert table["steered"].iloc[0] == pytest.approx(after - before, abs=1e-6)


_TABLES = cache(lambda seed: measured_tables(columns(24, seed)))


@st.composite
def frames(draw: st.DrawFn) -> dict[str, pd.DataFrame]:
    found = _TABLES(draw(st.integers(0, 1)))
    ends = sorted((draw(hundredths), draw(hundredths)))
    steering = found["steering"].copy()
    steering.loc[steering["score"] == BARE, ["low", "high"]] = ends
    effects = [
        {"act": act, "choice": AUROC, "k": 4, "measure": measure, **draw(changes())}
        for act in (ABLATED, CLAMPED)
        for measure in (CONCEPT, PERPLEXITY)
    ]
    against = [
        {"act": act, "choice": AUROC, "control": control, "k": 4, "draws": 20, "measure": measure, **draw(changes())}
        for act in (ABLATED, CLAMPED)
        for control in (RANDOM, "units matched to AUROC")
        for measure in (CONCEPT, PERPLEXITY)
    ]
    relp = [{"act": act, "k": 4, "of_auroc": 4, "measure": CONCEPT, **draw(changes())} for act in (ABLATED, CLAMPED)]
    return {
        **found,
        "steering": steering,
        "effects": pd.DataFrame(effects),
        "against_controls": pd.DataFrame(against),
        "relp_against_auroc": pd.DataFrame(relp),
    }


@FEW
@given(frames())
def test_verbs_follow_from_intervals(given_frames: dict[str, pd.DataFrame]) -> None:
    said = summary("sad", given_frames, "held-out target texts")
    assert check_verbs(said) == 6
    steering = given_frames["steering"].set_index("score").loc[BARE]
    words = "anti-predicts" if steering["high"] < 0 else "predicts" if steering["low"] > 0 else "not shown to predict"
    assert words in said[-2].split(";")[0]


def test_a_score_is_said_to_find_causes_only_where_it_does() -> None:
    none = {**_rest(), **measured_tables(columns(60, 0))}
    assert none["differences"]["best_low"].iloc[0] < none["correlations"]["low"].max()
    assert summary("sad", none, "texts")[-1] == "No cheap score is shown to find causal units here."
    table = columns(60, 0).assign(**{RELP: lambda frame: frame[CAUSE]})
    last = summary("sad", {**_rest(), **measured_tables(table)}, "texts")[-1]
    assert "causal units here: RelP, rank correlation 1.00" in last
    assert "not shown to be worse: none" in last


def test_spread_alone_finds_no_causes() -> None:
    """Effects without a mean, larger where a unit varies more: sizes agree with any score of spread, signs do not."""
    random = np.random.default_rng(0)
    spread = np.exp(random.normal(size=200))
    noise = {name: spread * random.normal(size=200) for name in (CAUSE, *SIGNED)}
    table = columns(200, 0).assign(**{name: np.abs(noise[name]) for name in SIGNED if name != AUROC})
    table = table.assign(**{CAUSE: noise[CAUSE], SHUFFLED[MEANS]: np.abs(spread * random.normal(size=200))})
    table = table.assign(**{signed_name(name): noise[name] for name in SIGNED})
    found = measured_tables(table)
    assert (found["correlations"].set_index("score").loc[[RELP, SHUFFLED[MEANS]], "low"] > 0).all()
    assert (found["signed"]["value"].abs() < 0.2).all()
    last = summary("sad", {**_rest(), **found}, "texts")[-1]
    assert last.startswith("No cheap score is shown to find causal units here beyond what a unit's spread tells")
    everything = measured_tables(table.assign(**{signed_name(EXACT): noise[CAUSE]}))["signed"]
    assert everything.set_index("score").loc[EXACT, "low"] > 0.99


def _rest() -> dict[str, pd.DataFrame]:
    row = {"before": 1.0, "after": 0.5, "low": -0.8, "high": -0.2, "confidence": 0.95, "k": 4, "choice": AUROC}
    rows = [{**row, "act": act, "measure": measure} for act in (ABLATED, CLAMPED) for measure in (CONCEPT, PERPLEXITY)]
    effects = pd.DataFrame(rows)
    relp = effects.assign(of_auroc=4)
    return {
        "effects": effects,
        "against_controls": effects.assign(control=RANDOM, draws=20),
        "relp_against_auroc": relp,
    }


@pytest.mark.parametrize(
    ("setting", "culprit"),
    [
        ({"ks": ()}, "numbers of units lie between"),
        ({"ks": (0,)}, "numbers of units lie between"),
        ({"ks": (500,)}, "numbers of units lie between"),
        ({"units": 2}, "units=2"),
        ({"draws": 0}, "draws=0"),
        ({"matched_to": ("Auroc",)}, "matched_to names 'Auroc'"),
    ],
)
def test_impossible_settings_are_refused_before_the_work(
    tiny: Any, setting: dict[str, Any], culprit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ls, "collect", pytest.fail)
    with pytest.raises(ls.LensSteerError, match=culprit):
        experts_vs_causes.run(tiny, contrast("sad", "happy"), out=None, **{**SMALL, **setting})
