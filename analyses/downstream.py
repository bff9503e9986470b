"""Downstream: edits fitted layer by layer against one fitted end to end; what adds up on the way through the model?

Plain mean differences or affine maps at every layer, each estimated on the untouched model, are all applied together.
Every later layer then receives its own edit and what the earlier ones have already brought about. Others are estimated
layer after layer on what the earlier ones leave. LinEAS learns all layers through the model and is held against them,
at equal strength and at equal effect, on held-out, neutral and foreign texts; every edit is fitted on several draws of
texts. Of LinEAS's edit, and of mean differences, it is traced by which components they travel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

import lens_steer as ls
from analyses.downstream_edits import equal_effect, fitted
from analyses.downstream_findings import APART, CAUSAL, END_TO_END, LAYERWISE, summary
from analyses.experiment import Experiment, as_study, neutral_texts
from analyses.levels import Cases, change_over_fits, value_over_fits
from lens_steer.progress import progress_bar

_FEWEST_TEXTS = 4  # of a side; the jackknife leaves groups of them out
Estimates = Mapping[tuple[str, str, str, int, str], Cases]
"""Edit, texts, edited, layer, measure -> [fit, case]."""


@as_study
def run(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    out: str | Path | None,
    seed: int = 0,
    sites: str | Sequence[str] = "hook_resid_post",
    pool: Literal["mean", "last"] = "mean",
    fit_texts: int = 32,
    fits: int = 5,
    gamma_share: float = 0.03,
    steps: int | None = None,
    share: float = 0.5,
    foreign: ls.ContrastSet | Sequence[str] | str | None = None,
    most_texts: int = 60,
) -> ls.Study:
    """Measure at every layer how far edits carry the source towards the target, and what else they move.

    Frames: `carried` (all layers edited: every measure at every layer), `one_layer` (each layer's edit alone: how much
    of it is left later on), `overshoot` (arrived at every layer, beside the target), `compared` (edits against mean
    differences at the last layer), `end_to_end` (LinEAS against every edit fitted layer by layer, at equal strength and
    at equal effect), `strengths` (those of equal effect), `paths` (`trace_shift` of the first fit). Intervals are over
    fits, each from texts of its own, and over held-out texts; those of `paths` over texts.

    Parameters
    ----------
    model:
        A TransformerLens model.
    contrast:
        Half of its texts for the fits, a quarter to find the strengths of equal effect, a quarter to measure on.
    out:
        The new run folder; None writes nothing.
    seed:
        Of the halves and the fits.
    sites:
        Where edits lie and where they are measured; one a layer.
    pool:
        How a text's tokens become one value, in the fits and in the measurement.
    fit_texts:
        Texts a side of every fit, the same for all edits; fewer where the half does not suffice for all fits.
    fits:
        Fits of every edit, no two from a common text. With one, intervals are over texts alone.
    gamma_share, steps:
        Penalty of LinEAS, in shares of gamma_max, and its gradients, at most (None: its own).
    share:
        Equal effect: the share of the way to the target that every edit goes at the last layer of the tuning texts.
    foreign:
        Texts unlike those of the fits: a contrast of the same concept from other data, plain texts, or a name or file
        for `read_contrast`. By default the neutral texts with their words in random order.
    most_texts:
        Held-out, neutral and foreign texts a side.

    Raises
    ------
    LensSteerError
        Fewer than one fit, or fewer than four texts of some kind; the share is not between 0 and 1.

    """
    if not 0 < share < 1:
        raise ls.LensSteerError(f"share={share}: equal effect is a share of the way, between 0 and 1")
    experiment = Experiment.begin("downstream", run, locals())
    tuning, reported = experiment.held.split(test=0.5, seed=seed)
    tuning, _ = _first(tuning, most_texts)
    held, neutral_name = _first(reported, most_texts)
    strange = _foreign(foreign, held, most_texts, seed)
    counts = {side: min(len(getattr(texts, side)) for texts in (tuning, held)) for side in ("source", "target")}
    for kind, count in (counts | {"foreign": len(strange.source)}).items():
        if count < _FEWEST_TEXTS:
            raise ls.LensSteerError(f"{count} {kind} texts: give {_FEWEST_TEXTS} or more to measure on")
    per_fit = []
    for texts in progress_bar(experiment.fit_texts(fit_texts, fits), desc="fits", unit="fit", show=True):
        edits = fitted(model, texts, sites, pool, {"gamma_share": gamma_share, "steps": steps}, seed)
        at_one = _measured(model, edits, held, strange, sites, pool)
        strengths, equal = equal_effect(
            model, edits, tuning, held, at_one, share=share, sites=sites, pool=pool, foreign=strange
        )
        per_fit.append((edits, at_one, strengths, equal))
    estimates = stacked([fit[1] for fit in per_fit])
    sided = isinstance(foreign, ls.ContrastSet | str)
    concept, first = experiment.concept, per_fit[0][0]
    traces = {name: _traced(model, first[name], held, pool) for name in (APART, END_TO_END)}
    frames = frames_of(estimates, foreign_has_sides=sided)
    frames["end_to_end"] = against_end_to_end({"strength": estimates, "effect": stacked([fit[3] for fit in per_fit])})
    frames["strengths"] = pd.DataFrame([{"fit": number, **row} for number, fit in enumerate(per_fit) for row in fit[2]])
    frames["paths"] = pd.concat([one.frame.assign(edit=name) for name, one in traces.items()], ignore_index=True)
    return experiment.keep(
        ls.Study(
            frames=frames,
            figures=_figures(frames, concept)
            | {f"paths_{name.replace(' ', '_')}": one.plot() for name, one in traces.items()},
            summary=[
                *summary(frames, concept, neutral_name),
                *(f"{one.sentence[0].upper()}{one.sentence[1:]}." for one in traces.values()),
            ],
            interventions={
                name.replace(", ", "_").replace(" ", "_"): first[name] for name in (APART, CAUSAL, END_TO_END)
            },
            captions=_captions(held, strange, neutral_name, fits, sided),
        )
    )


def _traced(model: Any, edit: ls.Intervention, held: ls.ContrastSet, pool: Any) -> ls.TraceShift:
    return ls.trace_shift(model, edit, held, neutral=held.control, pool=pool, progress=False)


def _first(texts: ls.ContrastSet, most: int) -> tuple[ls.ContrastSet, str]:
    neutral, name = neutral_texts(texts, most)
    return _contrast(texts, texts.source[:most], texts.target[:most], neutral), name


def _contrast(
    like: ls.ContrastSet, source: Sequence[Any], target: Sequence[Any], control: Sequence[Any]
) -> ls.ContrastSet:
    return ls.ContrastSet(source, target, control=control, name=like.name, chat=like.chat)


def _foreign(
    foreign: ls.ContrastSet | Sequence[str] | str | None, held: ls.ContrastSet, most: int, seed: int
) -> ls.ContrastSet:
    """Return foreign texts as a contrast; plain texts stand opposite the held-out target."""
    if isinstance(foreign, str):
        foreign = ls.read_contrast(foreign, seed=seed)
    if isinstance(foreign, ls.ContrastSet):
        return _contrast(foreign, foreign.source[:most], foreign.target[:most], ())
    texts = _scrambled(held.control, seed) if foreign is None else foreign
    texts = [row for row in texts if row not in held.target]
    return ls.ContrastSet(texts[:most], held.target, name="foreign", chat=held.chat)


def _scrambled(texts: Iterable[Any], seed: int) -> list[Any]:
    """Put the words of every text into random order."""
    random = np.random.default_rng(seed)

    def shuffle(text: str) -> str:
        return " ".join(random.permutation(text.split()).tolist())

    def scrambled(row: Any) -> Any:
        if isinstance(row, str):
            return shuffle(row)
        if isinstance(row[0], str):
            return (row[0], shuffle(row[1]))
        messages = [{"role": role, "content": content} for role, content in row]
        return [*messages[:-1], {**messages[-1], "content": shuffle(messages[-1]["content"])}]

    return [scrambled(row) for row in texts]


def _measured(
    model: Any,
    edits: Mapping[str, ls.Intervention],
    held: ls.ContrastSet,
    strange: ls.ContrastSet,
    sites: Any,
    pool: Any,
) -> dict[tuple[str, str, str, int, str], Any]:
    """Return what `downstream_shift` estimates for every edit; the layers of two of them are also applied alone."""
    estimates: dict[tuple[str, str, str, int, str], Any] = {}
    for name, edit in edits.items():
        shift = ls.downstream_shift(
            model,
            edit,
            held,
            sites=sites,
            pool=pool,
            neutral=held.control,
            foreign=strange,
            by_layer=name in (APART, END_TO_END),
            progress=False,
        )
        estimates |= {(name, *key): cases for key, cases in shift.estimates.items()}
    return estimates


def stacked(fits: Sequence[Mapping[Any, Any]]) -> Estimates:
    """Put the estimates of all fits one below the other: [fit, case]."""
    return {key: np.stack([fit[key] for fit in fits]) for key in fits[0]}


def frames_of(estimates: Estimates, *, foreign_has_sides: bool) -> dict[str, pd.DataFrame]:
    """Return the tables of the study; foreign texts without sides have nowhere to arrive, and are only moved."""
    rows = pd.DataFrame(
        [
            {**dict(zip(("edit", "texts", "edited", "layer", "measure"), key, strict=True)), **value_over_fits(cases)}
            for key, cases in estimates.items()
        ]
    )
    if not foreign_has_sides:
        rows = rows[(rows["texts"] != "foreign") | (rows["measure"] == "moved")]
    whole = rows["edited"] == "all"
    return {
        "carried": rows[whole].drop(columns="edited").reset_index(drop=True),
        "one_layer": rows[~whole & (rows["texts"] == "heldout")].reset_index(drop=True),
        "overshoot": _overshoot(estimates),
        "left": _left(estimates),
        "compared": _compared(estimates),
    }


def _overshoot(estimates: Estimates) -> pd.DataFrame:
    """Return what arrives at every layer of held-out texts; the intervals of an edit's layers hold at once."""
    keys = [key for key in estimates if key[1:3] == ("heldout", "all") and key[4] == "arrived"]
    layers = len({key[3] for key in keys})
    return pd.DataFrame(
        [
            {"edit": key[0], "layer": key[3], **value_over_fits(estimates[key], confidence=1 - 0.05 / layers)}
            for key in keys
        ],
        columns=["edit", "layer", "value", "low", "high", "confidence"],
    )


