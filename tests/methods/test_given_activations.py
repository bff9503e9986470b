"""Activations that are given to a fit: of the model that is fitted, of its texts and of the tokens that it pools."""

from __future__ import annotations

from typing import Any

import pytest

from lens_steer.activations.activations import Activations
from lens_steer.activations.collect import collect
from lens_steer.errors import ActivationError, ArtifactError, ContrastError
from lens_steer.evaluation.evaluation import evaluate
from lens_steer.host.scope import Scope
from lens_steer.interventions.ablation import ablate
from lens_steer.interventions.intervention import Intervention
from lens_steer.methods.activation_transport import LinearAcT
from lens_steer.methods.aura import AurA
from lens_steer.methods.caa import CAA
from lens_steer.methods.lineas import LinEAS
from lens_steer.ranking.experts import rank_experts
from lens_steer.texts.contrast import ContrastSet
from lens_steer.texts.seen import seen_in, was_seen
from tests.families import make_tiny, sentences

CONTRAST = ContrastSet(sentences(8, seed=1, must="sad"), sentences(8, seed=2, must="happy"))
SITE = "blocks.0.mlp.hook_post"


@pytest.fixture(scope="module")
def other() -> Any:
    return make_tiny("gpt2", seed=5)


@pytest.mark.parametrize("method", [AurA(), CAA(), LinearAcT(sites="mlp.hook_post", causal=False)])
def test_of_another_model(tiny: Any, other: Any, method: Any) -> None:
    values = collect(tiny, CONTRAST, method.sites, pool=method.pool)
    assert method.fit(tiny, CONTRAST, activations=values) == method.fit(tiny, CONTRAST)
    with pytest.raises(ActivationError, match="another model"):
        method.fit(other, CONTRAST, activations=values)


def test_of_another_model_for_a_loss(tiny: Any, other: Any) -> None:
    method = LinEAS(
        sites="mlp.hook_post",
        loss_sites="hook_resid_post",
        gamma=0.0,
        optimizer="adam",
        lr=0.01,
        steps=2,
        progress=False,
    )
    values = collect(tiny, CONTRAST, "hook_resid_post", pool=method.pool)
    method.fit(tiny, CONTRAST, activations=values)
    with pytest.raises(ActivationError, match="another model"):
        method.fit(other, CONTRAST, activations=values)


def test_of_a_model_whose_weights_were_loaded_since() -> None:
    model = make_tiny("gpt2")
    values = collect(model, CONTRAST)
    state = {name: value + 0.1 for name, value in model.original_model.state_dict().items()}
    model.original_model.load_state_dict(state)
    with pytest.raises(ActivationError, match="another model"):
        AurA().fit(model, CONTRAST, activations=values)


def test_of_an_edited_run(tiny: Any) -> None:
    edit = ablate([(SITE, 5)], model=tiny)
    with edit.on(tiny):
        edited = collect(tiny, CONTRAST)
        AurA().fit(tiny, CONTRAST, activations=edited)
    with pytest.raises(ActivationError, match="under other edits"):
        AurA().fit(tiny, CONTRAST, activations=edited)
    bare = collect(tiny, CONTRAST)
    with edit.on(tiny), pytest.raises(ActivationError, match="under other edits"):
        AurA().fit(tiny, CONTRAST, activations=bare)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"scope": "last"}, "pool the tokens of .*last"), ({"special_in_pool": True}, "BOS and other special tokens")],
)
def test_of_other_tokens(tiny: Any, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ActivationError, match=says):
        AurA().fit(tiny, CONTRAST, activations=collect(tiny, CONTRAST, **settings))


def test_from_arrays_they_are_taken_as_they_are(tiny: Any) -> None:
    values = collect(tiny, CONTRAST)
    sides = ({site.name: side[site] for site in values.sites} for side in (values.source, values.target))
    arrays = Activations.from_arrays(**dict(zip(("source", "target"), sides, strict=True)))
    assert AurA().fit(tiny, CONTRAST, activations=arrays) == AurA().fit(tiny, CONTRAST)


def test_the_artifact_says_how_it_was_pooled(tiny: Any, tmp_path: Any) -> None:
    edit = AurA(batch_size=3).fit(tiny, CONTRAST)
    pooled = {"pool": "max", "scope": repr(Scope()), "bos": "not pooled", "batch": 3}
    assert edit.provenance["activations"] == pooled
    assert Intervention.load(edit.save(tmp_path / "edit")).provenance["activations"] == pooled


def test_of_another_model_for_an_ablation(tiny: Any, other: Any) -> None:
    values = collect(tiny, CONTRAST, SITE)
    ranking = rank_experts(values, holdout=None)
    edit = ablate(ranking.top(3), mode="mean", activations=values, model=tiny)
    assert edit == ablate(ranking.top(3), mode="mean", activations=values)
    with edit.on(tiny):
        pass
    with pytest.raises(ArtifactError, match="other weights"), edit.on(other):
        pass
    with pytest.raises(ActivationError, match="another model"):
        ablate(ranking.top(3), mode="mean", activations=values, model=other)
    elsewhere = collect(other, CONTRAST, SITE)
    with pytest.raises(ActivationError, match="those of the ranking are of two models"):
        ablate(ranking, mode="target_mean", activations=elsewhere)
    with ablate([(SITE, 5)], model=tiny).on(tiny):
        edited = collect(tiny, CONTRAST, SITE)
    with pytest.raises(ActivationError, match="under other edits"):
        ablate(ranking, mode="mean", activations=edited)
    with pytest.raises(ActivationError, match="under other edits"):
        ablate([(SITE, 5)], mode="mean", activations=edited, model=tiny)
    ablate(ranking, mode="zero", activations=edited)  # looked up for widths alone


def test_an_ablation_has_seen_the_texts_of_its_ranking_and_of_its_means(tiny: Any) -> None:
    train, held = CONTRAST.split(0.5, seed=0)
    values = collect(tiny, train, SITE)
    ranking, units = rank_experts(values, holdout=None), [(SITE, 5)]
    run: dict[str, Any] = {"scorer": lambda texts: [0.0] * len(texts), "max_new_tokens": 2, "progress": False}
    for edit in (ablate(ranking), ablate(units, mode="mean", activations=values)):
        assert was_seen(train.source + train.target, seen_in(edit.provenance)).all()
        assert not was_seen(held.source + held.target, seen_in(edit.provenance)).any()
        with pytest.raises(ContrastError, match="the intervention was made from 2 of these 2 texts"):
            evaluate(tiny, edit, prompts=held.source[:2], neutral=train.target[:2], **run)
        evaluate(tiny, edit, prompts=held.source[:2], neutral=held.target[:2], **run)
    assert not seen_in(ablate(units, activations=values).provenance).size
