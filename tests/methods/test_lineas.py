"""LinEAS: its loss against a plain one, gradients, safeguards, sparsity, and what it must never do."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from lens_steer.activations.collect import collect
from lens_steer.activations.whole_texts import pool_texts
from lens_steer.errors import ActivationError, ContrastError, LensSteerWarning, ModelError, SettingError, SiteError
from lens_steer.host.sites import find_sites
from lens_steer.host.tokens import tokenize
from lens_steer.host.trunk import frozen
from lens_steer.interruption import on_interrupt
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.methods.end_to_end import EndToEndLoss
from lens_steer.methods.lineas import LinEAS
from lens_steer.methods.loreft import LoReFT
from lens_steer.methods.micro_batches import texts_in_memory
from lens_steer.statistics.wasserstein import wasserstein
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.readers import read_contrast
from tests.families import make_tiny, sentences
from tests.handles import Forwards


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return ContrastSet(sentences(10, seed=1, must="sad"), sentences(7, seed=2, must="happy"))


def make_loss(
    model: Any, contrast: ContrastSet, *, micro_batch: int = 99, kind: str = "hook_resid_post"
) -> EndToEndLoss:
    sites = find_sites(model, kind)
    source, target = (tokenize(model, side) for side in (contrast.source, contrast.target))
    pooled = pool_texts(model, target, sites, "mean", 99)
    return EndToEndLoss(model, source, pooled, edit_sites=sites, loss_sites=sites, pool="mean", micro_batch=micro_batch)


def random_parameters(loss: EndToEndLoss, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(len(loss.layout.group), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["hook_resid_post", "mlp.hook_post"])
def test_units_have_their_own_distances_of_the_loss(tiny: Any, contrast: ContrastSet, kind: str) -> None:
    loss = make_loss(tiny, contrast, kind=kind)
    of_units = loss.of_units()
    assert sum(float(values.sum()) for values in of_units.values()) == pytest.approx(loss(random_parameters(loss) * 0))
    plain = collect(tiny, contrast, kind, pool="mean", progress=False)
    for site, values in of_units.items():
        expected = wasserstein(plain.source[site], plain.target[site], order=2).square() / len(of_units)
        torch.testing.assert_close(values.double(), expected, rtol=1e-3, atol=1e-9)


def test_a_loss_that_is_about_one_unit_is_said(contrast: ContrastSet) -> None:
    """A unit of the stream that is a thousand times the others, as massive activations are, has the whole loss."""
    model = make_tiny("gpt2")
    lineas = LinEAS(sites="hook_resid_post", gamma_share=0.1, steps=5, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lineas.fit(model, contrast)
        with torch.no_grad():
            model.blocks[0].mlp.out.original_component.weight[:, 5] *= 1000
        replace(lineas, loss="normalised").fit(model, contrast)
    with pytest.warns(LensSteerWarning, match=r"unit 5 of the residual stream alone has (9\d|100)% of the loss"):
        lineas.fit(model, contrast)


@pytest.mark.compat
@pytest.mark.parametrize("kind", ["hook_resid_post", "attn.hook_z", "mlp.hook_post"])
def test_loss_is_the_squared_wasserstein_distance_of_the_edited_source(
    tiny: Any, contrast: ContrastSet, kind: str
) -> None:
    loss = make_loss(tiny, contrast, kind=kind)
    parameters = random_parameters(loss)
    edits = tuple(Edit(site, DiagonalAffine(*pair)) for site, pair in loss.layout.maps(parameters).items())
    plain = collect(tiny, contrast, kind, pool="mean")
    with Intervention(edits).on(tiny):
        edited = collect(tiny, contrast, kind, pool="mean")
    distances = [wasserstein(edited.source[site], plain.target[site], order=2).square().sum() for site in plain.sites]
    assert loss(parameters) == pytest.approx(float(sum(distances)) / len(distances), rel=1e-4)


@pytest.mark.parametrize("kind", ["hook_resid_post", "attn.hook_z"])
def test_gradient_equals_central_differences(tiny: Any, contrast: ContrastSet, kind: str) -> None:
    loss = make_loss(tiny, contrast, kind=kind)
    parameters = random_parameters(loss)
    with frozen(tiny):
        _, gradient = loss.with_gradient(parameters)
    for seed in range(3):
        direction = torch.randn(len(parameters), generator=torch.Generator().manual_seed(seed))
        direction /= direction.norm()
        step = 1e-2
        slope = (loss(parameters + step * direction) - loss(parameters - step * direction)) / (2 * step)
        assert float(gradient @ direction) == pytest.approx(slope, rel=5e-3, abs=1e-3 * float(gradient.norm()))


@pytest.mark.compat
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_micro_batches_give_the_full_gradient(tiny: Any, contrast: ContrastSet, micro_batch: int) -> None:
    whole, parts = make_loss(tiny, contrast), make_loss(tiny, contrast, micro_batch=micro_batch)
    parameters = random_parameters(whole)
    with frozen(tiny):
        value, gradient = whole.with_gradient(parameters)
        value_in_parts, gradient_in_parts = parts.with_gradient(parameters)
    assert value_in_parts == pytest.approx(value, rel=1e-5)
    assert float((gradient_in_parts - gradient).norm() / gradient.norm()) < 1e-5


@pytest.mark.parametrize("pads", [0, 2])
def test_texts_padded_with_their_like_give_the_full_gradient_and_curvature(
    tiny: Any, contrast: ContrastSet, pads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(set(tokenize(tiny, contrast.source).lengths)) > 2
    whole = make_loss(tiny, contrast)
    parameters = random_parameters(whole)
    with frozen(tiny):
        value, gradient, curvature = *whole.with_gradient(parameters), whole.curvature()
        monkeypatch.setattr("lens_steer.methods.end_to_end.most_pads", lambda model: pads)
        for micro_batch in (99, 3):
            parts = make_loss(tiny, contrast, micro_batch=micro_batch)
            with Forwards(tiny) as run:
                value_in_parts, gradient_in_parts = parts.with_gradient(parameters)
            assert run.count > (1 if micro_batch == 99 else 2 * -(-len(contrast.source) // 3))
            assert value_in_parts == pytest.approx(value, rel=1e-5)
            assert float((gradient_in_parts - gradient).norm() / gradient.norm()) < 1e-5
            if micro_batch == 99:  # elsewhere its random signs are others
                assert float((parts.curvature() - curvature).norm() / curvature.norm()) < 1e-5


@pytest.mark.compat
def test_the_curvature_is_the_gauss_newton_diagonal(tiny: Any, contrast: ContrastSet) -> None:
    """2 / (n sites) times the squared derivatives of all pooled values, summed: one row of J after the other."""
    loss = make_loss(tiny, contrast, micro_batch=4)
    with frozen(tiny):
        estimate = loss.curvature(probes=400)
        leaf = torch.zeros(len(loss.layout), requires_grad=True)
        exact = torch.zeros_like(leaf)
        for chunk in loss._all_chunks:
            with torch.enable_grad():
                values = torch.cat([part.flatten() for part in loss._forward(leaf, chunk).values()])
            for value in values:
                exact += torch.autograd.grad(value, leaf, retain_graph=True)[0].detach().square()
    exact = exact.detach() * 2 / (len(contrast.source) * 2)
    ratio = (estimate / exact)[exact > 0.01 * exact.max()]
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.02)
    assert float((ratio - 1).abs().max()) < 0.35
    assert bool((estimate >= 0).all())


@pytest.mark.compat
def test_gamma_max_separates_nothing_from_something(distinct_family: Any, contrast: ContrastSet) -> None:
    method, family = LinEAS(steps=5, progress=False), distinct_family
    ceiling = method.gamma_max(family, contrast)
    with pytest.warns(LensSteerWarning, match="lets nothing move"):
        assert replace(method, gamma=1.01 * ceiling).fit(family, contrast).support()["kept"].sum() == 0
    assert replace(method, gamma=0.9 * ceiling).fit(family, contrast).support()["kept"].sum() > 0


def test_gamma_max_holds_for_adam(tiny: Any, contrast: ContrastSet) -> None:
    method = LinEAS.paper(steps=20, optimizer="adam", lr=0.01, progress=False)
    ceiling = method.gamma_max(tiny, contrast)
    with pytest.warns(LensSteerWarning, match="lets nothing move"):
        assert replace(method, gamma=1.01 * ceiling).fit(tiny, contrast).support()["kept"].sum() == 0
    assert replace(method, gamma=0.9 * ceiling).fit(tiny, contrast).support()["kept"].sum() > 0


@pytest.mark.parametrize("kind", ["hook_resid_post", "mlp.hook_post"])
def test_the_first_step_does_not_overshoot(embedded: Any, kind: str) -> None:
    """Units act together: by the diagonal of the curvature alone it ended at sixty times the loss and more."""
    contrast = read_contrast("microworld:rude", n=8)
    lineas = LinEAS(sites=kind, gamma_share=0.0, relax=False, steps=2, progress=False)
    history = lineas.fit(embedded, contrast).history
    assert history["event"].tolist() == ["", ""]
    assert history["loss"].is_monotonic_decreasing


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"lr": 30.0},
        {"lr": 1e6},
        {"optimizer": "adam", "lr": 5.0},
        {"batch_size": 4, "lr": 50.0},
        {"gamma": 0.05},
        {"loss_sites": "blocks.1.hook_resid_post"},
    ],
)
@pytest.mark.filterwarnings("ignore:.*moved nothing")
def test_never_worse_than_the_identity(tiny: Any, contrast: ContrastSet, settings: dict[str, Any]) -> None:
    edit = LinEAS.paper(steps=15, progress=False, **settings).fit(tiny, contrast)
    loss = edit.provenance["loss"]
    assert loss["training"] <= loss["identity"]
    assert torch.isfinite(edit.edits[0].map.scale).all()


@pytest.mark.parametrize("settings", [{"lr": 0.01}, {"optimizer": "adam", "lr": 0.01}])
def test_minibatches_learn_and_are_judged_by_their_own_texts(tiny: Any, settings: dict[str, Any]) -> None:
    """The distance of few texts is biased upwards: against the identity's over all texts each step would overshoot."""
    texts = ContrastSet(sentences(24, seed=1, must="sad"), sentences(24, seed=2, must="happy"))
    whole, few = (
        LinEAS.paper(steps=60, batch_size=size, progress=False, **settings).fit(tiny, texts) for size in (None, 3)
    )
    identity = few.provenance["loss"]["identity"]
    assert few.history.loss[:10].mean() > identity  # the bias
    assert (few.history.event == "").all()
    assert few.provenance["loss"]["training"] < 0.85 * identity
    assert whole.provenance["loss"]["training"] < 0.85 * identity


