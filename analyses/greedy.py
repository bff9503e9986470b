"""A greedy order of units: each next one is that whose patch takes most of the concept with all before it held.

To try every unit at every step would take as many runs as there are units. So one attribution (gradient times
difference) screens all of them at every step, in the model as it is with the units before held at their target means;
the few that it puts first are patched exactly, and the best of them is taken. Attributions see what later components do
against the units that are held already (self-repair), so an order made once from single units need not be the greedy
one.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pandas as pd

import lens_steer as ls
from analyses.causal_scores import ConceptPairs
from analyses.controls import Choice
from lens_steer.progress import progress_bar

COLUMNS = ["rank", "site", "layer", "unit", "estimated", "effect", "screened_as", "metric"]


def greedy_order(
    model: Any, pairs: ConceptPairs, activations: ls.Activations, *, most: int, screened: int
) -> tuple[Choice, pd.DataFrame]:
    """Return the units in the order in which they are taken, at most `most`, and a table of the steps.

    Columns: rank, site, layer, unit, estimated and effect (of patching the unit into source texts from target texts, in
    the pairs' metric), screened_as (its place in the screen, from 1), metric (in source texts, before the step). The
    order ends where none of the `screened` units lowers the metric.
    """
    removing = replace(pairs, clean=pairs.corrupted, corrupted=pairs.clean)
    sites = [site.name for site in activations.sites]
    known = {site.name: site for site in activations.sites}
    taken: list[ls.Unit] = []
    rows = []
    for rank in progress_bar(range(1, most + 1), desc="greedy", unit="unit", show=True):
        with holding(taken, activations, model):
            estimated = removing.attribute(model, sites, "attribution")
            tried = lowest(estimated.frame, known, taken, screened)
            if not tried:
                break
            exact: Any = removing.attribute(model, sites, "patch", units=tried).frame
        best = exact.loc[exact["value"].idxmin()]
        if best["value"] >= 0:
            break
        unit = ls.Unit(known[best["site"]], int(best["unit"]))
        values: Any = estimated.frame.set_index(["site", "unit"])["value"]
        place, guess = tried.index(unit) + 1, float(values[best["site"], best["unit"]])
        metric = estimated.settings["corrupted"]
        rows.append((rank, unit.site.name, unit.site.layer, unit.index, guess, float(best["value"]), place, metric))
        taken.append(unit)
    return tuple(taken), pd.DataFrame(rows, columns=COLUMNS)


def holding(units: Sequence[ls.Unit], activations: ls.Activations, model: Any) -> Any:
    """Hold units at their target means inside."""
    return ls.ablate(units, mode="target_mean", activations=activations).on(model) if units else nullcontext()


def lowest(frame: Any, sites: dict[str, ls.Site], taken: Sequence[ls.Unit], count: int) -> list[ls.Unit]:
    """Return the units of the lowest estimates below 0 that are not taken, the lowest first."""
    done = {(unit.site.name, unit.index) for unit in taken}
    below = frame[frame["value"] < 0].sort_values("value", kind="stable")
    units = [(site, int(unit)) for site, unit in zip(below["site"], below["unit"], strict=True)]
    return [ls.Unit(sites[site], unit) for site, unit in units if (site, unit) not in done][:count]
