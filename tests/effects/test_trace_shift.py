"""Tracing a shift: sums against the whole, closed forms, causes, nulls, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any, get_args

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import lens_steer as ls
from lens_steer.activations.collect import collect
from lens_steer.effects.downstream import downstream_shift
from lens_steer.effects.paths.base import Route, read_base
from lens_steer.effects.paths.measures import Key, Measured
from lens_steer.effects.paths.result import Measure, TraceShift
from lens_steer.effects.paths.trace import _route, trace_shift
from lens_steer.errors import LensSteerWarning, ModelError, SettingError, SiteError, TokenError
from lens_steer.host.adapter import host_of
from lens_steer.host.components import find_components
from lens_steer.host.load import load_model
from lens_steer.host.scope import Scope
from lens_steer.host.sites import find_sites, site_at
from lens_steer.host.tokens import tokenize
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.texts.contrast import ContrastSet
from tests.effects.test_downstream import telling
from tests.families import CONFIGS, NEWER_CONFIGS, make_tokenizer, random_model, sentences, shared_tiny
from tests.handles import Forwards

CONTRAST = ContrastSet(telling(12, seed=1, word="sad"), telling(9, seed=2, word="happy"))
NEUTRAL = sentences(7, seed=5)
LAST = "blocks.1.hook_resid_post"


def edit_at(model: Any, *names: str, size: float = 0.2, seed: int = 0) -> Intervention:
    generator = torch.Generator().manual_seed(seed)
    edits = []
    for name in names:
        site = site_at(host_of(model), name)
        scale, shift = (size * torch.randn(site.width, generator=generator) for _ in range(2))
        edits.append(Edit(site, DiagonalAffine(1 + scale, shift)))
    return Intervention(tuple(edits), {"method": "random"})


def trace(model: Any, edit: Intervention, contrast: ContrastSet = CONTRAST, **settings: Any) -> TraceShift:
    return trace_shift(model, edit, contrast, **{"progress": False, **settings})


def total(result: TraceShift, *parts: str, measure: str = "adds", column: str = "value") -> float:
    rows = result.frame[result.frame["part"].isin(parts) & (result.frame["measure"] == measure)]
    return float(rows[column].sum())


def sums_of(result: TraceShift) -> None:
    """Every sum that the result promises."""
    assert result.settings["unexplained"] < 1e-4
    whole, direct = total(result, "whole"), total(result, "direct")
    close = {"rel": 1e-4, "abs": 1e-6}
    assert direct + total(result, "through") == pytest.approx(whole, **close)
    assert total(result, "write") == pytest.approx(direct, **close)
    assert total(result, "attention", "mlp") == pytest.approx(total(result, "through"), **close)
    if (result.frame["measure"] == "in_turn").any():
        assert direct + total(result, "attention", "mlp", measure="in_turn") == pytest.approx(whole, **close)
        attention = result.frame.query("part == 'attention'").pivot(index="layer", columns="measure", values="value")
        np.testing.assert_allclose(attention["interaction"], attention["lost"] - attention["alone"], atol=1e-6)
        if "looks" in attention:
            np.testing.assert_allclose(attention["carries"], attention["lost"] - attention["looks"], atol=1e-6)
        # Patterns are of attentions that have an effect alone; heads and layers are named where there are some.
        assert set(result.frame.query("measure in ('looks', 'carries')")["part"]) <= {"attention"}
        assert attention[["lost", "alone", "in_turn"]].notna().all(axis=None)
    assert set(result.frame["measure"]) <= set(get_args(Measure))
    assert (result.frame["head"].notna() == (result.frame["part"] == "head")).all()
    assert (result.frame["layer"].isna() == result.frame["part"].isin(["whole", "direct", "through"])).all()


def test_one_point_under_two_names_is_written_to_once(tiny: Any) -> None:
    sums_of(trace(tiny, edit_at(tiny, "blocks.0.hook_resid_post", "blocks.0.hook_out"), causal=False))


EDITED = {
    "stream": ["blocks.0.hook_resid_pre", "blocks.0.hook_resid_post"],
    "units": ["blocks.0.attn.hook_z", "blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"],
    "outputs": ["blocks.0.hook_attn_out", "blocks.0.attn.hook_z", "blocks.1.hook_mlp_out"],
    "inside": ["blocks.0.attn.hook_v", "blocks.0.mlp.hook_pre", "blocks.1.hook_resid_pre"],
}


LAID_OUT = ("gpt2", "gpt_neox", "llama", "gemma2")
ALIKE = [name for name in [*CONFIGS, *NEWER_CONFIGS] if name not in LAID_OUT]


@pytest.mark.parametrize(
    ("name", "where"), [*product(LAID_OUT, EDITED), *((name, "all over") for name in ALIKE)], ids=str
)
def test_parts_sum_to_the_whole_in_every_family(name: str, where: str) -> None:
    model = shared_tiny(name)
    places = EDITED.get(where, [*EDITED["outputs"], "blocks.0.hook_resid_pre", "blocks.0.mlp.hook_post"])
    sites = [site for site in places if "moe" not in name or ".mlp.hook_p" not in site]
    result = trace(model, edit_at(model, *sites), causal=where != "inside")
    sums_of(result)
    heads = result.frame.query("part == 'head'").groupby("layer")["value"].agg(["sum", "size"])
    assert (heads["size"] == 4).all()
    own = result.frame.query("part == 'attention' and measure == 'adds'").set_index("layer")["value"]
    np.testing.assert_allclose(heads["sum"], own, rtol=1e-4, atol=1e-6)


def test_the_whole_is_what_downstream_shift_measures(tiny: Any) -> None:
    edit = edit_at(tiny, "blocks.0.hook_resid_post")
    result = trace(tiny, edit)
    measured = downstream_shift(tiny, edit, CONTRAST, progress=False).measures
    rows = measured.query("texts == 'heldout' and edited == 'all' and layer == 1").set_index("measure")
    whole = result.frame.query("part == 'whole'").iloc[0]
    assert tuple(whole[["value", "low", "high"]]) == pytest.approx(tuple(rows.loc["arrived", ["value", "low", "high"]]))
    assert tuple(whole[["size", "size_high"]]) == pytest.approx(tuple(rows.loc["moved", ["value", "high"]]), rel=1e-5)


def test_what_components_add_is_what_collect_sees(tiny: Any) -> None:
    """Output edited less unedited, mean pool, in sd of the traced site: its unbiased root mean square."""
    edit, outputs = edit_at(tiny, "blocks.0.hook_resid_post"), ["hook_attn_out", "hook_mlp_out"]
    result = trace(tiny, edit)
    plain = collect(tiny, CONTRAST, [*outputs, LAST], pool="mean")
    with edit.on(tiny):
        moved = collect(tiny, CONTRAST, outputs, pool="mean")
    site = find_sites(tiny, LAST)[0]
    sd = torch.cat([plain.source[site], plain.target[site]]).double().std(0, correction=0).numpy()
    for kind, part in (("hook_attn_out", "attention"), ("hook_mlp_out", "mlp")):
        output = find_sites(tiny, f"blocks.1.{kind}")[0]
        effects = (moved.source[output] - plain.source[output]).double().numpy() / sd
        mean, n = effects.mean(0), len(effects)
        size = np.sqrt((mean @ mean - effects.var(0, ddof=1).sum() / n) / len(sd))
        rows = result.frame[(result.frame["part"] == part) & (result.frame["layer"] == 1)]
        assert rows.set_index("measure").loc["adds", "size"] == pytest.approx(size, rel=1e-4)


def silenced(*, layers: tuple[int, ...]) -> Any:
    """A random GPT-2 whose later layers add nothing: an edit's direct path is all there is."""
    original = random_model("gpt2")
    with torch.no_grad():
        for layer in layers:
            block = original.transformer.h[layer]
            for projection in (block.attn.c_proj, block.mlp.c_proj):
                projection.weight.zero_()
    return load_model(original, tokenizer=make_tokenizer())


