"""Sites: patterns, order, widths, heads and the papers' presets, on every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from lens_steer.errors import SiteError
from lens_steer.host.adapter import host_of
from lens_steer.host.guards import check_edit_sites
from lens_steer.host.load import load_model
from lens_steer.host.sites import Site, find_sites, split_name
from tests.families import CONFIGS, make_tiny, make_tokenizer
from tests.handles import handles

pytestmark = pytest.mark.compat

# Public configurations: layers, width of the stream, and what LinEAS has to learn at the papers' sites (METHODS.md).
PUBLIC = {
    "Gemma-2-2B": ("gemma2", 26, 2304, 239_616),
    "Qwen2.5-1.5B": ("qwen2", 28, 1536, 86_016),
    "Qwen2.5-7B": ("qwen2", 28, 3584, 200_704),
}


def kinds(model: Any, pattern: str) -> list[str]:
    return [site.kind for site in find_sites(model, pattern, layers=[0])]


def family_of(model: Any) -> str:
    return str(model.original_model.config.model_type)


def test_widths_and_heads(family: Any) -> None:
    name = family_of(family)
    keys = CONFIGS[name].get("num_key_value_heads", 4)
    expected = {
        "hook_resid_post": (32, 1),
        "hook_mlp_out": (32, 1),
        "mlp.hook_post": (128 if name == "gpt2" else 48, 1),
        "attn.hook_z": (32, 4),
        "attn.hook_q": (32, 4),
        "attn.hook_k": (8 * keys, keys),
        "attn.hook_v": (8 * keys, keys),
    }
    for kind, (width, heads) in expected.items():
        sites = find_sites(family, kind)
        assert [(s.name, s.layer, s.kind) for s in sites] == [(f"blocks.{n}.{kind}", n, kind) for n in (0, 1)]
        assert {(s.width, s.heads) for s in sites} == {(width, heads)}, kind


def test_widths_are_those_that_a_hook_sees(family: Any) -> None:
    sites = find_sites(family, "blocks.*")
    seen: dict[str, torch.Size] = {}
    hooks = [(s.name, lambda t, hook, name=s.name: seen.update({name: t.shape})) for s in sites]
    with torch.no_grad(), family.hooks(fwd_hooks=hooks):
        family(torch.tensor([[1, 5, 9, 7, 30, 31, 8]]))
    for site in sites:
        shape = seen[site.name]
        assert shape[:2] == (1, 7)
        assert site.width == shape[2:].numel(), site
        assert site.heads == (shape[2] if len(shape) == 4 else 1), site


def test_order_is_that_of_a_forward_pass(family: Any) -> None:
    asked = ["hook_resid_post", "mlp.hook_post", "hook_mlp_out", "attn.hook_v", "hook_resid_pre", "attn.hook_z"]
    found = [site.name for site in find_sites(family, asked)]
    fired: list[str] = []
    hooks = [(name, lambda t, hook, name=name: fired.append(name)) for name in sorted(found)]
    with torch.no_grad(), family.hooks(fwd_hooks=hooks):
        family(torch.tensor([[1, 5, 9, 7]]))
    assert found == fired
    assert found == [site.name for site in find_sites(family, asked[::-1])]


def test_a_glob_gives_every_hook_point_once_by_its_classical_name(family: Any) -> None:
    host = host_of(family)
    sites = find_sites(family, "*")
    points = [host.canonical(site.name) for site in sites]
    assert len(set(points)) == len(points)
    names = {site.kind for site in sites}
    assert {"hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out", "attn.hook_z"} <= names
    assert not {"hook_in", "hook_out", "attn.o.hook_in", "mlp.out.hook_in"} & names


def test_patterns(tiny: Any) -> None:
    def names(*arguments: Any, **settings: Any) -> list[str]:
        return [site.name for site in find_sites(tiny, *arguments, **settings)]

    both = ["blocks.0.mlp.hook_post", "blocks.1.mlp.hook_post"]
    assert names("mlp.hook_post") == both
    assert names("blocks.1.mlp.hook_post") == both[1:]
    assert names("blocks.[01].mlp.hook_p?st") == both
    assert names("mlp.hook_p?st", layers=[-1]) == both[1:]
    assert names(["mlp.hook_post", "blocks.*.mlp.hook_post", both[0]]) == both
    assert names(("mlp.hook_post", "hook_resid_post"), layers=(0,)) == [both[0], "blocks.0.hook_resid_post"]
    assert names("attn.hook_[qkv]", layers=[0]) == [f"blocks.0.attn.hook_{x}" for x in "qkv"]
    assert names("mlp.hook_post", layers=[1, -1, 0]) == both


def test_two_names_of_one_point_are_one_site(tiny: Any) -> None:
    assert len(find_sites(tiny, ["hook_resid_post", "hook_out"])) == 2
    assert find_sites(tiny, ["hook_resid_post", "hook_out"], layers=[0])[0].name == "blocks.0.hook_resid_post"
    assert find_sites(tiny, ["hook_out", "hook_resid_post"], layers=[0])[0].name == "blocks.0.hook_out"


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("mlp.hook_pots", "nearest names here are .*mlp.hook_post"),
        ("blocks.0.mlp.hook_pots", "nearest names here are .*blocks.0.mlp.hook_post"),
        ("blocks.7.mlp.hook_post", r"nearest names here are .*blocks.1.mlp.hook_post"),
        ("", "no site is named ''"),
        ([], "no site was asked for"),
        (["mlp.hook_post", "nonsense"], "no site is named 'nonsense'"),
        ("paper:linear", "no preset is named 'paper:linear'; there are .*paper:lineas"),
        ("hook_embed", "not a hook point of a block"),
        ("attn.hook_pattern", "no unit axis"),
        ("blocks.1.attn.hook_attn_scores", "no unit axis"),
        ("attn.hook_pat*", "none of them carries units"),
        ("ln1.hook_scale", "no unit axis"),
        ("attn.qkv.hook_out", "never fires"),
        ("attn.hook_result", "never fires.*set_use_"),
    ],
)
def test_refusals(tiny: Any, pattern: Any, says: str) -> None:
    with pytest.raises(SiteError, match=says):
        find_sites(tiny, pattern)


@pytest.mark.parametrize("layers", [[2], [-3], [0, 5]])
def test_layers_out_of_range(tiny: Any, layers: list[int]) -> None:
    with pytest.raises(SiteError, match="the model has 2 layers"):
        find_sites(tiny, "mlp.hook_post", layers=layers)


def test_no_layer_left(tiny: Any) -> None:
    with pytest.raises(SiteError, match="the model has 2 layers"):
        find_sites(tiny, "blocks.0.mlp.hook_post", layers=[1])
    with pytest.raises(SiteError, match="the model has 2 layers"):
        find_sites(tiny, "mlp.hook_post", layers=[])


def test_parallel_blocks_have_no_middle_of_the_stream() -> None:
    with pytest.raises(SiteError, match="no site is named 'hook_resid_mid'"):
        find_sites(make_tiny("gpt_neox"), "hook_resid_mid")


@pytest.mark.parametrize("heads", [5, 6, 7])
def test_an_attention_pattern_is_no_site_whatever_the_number_of_heads(heads: int) -> None:
    config = GPT2Config(vocab_size=64, n_embd=6 * heads, n_layer=1, n_head=heads, n_positions=64)
    model = load_model(GPT2LMHeadModel(config), tokenizer=make_tokenizer())
    assert [(s.width, s.heads) for s in find_sites(model, "attn.hook_q")] == [(6 * heads, heads)]
    with pytest.raises(SiteError, match="no unit axis"):
        find_sites(model, "attn.hook_pattern")


def test_looking_for_sites_leaves_no_trace() -> None:
    model = make_tiny("gpt2", seed=5)
    model(torch.tensor([[1, 5]]))  # the bridge itself hangs hooks on its norms in the first pass
    before, random_state = handles(model), torch.get_rng_state()
    find_sites(model, "*")
    assert handles(model) == before
    assert torch.equal(torch.get_rng_state(), random_state)


def test_a_site_is_its_name() -> None:
    assert split_name("blocks.3.attn.hook_z") == (3, "attn.hook_z")
    with pytest.raises(SiteError, match="sites are named blocks.LAYER.KIND"):
        split_name("ln_final.hook_scale")
    assert Site("blocks.0.x", 0, "x", 3) == Site("blocks.0.x", 0, "x", 4)


def test_presets_name_the_papers_sites(family: Any) -> None:
    name = family_of(family)
    gate = ["mlp.hook_pre_linear"] if name in ("llama", "qwen2", "mistral", "gemma2") else []
    posts = ["ln1_post.hook_out", "ln2_post.hook_out"] if name == "gemma2" else ["ln2.hook_out"]
    norms = ["ln1.hook_out", "ln2.hook_out", *(posts if name == "gemma2" else [])]
    assert sorted(kinds(family, "paper:aura")) == sorted(["mlp.hook_pre", *gate, "mlp.out.hook_out"])
    assert kinds(family, "paper:lineas") == posts
    assert sorted(kinds(family, "paper:act")) == sorted([*norms, "attn.o.hook_out", "mlp.out.hook_out"])
    linears = ["attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.o.hook_out", "mlp.hook_pre", *gate]
    assert sorted(kinds(family, "paper:selfcond")) == sorted([*linears, "mlp.out.hook_out"])
    assert len(find_sites(family, "paper:act")) == 2 * len(kinds(family, "paper:act"))


@pytest.mark.parametrize("model", PUBLIC)
def test_parameters_of_lineas_at_the_papers_sites(model: str) -> None:
    family, layers, width, parameters = PUBLIC[model]
    per_layer = find_sites(make_tiny(family), "paper:lineas", layers=[0])
    assert {site.width for site in per_layer} == {32}  # the norms of the stream: as wide as the model
    assert len(per_layer) * layers * width * 2 == parameters


@pytest.mark.real
def test_real_models(real_model: Any) -> None:
    neo = real_model.cfg.n_layers == 8
    layers, width, mlp, heads, keys = (8, 128, 512, 16, 16) if neo else (5, 64, 172, 8, 4)
    assert [s.layer for s in find_sites(real_model, "hook_resid_post")] == list(range(layers))
    expected = {"hook_resid_post": (width, 1), "mlp.hook_post": (mlp, 1), "attn.hook_z": (width, heads)}
    expected |= {"attn.hook_k": (8 * keys, keys), "attn.hook_v": (8 * keys, keys)}
    for kind, (units, split) in expected.items():
        assert {(s.width, s.heads) for s in find_sites(real_model, kind)} == {(units, split)}
    points = [host_of(real_model).canonical(site.name) for site in find_sites(real_model, "*")]
    assert len(set(points)) == len(points)


def deep(layers: int) -> Any:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=8, n_layer=layers, n_head=2, n_positions=64)
    return load_model(GPT2LMHeadModel(config), tokenizer=make_tokenizer())


@pytest.fixture(scope="module")
def twelve_layers() -> Any:
    return deep(13)


@pytest.mark.parametrize(
    ("pattern", "layers"),
    [
        ("blocks.[10-12].hook_resid_post", [10, 11, 12]),
        ("blocks.[9-10].hook_resid_post", [9, 10]),
        ("blocks.[0-3].hook_resid_post", [0, 1, 2, 3]),
        ("blocks.1[0-2].hook_resid_post", [10, 11, 12]),
        ("blocks.[13].hook_resid_post", [1, 3]),
        ("blocks.?.hook_resid_post", list(range(10))),
        ("blocks.[!0-9]*.hook_resid_post", None),
        ("blocks.[2-2].hook_resid_[p]ost", [2]),
    ],
)
def test_ranges_of_numbers_in_globs(twelve_layers: Any, pattern: str, layers: list[int] | None) -> None:
    if layers is None:
        with pytest.raises(SiteError, match="no site is named"):
            find_sites(twelve_layers, pattern)
        return
    assert [site.layer for site in find_sites(twelve_layers, pattern)] == layers


def test_a_range_that_runs_down(twelve_layers: Any) -> None:
    with pytest.raises(SiteError, match=r"the range \[12-10\] names no layers"):
        find_sites(twelve_layers, "blocks.[12-10].hook_resid_post")


def test_looking_at_a_deep_model_takes_one_context_of_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    """One context and one pass, however many names: each context walks all points."""
    model = deep(13)
    opened: list[int] = []
    hooks = model.hooks

    def count(**settings: Any) -> Any:
        opened.append(len(settings["fwd_hooks"]))
        return hooks(**settings)

    monkeypatch.setattr(type(model), "hooks", lambda self, **settings: count(**settings))
    sites = find_sites(model, "*")
    assert len(opened) == 1
    check_edit_sites(model, [site for site in sites if site.kind == "mlp.hook_post"])
    assert len(opened) == 3  # and one without and one with writes, for up to 16 sites


def of_config(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return load_model(AutoModelForCausalLM.from_config(config), tokenizer=make_tokenizer())


SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def test_a_mixture_of_experts_has_no_neurons_at_one_point() -> None:
    """TransformerLens names the MLP's output `mlp.hook_post` there, and its input `mlp.hook_pre`."""
    from transformers import MixtralConfig

    config = MixtralConfig(num_local_experts=4, num_experts_per_tok=2, num_key_value_heads=2, **SIZES)
    model = of_config(config)
    for asked in ("mlp.hook_post", "mlp.hook_pre", "blocks.1.mlp.hook_post", "paper:aura", "paper:selfcond"):
        with pytest.raises(SiteError, match="another name for the (in|out)put of this layer's MLP.*hook_mlp_out"):
            find_sites(model, asked)
    assert [site.width for site in find_sites(model, "hook_mlp_out")] == [32, 32]
    assert not {"mlp.hook_post", "mlp.hook_pre"} & {site.kind for site in find_sites(model, "*")}


def test_presets_of_norms_after_the_branches() -> None:
    from transformers import Olmo2Config

    model = of_config(Olmo2Config(num_key_value_heads=2, **SIZES))
    if "blocks.0.ln1_post.hook_out" not in model.hook_dict:
        pytest.skip("transformer-lens 3.9 does not name the norms behind OLMo-2's branches")
    assert kinds(model, "paper:lineas") == ["ln1_post.hook_out", "ln2_post.hook_out"]
    assert {"ln1_post.hook_out", "ln2_post.hook_out"} <= set(kinds(model, "paper:act"))


def test_a_preset_that_parallel_blocks_lack_says_what_to_take() -> None:
    from transformers import PhiConfig

    model = of_config(PhiConfig(**SIZES))
    with pytest.raises(SiteError, match="paper:lineas edits the norm.*side by side.*'ln1.hook_out'"):
        find_sites(model, "paper:lineas")
    assert set(kinds(model, "paper:act")) == {"ln1.hook_out", "attn.o.hook_out", "mlp.out.hook_out"}
