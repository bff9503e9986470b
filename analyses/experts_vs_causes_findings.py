"""What the study of experts and causes found: sentences that say no more than its intervals, and figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

import lens_steer as ls
from analyses.causal_scores import AUROC, BARE, CHEAP, EXACT, MEANS, RELP, SHUFFLED, SIGNED
from analyses.measurements import PERPLEXITY, HeldOut, change_of
from analyses.score_agreement import CAUSE, SCORES
from analyses.sentences import by_verdict, interval, listed, sentence

CONCEPT, RANDOM = "concept", "random units"
ABLATED, CLAMPED = "ablated", "clamped"


def summary(concept: str, frames: Mapping[str, pd.DataFrame], neutral: str) -> list[str]:
    """Return what was found, from the frames alone; which cheap score finds causal units comes last."""
    table: Any = frames["correlations"].set_index("score")
    values = "; ".join(f"{name} {interval(table.loc[name])}" for name in CHEAP)
    return [
        f"Rank correlation of a score's size with the effect of patching the unit on other pairs, over "
        f"{table['units'].iloc[0]} units drawn from all layers: {values}. The effect on the scores' own pairs, the "
        f"most that they could know: {interval(table.loc[EXACT])}; with shuffled labels: "
        f"{'; '.join(f'{name} {interval(table.loc[name])}' for name in SHUFFLED.values())}; one in twenty shuffles of "
        f"AUROC within layers exceeds {table.loc[AUROC, 'shuffled']:.2f}.",
        _signed_sentence(frames["signed"].set_index("score")),
        _experts(table.loc[AUROC], concept),
        *_precision_sentences(frames["precision"]),
        *_effect_sentences(frames, concept, neutral),
        *_relp_sentences(frames["relp_against_auroc"], concept),
        _steering_sentence(frames["steering"].set_index("score")),
        _finder(frames["differences"], table),
    ]


def _signed_sentence(table: Any) -> str:
    values = "; ".join(f"{name} {interval(table.loc[name])}" for name in SIGNED)
    return f"The same with signs, where a unit's spread alone reads as nothing: {values}."


def _experts(row: Any, concept: str) -> str:
    words = {
        ls.Verdict.HIGHER: f"the better a unit tells {concept}, the larger its effect",
        ls.Verdict.LOWER: f"the better a unit tells {concept}, the smaller its effect",
        ls.Verdict.NOT_SHOWN: f"that units that tell {concept} better have larger effects was not shown",
    }
    answer = words.get(ls.verdict_of(row["low"], row["high"]), "whether experts are causes cannot be judged")
    return sentence(f"{answer} (rank correlation {interval(row)})")


def _precision_sentences(table: Any) -> list[str]:
    sentences = []
    for at, rows in table.dropna(subset=["value"]).groupby("at", sort=False):
        rows = rows[rows["score"].isin([*CHEAP, EXACT])]
        beyond = rows[rows["p"] < 0.05 / max(1, len(rows))]
        named = [f"{row['score']} {row['value']:.0%}" for _, row in beyond.iterrows()]
        sentences.append(
            f"Share of the top {rows['k'].iloc[0]} ({at}) that are in the effect's top {rows['k'].iloc[0]}, chance "
            f"{rows['chance'].iloc[0]:.0%}; shown to be beyond it: {listed(named)}."
        )
    return sentences


def _effect_sentences(frames: Mapping[str, Any], concept: str, neutral: str) -> list[str]:
    """Say of every act, at the largest k, what AUROC's units do, and which choices do more than random ones."""
    called = {CONCEPT: f"the mean score of {concept} in generated texts", PERPLEXITY: f"the perplexity of {neutral}"}
    sentences = []
    for act, verb in ((ABLATED, "ablating"), (CLAMPED, "clamping")):
        alone, against = (frames[name][frames[name]["act"] == act] for name in ("effects", "against_controls"))
        k = alone["k"].max()
        for measure, name in called.items():
            rows = alone[(alone["k"] == k) & (alone["measure"] == measure) & (alone["choice"] == AUROC)]
            lines = [change_of(row).sentence(f"{verb} {k} {AUROC} units", name) for row in rows.to_dict("records")]
            few = against[(against["k"] == k) & (against["measure"] == measure)]
            for control, part in few.groupby(few["control"].eq(RANDOM).map({True: RANDOM, False: "matched units"})):
                verdicts = {row["choice"]: change_of(row).verdict for row in part.to_dict("records")}
                lines.append(f"against {control} ({part['draws'].iloc[0]} draws): {by_verdict(verdicts)}")
            sentences.append(sentence(*lines))
    return sentences