def test_units_write_through_their_projection_and_nothing_else() -> None:
    """Closed form: shifting neurons by s writes s @ W_out; with all later layers silent that is the whole."""
    model = silenced(layers=(1,))
    site = site_at(host_of(model), "blocks.0.mlp.hook_post")
    shift = torch.randn(site.width, generator=torch.Generator().manual_seed(0))
    edit = Intervention((Edit(site, DiagonalAffine(torch.ones(site.width), shift)),))
    result = trace(model, edit)
    weight = model.original_model.transformer.h[0].mlp.c_proj.original_component.weight.detach()
    last = find_sites(model, LAST)[0]
    values = collect(model, CONTRAST, LAST, pool="mean")
    source, target = (side[last].double() for side in (values.source, values.target))
    sd = torch.cat([source, target]).std(0, correction=0)
    written = (shift @ weight).double() / sd
    assert total(result, "direct", column="size") == pytest.approx(float(written.square().mean().sqrt()), rel=1e-4)
    gap = (target.mean(0) - source.mean(0)) / sd
    squared = gap @ gap - sum((side / sd).var(0).sum() / len(side) for side in (source, target))
    assert total(result, "whole") == pytest.approx(float(written @ gap / squared), rel=1e-4)
    assert total(result, "through", column="size") == pytest.approx(0, abs=1e-5)
    assert abs(total(result, "attention", "mlp", measure="lost")) < 1e-5
    assert total(result, "through", measure="against") == pytest.approx(0, abs=1e-6)


