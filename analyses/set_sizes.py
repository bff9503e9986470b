"""The smallest number of units of an order that halves a concept, and whether one order needs fewer than another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

import lens_steer as ls
from analyses.controls import Choice
from analyses.measurements import HeldOut, Measurements, When
from analyses.minimal_sets_findings import CONCEPT
from lens_steer.progress import progress_bar

_RESAMPLES = 2000
_WHEN: tuple[When, When] = ("before", "after")


def tried_doses(
    choosing: HeldOut, orders: Mapping[str, Choice], ks: Sequence[int], ablated: Callable[[Choice], ls.Intervention]
) -> tuple[pd.DataFrame, Measurements]:
    """Return order, k, measure, before and after on the prompts that choose, and the measurements (edits are `dose`s).

    An order is tried at every k that it has units for; one that ends before the largest, whole too.
    """
    cases = [(name, k) for name, order in orders.items() for k in sorted({min(k, len(order)) for k in ks} - {0})]
    parts = [
        choosing.measure(ablated(orders[name][:k]), dose(name, k), keep=False)
        for name, k in progress_bar(cases, desc="doses", unit="edit", show=True)
    ]
    read = Measurements.of(parts, seed=0)
    rows = [
        (name, k, measure, read.value(dose(name, k), measure, "before"), read.value(dose(name, k), measure))
        for name, k in cases
        for measure in read.measures
    ]
    return pd.DataFrame(rows, columns=["order", "k", "measure", "before", "after"]), read


def dose(order: str, k: int) -> str:
    """Return the name of an edit."""
    return f"{k} of {order}"


def smallest_sets(doses: pd.DataFrame) -> dict[str, int]:
    """Return the smallest k of every order at which half of the concept is left, or less; none where it never is.

    Of a concept that the unedited model does not show there is no half.
    """
    shown = doses[(doses["measure"] == CONCEPT) & (doses["before"] > 0)]
    reached = shown[shown["after"] <= shown["before"] / 2]
    return {str(name): int(k) for name, k in reached.groupby("order", sort=False)["k"].min().items()}


def size_ratios(read: Measurements, doses: pd.DataFrame, reference: str, *, seed: int) -> pd.DataFrame:
    """Hold the smallest set of every order against that of a reference, over prompts drawn again for all at once.

    Columns: order, reference, value (the ratio of their numbers of units), low, high, confidence: percentiles of
    resamples, which hold for all orders at once. A set that never halves the concept counts as twice the largest number
    tried, so a ratio is one of few. Orders with fewer units than that number are left out: nothing was asked of them
    there.
    """
    ks = sorted(doses.loc[doses["order"] == reference, "k"].unique())
    largest = doses["k"].max()
    whole: list[str] = [str(name) for name, part in doses.groupby("order", sort=False) if part["k"].max() == largest]
    columns = ["order", "reference", "value", "low", "high", "confidence"]
    if reference not in whole:
        return pd.DataFrame(columns=columns)
    prompts = read.values(dose(reference, ks[0]), CONCEPT)[0].shape[1]
    drawn = np.random.default_rng(seed).integers(prompts, size=(_RESAMPLES, prompts - 1))
    numbers = {name: _smallest(read, name, ks, drawn) for name in whole}
    every = {name: float(_smallest(read, name, ks, np.arange(prompts)[None])[0]) for name in whole}
    confidence = ls.confidence_of_each(0.95, max(1, len(whole) - 1))
    rows = []
    for name in whole:
        if name == reference:
            continue
        ratios = numbers[name] / numbers[reference]
        low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
        rows.append((name, reference, every[name] / every[reference], low, high, confidence))
    return pd.DataFrame(rows, columns=columns)


def _smallest(read: Measurements, order: str, ks: Sequence[int], cases: Any) -> Any:
    """Return the smallest k that halves the concept on every draw of prompts [case, prompt], or twice the largest."""
    halved = []
    for k in ks:
        shares = []
        for when in _WHEN:
            counted, of = (column[0][cases] for column in read.values(dose(order, k), CONCEPT, when))
            shares.append(ls.share(counted, of, -1))
        before, after = shares
        halved.append((after <= before / 2) & (before > 0))
    first = np.argmax([*halved, np.ones(len(cases), dtype=bool)], axis=0)
    return np.array([*ks, 2 * ks[-1]], dtype=float)[first]
