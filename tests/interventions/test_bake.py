"""Baking: the plain model gives the hooked model's logits; what cannot be folded is refused with the reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from lens_steer.errors import ArtifactError, LensSteerError, MapError, ModelError, SettingError, SiteError
from lens_steer.host.scope import Scope
from lens_steer.host.sites import Site, find_sites
from lens_steer.host.weights import PlainWeights
from lens_steer.interventions import bake as bake_room
from lens_steer.interventions import folding
from lens_steer.interventions.ablation import ablate
from lens_steer.interventions.bake import bake
from lens_steer.interventions.folding import map_inputs, map_outputs, why_not_bakeable
from lens_steer.interventions.gated_map import Gated, LogisticGate
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.low_rank import LowRankAffine
from lens_steer.interventions.maps import ActivationMap, Chain, DiagonalAffine
from lens_steer.interventions.project_out import ProjectOut
from lens_steer.interventions.resample import Resample
from lens_steer.interventions.row_gate import RowGate
from lens_steer.methods.aura import AurA
from lens_steer.methods.caa import CAA
from lens_steer.methods.lineas import LinEAS
from lens_steer.texts.contrast import ContrastSet
from tests.compat import make_hooked_tiny
from tests.families import make_tiny, sentences, shared_tiny
from tests.handles import handles

TOLERANCE = 1e-5
IDS = torch.tensor([[1, 5, 9, 7, 30, 31, 12, 40, 8], [1, 44, 6, 51, 33, 20, 9, 9, 2]])

ATTENTION = [f"attn.hook_{name}" for name in "qkvz"] + [f"attn.{name}.hook_in" for name in "qkv"] + ["attn.hook_in"]
ATTENTION += ["attn.o.hook_out", "attn.hook_out", "ln1.hook_out", "ln1.hook_normalized"]
MLP = ["mlp.hook_pre", "mlp.hook_post", "mlp.out.hook_out", "mlp.hook_out", "mlp.in.hook_in", "mlp.hook_in"]
MLP += ["ln2.hook_out", "ln2.hook_normalized"]
GATED = ["mlp.hook_pre_linear", "mlp.gate.hook_in"]
BRANCHES = ["hook_attn_out", "hook_mlp_out"]  # on Gemma-2 these are the post-norms
POST_NORMS = [f"{norm}.{hook}" for norm in ("ln1_post", "ln2_post") for hook in ("hook_out", "hook_normalized")]
STREAM = ["hook_resid_pre", "hook_resid_post"]
QKV = [f"attn.hook_{name}" for name in "qkv"] + [f"attn.{name}.hook_in" for name in "qkv"] + ["attn.hook_in"]
PRE_ATTENTION = [*QKV, "ln1.hook_out", "ln1.hook_normalized"]

SCALED = {
    "gpt2": [*ATTENTION, *MLP, *BRANCHES],
    "gpt_neox": [*ATTENTION, *MLP, *BRANCHES],
    "gpt_neo": [*ATTENTION, *MLP, *BRANCHES],
    "llama": [*ATTENTION, *MLP, *GATED, *BRANCHES],
    "qwen2": [*ATTENTION, *MLP, *GATED, *BRANCHES],
    "mistral": [*ATTENTION, *MLP, *GATED, *BRANCHES],
    "gemma2": [*ATTENTION, *MLP, *GATED, *BRANCHES, *POST_NORMS],
}
SHIFTED = {
    "gpt2": [*SCALED["gpt2"], *STREAM],
    "gpt_neox": [*SCALED["gpt_neox"], *STREAM],
    "gpt_neo": [kind for kind in [*SCALED["gpt_neo"], *STREAM] if kind not in QKV],
    "llama": [*SCALED["llama"], *STREAM],  # its embeddings are tied in stories260K, not in the tiny one
    "qwen2": PRE_ATTENTION,
    "mistral": [],
    "gemma2": ATTENTION,
}
# One family of each layout, kind by kind; all kinds at once on every family, below.
CASES = [(family, kind) for family in ("gpt2", "gpt_neox", "llama", "gemma2") for kind in SCALED[family]]


def random_map(width: int, seed: int, *, scaled: bool = True, shifted: bool = True) -> DiagonalAffine:
    generator = torch.Generator().manual_seed(seed)
    scale, shift = 1 + 0.3 * torch.randn(width, generator=generator), 0.3 * torch.randn(width, generator=generator)
    return DiagonalAffine(scale if scaled else torch.ones(width), shift if shifted else torch.zeros(width))


def random_edits(
    model: Any, kinds: Sequence[str] | str, *, seed: int = 0, layers: Sequence[int] | None = None, **settings: bool
) -> Intervention:
    kinds = [kinds] if isinstance(kinds, str) else kinds
    sites = [site for kind in kinds for site in find_sites(model, kind, layers=layers)]
    edits = [Edit(site, random_map(site.width, seed + place, **settings)) for place, site in enumerate(sites)]
    return Intervention(tuple(edits))


def projections(model: Any, kind: str, *, seed: int = 0) -> Intervention:
    """Return a projection at every site of a kind, each of a direction of its own."""
    generator = torch.Generator().manual_seed(seed)
    sites = find_sites(model, kind)
    return Intervention(tuple(Edit(s, ProjectOut(torch.randn(s.width, generator=generator))) for s in sites))


def low_rank(width: int, seed: int) -> LowRankAffine:
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(width, 3, generator=generator)).Q.T
    return LowRankAffine(rotation, torch.randn(3, width, generator=generator), torch.randn(3, generator=generator))


def plain_logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        out: torch.Tensor = model(input_ids=ids).logits
    return out


def hooked_logits(model: Any, edit: Intervention, strength: float = 1.0) -> torch.Tensor:
    with edit.on(model, strength):
        return plain_logits(model.original_model)


def difference(baked: Any, hooked: torch.Tensor) -> float:
    """Largest difference in logits, in shares of the largest logit."""
    return float((plain_logits(baked) - hooked).abs().max() / hooked.abs().max())


def assert_bakes(model: Any, edit: Intervention, strength: float = 1.0) -> None:
    hooked = hooked_logits(model, edit, strength)
    assert not torch.allclose(hooked, plain_logits(model.original_model), rtol=1e-3, atol=1e-3)
    assert difference(bake(model, edit, strength), hooked) < TOLERANCE


def everything(model: Any, *, seed: int = 0, layers: Sequence[int] | None = None) -> Intervention:
    """Edit every site that can be folded at once, with a shift where there can be one, listed from last to first."""
    family = model.original_model.config.model_type
    tied = family == "llama" and model.original_model.config.tie_word_embeddings
    shifted = [kind for kind in SHIFTED[family] if not (tied and kind == "hook_resid_pre")]
    scale_only = [kind for kind in SCALED[family] if kind not in shifted]
    parts = [random_edits(model, [k for k in shifted if k not in STREAM], seed=seed, layers=layers)] if shifted else []
    parts += [random_edits(model, scale_only, seed=seed + 100, shifted=False, layers=layers)] if scale_only else []
    stream = [kind for kind in STREAM if kind in shifted]
    parts += [random_edits(model, stream, seed=seed + 200, scaled=False, layers=layers)] if stream else []
    edits = [edit for part in parts for edit in part.edits]
    # Half as far from the identity: so many random maps on end would drown the model.
    return Intervention(tuple(reversed(edits))).scaled(0.5)


class TestEveryFamily:
    @pytest.mark.parametrize(("family", "kind"), CASES)
    def test_a_scale_and_where_there_can_be_one_a_shift(self, family: str, kind: str) -> None:
        model = shared_tiny(family)
        assert_bakes(model, random_edits(model, kind, seed=1, shifted=kind in SHIFTED[family]))

    def test_what_takes_a_scale_and_what_a_shift(self, family: Any) -> None:
        name = family.original_model.config.model_type
        for kind in SCALED[name]:
            assert why_not_bakeable(random_edits(family, kind, shifted=False).edits, family) is None
            refused = why_not_bakeable(random_edits(family, kind).edits, family)
            assert (refused is None) == (kind in SHIFTED[name])
            assert refused is None or re.search(r"cannot be baked: .* bias.*Nearest: a (scale|shift)", refused)
        for kind in STREAM:
            refused = why_not_bakeable(random_edits(family, kind, scaled=False).edits, family)
            assert (refused is None) == (kind in SHIFTED[name])
            assert refused is None or re.search("needs a bias|norm stands between|embedding is scaled or tied", refused)
            scaled = why_not_bakeable(random_edits(family, kind).edits, family)
            assert re.search(r"scales 32 units of the residual stream.*Nearest: a shift", scaled or "")

    @pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
    @pytest.mark.parametrize("kind", STREAM)
    def test_the_stream_takes_a_shift(self, family: str, kind: str) -> None:
        model = shared_tiny(family)
        assert_bakes(model, random_edits(model, kind, seed=2, scaled=False))

    @pytest.mark.compat
    @pytest.mark.parametrize("strength", [1.0, -0.7])
    def test_all_sites_of_every_block_at_once(self, family: Any, strength: float) -> None:
        assert_bakes(family, everything(family), strength)

    def test_strength_zero_is_the_plain_model(self, distinct_family: Any) -> None:
        family = distinct_family
        baked = bake(family, random_edits(family, "hook_resid_post").scoped("last"), 0.0)
        assert difference(baked, plain_logits(family.original_model)) < TOLERANCE
        own = {name.replace("._original_component", ""): v for name, v in family.original_model.state_dict().items()}
        assert all(torch.equal(value, own[name]) for name, value in baked.state_dict().items())

    def test_biases_are_switched_on_where_needed_only(self) -> None:
        llama = shared_tiny("llama")
        damped = bake(llama, random_edits(llama, "mlp.hook_post", shifted=False))
        assert (damped.config.mlp_bias, damped.config.attention_bias) == (False, False)
        shifted = bake(llama, random_edits(llama, "mlp.hook_post"))
        assert shifted.config.mlp_bias
        assert not shifted.config.attention_bias
        assert not llama.original_model.config.mlp_bias


class TestProjectingOut:
    """W and b times I - v v^T, and every other place where units may be mixed."""

    @pytest.mark.parametrize(("kind", "strength"), [("hook_attn_out", 1.0), ("hook_mlp_out", 0.6)])
    def test_of_a_branch(self, family: Any, kind: str, strength: float) -> None:
        edit = projections(family, kind)
        if family.original_model.config.model_type == "gemma2":
            with pytest.raises(MapError, match=r"mixes units where the norm's weight.*Nearest: attn.o.hook_out or mlp"):
                bake(family, edit, strength)
            edit = projections(family, {"hook_attn_out": "attn.o.hook_out", "hook_mlp_out": "mlp.out.hook_out"}[kind])
        assert_bakes(family, edit, strength)

    def test_nothing_is_left_along_the_direction(self, tiny: Any) -> None:
        edit = projections(tiny, "hook_mlp_out")
        for block, of_site in zip(bake(tiny, edit).transformer.h, edit.edits, strict=True):
            assert isinstance(of_site.map, ProjectOut)
            weight, bias = (value.detach() for value in block.mlp.c_proj.parameters())  # Conv1D: [in, out]
            assert float((weight @ of_site.map.direction).abs().max()) < 1e-6
            assert abs(float(bias @ of_site.map.direction)) < 1e-6

    @pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
    def test_wherever_units_may_be_mixed(self, family: str) -> None:
        model = shared_tiny(family)
        edits = []
        for kind in SCALED[family]:
            edit = projections(model, kind)
            if kind.endswith("hook_normalized"):
                refused = why_not_bakeable(edit.edits, model) or ""
                assert re.search(r"mixes units where the norm's weight.*Nearest: the norm's hook_out", refused)
            else:
                edits += edit.edits
        assert_bakes(model, Intervention(tuple(edits)), 0.5)  # at whole strength so many would leave nothing
        for edit in edits[:: 2 * len(family)]:  # and a few alone
            assert_bakes(model, Intervention((edit,)))

    def test_among_other_maps_at_its_site(self, tiny: Any) -> None:
        diagonal, out = random_edits(tiny, "hook_mlp_out", seed=3), projections(tiny, "hook_mlp_out")
        (twice,) = projections(tiny, "blocks.0.hook_mlp_out", seed=9).edits
        assert isinstance(diagonal.then(out).edits[0].map, Chain)
        for edit in (diagonal.then(out), out.then(diagonal), out.then(Intervention((twice,))).then(diagonal)):
            assert_bakes(tiny, edit)
            assert_bakes(tiny, edit, 0.5)
        other_name = Edit(find_sites(tiny, "blocks.0.mlp.out.hook_out")[0], random_map(32, 4))
        assert_bakes(tiny, Intervention((*out.edits, other_name)))
        assert_bakes(tiny, Intervention((other_name, *out.edits)))

    @pytest.mark.parametrize("kind", ["hook_mlp_out", "hook_attn_out", "mlp.hook_post", "ln2.hook_out"])
    def test_any_affine_map_goes_the_same_way(self, tiny: Any, kind: str) -> None:
        edits = [Edit(site, low_rank(site.width, place)) for place, site in enumerate(find_sites(tiny, kind))]
        assert_bakes(tiny, Intervention(tuple(edits)).then(projections(tiny, kind)), 0.7)

    def test_not_of_the_stream(self, family: Any) -> None:
        for kind in STREAM:
            refused = why_not_bakeable(projections(family, kind).edits, family) or ""
            assert re.search(r"mixes 32 units of the residual stream.*Nearest: .*hook_mlp_out", refused)

    @pytest.mark.real
    def test_of_real_branches(self, real_model: Any) -> None:
        assert_bakes(real_model, projections(real_model, "hook_attn_out").then(projections(real_model, "hook_mlp_out")))


class TestComposition:
    def test_edits_at_one_site_act_in_turn(self, tiny: Any) -> None:
        first = random_edits(tiny, ["mlp.hook_post", "hook_mlp_out", "ln2.hook_out"], seed=1)
        second = random_edits(tiny, ["mlp.out.hook_in", "mlp.hook_out", "ln2.hook_out"], seed=2)
        edits = (*first.edits, *second.edits)
        assert_bakes(tiny, Intervention(edits))
        assert_bakes(tiny, Intervention(tuple(reversed(edits))))
        baked = [plain_logits(bake(tiny, Intervention(e))) for e in (edits, tuple(reversed(edits)))]
        assert not torch.allclose(*baked, rtol=1e-3, atol=1e-3)

    def test_a_bias_that_was_switched_on_can_be_scaled_away(self) -> None:
        llama = shared_tiny("llama")
        shift = random_edits(llama, "mlp.out.hook_out", scaled=False)
        (site, *_) = find_sites(llama, "mlp.hook_out")
        zero = Edit(site, DiagonalAffine(torch.zeros(site.width), torch.zeros(site.width)))
        assert_bakes(llama, Intervention((*shift.edits, zero)))

    def test_an_identity_needs_no_weights(self) -> None:
        mistral = shared_tiny("mistral")
        edits = [Edit(site, DiagonalAffine.identity(site.width)) for site in find_sites(mistral, "hook_resid_post")]
        edits += random_edits(mistral, "mlp.hook_post", shifted=False).edits
        assert_bakes(mistral, Intervention(tuple(edits)))

    def test_an_interval_without_ends_is_none(self, tiny: Any) -> None:
        (site, *_) = find_sites(tiny, "mlp.hook_post")
        ends = torch.full((site.width,), float("inf"))
        free = random_map(site.width, 0)
        assert_bakes(tiny, Intervention((Edit(site, DiagonalAffine(free.scale, free.shift, low=-ends, high=ends)),)))

    @given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 6))
    def test_the_numeric_rules(self, seed: int, n_in: int, n_out: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        weight, bias, x = draw(n_out, n_in), draw(n_out), draw(3, n_in)
        (before, shift), (after, late) = (draw(2, n_in), draw(2, n_out))
        new_weight, new_bias = map_outputs(*map_inputs(weight, bias, before, shift), after, late)
        expected = after * ((before * x + shift) @ weight.T + bias) + late
        torch.testing.assert_close(x @ new_weight.T + new_bias, expected)


class TestThePlainModel:
    @pytest.mark.parametrize("family", ["gpt2", "llama"])
    def test_the_hosted_model_is_untouched(self, family: str) -> None:
        model = make_tiny(family)
        edit = everything(model)
        before = {name: value.clone() for name, value in model.original_model.state_dict().items()}
        config, there, plain = model.original_model.config.to_dict(), handles(model), plain_logits(model.original_model)
        edited, state = hooked_logits(model, edit), torch.get_rng_state()
        baked = bake(model, edit)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, before[name]) for name, value in model.original_model.state_dict().items())
        assert (model.original_model.config.to_dict(), handles(model)) == (config, there)
        own = {p.data_ptr() for p in (*model.original_model.parameters(), *model.original_model.buffers())}
        assert not own & {p.data_ptr() for p in (*baked.parameters(), *baked.buffers())}
        with torch.no_grad():
            for parameter in baked.parameters():
                parameter.zero_()
        assert torch.equal(plain_logits(model.original_model), plain)
        assert torch.equal(hooked_logits(model, edit), edited)

    def test_it_is_plain_transformers(self) -> None:
        gpt2 = shared_tiny("gpt2")
        baked = bake(gpt2, random_edits(gpt2, "mlp.hook_post"))
        assert all(not type(module).__module__.startswith("transformer_lens") for module in baked.modules())
        assert not baked.training
        assert baked.lm_head.weight is baked.transformer.wte.weight
        assert baked.generation_config.eos_token_id == gpt2.original_model.generation_config.eos_token_id
        assert not baked.config.output_attentions
        assert len(baked.generate(IDS[:1], max_new_tokens=3, do_sample=False)[0]) == IDS.shape[1] + 3

    def test_what_hangs_on_the_model_is_left_out(self, tiny: Any) -> None:
        edit = random_edits(tiny, "mlp.hook_post")
        hooked = hooked_logits(tiny, edit)
        with random_edits(tiny, "hook_resid_post").on(tiny):
            baked = bake(tiny, edit)
        assert difference(baked, hooked) < TOLERANCE

    def test_half_precision_is_kept(self) -> None:
        half = make_tiny("gpt2")
        half.to(torch.bfloat16)
        baked = bake(half, random_edits(half, "mlp.hook_post"))
        assert {parameter.dtype for parameter in baked.parameters()} == {torch.bfloat16}

    def test_a_wrong_fold_of_a_weak_edit_does_not_pass(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """In bfloat16 a weak edit is smaller than the rounding of any logit; that it is left out must show."""
        half = make_tiny("gpt2")
        half.to(torch.bfloat16)
        weak = random_edits(half, "mlp.hook_post").scaled(0.1)
        bake(half, weak)
        monkeypatch.setattr(bake_room, "planned_writes", lambda weights, host, edits: [])
        with pytest.raises(ModelError, match=r"change the logits -?0.0\d times as much as the hooks do"):
            bake(half, weak)
        # Nothing to fold, nothing lost.
        bake(half, weak, 0.0)

    def test_plain_transformers_loads_what_was_saved(self, tmp_path: Path) -> None:
        for family in ("gpt2", "llama", "qwen2", "gemma2"):
            baked = bake(shared_tiny(family), everything(shared_tiny(family)))
            baked.save_pretrained(tmp_path / family)
            model = AutoModelForCausalLM.from_pretrained(tmp_path / family)
            assert type(model).__module__.startswith("transformers.models.")
            assert torch.equal(plain_logits(model), plain_logits(baked))
            tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
            assert tied == (family in ("gpt2", "gemma2"))


@pytest.mark.real
class TestRealModels:
    def test_every_site_at_once(self, real_model: Any) -> None:
        edit = everything(real_model, layers=(0, 1, -1))
        assert_bakes(real_model, edit.scaled(0.5), 0.5)  # whole strength: the fitted ones below

    @pytest.mark.parametrize(
        "method",
        [
            AurA(),
            AurA(sites="paper:aura"),
            CAA(),
            LinEAS.paper(sites="paper:lineas", steps=5, optimizer="adam", lr=0.02, progress=False),
        ],
        ids=["aura", "aura's own sites", "caa", "lineas"],
    )
    def test_fitted_interventions(self, method: Any, real_model: Any, shared: Path) -> None:
        from lens_steer.texts.readers import read_contrast

        contrast = read_contrast(shared / "data" / "story_concepts" / "sad.json", n=12)
        assert_bakes(real_model, method.fit(real_model, contrast))


def bounded(width: int) -> DiagonalAffine:
    free = random_map(width, 0)
    return DiagonalAffine(free.scale, free.shift, low=-torch.ones(width), high=torch.ones(width))


class Cube(ActivationMap):
    """A map that is not affine."""

    width = 32  # type: ignore[assignment]

    unit_by_unit = True  # type: ignore[assignment]

    def act(self, h: torch.Tensor, rows: Any) -> torch.Tensor:
        return h**3

    def scaled(self, strength: float) -> ActivationMap:
        return self

    then = inverse = restrict = moved = rebuilt = None  # type: ignore[assignment]


class TestRefusals:
    @pytest.mark.parametrize(
        ("kind", "made", "message"),
        [
            ("hook_mlp_out", bounded, r"hook_mlp_out cannot be baked: 32 units are mapped inside an interval only"),
            (
                "hook_mlp_out",
                lambda w: Chain((random_map(w, 1), bounded(w))),
                r"32 units are mapped inside an interval",
            ),
            ("hook_mlp_out", lambda w: Cube(), r"its map is a Cube, weights can only scale, mix and shift units"),
            ("hook_mlp_out", lambda w: Chain((random_map(w, 1), Cube())), r"its map is a Cube"),
            (
                "hook_mlp_out",
                lambda w: Gated(random_map(w, 1), LogisticGate(torch.ones(w), 0.0)),
                r"its map is a Gated, its gate decides token by token how far it acts",
            ),
            (
                "hook_mlp_out",
                lambda w: Resample(w, torch.arange(2), torch.zeros(3, 2)),
                r"every row has drawn a constant of its own, and weights know no rows",
            ),
            ("hook_resid_post", lambda w: low_rank(w, 0), r"mixes 32 units of the residual stream"),
        ],
    )
    def test_maps(self, tiny: Any, kind: str, made: Any, message: str) -> None:
        (site, *_) = find_sites(tiny, kind)
        with pytest.raises(MapError, match=message + r".*Nearest: .*with intervention.on\(model\)"):
            bake(tiny, Intervention((Edit(site, made(site.width)),)))

    def test_gates(self, tiny: Any) -> None:
        edit = random_edits(tiny, "hook_mlp_out")
        gate = RowGate(edit.sites[0], torch.ones(32), 0.5)
        with pytest.raises(MapError, match=r"a gate decides on the prompt of each row.*Nearest: .*without its gate"):
            bake(tiny, edit.gated(gate))

    @pytest.mark.parametrize("scope", ["prompt", "last", Scope.from_position(2)])
    def test_scopes(self, tiny: Any, scope: Any) -> None:
        edit = random_edits(tiny, "hook_mlp_out")
        with pytest.raises(MapError, match=r"for some tokens only .*weights act on every one. Nearest: ") as refused:
            bake(tiny, edit.scoped(scope))
        # Widening a window of positions gives another edit: only a named scope is worth widening.
        assert ('scoped("all")' in str(refused.value)) == isinstance(scope, str)
        with pytest.raises(MapError, match="for some tokens only"):
            bake(tiny, edit.then(edit.scoped(scope)))

    @pytest.mark.parametrize(
        ("family", "kind", "message"),
        [
            (
                "llama",
                "attn.hook_rot_q",
                r"hook_rot_q cannot be baked: no weights stand directly beside it.*attn.hook_q",
            ),
            ("llama", "ln2.hook_in", r"ln2.hook_in cannot be baked: no weights stand directly beside it"),
            ("mistral", "mlp.hook_post", r"mistral's model.layers.\d.mlp.down_proj has none.*Nearest: a scale without"),
            ("qwen2", "attn.hook_z", r"qwen2's model.layers.\d.self_attn.o_proj has none"),
            ("gemma2", "hook_mlp_out", r"this norm has no bias, and no projection reads it"),
        ],
    )
    def test_sites(self, family: str, kind: str, message: str) -> None:
        model = shared_tiny(family)
        before = plain_logits(model.original_model)
        try:
            edit = random_edits(model, kind)
            with pytest.raises(MapError, match=message):
                bake(model, edit)
        finally:
            assert torch.equal(plain_logits(model.original_model), before)

    def test_lineas_at_the_stream(self, tiny: Any) -> None:
        contrast = ContrastSet(sentences(8, must="sad"), sentences(8, seed=1, must="happy"))
        with pytest.raises(MapError, match=r"scales 32 units of the residual stream.*Nearest: .*paper:lineas"):
            bake(tiny, LinEAS.paper(steps=4, optimizer="adam", lr=0.02, progress=False).fit(tiny, contrast))

    @pytest.mark.real
    def test_the_nearest_bias_is_named(self, tinytalk: Any) -> None:
        with pytest.raises(MapError, match=r"q_proj has none .*Nearest: a shift at attn.hook_z or hook_attn_out"):
            bake(tinytalk, random_edits(tinytalk, "attn.hook_q"))

    def test_models(self, tiny: Any) -> None:
        fitted = Intervention.fitted(tiny, random_edits(tiny, "hook_mlp_out").edits)
        other = make_tiny("gpt2", seed=5)
        with pytest.raises(ArtifactError, match="fitted on other weights"):
            bake(other, fitted)
        with fitted.on(other, check_model=False):
            hooked = plain_logits(other.original_model)
        assert difference(bake(other, fitted, check_model=False), hooked) < TOLERANCE
        with pytest.raises(SiteError, match="has 32 units in this model, the edit has 99"):
            wide = Site("blocks.0.hook_mlp_out", 0, "hook_mlp_out", 99)
            bake(tiny, Intervention((Edit(wide, random_map(99, 0)),)))
        with pytest.raises(SiteError, match="MLP branch only"):
            bake(tiny, random_edits(tiny, "hook_resid_mid", scaled=False))
        with pytest.raises(SettingError, match="finite number"):
            bake(tiny, random_edits(tiny, "hook_mlp_out"), float("nan"))
        with pytest.raises(ModelError, match="TransformerLens model is needed"):
            bake(torch.nn.Linear(2, 2), random_edits(tiny, "hook_mlp_out"))

    def test_processed_weights(self) -> None:
        model = make_tiny("gpt2")
        edit = ablate([("blocks.0.mlp.hook_post", 3)], model=model)
        model.enable_compatibility_mode()
        with pytest.raises(ModelError, match=r"enable_compatibility_mode\(\) has folded.*load_model\(dir\)"):
            bake(model, edit)

    def test_an_architecture_that_says_something_else(self, tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(folding._OUTGOING, "attn.hook_out", (folding._fold_outputs, ("mlp.out",)))
        with pytest.raises(ModelError, match="differ from the hooked model's"):
            bake(tiny, random_edits(tiny, "hook_attn_out"))

    @pytest.mark.compat
    def test_a_hooked_transformer(self) -> None:
        model = make_hooked_tiny()
        with pytest.raises(ModelError, match=r"HookedTransformer holds no Hugging Face model.*load_model\(dir\)"):
            bake(model, ablate([("blocks.0.mlp.hook_post", 3)], model=model))

    def test_every_refusal_is_ours(self, distinct_family: Any) -> None:
        """Whatever site is asked for, the answer is a model or one clear error."""
        family = distinct_family
        kinds = sorted(
            {site.kind for site in find_sites(family, "blocks.0.*")}
            - {*SCALED[family.original_model.config.model_type]}
        )
        for kind in kinds:
            edit = random_edits(family, f"blocks.0.{kind}")
            try:
                bake(family, edit)
            except MapError as error:
                assert "blocks.0." in str(error)
                assert why_not_bakeable(edit.edits, family) == str(error)
            except LensSteerError as error:
                assert "blocks.0." in str(error)
            else:
                assert why_not_bakeable(edit.edits, family) is None

    @pytest.mark.parametrize("family", ["gpt2", "llama"])
    def test_they_are_known_beforehand_without_a_weight_read(
        self, family: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = shared_tiny(family)
        for name in ("read", "read_norm", "build"):
            monkeypatch.setattr(PlainWeights, name, None)
        assert why_not_bakeable(everything(model).edits, model) is None
        scaled = random_edits(model, "hook_resid_post")
        assert "of the residual stream" in (why_not_bakeable(scaled.edits, model) or "")
        # Which weights stand beside a site only a model tells; which tokens are meant, the edit itself.
        assert why_not_bakeable(scaled.edits) is None
        assert "for some tokens only" in (why_not_bakeable(scaled.scoped("last").edits) or "")
        assert "TransformerLens model is needed" in (why_not_bakeable(scaled.edits, torch.nn.Linear(2, 2)) or "")