@pytest.mark.compat
def test_a_linear_model_has_known_direct_and_indirect_parts() -> None:
    """No norms, silent attention, ReLU far above 0: the MLP of layer 1 adds write W_in W_out."""
    from tests.compat import make_hooked_tiny

    model = make_hooked_tiny(normalization_type=None, act_fn="relu")
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_O.zero_()
            block.mlp.W_in.mul_(0.1)
            block.mlp.b_in.fill_(100.0)
    site = find_sites(model, "blocks.0.hook_resid_post")[0]
    shift = torch.randn(site.width, generator=torch.Generator().manual_seed(0))
    result = trace(model, Intervention((Edit(site, DiagonalAffine(torch.ones(site.width), shift)),)))
    last = find_sites(model, LAST)[0]
    values = collect(model, CONTRAST, LAST, pool="mean")
    sd = torch.cat([values.source[last], values.target[last]]).double().std(0, correction=0)
    written = shift.double()
    echoed = (shift @ model.blocks[1].mlp.W_in @ model.blocks[1].mlp.W_out).double()

    def size(effect: torch.Tensor) -> float:
        return float((effect / sd).square().mean().sqrt())

    assert total(result, "direct", column="size") == pytest.approx(size(written), rel=1e-3)
    assert total(result, "mlp", column="size") == pytest.approx(size(echoed), rel=1e-3)
    assert total(result, "whole", column="size") == pytest.approx(size(written + echoed), rel=1e-3)
    for measure in ("lost", "alone", "in_turn"):  # in a linear model all causes are what is added
        assert total(result, "mlp", measure=measure) == pytest.approx(total(result, "mlp"), rel=1e-3)
    against = float((echoed / sd) @ (written / sd) / (written / sd).square().sum())
    assert total(result, "mlp", measure="against") == pytest.approx(against, rel=1e-3)
    sums_of(result)