def test_the_identitys_loss_over_any_texts_needs_no_pass(tiny: Any, contrast: ContrastSet) -> None:
    loss = make_loss(tiny, contrast, micro_batch=3)
    zero = torch.zeros(len(loss.layout))
    with frozen(tiny):
        for rows in ((None, None), ([7, 2, 5], [1, 6]), ([0], [3, 3, 4])):
            assert loss(zero, *rows) == pytest.approx(loss.with_gradient(zero, *rows)[0], rel=1e-5)
        with Forwards(tiny) as run:
            loss(zero, [1, 2], [3])
    assert run.count == 0


@pytest.mark.filterwarnings("ignore:.*moved nothing")
def test_a_step_far_above_the_start_goes_back_at_once(tiny: Any, contrast: ContrastSet) -> None:
    history = LinEAS.paper(steps=12, lr=1e4, progress=False).fit(tiny, contrast).history
    assert history.loss[1] > 10 * history.loss[0]
    assert history.event[1].startswith("loss far above its start: back to the best point")
    assert history.lr[2] < history.lr[1] / 3.9


def test_a_fit_that_moved_nothing_says_so(tiny: Any, contrast: ContrastSet) -> None:
    method = LinEAS.paper(steps=3, progress=False)
    with pytest.warns(LensSteerWarning, match=r"moved nothing.* [12] of 3 steps overshot: lower lr=1e\+30"):
        assert not replace(method, lr=1e30).fit(tiny, contrast).units()
    with pytest.warns(LensSteerWarning, match=r"moved nothing.*gamma=1e\+06 lets nothing move"):
        assert not replace(method, gamma=1e6).fit(tiny, contrast).units()


