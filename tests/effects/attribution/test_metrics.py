"""Metrics by their formulas, and every bad input with the error that names its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jaxtyping
import pytest
import torch

import lens_steer as ls
from lens_steer.effects.attribution.metrics import Rows, bind_metric, token_id
from tests.effects.attribution.prompts import CLEAN, CORRUPTED, attribute

LOGITS = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(3, 64, generator=torch.Generator().manual_seed(1))
ROWS = Rows(torch.tensor([0, 1, 0]), OTHER)


@pytest.fixture
def untyped() -> Iterator[None]:
    """Without the run-time type check, as users run it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def values(model: Any, metric: Any, pairs: int = 2) -> torch.Tensor:
    found: torch.Tensor = bind_metric(metric, model, pairs)(LOGITS, ROWS)
    return found


def test_metrics_are_their_formulas(tiny: Any) -> None:
    dog, cat, sad = (token_id(tiny, word) for word in ("dog", "cat", "sad"))
    torch.testing.assert_close(values(tiny, ls.LogitDifference("dog", "cat")), LOGITS[:, dog] - LOGITS[:, cat])
    per_pair = values(tiny, ls.LogitDifference(["dog", "sad"], [cat, cat]))
    torch.testing.assert_close(per_pair, LOGITS[[0, 1, 2], [dog, sad, dog]] - LOGITS[:, cat])
    law = LOGITS.softmax(1)
    torch.testing.assert_close(values(tiny, ls.LogProbability(["dog", "cat"])).exp(), law[:, [dog, cat]].sum(1))
    own = values(tiny, ls.LogProbability([["dog"], ["sad", "cat"]])).exp()
    torch.testing.assert_close(own, torch.stack([law[0, dog], law[1, sad] + law[1, cat], law[2, dog]]))
    words = ls.WordList(["Dog", " sad"])
    torch.testing.assert_close(values(tiny, ls.ConceptProbability(words)), law[:, [dog, sad]].sum(1))
    kl = torch.nn.functional.kl_div(LOGITS.log_softmax(1), OTHER.log_softmax(1), log_target=True, reduction="none")
    torch.testing.assert_close(values(tiny, ls.KLToClean()), kl.sum(1))
    torch.testing.assert_close(values(tiny, lambda logits: logits[:, dog]), LOGITS[:, dog])


def test_kl_to_clean_is_0_in_the_clean_run_and_falls_where_the_difference_is_carried(tiny: Any) -> None:
    result = attribute(tiny, metric=ls.KLToClean(), sites="blocks.1.hook_resid_post", method="patch")
    assert result.settings["clean"] == pytest.approx(0, abs=1e-6)
    assert result.frame["value"].item() == pytest.approx(-result.settings["corrupted"], rel=1e-3)


@pytest.mark.plain  # a type check would speak first
@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("metric", "why"),
    [
        (ls.LogitDifference("dogs", "cat"), "'dogs' is not in the vocabulary"),
        (ls.LogitDifference("the dog", "cat"), "'the dog' is 2 tokens .* choose a word"),
        (ls.LogitDifference("dog", 99), "no token 99: the vocabulary has 64"),
        (ls.LogitDifference("dog", "dog"), "one token as correct and as wrong"),
        (ls.LogitDifference(["dog"], "cat"), "1 tokens are given for 4 pairs"),
        (ls.LogProbability([]), "the set of tokens is empty"),
        (ls.LogProbability("dog"), r"write a single one as \['dog'\]"),
        (ls.LogProbability([["dog"], "cat"]), "not both at once"),  # type: ignore[list-item]
        (ls.LogProbability([["dog"]]), "1 sets of tokens are given for 4 pairs"),
        (ls.ConceptProbability(["dog", "elephant"]), "no single token of this model reads as 'elephant'"),
        (lambda logits: logits.sum(), r"one number per row, a float tensor \(4,\)"),
        (lambda logits: logits[:, :2], r"gave a tensor \(4, 2\)"),
        (lambda logits: logits.argmax(1), "it must give one number per row, a float"),
        (lambda logits: float(logits[0, 0]), "gave float"),
        (lambda logits: logits[:, 0] * float("nan"), "is nan on pair"),
        (lambda logits: logits.detach()[:, 0], "no gradient goes through the metric.*method='patch'"),
        (ls.KLToClean, r"a class: give one with its tokens, as KLToClean\(...\)"),
        (3, "metric is int: give LogitDifference"),
    ],
)
def test_a_metric_that_cannot_be_read(tiny: Any, metric: Any, why: str) -> None:
    with pytest.raises(ls.LensSteerError, match=why):
        attribute(tiny, metric=metric, sites="mlp.hook_post")


