"""Attribution: measured and estimated effects agree where they must, and nothing is found where there is nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import lens_steer as ls
from lens_steer.effects.attribution import reliability
from lens_steer.host.tokens import tokenize
from lens_steer.statistics.jackknife import jackknife_interval
from tests.effects.attribution.prompts import CLEAN, CORRUPTED, METRIC, attribute, giving
from tests.families import make_tiny
from tests.handles import handles

METHODS = ("patch", "attribution", "integrated", "relp", "cna")


def patched_by_hand(model: Any, clean: str, corrupted: str, site: str, units: slice, at: slice = slice(None)) -> float:
    """Patch through TransformerLens alone."""
    tokens = [torch.tensor([ls_ids(model, text)]) for text in (clean, corrupted)]
    kept: dict[str, torch.Tensor] = {}
    dog, cat = (ls_ids(model, word)[-1] for word in ("dog", "cat"))

    def read(tensor: torch.Tensor, hook: Any) -> None:
        kept["clean"] = tensor

    def write(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        new = tensor.clone()
        new[:, at, ..., units] = kept["clean"][:, at, ..., units]
        return new

    def measure(logits: torch.Tensor) -> float:
        return float(logits[0, -1, dog] - logits[0, -1, cat])

    with torch.no_grad():
        model.run_with_hooks(tokens[0], fwd_hooks=[(site, read)])
        base = measure(model(tokens[1]))
        return measure(model.run_with_hooks(tokens[1], fwd_hooks=[(site, write)])) - base


def ls_ids(model: Any, text: str) -> list[int]:
    return list(tokenize(model, [text], special_in_pool=True).ids[0])


@pytest.mark.parametrize("site", ["blocks.0.mlp.hook_post", "blocks.1.hook_resid_post", "blocks.1.attn.hook_v"])
def test_patching_is_that_of_transformer_lens(family: Any, site: str) -> None:
    result = attribute(family, CLEAN[:2], CORRUPTED[:2], sites=site, method="patch")
    hand = [patched_by_hand(family, *pair, site, slice(None)) for pair in zip(CLEAN[:2], CORRUPTED[:2], strict=True)]
    assert result.frame["value"].item() == pytest.approx(np.mean(hand), rel=1e-4, abs=1e-5)


@pytest.mark.compat
def test_patching_one_unit_on_a_hooked_transformer(hooked_tiny: Any) -> None:
    site = "blocks.0.mlp.hook_post"
    result = attribute(hooked_tiny, CLEAN[0], CORRUPTED[0], sites=site, level="unit", method="patch")
    for unit in (0, 7, 47):
        hand = patched_by_hand(hooked_tiny, CLEAN[0], CORRUPTED[0], site, slice(unit, unit + 1))
        assert result.frame["value"][unit] == pytest.approx(hand, rel=1e-3, abs=1e-5)


@pytest.mark.compat
@pytest.mark.parametrize("method", METHODS)
def test_both_hosts_give_the_same(method: Any, embedded: Any, hooked_embedded: Any) -> None:
    clean, corrupted, metric = giving(4)
    settings: Any = {"sites": ["hook_attn_out", "mlp.hook_post"], "method": method, "steps": 3}
    one, other = (attribute(model, clean, corrupted, metric, **settings) for model in (embedded, hooked_embedded))
    np.testing.assert_allclose(one.frame["value"], other.frame["value"], rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("level", ["site", "head", "unit"])
def test_batched_is_one_by_one(tiny: Any, method: Any, level: Any) -> None:
    """Also with pairs of unequal lengths, padded in one batch."""
    settings: Any = {"sites": "attn.hook_z", "method": method, "level": level, "steps": 2}
    together = attribute(tiny, **settings)
    small = attribute(tiny, batch_size=1, **settings)
    np.testing.assert_allclose(together.frame["value"], small.frame["value"], rtol=1e-3, atol=1e-5)
    if method != "cna":
        alone = [attribute(tiny, *pair, **settings).frame["value"] for pair in zip(CLEAN, CORRUPTED, strict=True)]
        np.testing.assert_allclose(together.frame["value"], np.mean(alone, axis=0), rtol=1e-3, atol=1e-5)


def test_levels_add_up_for_a_linear_estimate(tiny: Any) -> None:
    total = {
        level: attribute(tiny, CLEAN[:1], CORRUPTED[:1], sites="attn.hook_z", level=level)
        for level in ("site", "position", "head", "unit")
    }
    sums = {level: result.frame.groupby("site")["value"].sum() for level, result in total.items()}
    for level in ("position", "head", "unit"):
        np.testing.assert_allclose(sums[level], sums["site"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["patch", "attribution", "integrated", "relp"])
def test_what_is_the_same_in_both_runs_has_no_effect_bit_for_bit(tiny: Any, method: Any) -> None:
    """Positions before the first token that differs hold the same in both runs."""
    result = attribute(
        tiny, CLEAN[3], CORRUPTED[3], sites=["hook_resid_post", "attn.hook_z"], level="position", method=method
    )
    same = result.frame["position"] < 5
    assert (result.frame.loc[same, "value"] == 0).all()
    assert (result.frame.loc[~same, "value"] != 0).all()


def test_the_last_stream_at_the_last_token_carries_the_whole_gap(family: Any) -> None:
    result = attribute(family, sites="blocks.1.hook_resid_post", positions=[-1], method="patch")
    assert result.frame["value"].item() == pytest.approx(result.gap, rel=1e-4)


def test_integrated_gradients_are_complete(tiny: Any) -> None:
    """The units of a site sum to the exact effect of patching the whole site."""
    settings: Any = {"sites": ["mlp.hook_post", "hook_resid_post"]}
    exact = attribute(tiny, method="patch", **settings)
    units = attribute(tiny, method="integrated", level="unit", steps=64, **settings)
    assert units.settings["steps"] == 64
    sums = units.frame.groupby("site", sort=False)["value"].sum()
    np.testing.assert_allclose(sums, exact.frame["value"], rtol=2e-2, atol=5e-3)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_heads_of_grouped_attention(kind: str) -> None:
    """Keys and values have their own heads; the last layer's values at all heads are all that attention carries."""
    model = make_tiny(kind)
    result = attribute(model, sites=["attn.hook_k", "attn.hook_v", "attn.hook_z"], level="head", method="patch")
    assert result.frame.groupby("kind")["head"].nunique().to_dict() == {
        "attn.hook_k": 2,
        "attn.hook_v": 2,
        "attn.hook_z": 4,
    }
    hand = [
        patched_by_hand(model, *pair, "blocks.0.attn.hook_k", slice(None))
        for pair in zip(CLEAN, CORRUPTED, strict=True)
    ]
    site = attribute(model, sites="blocks.0.attn.hook_k", method="patch")
    assert site.frame["value"].item() == pytest.approx(np.mean(hand), rel=1e-4, abs=1e-5)


