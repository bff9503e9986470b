"""What the study of necessity and sufficiency found: sentences that say no more than its intervals, and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

import lens_steer as ls
from analyses.measurements import PERPLEXITY, HeldOut, change_of
from analyses.sentences import by_verdict, sentence
from analyses.unit_orders import ORDERS

CONCEPT, RANDOM = "concept", "random units"
ABLATED, KEPT = "ablated", "kept alone"
NOTHING, UNEDITED = "nothing kept", "no edit"


def summary(concept: str, frames: Mapping[str, pd.DataFrame], neutral: str) -> list[str]:
    """Return what was found at the largest k, from the frames alone: necessity, sufficiency, and beside controls."""
    held, kept, against = (frames[name] for name in ("necessity", "sufficiency", "against_controls"))
    measures = {CONCEPT: f"the mean score of {concept} in generated texts", PERPLEXITY: f"the perplexity of {neutral}"}
    k = int(held["k"].max())
    sentences = []
    keeping = "keeping {k} units of {choice} alone (all others held at {mode}) instead of "
    for table, subject in (
        (held[held["choice"].isin(ORDERS)], "ablating {k} units of {choice} (held at {mode})"),
        (kept[kept["against"] == NOTHING], f"{keeping}none"),
        (kept[kept["against"] == UNEDITED], f"{keeping}all"),
    ):
        for (mode, measure), part in table[table["k"] == k].groupby(["mode", "measure"], sort=False):
            if measure not in measures:
                continue
            last = part.iloc[-1]
            choice_named = subject.format(k=k, choice=last["choice"], mode=mode)
            verdicts = {row["choice"]: change_of(row).verdict for row in part.to_dict("records")}
            sentences.append(
                sentence(
                    change_of(last).sentence(choice_named, measures[measure]), f"by choice: {by_verdict(verdicts)}"
                )
            )
    for side, rows in against[(against["k"] == k) & (against["measure"] == CONCEPT)].groupby("side", sort=False):
        for random, part in rows.groupby(rows["control"] == RANDOM, sort=False):
            verdicts = {row["choice"]: change_of(row).verdict for row in part.to_dict("records")}
            control = RANDOM if random else "units matched to the choice"
            draws = f"{part['draws'].iloc[0]} draws of {control}"
            sentences.append(
                sentence(f"{k} units {side} against {draws}, {measures[CONCEPT]} is, by choice: {by_verdict(verdicts)}")
            )
    return sentences


def figures(concept: str, frames: Mapping[str, pd.DataFrame], mode: str) -> dict[str, Any]:
    """Return the concept by choice and number of units, for units held and for units kept alone."""
    columns: dict[str, Any] = {"x": "k", "y": "change", "by": "choice", "low": "low", "high": "high"}
    texts = {
        "necessity": (f"Holding units at {mode}: {concept}", "units held (log scale)", "the unedited model"),
        "sufficiency": (f"All other units at {mode}: {concept}", "units kept (log scale)", "the unedited model"),
    }
    shown = {}
    for name, (title, x_title, against) in texts.items():
        part = frames[name][(frames[name]["mode"] == mode) & (frames[name]["measure"] == CONCEPT)]
        if "against" in part:
            part = part[part["against"] == UNEDITED]
        if part["change"].isna().all():  # of texts that cannot be read there is no score
            continue
        shown[name] = ls.figures.dose_response(
            part,
            **columns,
            title=title,
            x_title=x_title,
            y_title="change of the mean score",
            log_x=True,
            baseline=0.0,
            note=f"In generated texts, against {against}. Bands: 95 % for all choices at once.",
        )
    return shown


def captions(heldout: HeldOut, draws: int, mode: str) -> dict[str, str]:
    """Return what the tables were measured on."""
    return {
        "necessity": f"Units held at a constant: {heldout.about}, against the unedited model. Intervals over "
        f"prompts or texts, and for a control over its {draws} draws too; those of all choices of a mode hold at once.",
        "sufficiency": "All units of the sites but these held at a constant (after), against all of them held "
        "(before). Texts of a model whose language is broken cannot be read, and have no score (nan) or one that says "
        "little: read the perplexity beside it.",
        "against_controls": f"Held at {mode}: the choice (after) against the mean of a control's draws (before), the "
        "interval is that of the difference to one more draw and holds for all choices at once (Bonferroni).",
    }
