"""Self-repair of an ablation, layer by layer, and the smallest dose that halves the concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

import lens_steer as ls
from analyses.sentences import by_verdict, interval, listed, sentence

_WORDS = {
    ls.Verdict.LOWER: "takes some of it back",
    ls.Verdict.HIGHER: "adds to it",
    ls.Verdict.NOT_SHOWN: "neither shown",
}
_COLUMNS = ["choice", "k", "part", "layer", "value", "low", "high", "confidence"]


def self_repair(
    model: Any, ablations: Mapping[tuple[str, int], ls.Intervention], held: ls.ContrastSet, *, most_texts: int = 60
) -> pd.DataFrame:
    """Return what later components write along an ablation's own write: -1 takes all of it back, 0 leaves it alone.

    `ablations` are by choice and dose. One row per attention and MLP, and `through` for all together. The intervals of
    the components of one ablation hold at once (Bonferroni); see `against` of `ls.TraceShift`.
    """
    few = held.subsample(min(most_texts, len(held.source), len(held.target)))
    rows = []
    for (choice, k), ablation in ablations.items():
        traced = ls.trace_shift(model, ablation, few, causal=False, progress=False)
        against = {key: one.value for key, one in traced.estimates.items() if key.measure == "against"}
        parts = max(1, sum(key.part != "through" for key in against))
        for key, cases in against.items():
            confidence = 0.95 if key.part == "through" else ls.confidence_of_each(0.95, parts)
            value = ls.jackknife_interval(float(cases[0]), cases[1:], confidence=confidence)
            layer = None if key.layer < 0 else key.layer
            rows.append((choice, k, key.part, layer, value.estimate, value.low, value.high, confidence))
    return pd.DataFrame(rows, columns=_COLUMNS).astype({"layer": "Int64"})


def repair_sentence(repair: pd.DataFrame, choice: str) -> str:
    """Say how much later components together, and which of them, write against an ablation."""
    rows = repair[repair["choice"] == choice]
    if rows.empty:
        return f"Self-repair of {choice} cannot be judged: none were ablated."
    whole = rows[rows["part"] == "through"].iloc[0]
    verdict = ls.verdict_of(whole["low"], whole["high"])
    clause = {
        ls.Verdict.LOWER: "later components take back some of what ablating {k} {choice} writes",
        ls.Verdict.HIGHER: "later components add to what ablating {k} {choice} writes",
        ls.Verdict.NOT_SHOWN: "later components were not shown to answer what ablating {k} {choice} writes",
        ls.Verdict.CANNOT_JUDGE: "whether later components answer what ablating {k} {choice} writes cannot be judged",
    }[verdict].format(k=whole["k"], choice=choice)
    names = {"attention": "attention", "mlp": "MLP"}
    verdicts = {
        f"{names[row['part']]} {row['layer']}": ls.verdict_of(row["low"], row["high"])
        for row in rows[rows["part"] != "through"].to_dict("records")
    }
    judged = {name: one for name, one in verdicts.items() if one is not ls.Verdict.CANNOT_JUDGE}
    return sentence(f"{clause}, in shares of it {interval(whole)}", by_verdict(judged, _WORDS) if judged else "")


def halving(doses: pd.DataFrame, choices: Sequence[str], measure: str) -> pd.DataFrame:
    """Return each choice's smallest dose that was shown to halve a measure, nan where none was: choice, k, tried.

    Shown: the interval of the change lies below minus one half of the unedited value.
    """
    rows = []
    for choice in choices:
        tried = doses[(doses["choice"] == choice) & (doses["measure"] == measure)].sort_values("k")
        halved = tried.loc[tried["high"] <= -tried["before"] / 2, "k"]
        rows.append((choice, float(halved.min()), int(tried["k"].max()) if len(tried) else 0))
    return pd.DataFrame(rows, columns=["choice", "k", "tried"]).sort_values("k", ignore_index=True)


def halving_sentence(halved: pd.DataFrame, called: str) -> str:
    """Say with how many units each choice was shown to halve the measure, the fewest first."""
    shown = [f"{row['k']:.0f} {row['choice']}" for row in halved.to_dict("records") if row["k"] == row["k"]]
    rest = [row["choice"] for row in halved.to_dict("records") if row["k"] != row["k"]]
    return sentence(
        f"smallest doses shown to halve {called}: {listed(shown)}",
        f"not shown at any dose: {listed(rest)}" if rest else "",
    )
