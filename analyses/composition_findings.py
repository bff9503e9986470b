"""What a composition of two edits did, in sentences that follow from the study's tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

import lens_steer as ls
from analyses.measurements import PERPLEXITY, change_of
from analyses.sentences import PLURAL, by_verdict, sentence

KINDS = ("dense", "sparse")
NULL = "shuffled labels"


def then(first: str, later: str) -> str:
    """Return the name of a composition."""
    return f"{first}, then {later}"


def summary(frames: Mapping[str, pd.DataFrame], one: str, two: str, neutral: str) -> list[str]:
    """Return what was found, from the frames alone: whether both concepts are lowered in either order first."""
    table = frames["composition"]

    def cell(kind: str, edit: str, measure: str) -> Any:
        chosen = (table["kind"] == kind) & (table["edit"] == edit) & (table["measure"] == measure)
        return table[chosen].iloc[0]

    def clause(kind: str, edit: str, measure: str, subject: str, **verbs: Any) -> str:
        called = f"the perplexity of {neutral}" if measure == PERPLEXITY else f"the mean score of {measure}"
        return change_of(cell(kind, edit, measure)).sentence(subject, called, **verbs)

    sentences = [_title(table, one, two)]
    for kind in KINDS:
        order = then(one, two)
        composed = f"{kind} edits composed ({cell(kind, order, one)['units']} units; {order})".replace("; ", ", ")
        sentences += [sentence(clause(kind, order, measure, composed, **PLURAL)) for measure in (one, two, PERPLEXITY)]
        sentences += [
            sentence(
                clause(kind, concept, concept, f"the {kind} edit of {concept} alone ({_units(cell, kind, concept)})")
            )
            for concept in (one, two)
        ]
    sentences += [_order_sentence(frames["order"], one, two), _inside_sentence(frames)]
    sentences.append(_interference_sentence(frames["interference"]))
    sentences += [
        sentence(
            *(
                clause(kind, NULL, concept, f"the {kind} fits on shuffled labels, composed,", **PLURAL)
                for concept in (one, two)
            )
        )
        for kind in KINDS
    ]
    return sentences


def _units(cell: Any, kind: str, concept: str) -> str:
    units = cell(kind, concept, concept)["units"]
    return f"{units} units" if units else "which moves no unit"


def _title(table: pd.DataFrame, one: str, two: str) -> str:
    """Say of which kind of edits every order lowers both concepts."""
    orders = [then(one, two), then(two, one)]
    verdicts = {}
    for kind in KINDS:
        rows = table[(table["kind"] == kind) & table["edit"].isin(orders) & table["measure"].isin([one, two])]
        outcomes = {change_of(row).verdict for row in rows.to_dict("records")}
        if ls.Verdict.CANNOT_JUDGE in outcomes:
            verdicts[f"{kind} edits"] = ls.Verdict.CANNOT_JUDGE
        else:
            verdicts[f"{kind} edits"] = ls.Verdict.LOWER if outcomes == {ls.Verdict.LOWER} else ls.Verdict.NOT_SHOWN
    words = {ls.Verdict.LOWER: "both lower", ls.Verdict.NOT_SHOWN: "both lower, not shown"}
    return sentence(f"composed in either order, against {one} and {two}: {by_verdict(verdicts, words)}")


def _order_sentence(order: pd.DataFrame, one: str, two: str) -> str:
    """Give every difference that was shown with its interval, and list the others."""
    subject = f"{{kind}}: the order {then(two, one)} instead of {then(one, two)}"
    return _differences(order, subject, "the {measure}")


def _interference_sentence(table: pd.DataFrame) -> str:
    return _differences(table, "{kind}: {order} instead of the edit of {measure} alone", "the {measure}")


def _differences(table: pd.DataFrame, subject: str, measure: str) -> str:
    rows: list[Any] = table.to_dict("records")
    shown = (ls.Verdict.LOWER, ls.Verdict.HIGHER)
    clauses = [
        change_of(row).sentence(subject.format(**row), measure.format(**row))
        for row in rows
        if change_of(row).verdict in shown
    ]
    names = "{kind} {measure}" + (" ({order})" if "order" in table.columns else "")
    others = {names.format(**row): change_of(row).verdict for row in rows if change_of(row).verdict not in shown}
    what = subject.partition(": ")[2].format(order="a composition", measure="its concept")
    return sentence(*clauses, f"{what}, change in {by_verdict(others)}" if others else "")


def _inside_sentence(frames: Mapping[str, pd.DataFrame]) -> str:
    inside = frames["interaction"]
    clauses = []
    for kind in KINDS:
        units = int(frames["collisions"].query("kind == @kind")["units"].sum())
        turned = inside[
            (inside["measure"] == "commutation") & (inside["side"] == "source") & (inside["kind"] == kind)
        ].dropna(subset=["value"])
        size = ""
        if len(turned):
            largest = turned.sort_values("value").iloc[-1]
            size = f", largest commutation {largest['value']:.3f} sd per unit, at {largest['site']}"
        clauses.append(f"the {kind} edits meet at {units} units{size}")
    return sentence(*clauses)
