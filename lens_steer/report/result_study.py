"""Results as studies: a unit page, a traced shift or an attribution, to be saved as a run folder and reported."""

from __future__ import annotations

from functools import singledispatch
from typing import TYPE_CHECKING, Any

from lens_steer.effects.attribution.attribution import Attribution
from lens_steer.effects.paths.result import TraceShift
from lens_steer.effects.unit_facts import UnitFacts
from lens_steer.errors import SettingError
from lens_steer.report.plots import plot
from lens_steer.report.study import Study
from lens_steer.statistics.verdict import Verdict

if TYPE_CHECKING:
    import plotly.graph_objects as go


@singledispatch
def result_study(result: Any) -> Study:
    """Return a UnitPage, a TraceShift or an Attribution as a study: sentences from its intervals, tables and figures.

    `result_study(result).save(out, name=..., model=..., seed=..., settings=...)` makes a run folder of it. SettingError
    for anything else.
    """
    raise SettingError(
        f"result_study takes a UnitPage, a TraceShift or an Attribution, not a {type(result).__name__}: write "
        "Study(frames=..., figures=..., summary=...)"
    )


@result_study.register
def _of_unit(page: UnitFacts) -> Study:
    contrasts = {f"texts_of_contrast_{number}": name for number, name in enumerate(page.by_contrast, start=1)}
    frames = {
        "concepts": page.concepts,
        "causes": page.causes,
        "tokens": page.tokens,
        "next_tokens": page.next_tokens,
        "edits": page.edits,
        "nearest": page.nearest,
    }
    captions = {
        "concepts": "What the unit tells: AUROC of its pooled activation (above 0.5: larger in the source), and its "
        "place among its site's units.",
        "causes": "The unit held at its token mean on its own top texts, beside units of like scale held in its place: "
        "change of the mean log-probability, nats.",
        "tokens": "What it reads and writes by its weights. z: distance from the vocabulary's mean, in standard "
        f"deviations; beyond {page.settings.get('chance_z', float('nan')):.2g} is more than chance.",
        "next_tokens": "What follows its largest activation in every top text, and the tokens that lose and gain most "
        "probability without it.",
        "edits": "What each intervention does to it.",
        "nearest": "Its nearest units of the site, by weights and by activations; chance: what the nearest of as many "
        "unrelated units passes in 5 % of cases.",
        "top_texts": "The texts in which it is largest.",
        **{part: f"The texts of “{name}” in which it is largest." for part, name in contrasts.items()},
    }
    views = {part: page.by_contrast[name] for part, name in contrasts.items()}
    return Study(
        frames=frames,
        figures={"causes": plot(page)},
        summary=[*page.sentences, *page.notes],
        tokens={"top_texts": page.texts, **views},
        captions=captions,
    )


@result_study.register
def _of_trace(trace: TraceShift) -> Study:
    frames = {"paths": trace.frame}
    figures = {"paths": plot(trace)}
    captions = {
        "paths": "Every component's part in the shift: value, as a share of the way from source to target; size, in "
        "standard deviations. adds: exact parts that sum up to the whole; lost: what is lost when the component is "
        "held at its unedited value; in_turn: the same after all components before it."
    }
    if len(trace.words):
        frames["words"], figures["words"] = trace.words, _words(trace)
        captions["words"] = "Low and high bound the change at the layer."
    if len(trace.law):
        frames["next_token_law"] = trace.law
        captions["next_token_law"] = (
            "Next tokens of neutral texts, KL(unedited || edited) in nats: mean and 99th percentile."
        )
    return Study(frames=frames, figures=figures, summary=[f"{trace.sentence}."], captions=captions)


def _words(trace: TraceShift) -> go.Figure:
    import pandas as pd

    from lens_steer.report.figures.lines import dose_response

    runs = {"unedited": "before", "edited": "after"}
    parts = [
        trace.words[["layer", column]].rename(columns={column: "value"}).assign(run=run) for run, column in runs.items()
    ]
    return dose_response(
        pd.concat(parts),
        x="layer",
        y="value",
        by="run",
        title="The concept's words, were the model to stop at a layer",
        note="Logit lens: their probability together, mean over source texts.",
        y_title="probability of the words",
        percent=True,
    )


@result_study.register
def _of_attribution(attribution: Attribution) -> Study:
    rows = attribution.top(len(attribution.frame))
    best, level = rows.iloc[0], attribution.level
    name = best["site"] if level == "site" else f"{best['site']}[{best[level]}]"
    shown = int((rows["verdict"].isin([Verdict.LOWER.value, Verdict.HIGHER.value])).sum())
    confidence, metric = float(attribution.settings["confidence"]), attribution.settings["metric"]
    scored = {
        Verdict.HIGHER.value: "raises",
        Verdict.LOWER.value: "lowers",
        Verdict.NOT_SHOWN.value: "was not shown to change",
    }.get(best["verdict"])
    effect = f"{best['value']:+.3g} [{best['low']:+.3g}, {best['high']:+.3g}] of {attribution.gap:+.3g}"
    first = f"{name}: whether it changes {metric} cannot be judged ({effect})"
    if scored is not None:
        first = (
            f"The clean activation of {name} {scored} {metric} in the corrupted run ({effect}), the most of all parts"
        )
    return Study(
        frames={"attribution": rows},
        figures={"attribution": plot(attribution)},
        summary=[
            first,
            f"Of {len(rows):,} parts {shown:,} have an interval that leaves out 0; {(1 - confidence) * len(rows):,.0f} "
            "would if none did anything, as every interval is one part's.",
        ],
        captions={
            "attribution": "By how much the metric of the corrupted run rises when a part takes its clean activation, "
            "mean over pairs; largest first."
        },
    )