def test_a_long_fit_is_announced_after_two_steps(
    tiny: Any, contrast: ContrastSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lens_steer.methods.descent._LONG", 1e-3)
    method = LinEAS.paper(steps=4, lr=1e-4, progress=False)
    with pytest.warns(LensSteerWarning, match=r"LinEAS: 4 steps of \S+ s take about .* interrupting keeps the best"):
        method.fit(tiny, contrast)
    with pytest.warns(LensSteerWarning, match="LinEAS: 2 fits of 4 steps"):
        method.path(tiny, contrast, gammas=(0.1, 0.01))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace(method, steps=1).fit(tiny, contrast)


def test_gradients_ruled_out_by_the_caller(tiny: Any, contrast: ContrastSet) -> None:
    for call in (
        LinEAS(gamma=0.0, steps=1).fit,
        LinEAS().gamma_max,
        LinEAS().sensitivity,
        LinEAS().path,
        LoReFT(steps=1).fit,
    ):
        with torch.inference_mode(), pytest.raises(ModelError, match="inference_mode.. rules out: leave it"):
            call(tiny, contrast)


def test_graphs_are_bounded_by_tokens(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = tokenize(tiny, sentences(30, seed=1, must="sad"))
    assert texts_in_memory(tiny, tokens) == 30
    length, cfg = max(tokens.lengths), tiny.cfg
    of_text = 4 * length * cfg.n_layers * (40 * cfg.d_model + 3 * cfg.n_heads * length)
    monkeypatch.setattr("lens_steer.methods.micro_batches._GRAPHS", 7 * of_text)
    assert texts_in_memory(tiny, tokens) == 7
    assert texts_in_memory(tiny, tokens, logits=True) < 7
    monkeypatch.setattr("lens_steer.methods.micro_batches._GRAPHS", 1)
    assert texts_in_memory(tiny, tokens) == 1


def test_the_reported_loss_is_that_of_the_returned_map(tiny: Any, contrast: ContrastSet) -> None:
    edit = LinEAS.paper(steps=30, progress=False).fit(tiny, contrast)
    loss = make_loss(tiny, contrast)
    parameters = torch.cat([part for e in edit.edits for part in (e.map.scale - 1, e.map.shift)])
    assert loss(parameters) == pytest.approx(edit.provenance["loss"]["training"], rel=1e-4)
    assert edit.provenance["loss"]["training"] < 0.9 * edit.provenance["loss"]["identity"]


@pytest.mark.filterwarnings("ignore:.*moved nothing")
def test_overshooting_goes_back_and_says_so(tiny: Any, contrast: ContrastSet) -> None:
    history = LinEAS.paper(steps=15, lr=1e6, progress=False).fit(tiny, contrast).history
    events = history[history.event != ""]
    assert len(events) >= 1
    assert events.event.str.contains("learning rate / 4").all()
    before, after = history.lr[events.index[0]], history.lr[events.index[0] + 1]
    assert after < before / 3.9


def test_history_has_a_row_per_step_and_a_cosine_rate(tiny: Any, contrast: ContrastSet) -> None:
    history = LinEAS.paper(steps=20, lr=0.01, progress=False).fit(tiny, contrast).history
    assert list(history.columns) == ["step", "loss", "objective", "support", "lr", "event", "heldout_loss"]
    assert history.step.tolist() == list(range(20))
    assert history.lr.iloc[0] == pytest.approx(0.01)
    assert history.lr.iloc[10] == pytest.approx(0.01 * (0.001 + 0.999 / 2))
    assert (history.lr.diff().dropna() < 0).all()


def test_held_out_texts_stop_the_fit(tiny: Any, contrast: ContrastSet) -> None:
    holdout = ContrastSet(sentences(16, seed=11, must="sad"), sentences(16, seed=12, must="happy"))
    train = ContrastSet(sentences(16, seed=13, must="sad"), sentences(16, seed=14, must="happy"))
    method = LinEAS.paper(steps=400, lr=0.01, holdout=holdout, evaluate_every=2, patience=3, progress=False)
    edit = method.fit(tiny, train)
    history = edit.history
    best = history.heldout_loss.min()
    assert edit.provenance["loss"]["heldout"] == pytest.approx(best)
    assert best < make_loss(tiny, holdout)(torch.zeros(128))
    assert len(history) < 400
    assert (history.heldout_loss.dropna().tail(3) >= best).all()


def test_the_same_seed_gives_the_same_map(tiny: Any, contrast: ContrastSet) -> None:
    method = LinEAS.paper(steps=10, batch_size=4, seed=3, progress=False)
    assert method.fit(tiny, contrast) == method.fit(tiny, contrast)
    assert method.fit(tiny, contrast) != replace(method, seed=4).fit(tiny, contrast)


@contextmanager
def interrupted_at(model: Any, count: int) -> Iterator[list[int]]:
    """Raise KeyboardInterrupt in one pass, and record how many passes there were."""
    passes: list[int] = []

    def interrupt(tensor: Any, hook: Any) -> None:
        passes.append(1)
        if len(passes) == count:
            raise KeyboardInterrupt

    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_post", interrupt)]):
        yield passes


class TestInterruption:
    def test_a_fit_keeps_the_best_map_where_it_is_asked_to(self, tiny: Any, contrast: ContrastSet) -> None:
        with interrupted_at(tiny, 25), on_interrupt("keep"):
            with pytest.warns(LensSteerWarning, match=r"interrupted after \d+ of 1000 steps"):
                edit = LinEAS.paper(progress=False).fit(tiny, contrast)
        assert edit.provenance["interrupted"]
        assert edit.provenance["steps_done"] == len(edit.history)
        assert edit.provenance["loss"]["training"] < edit.provenance["loss"]["identity"]
        assert 10 < len(edit.history) < 25

    def test_a_session_with_a_prompt_keeps_and_a_script_does_not(
        self, tiny: Any, contrast: ContrastSet, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        method = LinEAS.paper(progress=False)
        monkeypatch.delattr(sys, "ps1", raising=False)
        with interrupted_at(tiny, 25) as passes, pytest.raises(KeyboardInterrupt):
            method.fit(tiny, contrast)
        assert len(passes) == 25
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
        with interrupted_at(tiny, 25), pytest.warns(LensSteerWarning, match="interrupted after"):
            assert method.fit(tiny, contrast).provenance["interrupted"]
        with interrupted_at(tiny, 25), on_interrupt("raise"), pytest.raises(KeyboardInterrupt):
            method.fit(tiny, contrast)

    def test_a_path_stops_at_once_and_keeps_what_is_done(self, tiny: Any, contrast: ContrastSet) -> None:
        method = LinEAS(steps=10, progress=False)
        with interrupted_at(tiny, 45) as passes, on_interrupt("keep"):
            with pytest.warns(LensSteerWarning, match=r"path was interrupted after \d of 8 gammas"):
                path = method.path(tiny, contrast)
        assert path.interrupted
        assert 0 < len(path.interventions) == len(path.frame) < 5
        assert not any(edit.provenance["interrupted"] for edit in path.interventions)
        assert len(passes) < 50
        with interrupted_at(tiny, 45), on_interrupt("raise"), pytest.raises(KeyboardInterrupt):
            method.path(tiny, contrast)
        with interrupted_at(tiny, 4), on_interrupt("keep"), pytest.raises(KeyboardInterrupt):
            method.path(tiny, contrast)  # nothing is done that could be kept


class TestPath:
    def test_no_penalty_is_refused_and_equal_sides_have_a_path(self, tiny: Any, contrast: ContrastSet) -> None:
        for call in (LinEAS(l1=0.0, group=0.0).gamma_max, LinEAS(l1=0.0, group=0.0).path):
            with pytest.raises(SettingError, match="l1 and group are both 0"):
                call(tiny, contrast)
        with pytest.warns(LensSteerWarning, match="on both sides"):
            same = replace(contrast, target=contrast.source)
        path = LinEAS(steps=2, progress=False).path(tiny, same)
        assert path.frame.gamma.tolist() == [0.0]
        assert path.frame.gamma_share.isna().all()

    def test_support_grows_as_gamma_falls(self, tiny: Any, contrast: ContrastSet) -> None:
        path = LinEAS(steps=20, progress=False).path(tiny, contrast)
        frame = path.frame
        assert len(frame) == len(path.interventions) == 8
        assert frame.gamma_share.iloc[0] == pytest.approx(1.0)
        assert frame.gamma_share.iloc[-1] == pytest.approx(0.01)
        assert frame.support.iloc[0] == 0
        assert frame.support.iloc[-1] > 10
        assert (frame.loss <= frame.identity_loss + 1e-9).all()
        assert [int(edit.support().kept.sum()) for edit in path.interventions] == frame.support.tolist()

    def test_warm_start_needs_no_step_to_be_as_good(self, tiny: Any, contrast: ContrastSet) -> None:
        method = LinEAS(steps=40, progress=False)
        ceiling = method.gamma_max(tiny, contrast)
        path = method.path(tiny, contrast, gammas=[0.1 * ceiling, 0.5 * ceiling])
        assert path.frame.gamma.tolist() == [0.5 * ceiling, 0.1 * ceiling]
        one_step = replace(method, steps=1).path(tiny, contrast, gammas=[0.5 * ceiling])
        assert path.frame.loss.iloc[1] < one_step.frame.loss.iloc[0]


class TestRefusals:
    def test_too_few_texts(self, tiny: Any) -> None:
        with pytest.raises(ContrastError, match="at least 4"):
            LinEAS().fit(tiny, ContrastSet(sentences(3, seed=1), sentences(9, seed=2)))

    @pytest.mark.parametrize(
        "wrong",
        [
            {"steps": 0},
            {"optimizer": "adam", "lr": -1.0},
            {"lr": 0.1},
            {"batch_size": 4},
            {"gamma": 0.1, "gamma_share": 0.1},
            {"gamma_share": 0.1, "units": 3},
            {"units": 0},
            {"gamma_share": -0.1},
            {"shifts": "sd"},
            {"gamma": -0.1},
            {"batch_size": 0},
            {"optimizer": "lbfgs"},
            {"gamma": 1.0, "l1": 0.0, "group": 0.0},
            {"units": 3, "l1": 0.0, "group": 0.0},
        ],
    )
    def test_settings_out_of_range(self, wrong: dict[str, Any]) -> None:
        with pytest.raises((SettingError, TypeError), match="LinEAS|optimizer"):
            LinEAS(**wrong)

    def test_sites_that_no_loss_reaches(self, tiny: Any, contrast: ContrastSet) -> None:
        with pytest.raises(SiteError, match="behind the last loss site"):
            LinEAS(loss_sites="blocks.0.hook_resid_post").fit(tiny, contrast)

    def test_training_mode(self, tiny: Any, contrast: ContrastSet) -> None:
        tiny.train()
        try:
            with pytest.raises(ModelError, match="training mode"):
                LinEAS().fit(tiny, contrast)
        finally:
            tiny.eval()

    def test_foreign_activations(self, tiny: Any, contrast: ContrastSet) -> None:
        with pytest.raises(ActivationError, match="pooled by max"):
            LinEAS(sites="mlp.hook_post").fit(tiny, contrast, activations=collect(tiny, contrast))
        with pytest.raises(ActivationError, match="lack 2 sites"):
            LinEAS().fit(tiny, contrast, activations=collect(tiny, contrast, pool="mean"))
        other = contrast.swap()
        with pytest.raises(ActivationError, match="other texts"):
            LinEAS(sites="mlp.hook_post").fit(tiny, other, activations=collect(tiny, contrast, pool="mean"))


def test_given_activations_change_nothing(tiny: Any, contrast: ContrastSet) -> None:
    acts = collect(tiny, contrast, "hook_resid_post", pool="mean")
    method = LinEAS(gamma=0.0, steps=5, progress=False)
    with_them, without = method.fit(tiny, contrast, activations=acts), method.fit(tiny, contrast)
    for one, other in zip(with_them.edits, without.edits, strict=True):
        torch.testing.assert_close(one.map.shift, other.map.shift, rtol=1e-3, atol=1e-5)


def test_flags_of_a_foreign_model_are_restored(tiny: Any, contrast: ContrastSet) -> None:
    parameters = list(tiny.parameters())
    parameters[0].requires_grad_(True)
    try:
        LinEAS.paper(optimizer="adam", lr=0.01, steps=2, progress=False).fit(tiny, contrast)
        assert parameters[0].requires_grad
        assert parameters[0].grad is None
        assert not any(parameter.requires_grad for parameter in parameters[1:])
    finally:
        parameters[0].requires_grad_(False)