def test_words_are_refused_at_once() -> None:
    for words in ([], [" "], "dog"):
        with pytest.raises(ls.LensSteerError):
            ls.ConceptProbability(words)


@pytest.mark.plain  # a type check would speak first
@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("clean", "corrupted", "settings", "why"),
    [
        ("the dog ran", "the big cat ran", {}, r"4 tokens and the corrupted one 5.*positions=\[-1\]"),
        (
            "the dog ran",
            "the dog ran",
            {},
            "pair 0: both prompts are the same .* nothing to attribute",
        ),
        ("the dog " * 40, "the cat " * 40, {}, "clean prompt 0 has 81 tokens, the model's context is 64"),
        (["the dog ran"], CORRUPTED, {}, "1 clean and 4 corrupted"),
        ([], [], {}, "no pair"),
        ("the dog ran", "the cat ran", {"positions": [7]}, "the clean prompt of pair 0 has 4 tokens, .* no token 7"),
        ("the dog ran", "the cat ran", {"positions": [1, -3]}, "twice"),
        ("the dog ran", "the cat ran", {"positions": []}, r"write a single one as \[-1\]"),
        ("the dog ran", "the cat ran", {"positions": [[1], [2]]}, "holds 2 lists for 1 pairs"),
        ("the dog ran", "the cat ran", {"positions": [(1, 2, 3)]}, "neither a token number nor two"),
        ("the dog ran", "the cat ran", {"metric_position": 9}, "metric_position: .* there is no token 9"),
        ("the dog ran", "the cat ran", {"metric_position": [1, 2]}, "2 places for 1 pairs"),
        (CLEAN, CORRUPTED, {"groups": [1]}, "1 groups are given for 4 pairs"),
        (CLEAN, CORRUPTED, {"level": "position"}, "level='position' takes means .* give positions"),
        (CLEAN, CORRUPTED, {"method": "cna", "positions": [[-1], [-1], [-1], [-2, -1]]}, "method='cna' takes means"),
        (CLEAN, CORRUPTED, {"units": ["blocks.0.mlp.hook_post[900]"], "level": "unit"}, "there is no unit 900"),
        (CLEAN, CORRUPTED, {"units": [("blocks.0.attn.hook_z", 3)], "level": "unit"}, "blocks.0.attn.hook_z"),
        (CLEAN, CORRUPTED, {"units": ["blocks.0.mlp.hook_post[3]"]}, "ask for level='unit'"),
        (CLEAN, CORRUPTED, {"level": "head"}, "has no heads: ask for attn.hook_z"),
        (CLEAN, CORRUPTED, {"level": "layer"}, "level is 'site', 'position', 'head' or 'unit'"),
        (CLEAN, CORRUPTED, {"method": "ap"}, "method is 'patch', 'attribution'"),
        (CLEAN, CORRUPTED, {"method": "patch", "remeasure": True}, "measures: there is no estimate"),
        (CLEAN, CORRUPTED, {"method": "integrated", "steps": 0}, "steps=0"),
        (CLEAN, CORRUPTED, {"confidence": 95}, "between 0 and 1"),
        (CLEAN, CORRUPTED, {"batch_size": 0}, "batch_size must be 1 or more"),
        (CLEAN, CORRUPTED, {"sites": "mlp.hook_past"}, "no site is named"),
        (CLEAN, CORRUPTED, {"sites": "hook_resid_mid"}, "MLP branch only"),
    ],
)
def test_bad_input_is_one_error_that_names_the_remedy(
    tiny: Any, clean: Any, corrupted: Any, settings: dict[str, Any], why: str
) -> None:
    settings = {"sites": "mlp.hook_post", "progress": False, **settings}
    with pytest.raises(ls.LensSteerError, match=why):
        ls.attribute(tiny, clean, corrupted, ls.LogitDifference("dog", "cat"), **settings)


def test_a_site_that_no_gradient_reaches(tiny: Any) -> None:
    """The metric looks at the first token alone: nothing that a later layer's queries do reaches it."""
    with pytest.raises(ls.LensSteerError, match="no gradient"):
        attribute(tiny, metric=lambda logits: torch.ones(len(logits), requires_grad=True), sites="mlp.hook_post")


def test_a_model_in_training_is_refused(tiny: Any) -> None:
    tiny.train()
    try:
        with pytest.raises(ls.LensSteerError, match="training mode"):
            attribute(tiny, sites="mlp.hook_post")
    finally:
        tiny.eval()