def test_a_component_that_writes_the_shift_away_reads_minus_one(tiny: Any) -> None:
    """Both ends of self-repair: an edit that undoes an earlier one takes back all of it, or, not there, nothing."""
    from lens_steer.effects.paths.measures import PathMeasures
    from lens_steer.effects.shifts import Untouched, deviations
    from lens_steer.effects.text_groups import pooled_sides, tokenized_groups

    site = find_sites(tiny, LAST)[0]
    group, *_ = tokenized_groups(tiny, CONTRAST, (), None)
    sides = pooled_sides(tiny, group, [site], "mean", None, "the model")
    measures = PathMeasures(Untouched(group, sides, deviations(sides)), site, confidence=0.95)
    written = torch.randn(12, 32, generator=torch.Generator().manual_seed(0))
    assert measures.against(-written, written).value == pytest.approx(-1)
    assert measures.against(-0.25 * written, written).value == pytest.approx(-0.25)
    assert measures.against(torch.zeros(12, 32), written).value == pytest.approx(0)


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "llama", "gemma2", "olmo2"])
def test_the_closed_form_is_what_a_pass_without_the_edits_gives(name: str) -> None:
    model = shared_tiny(name)
    edit = edit_at(model, "blocks.0.attn.hook_z", "blocks.0.mlp.hook_post", "blocks.1.hook_attn_out")
    route = _route(model, edit, 1.0, find_sites(model, LAST)[0], "mean")
    bare = [replace(component, units=None, projection=None, heads_add_up=False) for component in route.components]
    # Named otherwise, an edit at the output has no short cut either.
    slow = Route.of(model, edit, 1.0, route.site, "mean", bare)
    batch = tokenize(model, CONTRAST.source).batch(range(6))
    quick, general = read_base(route, batch, patterns=False), read_base(slow, batch, patterns=False)
    for component in route.components:
        torch.testing.assert_close(quick.carried[component], general.carried[component], rtol=1e-4, atol=1e-5)


