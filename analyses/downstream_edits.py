"""The edits of the downstream study, and the strengths at which they all have the same effect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import brentq

import lens_steer as ls
from analyses.downstream_findings import (
    APART,
    CAUSAL,
    END_TO_END,
    LAYERWISE,
    LINEAR,
    LINEAR_CAUSAL,
    LINEAR_SOURCE,
    NULLS,
    STRONGEST,
)

_CLOSE = 0.01  # strengths are found to this
Measured = Mapping[tuple[str, str, str, int, str], Any]
"""Edit, texts, edited, layer, measure -> cases."""


def fitted(
    model: Any, texts: ls.ContrastSet, sites: Any, pool: Any, descent: Mapping[str, Any], seed: int
) -> dict[str, ls.Intervention]:
    """Fit all edits on the same texts at the same sites, and two on shuffled labels."""
    shuffled = texts.shuffled(seed)
    shared: dict[str, Any] = {"sites": sites, "pool": pool, "seed": seed, "support": "unbounded"}
    means = ls.MeanAcT(**shared, causal=False)
    lineas = ls.LinEAS(sites=sites, pool=pool, **descent, seed=seed, progress=False)
    methods: dict[str, Any] = {
        APART: means,
        CAUSAL: ls.MeanAcT(**shared, causal=True, moves="source"),
        LINEAR: ls.LinearAcT(**shared, causal=False),
        LINEAR_CAUSAL: ls.LinearAcT(**shared, causal=True, moves="both"),
        LINEAR_SOURCE: ls.LinearAcT(**shared, causal=True, moves="source"),
        END_TO_END: lineas,
    }
    edits = {name: method.fit(model, texts) for name, method in methods.items()}
    return {**edits, NULLS[0]: means.fit(model, shuffled), NULLS[1]: lineas.fit(model, shuffled)}


def equal_effect(
    model: Any,
    edits: Mapping[str, ls.Intervention],
    tuning: ls.ContrastSet,
    held: ls.ContrastSet,
    like: Measured,
    *,
    share: float,
    sites: Any,
    pool: Any,
    foreign: ls.ContrastSet,
) -> tuple[list[dict[str, Any]], Measured]:
    """Return at which strength every edit goes `share` of the way at the last layer, and what it does there.

    The strengths are those of the tuning texts, with how far the edit arrives on the held-out ones beside them; nan for
    an edit that does not get there up to strength 2. `like` are the estimates on the held-out texts at strength 1.
    """
    rows: list[dict[str, Any]] = []
    estimates: dict[tuple[str, str, str, int, str], Any] = {}
    for name in (*LAYERWISE, END_TO_END):
        strength = _strength_at(model, edits[name], tuning, share, sites, pool)
        if np.isnan(strength):
            at_strength = {
                key: np.full_like(cases, np.nan) for key, cases in like.items() if key[0] == name and key[2] == "all"
            }
        else:
            shift = ls.downstream_shift(
                model,
                edits[name],
                held,
                sites=sites,
                pool=pool,
                neutral=held.control,
                foreign=foreign,
                strength=strength,
                by_layer=False,
                progress=False,
            )
            at_strength = {(name, *key): cases for key, cases in shift.estimates.items() if key[1] == "all"}
        estimates |= at_strength
        last = max(key[3] for key in at_strength)
        arrived = float(at_strength[name, "heldout", "all", last, "arrived"][0])
        rows.append({"edit": name, "strength": strength, "arrived": arrived})
    return rows, estimates


def _strength_at(
    model: Any, edit: ls.Intervention, tuning: ls.ContrastSet, share: float, sites: Any, pool: Any
) -> float:
    """Find where the tuning source's mean has gone `share` of the way; nan where it never does, or none is shown."""
    last = ls.find_sites(model, sites)[-1]

    def beyond(strength: float) -> float:
        if strength == 0:
            return -share
        shift = ls.downstream_shift(
            model, edit, tuning, sites=last.name, pool=pool, strength=strength, by_layer=False, progress=False
        )
        return float(shift.estimates["heldout", "all", last.layer, "arrived"][0]) - share

    for low, high in ((0.0, 1.0), (1.0, STRONGEST)):
        reached = beyond(high)
        if np.isnan(reached):
            return float("nan")
        if reached >= 0:
            return float(brentq(beyond, low, high, xtol=_CLOSE))
    return float("nan")