def _left(estimates: Estimates) -> pd.DataFrame:
    """Return what is left at the last layer of each earlier layer's edit; the intervals of an edit hold at once."""
    last = max(key[3] for key in estimates)
    keys = [
        key
        for key in estimates
        if key[1] == "heldout" and key[4] == "left" and key[3] == last and key[2] not in ("all", f"layer {last}")
    ]
    layers = max(1, len({key[2] for key in keys}))
    return pd.DataFrame(
        [
            {"edit": key[0], "edited": key[2], **value_over_fits(estimates[key], confidence=1 - 0.05 / layers)}
            for key in keys
        ],
        columns=["edit", "edited", "value", "low", "high", "confidence"],
    )


def _compared(estimates: Estimates) -> pd.DataFrame:
    """Hold edits (after) against mean differences fitted apart (before) at the last layer; all intervals at once."""
    last = max(key[3] for key in estimates)
    measures = (("heldout", "arrived"), ("heldout", "removed"), ("neutral", "moved"))
    others = (CAUSAL, END_TO_END)
    confidence = 1 - 0.05 / (len(measures) * len(others))
    return pd.DataFrame(
        [
            {
                "edit": edit,
                "texts": texts,
                "layer": last,
                "measure": measure,
                **change_over_fits(
                    estimates[APART, texts, "all", last, measure],
                    estimates[edit, texts, "all", last, measure],
                    confidence=confidence,
                ),
            }
            for edit in others
            for texts, measure in measures
        ]
    )


