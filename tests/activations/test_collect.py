"""Collecting against run_with_cache text by text, and what must not change a result."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lens_steer.activations import store as store_module
from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.activations.show import show_units
from lens_steer.effects.downstream import downstream_shift
from lens_steer.errors import (
    ActivationError,
    ArtifactError,
    ContrastError,
    ModelError,
    OutputError,
    SettingError,
    SiteError,
)
from lens_steer.evaluation.perplexity import perplexity
from lens_steer.host.adapter import host_of
from lens_steer.host.scope import Scope
from lens_steer.host.sites import find_sites
from lens_steer.host.tokens import tokenize
from lens_steer.interventions.ablation import ablate
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.methods.activation_transport import MeanAcT
from lens_steer.methods.aura import AurA
from lens_steer.methods.caa import CAA
from lens_steer.methods.dsas import DSAS
from lens_steer.methods.self_conditioning import SelfCond
from lens_steer.texts.contrast import ContrastSet, LabelledTexts
from tests.families import make_tiny, sentences


@pytest.fixture
def contrast() -> ContrastSet:
    return ContrastSet(sentences(7, seed=1, must="sad"), sentences(9, seed=2, must="happy"))


def one_by_one(model: Any, texts: tuple[str, ...], name: str) -> list[torch.Tensor]:
    """Token values of every text alone, without BOS and heads flattened."""
    bos = host_of(model).prepends_bos
    rows = []
    for text in texts:
        _, cache = model.run_with_cache(model.to_tokens(text, prepend_bos=bos))
        rows.append(cache[name][0, int(bos) :].flatten(1))
    return rows


@pytest.mark.parametrize("pool", ["max", "mean", "last", "first"])
def test_equals_text_by_text(family: Any, contrast: ContrastSet, pool: Any) -> None:
    kinds = ("mlp.hook_post", "hook_resid_post", "attn.hook_k")
    got = collect(family, contrast, kinds, pool=pool, batch_size=4)
    reduce = {"max": lambda r: r.amax(0), "mean": lambda r: r.mean(0), "last": lambda r: r[-1], "first": lambda r: r[0]}
    for site in got.sites:
        expected = torch.stack([reduce[pool](row) for row in one_by_one(family, contrast.source, site.name)])
        torch.testing.assert_close(got.source[site], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.compat
def test_token_moments_are_those_of_all_tokens(tiny: Any, contrast: ContrastSet) -> None:
    got = collect(tiny, contrast, "mlp.hook_post", batch_size=3)
    for side, texts in (("source", contrast.source), ("target", contrast.target)):
        tokens = torch.cat(one_by_one(tiny, texts, "blocks.1.mlp.hook_post")).double()
        mean, std = got.token_mean("blocks.1.mlp.hook_post", side), got.token_std("blocks.1.mlp.hook_post", side)
        torch.testing.assert_close(mean.double(), tokens.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(std.double(), tokens.std(0, correction=0), rtol=1e-5, atol=1e-6)
    both = torch.cat(one_by_one(tiny, contrast.source + contrast.target, "blocks.1.mlp.hook_post"))
    torch.testing.assert_close(got.token_mean("blocks.1.mlp.hook_post", "all"), both.mean(0), rtol=1e-5, atol=1e-6)


@pytest.mark.compat
def test_batch_size_changes_nothing(tiny: Any, contrast: ContrastSet) -> None:
    alone = collect(tiny, contrast, batch_size=1)
    together = collect(tiny, contrast, batch_size=16)
    for site in alone.sites:
        torch.testing.assert_close(alone.values[site], together.values[site], rtol=1e-5, atol=1e-6)


def test_many_concepts_in_one_pass_equal_one_pass_each(tiny: Any) -> None:
    texts = sentences(12, seed=3)
    labels = np.array([[1, 0], [0, 1], [1, -1], [0, 0]] * 3, dtype=np.int8)
    many = collect(tiny, LabelledTexts(tuple(texts), labels, ("first", "second")))
    for column, concept in enumerate(("first", "second")):
        sides = [tuple(t for t, row in zip(texts, labels, strict=True) if row[column] == side) for side in (1, 0)]
        one = collect(tiny, ContrastSet(*sides))
        view = many.concept(concept)
        for site in one.sites:
            torch.testing.assert_close(view.source[site], one.source[site])
            torch.testing.assert_close(view.target[site], one.target[site])
            torch.testing.assert_close(view.token_mean(site, "source"), one.token_mean(site, "source"))
    with pytest.raises(ActivationError, match="choose one concept first"):
        _ = many.source


def test_pairs_pool_the_completion_alone(tiny: Any) -> None:
    pairs = [("the dog", " was sad"), ("a big cat", " ran")]
    got = collect(tiny, ContrastSet(pairs, [("", " happy"), ("", " good day")]), "hook_resid_post", pool="first")
    _, cache = tiny.run_with_cache(tiny.to_tokens("the dog was sad", prepend_bos=True))
    torch.testing.assert_close(got.source["blocks.1.hook_resid_post"][0], cache["blocks.1.hook_resid_post"][0, 3])


def test_interventions_that_are_attached_take_part(tiny: Any, contrast: ContrastSet) -> None:
    site = find_sites(tiny, "blocks.0.mlp.hook_post")[0]
    with ablate([(site.name, 5)], model=tiny).on(tiny):
        got = collect(tiny, contrast)
    assert float(got.values[site][:, 5].abs().max()) == 0.0


def test_what_is_not_finite_is_named(tiny: Any, contrast: ContrastSet) -> None:
    site = find_sites(tiny, "blocks.0.hook_resid_post")[0]
    shift = torch.zeros(site.width)
    shift[3] = 3e38
    edit = Intervention((Edit(site, DiagonalAffine(torch.ones(site.width) * 1e38, shift)),))
    with (
        edit.on(tiny),
        pytest.raises(ActivationError, match=r"blocks.0.hook_resid_post\[\d+\] is -?(inf|nan) at token"),
    ):
        collect(tiny, contrast, "hook_resid_post")


def test_training_mode_is_refused(tiny: Any, contrast: ContrastSet) -> None:
    tiny.train()
    try:
        with pytest.raises(ModelError, match=r"model.eval\(\)"):
            collect(tiny, contrast)
    finally:
        tiny.eval()


def test_unknown_site_names_the_nearest(tiny: Any, contrast: ContrastSet) -> None:
    with pytest.raises(SiteError, match=r"mlp\.hook_post"):
        collect(tiny, contrast, "mlp.hook_pots")


class TestOnDisk:
    def test_round_trip(self, tiny: Any, contrast: ContrastSet, tmp_path: Path) -> None:
        got = collect(tiny, contrast)
        back = Activations.load(got.save(tmp_path / "acts"))
        assert back.sites == got.sites
        assert (back.concepts, back.pool, back.lengths) == (got.concepts, got.pool, got.lengths)
        for site in got.sites:
            assert torch.equal(back.values[site], got.values[site])
            assert torch.equal(back.token_mean(site, "target"), got.token_mean(site, "target"))

    def test_an_occupied_directory_is_refused(self, tiny: Any, contrast: ContrastSet, tmp_path: Path) -> None:
        (tmp_path / "other.txt").write_text("mine")
        with pytest.raises(OutputError, match="already holds"):
            collect(tiny, contrast).save(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["other.txt"]

    def test_damage_is_noticed(self, tiny: Any, contrast: ContrastSet, tmp_path: Path) -> None:
        place = collect(tiny, contrast).save(tmp_path / "acts")
        data = place / "activations.safetensors"
        data.write_bytes(data.read_bytes()[:-10])
        with pytest.raises(ArtifactError, match="damaged"):
            Activations.load(place)
        with pytest.raises(ArtifactError, match="does not exist"):
            Activations.load(tmp_path / "nowhere")

    def test_an_interrupted_pass_resumes(
        self, tiny: Any, contrast: ContrastSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_module, "_SHARD_BATCHES", 1)
        monkeypatch.setattr(store_module, "_ROWS_PER_GROUP", 0)
        whole = collect(tiny, contrast, batch_size=4)
        ran: list[int] = []

        def count(limit: int) -> Any:
            def forward(tensor: Any, hook: Any) -> None:
                ran.append(1)
                if len(ran) > limit:
                    raise KeyboardInterrupt

            return forward

        with tiny.hooks(fwd_hooks=[("blocks.0.hook_in", count(3))]), pytest.raises(KeyboardInterrupt):
            collect(tiny, contrast, batch_size=4, store=tmp_path / "run")
        assert not (tmp_path / "run" / "activations.json").exists()
        ran.clear()
        with tiny.hooks(fwd_hooks=[("blocks.0.hook_in", count(99))]):
            resumed = collect(tiny, contrast, batch_size=4, store=tmp_path / "run")
        assert len(ran) == 1 + 2  # the fingerprint, and of four batches two were done
        for site in whole.sites:
            assert torch.equal(resumed.values[site], whole.values[site])
            torch.testing.assert_close(resumed.token_std(site, "source"), whole.token_std(site, "source"))
        again = collect(tiny, contrast, batch_size=4, store=tmp_path / "run")
        assert torch.equal(again.values[whole.sites[0]], whole.values[whole.sites[0]])


SITE = "blocks.0.mlp.hook_post"


class TestStoreIsKnownByWhatItHolds:
    def test_another_model_is_refused_and_the_same_weights_elsewhere_are_not(
        self, contrast: ContrastSet, tmp_path: Path
    ) -> None:
        first = collect(make_tiny("gpt2"), contrast, store=tmp_path)
        with pytest.raises(OutputError, match="another model"):
            collect(make_tiny("gpt2", seed=1), contrast, store=tmp_path)
        copy = make_tiny("gpt2")
        copy.original_model.config._name_or_path = "moved/elsewhere"
        assert torch.equal(collect(copy, contrast, store=tmp_path).values[SITE], first.values[SITE])

    @pytest.mark.parametrize("inside", ["the first", "the second"])
    def test_an_attached_edit_is_refused(self, tiny: Any, contrast: ContrastSet, tmp_path: Path, inside: str) -> None:
        edit = ablate([(SITE, 5)], model=tiny)
        contexts = [edit.on(tiny), nullcontext()]
        for context in contexts if inside == "the first" else contexts[::-1]:
            refused = any(tmp_path.iterdir())
            with context, pytest.raises(OutputError, match="other edits") if refused else nullcontext():
                collect(tiny, contrast, store=tmp_path)
        assert refused
        with edit.on(tiny):
            assert float(collect(tiny, contrast, store=tmp_path / "edited").values[SITE][:, 5].abs().max()) == 0.0

    def test_a_plain_hook_is_refused(self, tiny: Any, contrast: ContrastSet, tmp_path: Path) -> None:
        collect(tiny, contrast, store=tmp_path)
        with (
            tiny.hooks(fwd_hooks=[(SITE, lambda tensor, hook: tensor * 0.5)]),
            pytest.raises(OutputError, match="another model"),
        ):
            collect(tiny, contrast, store=tmp_path)

    @pytest.mark.parametrize(
        ("names", "settings"),
        [
            ("pool: 'max' there, 'mean' here", {"pool": "mean"}),
            ("scope: .*'all'.* there, .*'last'.* here", {"scope": "last"}),
            ("bos: 'not pooled' there, 'pooled' here", {"special_in_pool": True}),
            ("sites: .*mlp.hook_post.* there, .*hook_resid_post.* here", {"sites": "hook_resid_post"}),
            ("data: ", {"contrast": ContrastSet(["a dog ran"], ["a cat sat"])}),
        ],
    )
    def test_another_setting_is_named(
        self, tiny: Any, contrast: ContrastSet, tmp_path: Path, names: str, settings: dict[str, Any]
    ) -> None:
        collect(tiny, contrast, store=tmp_path)
        with pytest.raises(OutputError, match=names):
            collect(tiny, **{"contrast": contrast, "store": tmp_path, **settings})
        assert collect(tiny, contrast, store=tmp_path, batch_size=3).values[SITE].shape == (16, 128)


@pytest.mark.parametrize("batch_size", [-1, 0])
def test_a_batch_size_below_one_is_refused_everywhere(tiny: Any, contrast: ContrastSet, batch_size: int) -> None:
    edit = ablate([(SITE, 5)], model=tiny)
    calls: list[Callable[[], object]] = [
        lambda: collect(tiny, contrast, batch_size=batch_size),
        lambda: show_units(tiny, contrast, [(SITE, 1)], batch_size=batch_size),
        lambda: AurA(batch_size=batch_size).fit(tiny, contrast),
        lambda: SelfCond(k=2, batch_size=batch_size).fit(tiny, contrast),
        lambda: MeanAcT(batch_size=batch_size).fit(tiny, contrast),
        lambda: DSAS(base=CAA(), batch_size=batch_size).fit(tiny, replace(contrast, control=contrast.target)),
        lambda: downstream_shift(tiny, edit, contrast, batch_size=batch_size),
        lambda: perplexity(tiny, list(contrast.source), batch_size=batch_size),
        lambda: list(tokenize(tiny, contrast.source).batches(batch_size)),
    ]
    for call in calls:
        with pytest.raises(SettingError, match=f"batch_size.*{batch_size}"):
            call()


def test_which_tokens_are_pooled(tiny: Any) -> None:
    """`scope` and `special_in_pool` decide it: the largest value over the tokens that each of them leaves."""
    contrast = ContrastSet(["the dog was sad"], ["a big cat ran"])
    with torch.no_grad():
        _, cache = tiny.run_with_cache(tiny.to_tokens("the dog was sad", prepend_bos=True))
    tokens = cache[SITE][0]
    pools: list[tuple[dict[str, Any], slice]] = [
        ({}, slice(1, None)),
        ({"special_in_pool": True}, slice(None)),
        # A plain text counts as generated behind its first token, which is the last one of its prompt.
        ({"scope": "last", "special_in_pool": True}, slice(None)),
        ({"scope": "generated", "special_in_pool": True}, slice(1, None)),
        ({"scope": Scope.from_position(3)}, slice(3, None)),
        ({"scope": Scope(stop=2)}, slice(1, 2)),
        ({"scope": Scope(stop=2), "special_in_pool": True}, slice(0, 2)),
    ]
    for settings, part in pools:
        got = collect(tiny, contrast, SITE, **settings)
        torch.testing.assert_close(got.source[SITE][0], tokens[part].amax(0), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.token_mean(SITE, "source"), tokens[part].mean(0), rtol=1e-5, atol=1e-5)


def test_a_token_that_no_pool_reads_may_overflow(tiny: Any, contrast: ContrastSet) -> None:
    def overflow_at_bos(tensor: torch.Tensor, hook: Any) -> torch.Tensor:
        changed = tensor.clone()
        changed[:, 0] = torch.inf
        return changed

    name = "blocks.1.mlp.hook_post"
    before = collect(tiny, contrast, name, pool="mean")
    with tiny.hooks(fwd_hooks=[(name, overflow_at_bos)]):
        got = collect(tiny, contrast, name, pool="mean")
    torch.testing.assert_close(got.values[name], before.values[name])
    torch.testing.assert_close(got.token_std(name, "source"), before.token_std(name, "source"))


def test_mistakes_are_named(tiny: Any, contrast: ContrastSet) -> None:
    with pytest.raises((SettingError, TypeError), match="median"):
        collect(tiny, contrast, pool="median")  # type: ignore[arg-type]
    with pytest.raises((ContrastError, TypeError), match="list|a dog"):
        collect(tiny, ["a dog", "a cat"])  # type: ignore[arg-type]


def test_from_arrays_needs_matching_sides() -> None:
    name = "blocks.0.mlp.hook_post"
    got = Activations.from_arrays(source={name: np.ones((3, 4))}, target={name: np.zeros((5, 4))})
    assert got.source[name].shape == (3, 4)
    assert got.target[name].shape == (5, 4)
    with pytest.raises(ActivationError, match="one width"):
        Activations.from_arrays(source={name: np.ones((3, 4))}, target={name: np.zeros((5, 3))})
    with pytest.raises(ActivationError, match="same sites"):
        Activations.from_arrays(source={name: np.ones((3, 4))}, target={"blocks.1.mlp.hook_post": np.zeros((5, 4))})
    with pytest.raises(ActivationError, match="lens_steer.collect"):
        got.token_mean(name, "target")


@pytest.mark.parametrize("of_tensors", [lambda x: x.bfloat16(), lambda x: x.requires_grad_(), lambda x: x.double()])
def test_from_arrays_takes_any_tensor(of_tensors: Callable[[torch.Tensor], torch.Tensor]) -> None:
    values = torch.tensor([[1.5, -2.0], [0.25, 4.0]])
    got = Activations.from_arrays(source={SITE: of_tensors(values.clone())}, target={SITE: values.numpy()})
    assert got.source[SITE].dtype == torch.float32
    assert not got.source[SITE].requires_grad
    assert torch.equal(got.source[SITE], got.target[SITE])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_from_arrays_names_what_is_no_number(bad: float) -> None:
    values = np.zeros((3, 4))
    values[1, 2] = bad
    with pytest.raises(ActivationError, match=rf"{SITE}: the value at \[1, 2\] is (nan|inf)"):
        Activations.from_arrays(source={SITE: values}, target={SITE: np.zeros((3, 4))})
    with pytest.raises(ActivationError, match="an array of numbers"):
        Activations.from_arrays(source={SITE: [["x"]]}, target={SITE: np.zeros((3, 1))})
