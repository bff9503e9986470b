"""Which fit of a path the held-out losses choose."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lens_steer.methods.heldout_losses import HeldoutLosses

NOISE = np.array([0.0, 3.0, -3.0, 1.0, -1.0])  # of all texts, then of all but one group each time
ERROR = math.sqrt(3 / 4 * np.square(NOISE[1:]).sum())


def test_the_standard_error_is_that_of_the_difference() -> None:
    """Losses that differ by a constant differ for sure, however much both vary over texts."""
    losses = HeldoutLosses.of([10 + NOISE, 9 + NOISE, 9.5 + 2 * NOISE], 12 + NOISE)
    assert losses.excess.tolist() == [1.0, 0.0, 0.5]
    assert losses.excess_se[:2].tolist() == [0.0, 0.0]
    assert losses.excess_se[2] == pytest.approx(ERROR)
    assert losses.gain.tolist() == [2.0, 3.0, 2.5]
    assert losses.gain_se.tolist() == pytest.approx([0.0, 0.0, ERROR])
    assert (losses.best, losses.chosen()) == (1, 1)


def test_the_sparsest_within_one_error_of_the_smallest() -> None:
    losses = HeldoutLosses.of([9.5 + 2 * NOISE, 9 + NOISE, 10 + NOISE], 12 + NOISE)
    assert losses.chosen() == 0
    barely = HeldoutLosses.of([9 + ERROR * 1.01 + 2 * NOISE, 9 + NOISE], 20 + NOISE)
    assert barely.chosen() == 1


def test_what_gains_less_than_half_is_not_taken_however_wide_the_error() -> None:
    """Five units of 17,280 were within one standard error of the best fit, and of no edit."""
    wide = 20 * NOISE
    sparsest, middle, best = 99.0 + wide, 94.0 + wide, 90.0 + 0 * NOISE
    losses = HeldoutLosses.of([sparsest, middle, best], 100.0 + 0 * NOISE)
    assert (losses.excess <= losses.excess_se).all()
    assert losses.chosen() == 1


@pytest.mark.parametrize("gain", [-1.0, 0.0, 0.99 * ERROR])
def test_a_gain_within_its_error_chooses_nothing(gain: float) -> None:
    identity = 5 + 0 * NOISE
    assert HeldoutLosses.of([5 - gain + NOISE, 6 + NOISE], identity).chosen() is None
    assert HeldoutLosses.of([5 - 1.01 * ERROR + NOISE, 6 + NOISE], identity).chosen() == 0


def test_one_block_has_no_error_and_no_held_out_texts_no_losses() -> None:
    one = HeldoutLosses.of([np.array([3.0]), np.array([2.5]), np.array([2.0])], np.array([4.0]))
    assert np.isnan(one.excess_se).all()
    assert one.chosen() == 2
    none = HeldoutLosses.of([np.zeros(0)] * 2, np.zeros(0))
    assert np.isnan([none.excess, none.excess_se, none.gain, none.gain_se]).all()
