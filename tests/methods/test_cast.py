"""CAST: the condition is found, decided once per row on the prompt, and held, whatever the route."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lens_steer.activations.collect import collect
from lens_steer.errors import MapError, ModelError, SettingError, SiteError
from lens_steer.host.sites import find_sites
from lens_steer.host.tokens import tokenize
from lens_steer.interventions.intervention import Intervention
from lens_steer.interventions.row_gate import RowGate
from lens_steer.methods.caa import CAA
from lens_steer.methods.cast import CAST, best_threshold, f1
from lens_steer.texts.contrast import ContrastSet
from tests.families import sentences
from tests.host.test_clock import left_padded

SAD = ContrastSet(sentences(12, seed=1, must="sad"), sentences(12, seed=2, must="happy"), name="sad")
BASE = CAA(multiplier=3.0, layers=(-1,))
ROWS = ["the dog was sad and sad", "a happy bird sang", "sad sad", "the happy happy girl smiled at home"]


@pytest.fixture(scope="module")
def edit(tiny: Any) -> Intervention:
    return CAST(base=BASE, similarity="cosine", direction="mean_difference").fit(tiny, SAD)


def gate_of(edit: Intervention) -> RowGate:
    (gate, *others) = [one.gate for one in edit.edits]
    assert gate is not None
    assert all(other == gate for other in others)
    return gate


def by_hand(model: Any, edit: Intervention) -> list[bool]:
    """Which of ROWS the gate should open, from what `collect` reads at its site."""
    gate = gate_of(edit)
    read = collect(model, ContrastSet(ROWS, ["the"]), gate.site.name, pool="mean").source[gate.site]
    cosine = read @ gate.direction / read.norm(dim=1) / gate.direction.norm()
    return [bool(value > gate.threshold) == (gate.side == "above") for value in cosine]


def test_rows_behind_an_open_gate_are_steered_and_the_others_are_not(tiny: Any, edit: Intervention) -> None:
    opened = by_hand(tiny, edit)
    assert 0 < sum(opened) < len(ROWS)
    batch = tokenize(tiny, ROWS).batch(range(len(ROWS)))
    run = {"attention_mask": batch.mask.long()}
    plain = tiny(batch.ids, **run)
    with BASE.fit(tiny, SAD).on(tiny):
        steered = tiny(batch.ids, **run)
    with edit.on(tiny):
        found = tiny(batch.ids, **run)
    for row, is_open in enumerate(opened):
        assert torch.equal(found[row], (steered if is_open else plain)[row])
    counts = [int(batch.mask[row].sum()) for row, is_open in enumerate(opened) if is_open]
    assert edit.touched.prompt_tokens.tolist() == [sum(counts)] * len(edit.edits)


@pytest.mark.parametrize("cache", [True, False])
def test_the_decision_is_held(tiny: Any, edit: Intervention, cache: bool) -> None:
    """Every row of a left-padded generation is steered from its first to its last token, or never."""
    opened = by_hand(tiny, edit)
    ids, mask = left_padded([list(row) for row in tokenize(tiny, ROWS).ids])

    def run(context: Any) -> Tensor:
        with context:
            out: Tensor = tiny.original_model.generate(
                ids, attention_mask=mask, max_new_tokens=6, do_sample=False, use_cache=cache, eos_token_id=None,
                pad_token_id=0,
            )  # fmt: skip
        return out

    base = BASE.fit(tiny, SAD)
    plain, steered, found = run(base.on(tiny, 0.0)), run(base.on(tiny)), run(edit.on(tiny))
    assert not torch.equal(plain, steered)
    for row, is_open in enumerate(opened):
        assert torch.equal(found[row], (steered if is_open else plain)[row])
    assert edit.touched.generated_tokens.tolist() == [5 * sum(opened)] * len(edit.edits)


def test_the_condition_is_the_best_of_its_grid(tiny: Any) -> None:
    edit = CAST(base=BASE).fit(tiny, SAD)
    conditions = edit.provenance["conditions"]
    assert [row["site"] for row in conditions[:1]] == [gate_of(edit).site.name]
    assert conditions[0]["choosing_f1"] == max(row["choosing_f1"] for row in conditions)
    assert {row["site"] for row in conditions} == {site.name for site in find_sites(tiny, "hook_resid_pre")}


def test_the_gate_is_measured_on_prompts_that_chose_nothing(tiny: Any) -> None:
    """Labels that mean nothing: the F1 that chose the gate flatters it, held out it is right half of the time."""
    rows = []
    for seed in range(8):
        texts = sentences(40, seed=seed)
        nothing = ContrastSet(texts[:20], texts[20:])
        rows.append(CAST(base=BASE, condition=nothing, seed=seed).fit(tiny, SAD).provenance["conditions"][0])
    balanced = np.array([row["heldout_balanced_accuracy"] for row in rows])
    assert abs(balanced.mean() - 0.5) < 3 * max(balanced.std(ddof=1), 0.05) / 8**0.5
    assert np.mean([row["choosing_f1"] for row in rows]) > 0.6
    for row in rows:
        assert row["heldout_balanced_accuracy"] == pytest.approx((row["opened_source"] + row["closed_target"]) / 2)


def test_the_measured_prompts_are_the_second_part_of_the_split(tiny: Any) -> None:
    edit = CAST(base=BASE, holdout=0.4, seed=3).fit(tiny, SAD)
    gate, (best, *_) = gate_of(edit), edit.provenance["conditions"]
    _, held = SAD.split(0.4, seed=3)
    read = collect(tiny, held, gate.site.name, pool="mean")
    opened = {}
    for side, values in (("source", read.source), ("target", read.target)):
        likeness = gate.similarities(values[gate.site])
        opened[side] = float(((likeness > gate.threshold) == (gate.side == "above")).double().mean())
    assert (best["opened_source"], 1 - best["closed_target"]) == pytest.approx((opened["source"], opened["target"]))


def test_thresholds_by_hand() -> None:
    likeness = torch.tensor([0.1, 0.9, 0.8, 0.2, 0.3], dtype=torch.float64)
    is_source = torch.tensor([False, True, True, False, False])
    for labels, expected in ((is_source, "above"), (~is_source, "below")):
        threshold, side = best_threshold(likeness, labels)
        assert (threshold, side) == (pytest.approx(0.55), expected)
    assert best_threshold(torch.ones(4, dtype=torch.float64), torch.tensor([True, False] * 2)) == (1.0, "above")
    opened, is_source = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, True])
    assert float(f1(opened, is_source)) == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert float(f1(~opened & opened, is_source)) == 0.0


def test_another_condition_than_what_is_steered(tiny: Any) -> None:
    short, long = ["a dog", "the cat", "a bird"] * 2, sentences(6, seed=5, length=(7, 9))
    edit = CAST(base=BASE, condition=ContrastSet(short, long)).fit(tiny, SAD)
    assert edit.provenance["condition"] == ContrastSet(short, long).data_hash
    assert edit.scoped("all").restrict([edit.sites[0]]).edits[0].map.same_as(BASE.fit(tiny, SAD).edits[0].map)


def test_a_gate_survives_the_algebra(tiny: Any, edit: Intervention, tmp_path: Path) -> None:
    gate = gate_of(edit)
    for other in (edit.scaled(0.5), edit.scoped("last"), edit.inverse(), Intervention.load(edit.save(tmp_path / "e"))):
        assert gate_of(other) == gate
    base = BASE.fit(tiny, SAD)
    assert edit != base
    assert base.gated(gate) == edit
    assert len(edit.then(base).edits) == 2 * len(edit.edits)
    assert len(edit.then(edit).edits) == len(edit.edits)


def test_refusals(tiny: Any, edit: Intervention) -> None:
    gate = gate_of(edit)
    with pytest.raises(MapError, match="has a gate already"):
        edit.gated(gate)
    with pytest.raises(SettingError, match="no positions and no prompts"):
        edit.hooks()
    with pytest.raises(SiteError, match=r"no candidate site comes before it.*condition_sites"):
        CAST(base=CAA(layers=(0,)), condition_sites="hook_resid_post", condition_layers=(1,)).fit(tiny, SAD)
    late = RowGate(find_sites(tiny, "hook_resid_post")[1], torch.ones(32), 0.0)
    with (
        pytest.raises(SiteError, match="which comes after the edit at blocks.0.hook_resid_post"),
        CAA(layers=(0,)).fit(tiny, SAD).gated(late).on(tiny),
    ):
        pass
    with pytest.raises(MapError, match="length above 0"):
        RowGate(gate.site, torch.zeros(32), 0.0)
    with pytest.raises(MapError, match="32 units"):
        RowGate(gate.site, torch.ones(31), 0.0)


def test_a_cache_of_other_rows_is_refused(tiny: Any, edit: Intervention) -> None:
    ids = torch.tensor([[1, 5, 9, 7]])
    cache = tiny.original_model(ids, use_cache=True).past_key_values
    with edit.on(tiny):
        tiny.original_model(torch.cat([ids, ids]))
        with pytest.raises(ModelError, match="run the prompt inside the context"):
            tiny.original_model(ids[:, :1], past_key_values=cache)
