"""LoReFT: its loss against `perplexity`, gradients, what is edited in training, and what it must never do."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from lens_steer.errors import ModelError, SettingError, SiteError
from lens_steer.evaluation.perplexity import perplexity
from lens_steer.host.scope import Scope
from lens_steer.host.sites import find_sites
from lens_steer.host.trunk import frozen
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.low_rank import LowRankAffine
from lens_steer.methods.loreft import LoReFT, _LowRankMaps
from lens_steer.methods.text_loss import TextLoss
from lens_steer.texts.contrast import ContrastSet
from tests.families import sentences

PAIRS = [(f"{prompt} the ", answer) for prompt, answer in zip(sentences(6, seed=3), sentences(6, seed=4), strict=True)]


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return ContrastSet(sentences(6, seed=1, must="sad"), sentences(7, seed=2, must="happy"))


@pytest.fixture(scope="module")
def pairs() -> ContrastSet:
    return ContrastSet([(prompt, "sad") for prompt, _ in PAIRS], PAIRS)


def problem(
    model: Any, texts: Any, *, kind: str = "hook_resid_post", micro_batch: int = 99, scope: Scope | None = None
) -> tuple[TextLoss, _LowRankMaps]:
    maps = _LowRankMaps(find_sites(model, kind), 2, 0, torch.device("cpu"))
    return TextLoss(model, texts, maps.edits, scope=scope or Scope(), micro_batch=micro_batch), maps


def some_point(maps: _LowRankMaps, seed: int = 0) -> torch.Tensor:
    return 0.2 * torch.randn(len(maps.identity), generator=torch.Generator().manual_seed(seed))


@pytest.mark.compat
@pytest.mark.parametrize("kind", ["hook_resid_post", "attn.hook_z"])
@pytest.mark.parametrize("paired", [False, True])
def test_loss_is_the_log_perplexity_of_the_target(
    tiny: Any, contrast: ContrastSet, pairs: ContrastSet, kind: str, paired: bool
) -> None:
    texts = (pairs if paired else contrast).target
    loss, maps = problem(tiny, texts, kind=kind, micro_batch=3)
    assert loss(maps.identity) == pytest.approx(math.log(perplexity(tiny, texts, progress=False)), rel=1e-5)
    point = some_point(maps)
    edit = Intervention(tuple(Edit(site, of_site) for site, of_site in maps.at(point).items()))
    expected = math.log(perplexity(tiny, texts, intervention=edit, progress=False))
    assert loss(point) == pytest.approx(expected, rel=1e-5)
    assert abs(loss(point) - loss(maps.identity)) > 1e-4


def test_zero_is_the_identity_to_the_bit(tiny: Any) -> None:
    _, maps = problem(tiny, sentences(3))
    h = torch.randn(2, 3, 32)
    for of_site in maps.at(maps.identity).values():
        assert torch.equal(of_site(h), h)
        assert torch.equal(of_site.weight, of_site.rotation)
    assert maps.support(maps.identity) == 0
    assert maps.support(some_point(maps)) == 64


@pytest.mark.parametrize("kind", ["hook_resid_post", "attn.hook_z"])
def test_gradient_equals_central_differences(tiny: Any, contrast: ContrastSet, kind: str) -> None:
    loss, maps = problem(tiny, contrast.target, kind=kind)
    point, step = some_point(maps), 1e-2
    with frozen(tiny):
        value, gradient = loss.with_gradient(point)
    assert value == pytest.approx(loss(point), rel=1e-5)
    for seed in range(3):
        direction = torch.randn(len(point), generator=torch.Generator().manual_seed(seed))
        direction /= direction.norm()
        slope = (loss(point + step * direction) - loss(point - step * direction)) / (2 * step)
        assert float(gradient @ direction) == pytest.approx(slope, rel=5e-3, abs=1e-3 * float(gradient.norm()))


@pytest.mark.compat
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_give_the_full_gradient(tiny: Any, pairs: ContrastSet, micro_batch: int) -> None:
    (whole, maps), (parts, _) = (problem(tiny, pairs.target, micro_batch=size) for size in (99, micro_batch))
    with frozen(tiny):
        value, gradient = whole.with_gradient(some_point(maps))
        value_in_parts, gradient_in_parts = parts.with_gradient(some_point(maps))
    assert value_in_parts == pytest.approx(value, rel=1e-5)
    assert float((gradient_in_parts - gradient).norm() / gradient.norm()) < 1e-5


def test_texts_padded_with_their_like_give_the_full_gradient(
    tiny: Any, pairs: ContrastSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, maps = problem(tiny, pairs.target)
    with frozen(tiny):
        value, gradient = loss.with_gradient(some_point(maps))
        monkeypatch.setattr("lens_steer.methods.text_loss.most_pads", lambda model: 0)
        assert len(loss._chunks(None)) > 1
        value_in_parts, gradient_in_parts = loss.with_gradient(some_point(maps))
    assert value_in_parts == pytest.approx(value, rel=1e-5)
    assert float((gradient_in_parts - gradient).norm() / gradient.norm()) < 1e-5


@pytest.mark.parametrize("scope", [Scope("prompt"), Scope("generated"), Scope("all", start=1, stop=3)])
def test_training_edits_the_tokens_of_the_scope_alone(tiny: Any, scope: Scope) -> None:
    loss, maps = problem(tiny, PAIRS[:1], scope=scope)
    point = some_point(maps)
    (batch,) = (batch for _, batch in loss._chunks(None))
    prompt = len(PAIRS[0][0].split()) + 1  # BOS
    places = torch.arange(batch.ids.shape[1])
    inside = {
        "prompt": places < prompt,
        "generated": places >= prompt,
        "all": (places >= 1) & (places < 3),
    }[scope.name]
    hooks = [
        (site.name, lambda t, hook, m=of_site: torch.where(inside[None, :, None], m(t), t))
        for site, of_site in maps.at(point).items()
    ]
    with torch.no_grad(), tiny.hooks(fwd_hooks=hooks):
        log_probs = tiny(batch.ids).log_softmax(-1)[0, :-1].gather(1, batch.ids[0, 1:, None])[prompt - 1 :]
    assert loss(point) == pytest.approx(-float(log_probs.mean()), rel=1e-4)
    assert abs(loss(point) - loss(maps.identity)) > 1e-4


@pytest.mark.filterwarnings("ignore:.*moved nothing")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lr": 100.0},
        {"optimizer": "sgd", "lr": 1e6},
        {"batch_size": 2, "evaluate_every": 5},
        {"batch_size": 2, "lr": 50.0, "micro_batch": 1},
        {"rank": 32},
        {"scope": "generated"},
        {"scope": "last"},
    ],
)
def test_never_worse_than_the_identity(tiny: Any, contrast: ContrastSet, settings: dict[str, Any]) -> None:
    edit = LoReFT(steps=15, progress=False, **settings).fit(tiny, contrast)
    loss = edit.provenance["loss"]
    assert loss["training"] <= loss["identity"]
    assert len(edit.history) == 15
    reached = math.log(perplexity(tiny, contrast.target, intervention=edit, progress=False))
    assert reached == pytest.approx(loss["training"], rel=1e-4)


def test_it_learns_the_target_and_its_rows_stay_orthonormal(tiny: Any, contrast: ContrastSet) -> None:
    edit = LoReFT(rank=3, steps=60, lr=0.05, progress=False).fit(tiny, contrast)
    loss = edit.provenance["loss"]
    assert loss["training"] < 0.8 * loss["identity"]
    for e in edit.edits:
        assert isinstance(e.map, LowRankAffine)
        assert e.map.rank == 3
        torch.testing.assert_close(e.map.rotation @ e.map.rotation.T, torch.eye(3), rtol=1e-5, atol=1e-5)
    undone = edit.then(edit.inverse())
    reached = math.log(perplexity(tiny, contrast.target, intervention=undone, progress=False))
    assert reached == pytest.approx(loss["identity"], rel=1e-3)


def test_the_scope_goes_into_the_edits(tiny: Any, pairs: ContrastSet) -> None:
    edit = LoReFT(scope="prompt", layers=(0,), steps=2, progress=False).fit(tiny, pairs)
    assert [(e.site.layer, e.scope) for e in edit.edits] == [(0, Scope("prompt"))]


@pytest.mark.parametrize("scope", ["prompt", "generated", "last"])
def test_the_fit_and_the_measurement_mean_the_same_tokens(tiny: Any, pairs: ContrastSet, scope: Any) -> None:
    edit = LoReFT(scope=scope, steps=20, lr=0.05, progress=False).fit(tiny, pairs)
    reached = math.log(perplexity(tiny, pairs.target, intervention=edit, progress=False))
    assert reached == pytest.approx(edit.provenance["loss"]["training"], rel=1e-4)
    assert reached < 0.95 * edit.provenance["loss"]["identity"]


def test_the_seed_draws_the_rotation(tiny: Any, contrast: ContrastSet) -> None:
    one, other = (LoReFT(steps=2, seed=seed, progress=False).fit(tiny, contrast) for seed in (0, 1))
    assert one != other


def test_flags_of_a_foreign_model_are_restored(tiny: Any, contrast: ContrastSet) -> None:
    first, *others = tiny.parameters()
    first.requires_grad_(True)
    try:
        LoReFT(steps=1, progress=False).fit(tiny, contrast)
        assert first.requires_grad
        assert first.grad is None
        assert not any(parameter.requires_grad for parameter in others)
    finally:
        first.requires_grad_(False)


class TestRefusals:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"rank": 0},
            {"steps": 0},
            {"lr": 0.0},
            {"lr": math.nan},
            {"batch_size": 0},
            {"optimizer": "lbfgs"},
            {"scope": "nowhere"},
        ],
    )
    def test_settings_out_of_range(self, wrong: dict[str, Any]) -> None:
        with pytest.raises((SettingError, TypeError)):
            LoReFT(**wrong)

    def test_a_rank_above_the_width(self, tiny: Any, contrast: ContrastSet) -> None:
        with pytest.raises(SettingError, match="rank=33 is more than the 32 units of blocks.0"):
            LoReFT(rank=33).fit(tiny, contrast)

    @pytest.mark.parametrize(
        ("scope", "says"), [("prompt", "give \\(prompt, completion\\) pairs"), (Scope(start=60), "from position 60")]
    )
    def test_a_scope_that_reaches_nothing(self, tiny: Any, contrast: ContrastSet, scope: Any, says: str) -> None:
        with pytest.raises(SettingError, match=says):
            LoReFT(scope=scope).fit(tiny, contrast)

    def test_a_site_that_cannot_be_edited(self, tiny: Any, contrast: ContrastSet) -> None:
        with pytest.raises(SiteError, match="MLP branch only"):
            LoReFT(sites="hook_resid_mid").fit(tiny, contrast)

    def test_training_mode(self, tiny: Any, contrast: ContrastSet) -> None:
        tiny.train()
        try:
            with pytest.raises(ModelError, match="training mode"):
                LoReFT().fit(tiny, contrast)
        finally:
            tiny.eval()