def test_branches_behind_sandwich_norms() -> None:
    """On Gemma-3 a branch's output is taken behind its norm, and its patch is a patch of what joins the stream."""
    model = make_tiny("gemma3_text")
    for kind in ("hook_attn_out", "hook_mlp_out"):
        hand = [
            patched_by_hand(model, *pair, f"blocks.1.{kind}", slice(None))
            for pair in zip(CLEAN, CORRUPTED, strict=True)
        ]
        result = attribute(model, sites=f"blocks.1.{kind}", method="patch")
        assert result.frame["value"].item() == pytest.approx(np.mean(hand), rel=1e-4, abs=1e-5)


def test_the_second_order_term_of_a_site_is_its_curvature(tiny: Any) -> None:
    """As the clean activation comes nearer, first and second order leave an error of third order."""
    settings: Any = {"sites": "blocks.1.hook_resid_post", "positions": [-1]}
    estimate = attribute(tiny, reliability=True, **settings).frame.iloc[0]
    exact = attribute(tiny, method="patch", **settings).frame.iloc[0]
    integrated = attribute(tiny, method="integrated", steps=1, **settings).frame.iloc[0]
    assert estimate["value"] + estimate["second_order"] == pytest.approx(integrated["value"], rel=1e-4)
    assert estimate["ratio"] == pytest.approx(abs(estimate["second_order"] / estimate["value"]), rel=1e-5)
    assert exact["value"] != pytest.approx(estimate["value"], rel=1e-2)