def against_end_to_end(estimates: Mapping[str, Estimates]) -> pd.DataFrame:
    """Hold LinEAS (after) against every edit fitted layer by layer (before) at the last layer; all intervals at once.

    `estimates` are those at equal strength and at equal effect. What should have stayed: neutral and foreign texts, and
    the target's own.
    """
    measures = (("neutral", "moved"), ("foreign", "moved"), ("heldout", "collateral"))
    confidence = 1 - 0.05 / (len(measures) * len(LAYERWISE) * len(estimates))
    return pd.DataFrame(
        [
            {
                "equal": equal,
                "edit": edit,
                "texts": texts,
                "layer": last,
                "measure": measure,
                **change_over_fits(
                    of_all[edit, texts, "all", last, measure],
                    of_all[END_TO_END, texts, "all", last, measure],
                    confidence=confidence,
                ),
            }
            for equal, of_all in estimates.items()
            for last in [max(key[3] for key in of_all)]
            for edit in LAYERWISE
            for texts, measure in measures
        ]
    )


def _figures(frames: dict[str, pd.DataFrame], concept: str) -> dict[str, Any]:
    carried = frames["carried"]
    lines: dict[str, Any] = {"x": "layer", "y": "value", "by": "edit", "low": "low", "high": "high", "x_title": "layer"}
    arrived = carried[(carried["measure"] == "arrived") & (carried["texts"] == "heldout")]
    figures: dict[str, Any] = {}
    if arrived["value"].notna().any():  # where source and target are shown to differ at some layer
        figures["carried"] = ls.figures.dose_response(
            arrived,
            **lines,
            title=f"How far edits at every layer carry {concept}",
            note="Held-out source texts: 0 stays, 1 arrives at the target's mean, above 1 overshoots. Bands: 95 %.",
            y_title="share of the way to the target",
            baseline=1.0,
            baseline_name="target",
        )
    for texts in ("neutral", "foreign"):
        figures[f"moved_{texts}"] = ls.figures.dose_response(
            carried[(carried["measure"] == "moved") & (carried["texts"] == texts)],
            **lines,
            title=f"How far {texts} texts are moved",
            note="Move of the mean, root mean square over units. Bands: 95 %.",
            y_title="standard deviations per unit",
        )
    for name, edit in (("alone_layer_by_layer", APART), ("alone_end_to_end", END_TO_END)):
        one = frames["one_layer"]
        wide = one[(one["edit"] == edit) & (one["measure"] == "arrived")]
        if wide["value"].isna().all():
            continue
        wide = wide.assign(place=wide["edited"].str.removeprefix("layer ").astype(int))
        figures[name] = ls.figures.matrix(
            wide.pivot(index="place", columns="layer", values="value"),
            title=f"One layer's edit alone ({edit})",
            note="Share of the way to the target, held-out source texts: does an edit decay or grow on its way?",
            x_title="measured layer",
            y_title="edited layer",
            value_title="share of<br>the way",
            diverging=True,
        )
    return figures


