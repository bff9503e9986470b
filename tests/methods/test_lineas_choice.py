"""How sparse a LinEAS edit becomes: by a share of gamma_max, by held-out loss, by a number of units."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lens_steer import progress
from lens_steer.errors import LensSteerWarning, SettingError
from lens_steer.host.load import load_model
from lens_steer.interruption import on_interrupt
from lens_steer.methods.lineas import LinEAS
from lens_steer.texts.contrast import ContrastSet
from tests.families import make_tokenizer, random_model, sentences
from tests.methods.test_lineas import interrupted_at

QUIET: dict[str, Any] = {"progress": False}


@pytest.fixture(scope="module")
def texts() -> ContrastSet:
    return ContrastSet(sentences(32, seed=1, must="sad"), sentences(32, seed=2, must="happy"))


@pytest.fixture(scope="module")
def others() -> ContrastSet:
    return ContrastSet(sentences(40, seed=11, must="sad"), sentences(40, seed=12, must="happy"))


def test_a_share_is_a_share_of_gamma_max(tiny: Any, texts: ContrastSet) -> None:
    by_share = LinEAS(gamma_share=0.3, **QUIET).fit(tiny, texts)
    gamma = 0.3 * LinEAS().gamma_max(tiny, texts)
    assert by_share == LinEAS(gamma=gamma, **QUIET).fit(tiny, texts)
    assert by_share.provenance["gamma"] == pytest.approx(gamma)
    with pytest.warns(LensSteerWarning, match="lets nothing move"):
        assert not LinEAS(gamma_share=1.01, **QUIET).fit(tiny, texts).units()


def test_the_fit_says_why_it_stopped(tiny: Any, texts: ContrastSet) -> None:
    done = LinEAS(gamma_share=0.5, **QUIET).fit(tiny, texts)
    assert done.provenance["stopped"].startswith("converged")
    assert done.history.event.iloc[-1] == done.provenance["stopped"]
    cut = LinEAS(gamma_share=0.0, steps=3, **QUIET).fit(tiny, texts)
    assert cut.provenance["stopped"] == "all 3 steps are done"


class TestChoice:
    def test_units_and_penalty_are_chosen_on_texts_held_out(
        self, tiny: Any, texts: ContrastSet, others: ContrastSet
    ) -> None:
        edit = LinEAS(**QUIET).fit(tiny, texts)
        choice = edit.provenance["choice"]
        path = choice["path"]
        assert [row["gamma_share"] for row in path] == sorted((row["gamma_share"] for row in path), reverse=True)
        best = min(path, key=lambda row: row["heldout_loss"])
        assert choice["best_gamma_share"] == best["gamma_share"] <= choice["gamma_share"]
        measure = LinEAS()
        dense = LinEAS(gamma_share=0.0, **QUIET).fit(tiny, texts)
        assert len(edit.units()) < len(dense.units())
        assert measure.loss_of(tiny, others, edit) < measure.loss_of(tiny, others)
        assert measure.loss_of(tiny, others, edit) < 1.05 * measure.loss_of(tiny, others, dense)

    def test_nothing_is_there(self, tiny: Any) -> None:
        """Of two sides drawn from one kind of text the held-out loss does not fall, and one hears of it."""
        null = ContrastSet(sentences(32, seed=1), sentences(32, seed=2))
        with pytest.warns(LensSteerWarning, match="do not show that any penalty's fit is better than no edit"):
            edit = LinEAS(**QUIET).fit(tiny, null)
        choice = edit.provenance["choice"]
        assert not choice["shown"]
        assert choice["gamma_share"] == choice["best_gamma_share"] == 0.12
        others = ContrastSet(sentences(20, seed=3), sentences(20, seed=4))
        path = LinEAS(holdout=others, **QUIET).path(tiny, null)
        with pytest.warns(LensSteerWarning, match="do not show that any fit of this path is better than no edit"):
            best = path.best()
        assert best is path.interventions[np.argmin(np.abs(np.log(path.frame.gamma_share / 0.1)))]

    def test_few_texts_get_a_fixed_share_and_hear_of_it(self, tiny: Any, texts: ContrastSet) -> None:
        few = texts.subsample(10, seed=0)
        with pytest.warns(LensSteerWarning, match="too few to hold a quarter out.*gamma_share=0.1 is taken"):
            edit = LinEAS(**QUIET).fit(tiny, few)
        assert edit.provenance["gamma"] == pytest.approx(0.1 * LinEAS().gamma_max(tiny, few))

    def test_a_holdout_chooses_in_place_of_the_quarter(
        self, tiny: Any, texts: ContrastSet, others: ContrastSet
    ) -> None:
        method = LinEAS(holdout=others, **QUIET)
        edit, path = method.fit(tiny, texts), method.path(tiny, texts)
        assert edit.provenance["choice"]["path"][0]["heldout_loss"] > 0
        assert path.frame.heldout_excess.min() == 0.0
        assert path.frame.excess_se[path.frame.heldout_excess == 0].iloc[0] == 0.0
        frame, smallest = path.frame, path.frame.heldout_loss.idxmin()
        near = (frame.heldout_excess <= frame.excess_se) & (frame.heldout_gain >= frame.heldout_gain[smallest] / 2)
        assert path.best() is path.interventions[near.idxmax()]
        unedited = LinEAS().loss_of(tiny, others)
        assert frame.heldout_gain.to_numpy() == pytest.approx(unedited - frame.heldout_loss, abs=1e-4 * unedited)
        with pytest.raises(SettingError, match="no held-out loss to choose by"):
            LinEAS(**QUIET).path(tiny, texts, shares=(0.5,)).best()

    def test_held_out_texts_of_one_block_choose_the_smallest_loss(self, tiny: Any, others: ContrastSet) -> None:
        """They say nothing of how a difference varies; three groups leave one of them held out."""
        groups = tuple(f"group {place % 3}" for place in range(40))
        grouped = ContrastSet(others.source, others.target, source_groups=groups, target_groups=groups)
        _, held = grouped.split(0.25, 0)
        assert len(set(held.blocks.tolist())) == 1
        choice = LinEAS(**QUIET).fit(tiny, grouped).provenance["choice"]
        best = min(choice["path"], key=lambda row: row["heldout_loss"])
        assert choice["gamma_share"] == choice["best_gamma_share"] == best["gamma_share"]

    def test_an_interrupt_in_the_choice_ends_the_fit(self, tiny: Any, texts: ContrastSet) -> None:
        with interrupted_at(tiny, 40) as passes, on_interrupt("keep"):
            with pytest.warns(LensSteerWarning, match="was interrupted after"):
                edit = LinEAS(**QUIET).fit(tiny, texts)
        assert edit.provenance["interrupted"]
        assert edit.provenance["loss"]["training"] <= edit.provenance["loss"]["identity"]
        assert len(passes) < 50


class TestUnits:
    @pytest.mark.parametrize("units", [3, 12, 40])
    def test_nearly_as_many_as_asked_for_and_no_more(self, tiny: Any, texts: ContrastSet, units: int) -> None:
        edit = LinEAS(units=units, **QUIET).fit(tiny, texts)
        assert 0.8 * units <= len(edit.units()) <= units
        assert edit.provenance["loss"]["training"] < edit.provenance["loss"]["identity"]

    def test_what_is_kept_is_shrunk_less(self, tiny: Any, texts: ContrastSet) -> None:
        sparse = LinEAS(units=12, relax=False, **QUIET).fit(tiny, texts)
        relaxed = LinEAS(units=12, **QUIET).fit(tiny, texts)
        assert len(set(relaxed.units()) - set(sparse.units())) <= 3  # a unit that one penalty lets go
        assert relaxed.provenance["relaxed_gamma"] == pytest.approx(0.3 * sparse.provenance["gamma"])
        assert relaxed.provenance["loss"]["training"] < sparse.provenance["loss"]["training"]

    def test_more_than_there_are(self, tiny: Any, texts: ContrastSet) -> None:
        with pytest.raises(SettingError, match="units=65, and the edited sites have 64 units in all"):
            LinEAS(units=65, **QUIET).fit(tiny, texts)

    def test_more_than_the_path_gives(self, tiny: Any, texts: ContrastSet, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("lens_steer.methods.lineas_choice._SMALLEST", 0.5)
        with pytest.raises(SettingError, match=r"units=60 is more than the path gives \(\d+ at gamma_share"):
            LinEAS(units=60, **QUIET).fit(tiny, texts)

    def test_one_walk_comes_to_several_numbers_as_one_after_the_other_does(self, tiny: Any, texts: ContrastSet) -> None:
        method = LinEAS(steps=20, progress=False)
        path = method.path(tiny, texts, units=[24, 6, 24])
        assert [len(edit.units()) for edit in path.interventions] == path.frame.support.tolist()
        assert path.frame.gamma.is_monotonic_decreasing
        for count, edit, loss in zip((6, 24), path.interventions, path.frame.loss, strict=True):
            alone = replace(method, units=count).fit(tiny, texts)
            assert 0.8 * count <= len(edit.units()) <= count
            assert loss == pytest.approx(method.loss_of(tiny, texts, alone), rel=0.1)
        # The walk to the largest number is the one that it takes alone.
        walks = [[row["gamma_share"] for row in one.provenance["choice"]["path"]] for one in (alone, edit)]
        assert set(walks[0]) <= set(walks[1])

    def test_one_number_is_the_fit_itself(self, tiny: Any, texts: ContrastSet) -> None:
        one, alone = LinEAS(**QUIET).path(tiny, texts, units=[12]), LinEAS(units=12, **QUIET).fit(tiny, texts)
        assert one.interventions[0].edits == alone.edits

    @pytest.mark.filterwarnings("ignore:LinEAS was interrupted")
    def test_a_walk_that_is_broken_off_ends_the_fit_whichever_of_its_fits_is_taken(
        self, tiny: Any, texts: ContrastSet
    ) -> None:
        for passes_before in range(13, 31, 3):
            with interrupted_at(tiny, passes_before) as passes, on_interrupt("keep"):
                edit = LinEAS(units=6, steps=10, progress=False).fit(tiny, texts)
            assert edit.provenance["interrupted"], passes_before
            assert len(passes) <= passes_before + 2, passes_before  # the losses of what is returned, no step

    def test_numbers_that_no_path_comes_to_are_refused(self, tiny: Any, texts: ContrastSet) -> None:
        for wanted, message in (
            ({"units": []}, r"units=\[\] are one or more numbers from 1 on"),
            ({"units": [4, 0]}, r"units=\[4, 0\] are one or more"),
            ({"gammas": [math.nan]}, "gammas=.* are one or more numbers from 0 on"),
            ({"shares": [0.5, -0.5]}, "shares=.* are one or more numbers from 0 on"),
            ({"units": [4], "shares": [0.5]}, "shares and units say the same in two ways"),
            ({"units": [4, 65]}, "units=65, and the edited sites have 64 units in all"),
        ):
            with pytest.raises(SettingError, match=message):
                LinEAS(**QUIET).path(tiny, texts, **wanted)

    def test_nearest_on_a_path(self, tiny: Any, texts: ContrastSet) -> None:
        path = LinEAS(**QUIET).path(tiny, texts)
        support = path.frame.support.to_numpy()
        for units in (0, 10, 64):
            nearest = len(path.nearest(units=units).units())
            assert abs(nearest - units) == np.abs(support - units).min()


@pytest.fixture(scope="module")
def in_other_units() -> list[Any]:
    """One network three times, its residual stream times 1, 0.01 and 100: RMSNorm takes the factor out again."""
    models = []
    for factor in (1.0, 0.01, 100.0):
        model = random_model("llama")
        with torch.no_grad():
            model.model.embed_tokens.weight *= factor
            for layer in model.model.layers:
                for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                    writer.weight *= factor
        for module in model.modules():
            if hasattr(module, "variance_epsilon"):
                module.variance_epsilon *= factor**2
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        models.append(load_model(model, tokenizer=make_tokenizer()))
    return models


@pytest.mark.parametrize("settings", [{"gamma_share": 0.3}, {"units": 12}, {}])
def test_the_scale_of_the_stream_changes_nothing(
    in_other_units: list[Any], texts: ContrastSet, settings: dict[str, Any]
) -> None:
    plain, *scaled = (LinEAS(**settings, **QUIET).fit(model, texts) for model in in_other_units)
    for edit, factor in zip(scaled, (0.01, 100.0), strict=True):
        assert [str(unit) for unit in edit.units()] == [str(unit) for unit in plain.units()]
        assert len(edit.history) == pytest.approx(len(plain.history), abs=2)
        loss = {name: edit.provenance["loss"][name] / factor**2 for name in ("training", "identity")}
        assert loss["training"] == pytest.approx(plain.provenance["loss"]["training"], rel=1e-2)
        assert loss["identity"] == pytest.approx(plain.provenance["loss"]["identity"], rel=1e-3)


def test_the_papers_penalty_depends_on_the_scale(in_other_units: list[Any], texts: ContrastSet) -> None:
    plain, small, _ = (
        LinEAS(gamma_share=0.3, shifts="activation", **QUIET).fit(model, texts) for model in in_other_units
    )
    assert {str(unit) for unit in small.units()} != {str(unit) for unit in plain.units()}


def test_paper_settings(tiny: Any, texts: ContrastSet) -> None:
    paper = LinEAS.paper()
    assert (paper.optimizer, paper.lr, paper.steps, paper.gamma, paper.shifts) == ("sgd", 0.1, 1000, 0.0, "activation")
    assert LinEAS.paper(gamma_share=0.1).gamma is None
    edit = LinEAS.paper(steps=2, lr=0.01, **QUIET).fit(tiny, texts)
    assert edit.provenance["settings"]["optimizer"] == "sgd"
    assert torch.isfinite(edit.edits[0].map.scale).all()


@pytest.mark.filterwarnings("ignore:LinEAS. the held-out texts do not show")
def test_a_whole_fit_is_one_bar(tiny: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of all descents come to at most what the bar was made for, and those left out count."""
    bars: list[progress.ProgressLines] = []

    class Kept(progress.ProgressLines):
        def __post_init__(self) -> None:
            super().__post_init__()
            bars.append(self)

    monkeypatch.setattr(progress, "ProgressLines", Kept)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    contrast = ContrastSet(sentences(20, seed=1, must="sad"), sentences(20, seed=2, must="happy"))
    lineas = LinEAS(steps=4)
    path = lineas.path(tiny, contrast.subsample(8), shares=[0.5, 0.1])
    lineas.fit(tiny, contrast)
    LinEAS(steps=4, units=3).fit(tiny, contrast)
    assert len(path.interventions) == 2
    assert [(bar.desc, bar.total) for bar in bars] == [("LinEAS", 8), ("LinEAS", 4 * 8), ("LinEAS", None)]
    assert lineas.most_gradients == 4 * 8
    assert bars[0].done == 8
    assert bars[1].done in (28, 32)  # where nothing was penalised away there is nothing to learn once more
    assert 4 < bars[2].done <= LinEAS(steps=4, units=3).most_gradients


def test_how_many_gradients_a_fit_takes_at_most(tiny: Any, texts: ContrastSet) -> None:
    assert LinEAS().most_gradients == (6 + 1) * 15 + 60
    assert LinEAS(relax=False).most_gradients == (6 + 1) * 15
    assert LinEAS(gamma_share=0.1).most_gradients == 60
    assert LinEAS(gamma_share=0.1, relax=True).most_gradients == 120
    assert LinEAS.paper().most_gradients == 1000
    count = len(LinEAS(gamma_share=0.3, steps=7, **QUIET).fit(tiny, texts).history)
    assert count <= LinEAS(gamma_share=0.3, steps=7).most_gradients