def _relp_sentences(table: Any, concept: str) -> list[str]:
    """Say whether as many, or fewer, units of RelP do more than AUROC's (2601.22594)."""
    sentences = []
    for row in table[table["measure"] == CONCEPT].to_dict("records"):
        verb = "ablating" if row["act"] == ABLATED else "clamping"
        subject = f"{verb} {row['k']} {RELP} units instead of {row['of_auroc']} {AUROC} units"
        sentences.append(sentence(change_of(row).sentence(subject, f"the mean score of {concept}")))
    return sentences


def _steering_sentence(table: Any) -> str:
    """Say whether the bare gradient anti-predicts steering (2606.19831), and whether faithful is actionable."""
    verdicts = {
        ls.Verdict.LOWER: "anti-predicts",
        ls.Verdict.HIGHER: "predicts",
        ls.Verdict.NOT_SHOWN: "was not shown to predict or to anti-predict",
        ls.Verdict.CANNOT_JUDGE: "cannot be judged to predict",
    }
    clauses = []
    for name, called in ((BARE, "the size of a unit's bare gradient"), (CAUSE, "the size of its patching effect")):
        row = table.loc[name]
        verb = verdicts[ls.verdict_of(row["low"], row["high"])]
        clauses.append(f"{called} {verb} how far clamping it alone moves the metric (rank correlation {interval(row)})")
    return sentence(*clauses)


def _finder(table: Any, correlations: Any) -> str:
    """Say which cheap score finds causal units, and which are not shown to be worse.

    It is the best one, if it is shown to know more than nothing and than the mean difference of shuffled labels.
    """
    best = str(table["best"].iloc[0]) if len(table) else ""
    if (
        not best
        or not table["best_low"].iloc[0] > 0
        or not correlations.loc[best, "value"] > correlations.loc[best, "shuffled"]
    ):
        return "No cheap score is shown to find causal units here."
    changes = {row["score"]: change_of(row) for row in table.to_dict("records")}
    spread = changes[SHUFFLED[MEANS]]
    if spread.verdict is not ls.Verdict.LOWER:
        return sentence(
            "no cheap score is shown to find causal units here beyond what a unit's spread tells: "
            + spread.comparison("the mean difference of shuffled labels", best, "rank correlation")
        )
    verdicts = {name: change.verdict for name, change in changes.items() if name in CHEAP}
    equal = [name for name, verdict in verdicts.items() if verdict is ls.Verdict.NOT_SHOWN]
    worse = [name for name, verdict in verdicts.items() if verdict is ls.Verdict.LOWER]
    return sentence(
        f"the cheap score that finds causal units here: {best}, rank correlation {interval(correlations.loc[best])}",
        f"not shown to be worse: {listed(equal)}",
        f"shown to be worse: {listed(worse)}",
    )


def figures(concept: str, frames: Mapping[str, Any]) -> dict[str, Any]:
    """Return the bars of all correlations, the same by layer, and the effect of ablating each score's units."""
    layers = frames["by_layer"].pivot(index="score", columns="layer", values="value").reindex([*SCORES])
    effects = frames["effects"]
    ablated = effects[(effects["act"] == ABLATED) & (effects["measure"] == CONCEPT)]
    return {
        "correlations": ls.figures.overlap_bars(
            frames["correlations"], label="score", value="value", chance="shuffled", low="low", high="high",
            title=f"Which scores find the causes of {concept}",
            note="Rank correlation with the size of the effect on other pairs; lines: 95 %; marks: shuffles within "
            "layers.",
            x_title="rank correlation", percent=False,
        ),
        "by_layer": ls.figures.matrix(
            layers, title="The same by layer", y_title="score", x_title="layer", value_title="correlation",
            diverging=True, low=-1.0, high=1.0,
        ),
        "effects": ls.figures.dose_response(
            ablated, x="k", y="change", by="choice", low="low", high="high",
            title=f"Effect of ablating each score's units on {concept}", x_title="units ablated (log scale)",
            y_title="change of the mean score", log_x=True, baseline=0.0,
            note="In generated texts; below 0: less of it. Bands: 95 %.",
        ),
    }  # fmt: skip


def captions(ours: int, others: int, places: int, clamp: float, heldout: HeldOut) -> dict[str, str]:
    """Return what the tables were measured on."""
    return {
        "scores": f"Scores are sizes, from the training half; attributions over {ours} pairs of texts at their last "
        f"{places} tokens. effect: of patching the unit from a source text into a target one, {others} held-out pairs, "
        "in the metric of the concept's words; steered: of clamping it in target texts.",
        "correlations": "Over the units drawn at random; intervals over pairs and units; shuffled: what one in twenty "
        "shuffles within layers exceeds. The exact effect is that on the training pairs.",
        "precision": "p: hypergeometric, one-sided; of several scores some fall below .05 by chance.",
        "effects": f"Ablated: held at the target's mean where source texts begin; clamped: {clamp:g} standard "
        f"deviations beyond the source's mean where target texts begin; {heldout.about}.",
        "against_controls": "The choice (after) against the mean of a control's draws (before); the interval is that "
        "of the difference to one more draw.",
    }
