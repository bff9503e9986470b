"""What the study of minimal sets found: sentences that say no more than its intervals, and the figure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

import lens_steer as ls
from analyses.measurements import HeldOut, change_of
from analyses.sentences import by_verdict, listed, sentence

CONCEPT = "concept"
_HALVED = {
    ls.Verdict.LOWER: "less than half",
    ls.Verdict.HIGHER: "more than half",
    ls.Verdict.NOT_SHOWN: "neither shown",
}


def summary(concept: str, frames: Mapping[str, pd.DataFrame], neutral: str) -> list[str]:
    """Return what was found, from the frames alone."""
    table, against = frames["minimal_sets"], frames["against_controls"]
    measure = f"the mean score of {concept} in generated texts"
    chosen, never = table[table["k"].notna()], table[table["k"].isna()]
    named = [f"{row['order']} ({row['k']:.0f})" for row in chosen.to_dict("records")]
    missed = [f"{row['order']} (up to {row['tried']})" for row in never.to_dict("records")]
    sentences = [
        sentence(
            f"smallest sets that leave half of {measure}, or less, on the prompts that choose them: {listed(named)}",
            f"at no number tried: {listed(missed)}" if missed else "",
        )
    ]
    ratios = frames["size_ratios"]
    if chosen.empty or ratios.empty:
        return sentences
    sizes = {str(row["order"]): ls.verdict_of(row["low"], row["high"], reference=1.0) for _, row in ratios.iterrows()}
    answer = by_verdict(
        sizes, {ls.Verdict.LOWER: "fewer", ls.Verdict.HIGHER: "more", ls.Verdict.NOT_SHOWN: "not shown"}
    )
    sentences.append(sentence(f"units needed for half of it, against {ratios['reference'].iloc[0]}'s: {answer}"))
    verdicts = {
        str(row["order"]): ls.verdict_of(row["half_low"], row["half_high"]) for row in chosen.to_dict("records")
    }
    sentences.append(sentence(f"what these sets leave on other prompts: {by_verdict(verdicts, _HALVED)}"))
    first = chosen.iloc[0]
    cost = first.rename({f"perplexity_{key}": f"_{key}" for key in ("before", "after", "low", "high")})
    cost = cost.drop(["before", "after", "low", "high"]).rename(lambda name: str(name).removeprefix("_"))
    subject = f"ablating {first['k']:.0f} units ({first['order']})"
    sentences.append(
        sentence(
            change_of(first).sentence(subject, measure),
            change_of(cost).sentence(subject, f"the perplexity of {neutral}"),
        )
    )
    for row in against[against["measure"] == CONCEPT].to_dict("records"):
        answer = f"ablating {row['k']} units ({row['order']}) instead of {row['control']}"
        few = f"with {row['draws']} draws, 20 are needed" if row["draws"] < 20 else f"{row['draws']} draws"
        sentences.append(sentence(change_of(row).sentence(answer, measure), few))
    return sentences


def figures(concept: str, doses: pd.DataFrame) -> dict[str, Any]:
    """Return the share of the concept that every number of units leaves, on the prompts that choose."""
    part = doses[(doses["measure"] == CONCEPT) & (doses["before"] > 0)]
    if part.empty:
        return {}
    shown = ls.figures.dose_response(
        part.assign(left=part["after"] / part["before"]),
        x="k",
        y="left",
        by="order",
        title=f"How much of {concept} is left",
        note="Share of the mean score of generated texts, on the prompts that choose the smallest set; line: one half.",
        x_title="units ablated (log scale)",
        y_title="share left",
        log_x=True,
        baseline=0.5,
        baseline_name="half",
    )
    return {"doses": shown}


def captions(mode: str, choosing: HeldOut, reporting: HeldOut) -> dict[str, str]:
    """Return what the tables were measured on."""
    return {
        "minimal_sets": f"Units held at {mode}; chosen by {choosing.about}; reported on {reporting.about} of the other "
        "half. Intervals of all orders hold at once (Bonferroni); half_low, half_high: what is left less half of what "
        "was. k is the smallest number tried, so of few numbers.",
        "size_ratios": "Numbers of units at which half is left, on the prompts that choose, drawn again for all orders "
        "at once; never halved counts as twice the largest number tried. All intervals hold at once.",
        "doses": "On the prompts that choose; nothing follows from these alone.",
        "against_controls": "The smallest set (after) against the mean of a control's draws (before); the interval "
        "is that of the difference to one more draw.",
        "greedy": "effect: of patching the unit into source texts from target texts, with all before it held; "
        "estimated: the same by gradient, which screened it.",
    }