def _captions(held: ls.ContrastSet, strange: ls.ContrastSet, neutral: str, fits: int, sided: bool) -> dict[str, str]:
    counts = f"{len(held.source)} source, {len(held.target)} target, {len(held.control)} neutral ({neutral}) and "
    counts += f"{len(strange.source)} foreign texts"
    what = f"a contrast named {strange.name!r}" if sided else "texts without sides"
    return {
        "carried": "arrived: share of the way from the source's mean to the target's (cross-fitted); removed: share of "
        "the energy distance between them (unbiased: 1 is all of it); apart: that distance, in sd per unit; moved: "
        "root mean square over units of the move of the mean, in standard deviations; collateral: mean move of a text. "
        f"{counts} ({what}); 95 % intervals over {fits} fits and over held-out texts.",
        "one_layer": "The same with one layer's edit alone; left: arrived here less arrived at the edited layer.",
        "overshoot": "arrived at every layer of held-out texts; the intervals of an edit's layers hold at 95 % "
        "together (Bonferroni). Above 1: beyond the target.",
        "left": "What is left at the last layer of each layer's edit alone; intervals likewise.",
        "end_to_end": f"At the last layer, {END_TO_END} (after) against an edit fitted layer by layer (before): at "
        "equal strength 1, and at the strengths at which both go the same share of the way to the target at the last "
        "layer of other texts (frame strengths; nan: not reached up to strength 2). The strengths are held as "
        "they are; the intervals hold at 95 % for all rows together (Bonferroni).",
        "paths": "By which components the first fit's edit travels to the last layer; see `ls.TraceShift`.",
        "strengths": "Of every fit, the strength at which an edit has the equal effect on texts of their own, and how "
        "far it arrives on the held-out ones.",
        "compared": f"At the last layer, an edit (after) against {APART} (before), fitted on the same texts; the "
        "intervals hold at 95 % for all rows together (Bonferroni).",
    }


if __name__ == "__main__":
    ls.study_command(run)()
