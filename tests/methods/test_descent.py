"""The descent on losses of known shape: what is judged against what, and when it stops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lens_steer.methods.descent import descend, draw_rows
from lens_steer.methods.descent_run import Descent, Outcome

SETTINGS = Descent(steps=40, lr=0.1, optimizer="sgd", evaluate_every=2, patience=3)


class Distances:
    """(1/2) |x - 1|^2, to which every drawn minibatch adds a bias that all rows together do not have."""

    def __init__(self, bias: float = 0.0, *, steepness: float = 1.0) -> None:
        self.bias, self.steepness = bias, steepness

    def __call__(self, parameters: Tensor, source: list[int] | None = None, target: list[int] | None = None) -> float:
        bias = self.bias if source is not None else 0.0
        return float(self.steepness * (parameters - 1).square().sum() / 2) + bias

    def with_gradient(
        self, parameters: Tensor, source: list[int] | None = None, target: list[int] | None = None
    ) -> tuple[float, Tensor]:
        return self(parameters, source, target), self.steepness * (parameters - 1)


def run(loss: Distances, settings: Descent = SETTINGS, *, batch: int | None = None, heldout: object = None) -> Outcome:
    rows = draw_rows((8, 8), batch, seed=0)
    return descend(
        loss,
        settings,
        name="test",
        start=torch.zeros(3),
        batches=rows,
        support=lambda x: int((x != 0).sum()),
        heldout=heldout,  # type: ignore[arg-type]
        progress=False,
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_minibatch_is_judged_by_the_identity_on_its_own_rows(optimizer: str) -> None:
    """With a bias of ten times the loss, no minibatch is ever below the identity's loss over all rows."""
    settings = replace(SETTINGS, optimizer=optimizer)  # type: ignore[arg-type]
    biased, plain = run(Distances(bias=15.0), settings, batch=2), run(Distances(), settings)
    assert biased.back_offs == 0
    assert biased.loss == pytest.approx(plain.loss, rel=0.2)
    assert biased.loss < 0.1 * 1.5


@pytest.mark.parametrize("steepness", [50.0, 1e6, 1e12])
def test_a_step_far_above_the_start_goes_back_at_once(steepness: float) -> None:
    """Every other step goes back, until the rate is small enough: no ten steps are spent far above."""
    outcome = run(Distances(steepness=steepness), replace(SETTINGS, steps=80))
    events = [row["event"] for row in outcome.history]
    assert outcome.back_offs > 0
    assert all(event.startswith("loss far above its start") for event in events[1 : 2 * min(outcome.back_offs, 4) : 2])
    assert outcome.loss < 0.1 * Distances(steepness=steepness)(torch.zeros(3))


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_patience_counts_evaluations_after_the_start(patience: int) -> None:
    """Away from 0 the held-out loss only rises; the look at the start is none that has not improved."""
    outcome = run(Distances(), replace(SETTINGS, patience=patience), heldout=lambda x: float(x.square().sum()))
    looks = [row["step"] for row in outcome.history if row["heldout_loss"] is not None]
    assert looks == list(range(0, 2 * patience + 1, 2))
    assert len(outcome.history) == 2 * patience + 1
    assert not outcome.parameters.any()
    # Where it falls, patience ends nothing.
    falls = run(Distances(), replace(SETTINGS, patience=patience), heldout=lambda x: float((x - 2).square().sum()))
    assert len(falls.history) == SETTINGS.steps