def test_one_norm_before_both_branches_belongs_to_both() -> None:
    """GPT-J: what an edit there does to the MLP is a write, not something that came through it."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4}
    original = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("gptj", **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    )
    for parameter in original.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    model = load_model(original, tokenizer=make_tokenizer())
    result = trace(model, edit_at(model, "blocks.0.ln1.hook_out"))
    sums_of(result)
    assert len(result.frame.query("part == 'write'")) == 2
    assert (result.frame.query("layer == 0 and part in ('attention', 'mlp') and measure == 'adds'")["size"] == 0).all()


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_batches_do_not_matter(name: str) -> None:
    family = shared_tiny(name)
    edit = edit_at(family, "blocks.0.hook_resid_post", "blocks.1.attn.hook_z")
    few = ContrastSet(CONTRAST.source[:4], CONTRAST.target[:4])
    together = trace(family, edit, few, neutral=NEUTRAL[:3], words=["happy"])
    alone = trace(family, edit, few, neutral=NEUTRAL[:3], words=["happy"], batch_size=1)
    for ours, theirs in ((together.frame, alone.frame), (together.words, alone.words), (together.law, alone.law)):
        numbers = ours.select_dtypes("float")
        np.testing.assert_allclose(numbers, theirs[numbers.columns], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("pool", ["mean", "last", "first"])
def test_every_linear_pool_adds_up(tiny: Any, pool: Any) -> None:
    sums_of(trace(tiny, edit_at(tiny, "blocks.0.hook_resid_pre"), pool=pool, causal=False))


def test_scopes_and_pairs_are_traced_where_they_act(tiny: Any) -> None:
    prompts = iter(sentences(21, seed=9))  # rows of one prompt would be one block, and have no spread
    pairs = ContrastSet(*([(next(prompts), text) for text in side] for side in (CONTRAST.source, CONTRAST.target)))
    edit = edit_at(tiny, "blocks.0.hook_resid_post").scoped("prompt")
    result = trace(tiny, edit, pairs)
    sums_of(result)
    assert total(result, "direct", column="size") == 0  # no completion token was written to: attention carries it all
    assert total(result, "attention", column="size") > 0


def test_strength_is_that_of_the_edit(tiny: Any) -> None:
    edit = edit_at(tiny, "blocks.0.hook_resid_post")
    half, scaled = trace(tiny, edit, strength=0.5, causal=False), trace(tiny, edit.scaled(0.5), causal=False)
    np.testing.assert_allclose(half.frame["value"], scaled.frame["value"], rtol=1e-5, atol=1e-7)


def test_an_earlier_site_leaves_out_what_comes_behind_it(tiny: Any) -> None:
    edit = edit_at(tiny, "blocks.0.hook_resid_post", "blocks.1.hook_mlp_out")
    result = trace(tiny, edit, site="blocks.1.hook_resid_pre")
    assert set(result.frame["part"]) == {"whole", "direct", "through", "write"}
    assert total(result, "direct") == pytest.approx(total(result, "whole"))
    assert result.settings["edited_layers"] == [0]


@pytest.mark.compat
def test_hosts_agree(hooked_embedded: Any, embedded: Any) -> None:
    texts = _rude(16)
    edit = edit_at(hooked_embedded, "blocks.2.mlp.hook_post", "blocks.3.hook_resid_post", size=0.05)
    ours = trace(hooked_embedded, edit, texts, site="blocks.4.hook_resid_post", words=["happy"])
    sums_of(ours)
    theirs = trace(embedded, edit, texts, site="blocks.4.hook_resid_post", words=["happy"], check_model=False)
    np.testing.assert_allclose(ours.frame["size"], theirs.frame["size"], rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(ours.words["after"], theirs.words["after"], rtol=2e-3, atol=1e-6)


@pytest.mark.compat
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"parallel_attn_mlp": True},
        {"use_normalization_before_and_after": True, "normalization_type": "RMS"},
        {"n_key_value_heads": 2},
    ],
    ids=["plain", "parallel", "sandwich", "grouped"],
)
def test_parts_sum_to_the_whole_on_a_hooked_transformer(settings: dict[str, Any]) -> None:
    from tests.compat import make_hooked_tiny

    model = make_hooked_tiny(**settings)
    result = trace(model, edit_at(model, "blocks.0.attn.hook_z", "blocks.0.mlp.hook_pre", "blocks.1.hook_mlp_out"))
    sums_of(result)
    assert total(result, "head") == pytest.approx(total(result, "attention"), rel=1e-4, abs=1e-6)


def _rude(n: int) -> ContrastSet:
    whole = ls.read_contrast("microworld:rude", n=n, seed=0)
    return ContrastSet(whole.source, whole.target)


@pytest.mark.parametrize("n", [8, 60])
def test_texts_of_one_law_give_no_way_and_no_sentence(tiny: Any, n: int) -> None:
    """Null: where source and target are alike, no share is told; the size is still that of the edit."""
    same = ContrastSet(sentences(n, seed=11), sentences(n, seed=12))
    result = trace(tiny, edit_at(tiny, "blocks.0.hook_resid_post"), same, causal=False)
    assert "cannot be judged" in repr(result)
    assert result.frame["value"][result.frame["measure"] == "adds"].isna().all()
    assert total(result, "whole", column="size") > 0
    assert result.plot().data[0].coloraxis == "coloraxis"


@pytest.mark.parametrize("n", [10, 60])
def test_random_shifts_lead_nowhere_on_average(tiny: Any, n: int) -> None:
    """Null: a random direct path has a mean share of 0 at few and at many texts, and one that arrives has 1."""
    contrast = ContrastSet(telling(n, seed=1, word="sad"), telling(n, seed=2, word="happy"))
    site = find_sites(tiny, LAST)[0]

    def share(shift: torch.Tensor) -> float:
        edit = Intervention((Edit(site, DiagonalAffine(torch.ones(site.width), shift)),))
        return total(trace(tiny, edit, contrast, causal=False), "direct")

    law = ContrastSet(telling(150, seed=3, word="sad"), telling(150, seed=4, word="happy"))
    values = collect(tiny, law, LAST, pool="mean", progress=False)
    way = values.target[site].mean(0) - values.source[site].mean(0)
    sizes = torch.Generator().manual_seed(0)
    shares = [share(way.norm() / 32**0.5 * torch.randn(32, generator=sizes)) for _ in range(12)]
    assert abs(np.mean(shares)) < 3 * np.std(shares) / 12**0.5
    assert share(way) == pytest.approx(1, abs=1 / n**0.5)


def test_the_lens_reads_the_last_layer_as_the_model_does(distinct_family: Any) -> None:
    family, word = distinct_family, "happy"
    edit = edit_at(family, "blocks.0.hook_resid_post")
    result = trace(family, edit, words=[word], causal=False)
    tokens = tokenize(family, CONTRAST.source)
    (ids,) = Scope.of_tokens([word], family.tokenizer).tokens

    def said() -> float:
        means = []
        for row in range(len(tokens)):
            batch = tokens.batch([row])
            with torch.no_grad():
                law = host_of(family).logits(batch.ids, batch.mask)[0].float().softmax(-1)
            means.append(float(law[batch.pooled[0], ids].mean()))
        return float(np.mean(means))

    last = result.words.iloc[-1]
    assert last["before"] == pytest.approx(said(), rel=1e-3)
    with edit.on(family):
        assert last["after"] == pytest.approx(said(), rel=1e-3)


def test_neutral_texts_stand_in_the_contrasts_chat_format(tiny: Any) -> None:
    edit, chat = edit_at(tiny, "blocks.0.hook_resid_post"), "boy {text} girl"
    contrast = ContrastSet(CONTRAST.source, CONTRAST.target, chat=chat)
    law = trace(tiny, edit, contrast, neutral=NEUTRAL, causal=False).law.set_index("measure")
    expected = ls.divergence(tiny, NEUTRAL, intervention=edit, chat=chat, progress=False)
    assert law.loc["mean", "value"] == pytest.approx(expected)


def test_edits_with_a_closed_form_take_no_pass_of_their_own(tiny: Any) -> None:
    """Edits at a component's output, in front of its projection, or at both: one more pass is for others alone."""

    def passes(*names: str) -> int:
        edit = edit_at(tiny, "blocks.0.hook_resid_post", *(f"blocks.1.{name}" for name in names))
        trace(tiny, edit, causal=False)  # guards and fingerprints have run
        with Forwards(tiny) as forwards:
            trace(tiny, edit, causal=False)
        return forwards.count

    written = passes()
    assert passes("hook_attn_out") == passes("attn.hook_z") == passes("attn.hook_z", "hook_attn_out") == written
    assert passes("attn.hook_v") == passes("attn.hook_v", "hook_attn_out") == written + 1