@pytest.mark.parametrize("method", ["attribution", "cna", "integrated", "relp"])
def test_reliability_takes_over_the_passes_of_a_gradient(
    tiny: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: Any = {"sites": "blocks.1.mlp.hook_post", "positions": [-1], "reliability": True}
    whole = attribute(tiny, **settings).frame
    ran = []
    read = reliability.read_clean
    monkeypatch.setattr(reliability, "read_clean", lambda *given: ran.append(1) or read(*given))
    again = attribute(tiny, method=method, **settings).frame
    assert bool(ran) == (method in ("integrated", "relp"))
    np.testing.assert_allclose(again["second_order"], whole["second_order"], rtol=1e-5)


def test_flagged_units_are_measured_again(tiny: Any) -> None:
    settings: Any = {"sites": "mlp.hook_post", "level": "unit"}
    exact = attribute(tiny, method="patch", **settings).frame
    screened = attribute(tiny, remeasure=True, flag_above=0.3, **settings).frame
    flagged = screened["flagged"]
    assert 0 < flagged.sum() < len(screened)
    assert (screened["exact"] == flagged).all()
    np.testing.assert_allclose(screened.loc[flagged, "value"], exact.loc[flagged, "value"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(screened.loc[flagged, "low"], exact.loc[flagged, "low"], rtol=1e-2, atol=1e-4)
    error = (attribute(tiny, **settings).frame["value"] - exact["value"]).abs()
    assert error[flagged].mean() > error[~flagged].mean()


def test_chosen_units_are_those_of_all(tiny: Any) -> None:
    every = attribute(tiny, sites="mlp.hook_post", level="unit", method="patch").frame
    some = attribute(
        tiny,
        sites="mlp.hook_post",
        level="unit",
        method="patch",
        units=["blocks.1.mlp.hook_post[5]", "blocks.0.mlp.hook_post[3]"],
    ).frame
    assert some[["layer", "unit"]].to_numpy().tolist() == [[0, 3], [1, 5]]
    for row in some.itertuples():
        same = every[(every["site"] == row.site) & (every["unit"] == row.unit)]
        assert row.value == pytest.approx(same["value"].item(), rel=1e-4, abs=1e-6)


def test_the_contrast_of_one_pair_is_attribution(tiny: Any) -> None:
    settings: Any = {"sites": "mlp.hook_post", "level": "unit", "positions": [-1]}
    one = attribute(tiny, CLEAN[0], CORRUPTED[0], method="cna", **settings)
    other = attribute(tiny, CLEAN[0], CORRUPTED[0], **settings)
    np.testing.assert_allclose(one.frame["value"], other.frame["value"], rtol=1e-4, atol=1e-7)
    many, gradient = attribute(tiny, method="cna", **settings), attribute(tiny, **settings)
    assert not np.allclose(many.frame["value"], gradient.frame["value"], rtol=1e-2)


def test_pairs_of_unequal_lengths_are_aligned_by_positions(tiny: Any) -> None:
    clean, corrupted = "the dog ran home", "the very big cat ran home"
    both = attribute(
        tiny, clean, corrupted, sites="hook_resid_post", level="position", positions=[(2, 4), -1], method="patch"
    )
    assert len(both.frame) == 4
    one = attribute(tiny, clean, corrupted, sites="hook_resid_post", positions=[(4, 6)], method="patch")
    assert one.frame["value"].tolist() == pytest.approx(both.frame.query("position == 1")["value"].tolist(), rel=1e-4)
    assert one.frame["value"].iloc[-1] == pytest.approx(one.gap, rel=1e-4)


def test_shuffled_pairs_and_random_units_are_a_null(embedded: Any) -> None:
    """What carries the name in the right pairs carries little of it when the clean prompts are of other pairs."""
    clean, corrupted, metric = giving(16)
    settings: Any = {"sites": "hook_attn_out", "level": "site", "positions": [-1], "method": "patch"}
    real = attribute(embedded, clean, corrupted, metric, **settings)
    order = [*range(3, 16), 0, 1, 2]
    null = attribute(embedded, [clean[row] for row in order], corrupted, metric, **settings)
    assert real.top(1)["verdict"].item() == "higher"
    assert abs(null.frame["value"]).max() < 0.5 * real.frame["value"].max()


def test_intervals_keep_blocks_together(tiny: Any) -> None:
    settings: Any = {"sites": "hook_resid_post", "method": "patch"}
    twice = attribute(tiny, CLEAN * 2, CORRUPTED * 2, **settings)
    once = attribute(tiny, **settings)
    assert twice.settings["blocks"] == once.settings["blocks"] == 4
    np.testing.assert_allclose(twice.frame[["value", "low", "high"]], once.frame[["value", "low", "high"]], rtol=1e-3)
    grouped = attribute(tiny, groups=[0, 0, 1, 1], **settings)
    assert grouped.settings["blocks"] == 2
    assert attribute(tiny, CLEAN[0], CORRUPTED[0], **settings).frame["low"].isna().all()


def test_agreement_of_an_attribution_with_itself_and_with_noise(tiny: Any) -> None:
    exact = attribute(tiny, sites=["mlp.hook_post", "attn.hook_z"], level="unit", method="patch")
    same = exact.agreement(exact)
    assert same["value"].tolist() == pytest.approx([1.0] * 4)
    generator = np.random.default_rng(0)
    noise = {name: generator.normal(size=cases.shape) for name, cases in exact.cases.items()}
    other = ls.Attribution(exact.frame, noise, exact.settings)
    assert other.agreement(exact)["value"].abs().max() < 0.35
    with pytest.raises(ls.LensSteerError, match="other pairs, parts or levels"):
        exact.agreement(attribute(tiny, sites="mlp.hook_post", level="unit", method="patch"))


def test_the_difference_of_a_part_is_that_of_collected_values(tiny: Any) -> None:
    """Clean less corrupted: a unit's mean over pairs and places, signed; of other parts the mean length."""
    pairs: Any = (CLEAN[:1] + CLEAN[3:], CORRUPTED[:1] + CORRUPTED[3:])
    name = "blocks.0.attn.hook_z"
    moved = []
    with torch.no_grad():
        for pair in zip(*pairs, strict=True):
            clean, corrupted = (
                tiny.run_with_cache(torch.tensor([ls_ids(tiny, text)]))[1][name][0].flatten(1).numpy() for text in pair
            )
            moved.append(clean - corrupted)
    expected = {
        "unit": np.mean([each.mean(0) for each in moved], axis=0),
        "head": np.mean([[np.linalg.norm(each[:, 8 * head :][:, :8]) for head in range(4)] for each in moved], axis=0),
        "site": [np.mean([np.linalg.norm(each) for each in moved])],
    }
    for level, value in expected.items():
        frame = attribute(tiny, *pairs, sites=name, level=level).frame
        np.testing.assert_allclose(frame["difference"], value, rtol=1e-4, atol=1e-6, err_msg=level)
    last = attribute(tiny, *pairs, sites=name, level="position", positions=[-2, -1]).frame
    lengths = [[np.linalg.norm(row) for row in each[-2:]] for each in moved]
    np.testing.assert_allclose(last["difference"], np.mean(lengths, axis=0), rtol=1e-4)
    assert last["position"].tolist() == [0, 1]


def test_agreement_is_the_correlation_of_parts_that_differ(tiny: Any) -> None:
    """Kind by kind, with the jackknife of both over the same pairs; what is alike in both runs has no part in it."""
    settings: Any = {"sites": ["hook_resid_post", "hook_mlp_out"], "level": "position", "positions": range(5)}
    pairs: Any = (CLEAN[:1] + CLEAN[2:], CORRUPTED[:1] + CORRUPTED[2:])
    estimate, exact = (attribute(tiny, *pairs, method=method, **settings) for method in ("attribution", "patch"))
    table = estimate.agreement(exact).set_index(["kind", "measure"])
    for kind, rows in exact.frame.groupby("kind"):
        differs = (rows["difference"] != 0).to_numpy()
        assert 3 <= differs.sum() < len(rows)
        ours, theirs = (
            np.concatenate([each.cases[site] for site in dict.fromkeys(rows["site"])], axis=1)[:, differs]
            for each in (estimate, exact)
        )
        np.testing.assert_allclose(ours[0], estimate.frame.loc[rows.index, "value"][differs])
        for measure, correlate in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
            cases = np.array([correlate(*both).statistic for both in zip(ours, theirs, strict=True)])
            interval = jackknife_interval(cases[0], cases[1:], confidence=0.95)
            row = table.loc[(kind, measure)]
            assert row["value"] == pytest.approx(cases[0])
            ends = max(-1.0, interval.low), min(1.0, interval.high)
            assert (row["low"], row["high"]) == pytest.approx(ends)
            assert row["parts"] == differs.sum()


def test_the_strongest_parts_come_first_whatever_their_sign(tiny: Any) -> None:
    result = attribute(tiny, sites="mlp.hook_post", level="unit")
    assert result.settings["steps"] is result.settings["rules"] is result.settings["flag_above"] is None
    top = result.top(7)
    assert top["value"].abs().tolist() == sorted(result.frame["value"].abs(), reverse=True)[:7]
    assert set(np.sign(top["value"])) == {-1, 1}
    assert result.gap == result.settings["clean"] - result.settings["corrupted"]
    by = {"not shown": 0, "lower": 0, "higher": 0}
    for row in result.frame.itertuples():
        by[row.verdict] += 1
        assert row.verdict == ("lower" if row.high < 0 else "higher" if row.low > 0 else "not shown")
    assert min(by.values()) > 0


@pytest.mark.parametrize("method", METHODS)
def test_the_model_is_as_before(tiny: Any, method: Any) -> None:
    before, flags = handles(tiny), [each.requires_grad for each in tiny.parameters()]
    ids = torch.tensor([[1, 5, 6, 7]])
    logits = tiny(ids)
    attribute(tiny, sites="mlp.hook_post", method=method, reliability=method != "patch")
    with pytest.raises(ls.LensSteerError):
        attribute(tiny, metric=lambda logits: logits.sum(), sites="mlp.hook_post", method=method)
    assert handles(tiny) == before
    assert [each.requires_grad for each in tiny.parameters()] == flags
    assert not any("forward" in vars(block) for block in tiny.blocks)
    assert torch.equal(tiny(ids), logits)


def test_an_edit_that_is_on_acts_in_all_runs(tiny: Any) -> None:
    """With a layer's MLP at zero its units differ no more, and carry nothing."""
    zero = ls.ablate([("blocks.0.mlp.hook_post", unit) for unit in range(128)], model=tiny)
    with zero.on(tiny):
        result = attribute(tiny, sites="blocks.0.hook_mlp_out", method="patch")
    assert result.frame["value"].item() == 0


def test_the_result_shows_itself(tiny: Any) -> None:
    for level, sites in (
        ("unit", "mlp.hook_post"),
        ("head", "attn.hook_z"),
        ("site", ["hook_attn_out", "hook_mlp_out"]),
    ):
        result = attribute(tiny, sites=sites, level=level)  # type: ignore[arg-type]
        assert len(result.plot().data) == 1
        assert "Attribution(attribution" in repr(result)
        assert "<table" in result._repr_html_()
    pairs: Any = (CLEAN[:1], CORRUPTED[:1])
    assert attribute(tiny, *pairs, sites="hook_resid_post", level="position").plot().data[0].z.shape == (2, 5)
    assert METRIC.correct == "dog"


def test_patching_and_ablation_find_one_circuit_for_indirect_objects(embedded: Any) -> None:
    """The head that patching names is the one without which the embedded model no longer tells the two names apart."""
    clean, corrupted, metric = giving(16)
    found = attribute(embedded, clean, corrupted, metric, sites="attn.hook_z", level="head", method="patch")
    ranked = found.top(len(found.frame))
    assert found.gap > 10
    assert ranked["value"].iloc[0] > 0.9 * found.gap
    assert ranked["verdict"].iloc[0] == "higher"

    def without(row: Any) -> float:
        """The metric's gap with one head at zero."""
        width = 24
        units = [(row["site"], row["head"] * width + unit) for unit in range(width)]
        with ls.ablate(units, model=embedded).on(embedded):
            return attribute(embedded, clean, corrupted, metric, sites="blocks.5.hook_resid_post", positions=[-1]).gap

    assert without(ranked.iloc[0]) < 0.2 * found.gap
    for null in (ranked.iloc[-1], ranked.iloc[len(ranked) // 2]):
        assert without(null) > 0.5 * found.gap
    for method in ("attribution", "relp", "integrated"):
        estimate = attribute(embedded, clean, corrupted, metric, sites="attn.hook_z", level="head", method=method)
        assert (estimate.top(1)[["site", "head"]] == found.top(1)[["site", "head"]]).all(axis=None)
