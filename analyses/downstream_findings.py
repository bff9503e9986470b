"""What edits did to later layers, in sentences that follow from the study's tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

import lens_steer as ls
from analyses.measurements import change_of
from analyses.sentences import PLURAL, by_verdict, interval, listed, sentence

APART, CAUSAL, END_TO_END = "mean differences", "mean differences in turn", "LinEAS"
LINEAR, LINEAR_CAUSAL, LINEAR_SOURCE = "Linear-AcT", "Linear-AcT in turn", "Linear-AcT in turn, source moved"
LAYERWISE = (APART, CAUSAL, LINEAR, LINEAR_CAUSAL, LINEAR_SOURCE)
"""Edits whose layers are estimated one by one."""
STRONGEST = 2.0
"""The highest strength that is tried for an equal effect: beyond, an edit is asked for more than it was fitted for."""
NULLS = (f"{APART}, shuffled labels", f"{END_TO_END}, shuffled labels")

_MEASURES = {
    "arrived": "the share of the way that the source's mean goes to the target's",
    "removed": "the share of the distance removed",
    "moved": "the move of {neutral} in sd per unit",
}


def summary(frames: Mapping[str, pd.DataFrame], concept: str, neutral: str) -> list[str]:
    """Return what was found, from the frames alone: the end-to-end edit against the one fitted layer by layer first."""
    compared = frames["compared"]
    sentences = []
    for edit in (END_TO_END, CAUSAL):
        for row in compared[compared["edit"] == edit].to_dict("records"):
            subject = f"at the last layer, {edit} instead of {APART} fitted apart ({concept})"
            sentences.append(
                sentence(
                    change_of(row).sentence(subject, _MEASURES[row["measure"]].format(neutral=neutral), **_verbs(edit))
                )
            )
    sentences += [_overshoot_sentence(frames["overshoot"], edit) for edit in (*LAYERWISE, END_TO_END)]
    sentences += [_left_sentence(frames["left"], edit) for edit in (APART, END_TO_END)]
    sentences += [_removed_sentence(frames["carried"], edit) for edit in (APART, CAUSAL, END_TO_END)]
    sentences += [_moved_sentence(frames["carried"], texts, neutral) for texts in ("neutral", "foreign")]
    sentences += [_overshoot_sentence(frames["overshoot"], edit) for edit in NULLS]
    if "end_to_end" in frames:
        sentences += [_collateral_sentence(frames["end_to_end"], equal, neutral) for equal in ("strength", "effect")]
        sentences += _unreached_sentences(frames["strengths"])
    return sentences


def _verbs(edit: str) -> dict[str, Any]:
    """The verbs of an edit's name, which is a plural or none."""
    return PLURAL if edit in (APART, CAUSAL) else {}


def _overshoot_sentence(overshoot: pd.DataFrame, edit: str) -> str:
    """Say at which layers the interval of `arrived` lies beyond the target, short of it, or holds it."""
    rows = overshoot[overshoot["edit"] == edit].sort_values("layer").to_dict("records")
    verdicts = {f"layer {row['layer']}": ls.verdict_of(row["low"], row["high"], reference=1.0) for row in rows}
    words = {
        ls.Verdict.HIGHER: "beyond it",
        ls.Verdict.LOWER: "short of it",
        ls.Verdict.NOT_SHOWN: "neither shown",
    }
    last = f"{interval(rows[-1])} of the way at layer {rows[-1]['layer']}" if rows else ""
    return sentence(f"{edit} beside the target, {last}", by_verdict(verdicts, words))


def _collateral_sentence(end_to_end: pd.DataFrame, equal: str, neutral: str) -> str:
    """Say beside which edits LinEAS moves less, or more, of what should have stayed."""
    names = {"neutral": neutral, "foreign": "foreign texts", "heldout": "the target's texts"}
    rows = end_to_end[end_to_end["equal"] == equal].to_dict("records")
    words = {
        ls.Verdict.LOWER: "less than",
        ls.Verdict.HIGHER: "more than",
        ls.Verdict.NOT_SHOWN: "not shown to differ from",
    }
    parts = []
    for texts, name in names.items():
        verdicts = {row["edit"]: change_of(row).verdict for row in rows if row["texts"] == texts}
        parts.append(f"{name}: {by_verdict(verdicts, words)}")
    return sentence(f"at equal {equal}, {END_TO_END} moves at the last layer", ", ".join(parts).replace(";", ","))


def _unreached_sentences(strengths: pd.DataFrame) -> list[str]:
    """Say which edits do not have the equal effect at any strength, so that nothing is judged beside them."""
    fits = strengths["fit"].nunique()
    unreached = strengths[strengths["strength"].isna()].groupby("edit", sort=False).size()
    if unreached.empty:
        return []
    names = [f"{edit} ({count} of {fits} fits)" for edit, count in unreached.items()]
    return [
        sentence(
            f"by its point value the equal effect is reached at no strength up to {STRONGEST:g} by {listed(names)}"
        )
    ]


def _left_sentence(left: pd.DataFrame, edit: str) -> str:
    rows = left[left["edit"] == edit].to_dict("records")
    if not rows:
        return f"{edit}: there is one layer, so no edit has a way to go."
    verdicts = {row["edited"]: ls.verdict_of(row["low"], row["high"]) for row in rows}
    words = {ls.Verdict.HIGHER: "more is left", ls.Verdict.LOWER: "less is left", ls.Verdict.NOT_SHOWN: "neither shown"}
    return sentence(f"one layer's {edit} alone, at the last layer beside its own layer", by_verdict(verdicts, words))


def _removed_sentence(carried: pd.DataFrame, edit: str) -> str:
    rows = carried[(carried["texts"] == "heldout") & (carried["measure"] == "removed") & (carried["edit"] == edit)]
    row = rows.sort_values("layer").iloc[-1]
    s, was = ("", "were") if _verbs(edit) else ("s", "was")
    parts = {
        ls.Verdict.HIGHER: f"{edit} bring{s} source and target nearer",
        ls.Verdict.LOWER: f"{edit} drive{s} source and target apart",
        ls.Verdict.NOT_SHOWN: f"{edit} {was} not shown to change the distance between source and target",
        ls.Verdict.CANNOT_JUDGE: f"{edit}: whether the distance between source and target changes cannot be judged",
    }[ls.verdict_of(row["low"], row["high"])]
    return sentence(f"{parts} at layer {row['layer']}, share of the distance removed {interval(row)}")


def _moved_sentence(carried: pd.DataFrame, texts: str, neutral: str) -> str:
    rows = carried[(carried["texts"] == texts) & (carried["measure"] == "moved")]
    last = rows[rows["layer"] == rows["layer"].max()].set_index("edit")
    ways = ", ".join(f"{interval(last.loc[edit])} under {edit}" for edit in (APART, CAUSAL, END_TO_END))
    name = neutral if texts == "neutral" else "foreign texts"
    return f"Mean move of {name} at the last layer, in sd per unit: {ways}."