def test_the_law_of_neutral_texts(tiny: Any) -> None:
    edit = edit_at(tiny, "blocks.0.hook_resid_post")
    law = trace(tiny, edit, neutral=NEUTRAL, causal=False).law.set_index("measure")
    assert law.loc["mean", "value"] == pytest.approx(ls.divergence(tiny, NEUTRAL, intervention=edit, progress=False))
    assert law.loc["p99", "value"] > law.loc["mean", "value"]
    assert (law["low"] >= 0).all()
    assert (law["low"] <= law["value"]).all()


def test_a_law_that_no_edit_touches_does_not_move(tiny: Any) -> None:
    """Null: an edit of tokens that neutral texts do not hold."""
    only = Scope.of_tokens(["sad"], tiny.tokenizer)
    edit = edit_at(tiny, "blocks.0.hook_resid_post").scoped(only)
    neutral = [text for text in sentences(30, seed=6) if "sad" not in text.split()]
    with pytest.warns(LensSteerWarning, match="no token was in the scope"):
        law = trace(tiny, edit, neutral=neutral, causal=False).law
    assert (law[["value", "low", "high"]].to_numpy() == 0).all()


def test_what_cannot_be_traced_is_refused(tiny: Any) -> None:
    edit = edit_at(tiny, "blocks.1.hook_resid_pre")
    identity = Intervention((Edit(edit.sites[0], DiagonalAffine.identity(32)),))
    with pytest.raises(SettingError, match="nothing to trace"):
        trace(tiny, identity)
    with pytest.raises(SettingError, match="nothing to trace: at strength 0"):
        trace(tiny, edit, strength=0.0)
    with pytest.raises(SettingError, match="no token that the pool 'mean' reads is changed"):
        trace(tiny, edit.scoped(Scope.of_tokens(["night"], tiny.tokenizer)), _without("night"))
    with pytest.raises(SettingError, match="sum of maxima"):
        trace(tiny, edit, pool="max")
    with pytest.raises(SettingError, match="confidence"):
        trace(tiny, edit, confidence=1.0)
    with pytest.raises(SiteError, match="every edit lies behind blocks.0.hook_resid_post"):
        trace(tiny, edit, site="blocks.0.hook_resid_post")
    with pytest.raises(SiteError, match="not the residual stream between two layers"):
        trace(tiny, edit, site="blocks.1.hook_mlp_out")
    with pytest.raises(SiteError, match="no site is named"):
        trace(tiny, edit, site="blocks.9.hook_resid_post")
    with pytest.raises(TokenError):
        trace(tiny, edit, words=["unheard-of"])


