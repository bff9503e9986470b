"""What LinEAS offers beside the paper: the normalised loss, and refitting chosen units without a penalty."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lens_steer.activations.collect import collect
from lens_steer.errors import LensSteerWarning, SettingError, UnitError
from lens_steer.host.sites import find_sites
from lens_steer.host.units import Unit
from lens_steer.interventions.intervention import Edit, Intervention
from lens_steer.interventions.maps import DiagonalAffine
from lens_steer.interventions.row_gate import RowGate
from lens_steer.methods.activation_transport import MeanAcT
from lens_steer.methods.caa import CAA
from lens_steer.methods.end_to_end import inverse_variances
from lens_steer.methods.layout import Layout
from lens_steer.methods.lineas import LinEAS
from lens_steer.methods.refit import deviations
from lens_steer.methods.repe import RepE
from lens_steer.ranking.experts import rank_experts
from lens_steer.statistics.wasserstein import wasserstein
from lens_steer.texts.contrast import ContrastSet
from tests.families import make_tiny, sentences

NORMALISED = LinEAS.paper(loss="normalised", steps=8, optimizer="adam", lr=0.01, progress=False)


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return ContrastSet(sentences(10, seed=1, must="sad"), sentences(7, seed=2, must="happy"))


class TestNormalisedLoss:
    def test_it_is_the_squared_distance_over_the_variance_of_both_sides(self, tiny: Any, contrast: ContrastSet) -> None:
        edit = NORMALISED.fit(tiny, contrast)
        acts = collect(tiny, contrast, "hook_resid_post", pool="mean")
        with edit.on(tiny):
            edited = collect(tiny, contrast, "hook_resid_post", pool="mean")
        for name, moved in (("identity", acts), ("training", edited)):
            total = 0.0
            for site in acts.sites:
                variance = torch.cat([acts.source[site], acts.target[site]]).double().var(0, correction=0)
                distances = wasserstein(moved.source[site], acts.target[site], order=2).square()
                total += float((distances / variance).sum()) / len(acts.sites)
            assert edit.provenance["loss"][name] == pytest.approx(total, rel=1e-4)

    @pytest.mark.filterwarnings("ignore:.*alone has .* of the loss")
    @pytest.mark.parametrize("loss", ["normalised", "wasserstein"])
    def test_rescaling_a_unit_changes_nothing(self, contrast: ContrastSet, loss: Any) -> None:
        """One unit of a gated MLP times 8, what reads it divided by 8: the same model in other units."""
        plain, rescaled = make_tiny("llama"), make_tiny("llama")
        mlp = rescaled.original_model.model.layers[0].mlp
        originals = [getattr(part, "_original_component", part) for part in (mlp.up_proj, mlp.down_proj)]
        with torch.no_grad():
            originals[0].weight[5] *= 8
            originals[1].weight[:, 5] /= 8
        ids = plain.to_tokens("the dog was sad")
        assert torch.equal(plain(ids), rescaled(ids))
        method = replace(NORMALISED, loss=loss, sites="mlp.hook_post", steps=1)
        losses = [method.fit(model, contrast).provenance["loss"]["identity"] for model in (plain, rescaled)]
        assert (losses[0] == pytest.approx(losses[1], rel=1e-5)) == (loss == "normalised")

    def test_a_unit_without_spread_does_not_count(self, tiny: Any) -> None:
        (site,) = find_sites(tiny, "hook_resid_post", layers=[0])
        source = torch.randn(5, 32)
        source[:, 3] = 7.0
        target = source.flip(0) + 1
        target[:, 3] = 7.0
        weights = inverse_variances({site: source}, {site: target})[site]
        assert weights[3] == 0
        assert bool((weights[:3] > 0).all())
        assert bool(torch.isfinite(weights).all())

    @pytest.mark.filterwarnings("ignore:.*moved nothing")
    @pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd", "lr": 0.1}, {"gamma": 0.01}, {"batch_size": 4}])
    def test_never_worse_than_the_identity(self, tiny: Any, contrast: ContrastSet, settings: dict[str, Any]) -> None:
        loss = replace(NORMALISED, **settings).fit(tiny, contrast).provenance["loss"]
        assert loss["training"] <= loss["identity"]

    def test_held_out_texts_are_measured_in_the_same_units(self, tiny: Any, contrast: ContrastSet) -> None:
        # On itself as held-out contrast, the held-out loss of the returned map is its training loss.
        edit = replace(NORMALISED, holdout=contrast, evaluate_every=3).fit(tiny, contrast)
        loss = edit.provenance["loss"]
        assert loss["heldout"] == pytest.approx(loss["training"], rel=1e-5)

    def test_an_unknown_loss(self) -> None:
        with pytest.raises((SettingError, TypeError), match="loss"):
            LinEAS(loss="l2")  # type: ignore[arg-type]


class TestRefit:
    @pytest.fixture(scope="class")
    def sparse(self, tiny: Any, contrast: ContrastSet) -> tuple[LinEAS, Intervention]:
        method = LinEAS.paper(steps=15, lr=0.02, progress=False)
        method = replace(method, gamma=0.3 * method.gamma_max(tiny, contrast))
        edit = method.fit(tiny, contrast)
        assert 0 < len(edit.units()) < 64
        return method, edit

    def test_the_support_stays_and_the_loss_falls(
        self, tiny: Any, contrast: ContrastSet, sparse: tuple[LinEAS, Intervention]
    ) -> None:
        method, edit = sparse
        refitted = method.refit(tiny, contrast, edit)
        assert refitted.units() == edit.units()
        assert refitted.provenance["loss"]["training"] < edit.provenance["loss"]["training"]
        assert refitted.provenance["refitted"] == len(edit.units())
        assert refitted.provenance["gamma"] == 0.0
        for e in refitted.edits:  # the identity everywhere else, to the bit
            still = ~e.map.moved(1e-5)
            assert not e.map.moved(0.0)[still].any()

    @pytest.mark.filterwarnings("ignore:.*moved nothing")
    @pytest.mark.parametrize("settings", [{"lr": 1e6}, {"optimizer": "adam", "lr": 3.0}, {"batch_size": 4, "lr": 10.0}])
    def test_never_above_the_sparse_fit(
        self, tiny: Any, contrast: ContrastSet, sparse: tuple[LinEAS, Intervention], settings: dict[str, Any]
    ) -> None:
        method, edit = sparse
        loss = replace(method, **settings).refit(tiny, contrast, edit).provenance["loss"]
        assert loss["training"] <= edit.provenance["loss"]["training"] * (1 + 1e-6)

    def test_at_the_share_of_a_sparse_fit_its_own_units_stay_as_they_are(
        self, tiny: Any, contrast: ContrastSet
    ) -> None:
        method = LinEAS(units=12, progress=False)
        edit = method.fit(tiny, contrast)
        share = edit.provenance["final_gamma_share"]
        assert share == pytest.approx(0.3 * edit.provenance["gamma"] / method.gamma_max(tiny, contrast))
        again = method.refit(tiny, contrast, edit, gamma_share=share)
        assert again.provenance["gamma"] == pytest.approx(edit.provenance["relaxed_gamma"], rel=0.02)
        assert again.provenance["loss"]["training"] == pytest.approx(edit.provenance["loss"]["training"], rel=1e-3)

    def test_at_the_whole_share_none_of_the_chosen_units_moves(self, tiny: Any, contrast: ContrastSet) -> None:
        """The share is of the gamma that holds these units, not of the larger one that holds all."""
        method = LinEAS(progress=False)
        frame = method.sensitivity(tiny, contrast)
        weakest = frame.nsmallest(5, "norm")
        with pytest.warns(LensSteerWarning, match="moved nothing"):
            assert not method.refit(tiny, contrast, weakest, gamma_share=1.001).units()
        assert method.refit(tiny, contrast, weakest, gamma_share=0.9).units()
        with pytest.raises(SettingError, match="gamma_share=-0.5 is out of range"):
            method.refit(tiny, contrast, weakest, gamma_share=-0.5)

    def test_any_choice_of_units_will_do(self, tiny: Any, contrast: ContrastSet) -> None:
        method = LinEAS.paper(sites="mlp.hook_post", steps=10, lr=0.01, progress=False)
        ranking = rank_experts(collect(tiny, contrast), holdout=None)
        chosen = ranking.units(5)
        edits = [method.refit(tiny, contrast, units) for units in (chosen, [str(unit) for unit in chosen])]
        assert edits[0] == edits[1]
        assert set(edits[0].units()) == set(chosen)
        assert edits[0].provenance["loss"]["training"] < edits[0].provenance["loss"]["identity"]

    def test_it_starts_from_the_maps_it_is_given(self, tiny: Any, contrast: ContrastSet) -> None:
        sites = find_sites(tiny, "hook_resid_post")
        caa = CAA(layers=(1,)).fit(tiny, contrast)
        start = deviations(caa, Layout(sites))
        assert torch.equal(start[96:], caa.edits[0].map.shift)
        assert not start[:96].any()
        # Units without maps, and maps that are not diagonal without an interval, start at the identity.
        for other in (
            caa.units(),
            RepE(mode="project_out", pairing="random").fit(tiny, contrast),
            MeanAcT().fit(tiny, contrast),
        ):
            assert not deviations(other, Layout(sites)).any()

    def test_an_edit_of_some_tokens_or_rows_is_refused(
        self, tiny: Any, contrast: ContrastSet, sparse: tuple[LinEAS, Intervention]
    ) -> None:
        """Its maps would come back for every token, without the gate."""
        method, edit = sparse
        gate = RowGate(edit.sites[0], torch.ones(32), 0.1)
        for chosen, what in ((edit.scoped("last"), r"tokens .last."), (edit.gated(gate), "rows")):
            with pytest.raises(SettingError, match=rf"for some {what} only.*intervention.units"):
                method.refit(tiny, contrast, chosen)
            assert method.refit(tiny, contrast, chosen.units()).units()

    def test_refusals(self, tiny: Any, contrast: ContrastSet) -> None:
        (site,) = find_sites(tiny, "mlp.hook_post", layers=[1])
        method = LinEAS(steps=1, progress=False)
        with pytest.raises(UnitError, match="blocks.1.mlp.hook_post.3. lies at none of the edited sites"):
            method.refit(tiny, contrast, [Unit(site, 3)])
        (site,) = find_sites(tiny, "hook_resid_post", layers=[0])
        with pytest.raises(UnitError, match="no unit to refit"):
            method.refit(tiny, contrast, Intervention((Edit(site, DiagonalAffine.identity(32)),)))


class TestScaleWeight:
    """A change of scale by 1 costs what a shift by `scale_weight` costs."""

    @pytest.mark.parametrize("shifts", ["spread", "activation"])
    def test_only_what_is_cheap_moves_first(self, tiny: Any, contrast: ContrastSet, shifts: Any) -> None:
        settings: dict[str, Any] = {"shifts": shifts, "gamma_share": 0.7, "steps": 10, "progress": False}
        for weight, moved in ((1e3, "shift"), (1e-3, "scale")):
            edit = LinEAS(scale_weight=weight, **settings).fit(tiny, contrast)
            changed = {"scale": False, "shift": False}
            for one in edit.edits:
                assert isinstance(one.map, DiagonalAffine)
                changed["scale"] |= bool((one.map.scale != 1).any())
                changed["shift"] |= bool((one.map.shift != 0).any())
            assert changed == {"scale": moved == "scale", "shift": moved == "shift"}

    def test_a_dense_fit_is_of_the_same_loss(self, tiny: Any, contrast: ContrastSet) -> None:
        """Without a penalty the weight only says in what the descent measures a shift."""
        losses = [
            LinEAS(scale_weight=weight, gamma=0.0, steps=200, progress=False).fit(tiny, contrast).provenance["loss"]
            for weight in (1.0, 4.0)
        ]
        assert losses[0]["training"] == pytest.approx(losses[1]["training"], rel=0.05)

    @pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
    def test_a_weight_that_is_none_is_refused(self, weight: float) -> None:
        with pytest.raises(SettingError, match="scale_weight=.* is out of range"):
            LinEAS(scale_weight=weight)