@pytest.mark.plain
def test_an_unknown_measure_is_refused(tiny: Any) -> None:
    with pytest.raises(SettingError, match="measure is one of"):
        trace(tiny, edit_at(tiny, LAST)).matrix("moved")  # type: ignore[arg-type]


def _without(word: str) -> ContrastSet:
    sides = ([text for text in side if word not in text.split()] for side in (CONTRAST.source, CONTRAST.target))
    return ContrastSet(*sides)


def granite() -> Any:
    """A family that scales what its branches add."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model("granite", **sizes, **special, residual_multiplier=0.2, initializer_range=0.3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_model(AutoModelForCausalLM.from_config(config), tokenizer=make_tokenizer())


def test_scaled_branches_add_up_as_they_are_added() -> None:
    model = granite()
    sums_of(trace(model, edit_at(model, "blocks.0.mlp.hook_post", "blocks.0.attn.hook_z")))


def test_a_model_whose_parts_are_not_its_stream_is_refused() -> None:
    model = granite()
    layer = model.blocks[1].original_component
    layer.register_forward_hook(
        lambda module, given, output: (
            1.1 * output if isinstance(output, torch.Tensor) else (1.1 * output[0], *output[1:])
        )
    )
    with pytest.raises(ModelError, match="layer 1 of this model adds other things"):
        find_components(model)


def test_sentences_follow_from_intervals(tiny: Any) -> None:
    """What is named was shown, all at once; a single text has no intervals and names nothing."""
    result = trace(tiny, edit_at(tiny, "blocks.0.hook_resid_post", size=0.5), causal=False)
    assert result.sentence in repr(result)
    assert result.sentence in result._repr_html_()
    adds = result.frame.query("measure == 'adds' and part in ('attention', 'mlp')")
    for row in adds.to_dict("records"):
        named = f"{row['part'] if row['part'] == 'attention' else 'MLP'} of layer {row['layer']}" in result.sentence
        assert not named or not row["low"] <= 0 <= row["high"]


def test_layers_that_follow_each_other_are_named_together() -> None:
    """Largest in all first, each side by itself; what is not shown is left out; small shares with one more digit."""
    adds = {("whole", -1): 1.0, ("direct", -1): 0.7, ("through", -1): 0.3}
    adds |= {("attention", layer): share for layer, share in ((1, 0.1), (2, 0.15), (4, 0.009), (5, -0.02), (6, -0.08))}
    adds |= {("mlp", 3): 0.05}
    noise = np.random.default_rng(0).normal(size=(9, len(adds))) * [*[1e-4] * 8, 0.1]
    estimates = {
        Key(part, layer, -1, "here", "adds"): Measured(np.r_[share, share + noise[:, place]], np.ones(10))
        for place, ((part, layer), share) in enumerate(adds.items())
    }
    result = TraceShift.of(estimates, [], {}, settings={"confidence": 0.95, "method": "AurA", "site": "here"})
    assert result.sentence.startswith("AurA goes 100% [100%, 100%] of the way to the target at here: 70% [70%, 70%] by")
    onward = "the attention of layers 1 to 2 (+25%), the attention of layer 4 (+0.9%)"
    assert f"; shown to add to it: {onward}; shown to work against it: the attention of layers 5 to 6 (-10%)" in (
        result.sentence
    )


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_one_text_of_a_side_has_no_intervals_and_no_way(tiny: Any) -> None:
    edit, single = edit_at(tiny, "blocks.0.hook_resid_post"), ContrastSet(["sad"], ["happy"])
    few = trace(tiny, edit, single, neutral=NEUTRAL[:1], words=["happy"], causal=False)
    assert "cannot be judged" in few.sentence
    for table, value in ((few.words, "after"), (few.law, "value")):
        assert table[value].gt(0).all()
        assert table[["low", "high"]].isna().all(axis=None), table
