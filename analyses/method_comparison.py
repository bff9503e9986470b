"""Every method at its best strength: what it does to a concept, what it costs, and how much of the model it edits.

All methods are fitted on the same texts. Each has its strength chosen on validation prompts and is measured on others;
it stands at the same sites as all others and at the sites of its own paper, beside a fit on shuffled labels at the same
strength.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd

import lens_steer as ls
from analyses.compared_methods import COMMON, OWN, compared_methods, named_methods, placed
from analyses.experiment import Experiment, measured
from analyses.measurements import PERPLEXITY, HeldOut, Measurements, change_of
from analyses.sentences import by_verdict, listed, sentence
from lens_steer.progress import progress_bar

NULL = "shuffled labels"
RANDOM = "random edits"
CONCEPT, SECOND = "concept", "second"
_EDIT = ["method", "sites", "control"]  # what names an edit
_SHARES = ("unreadable", "grammatical")
_ERRORS = ("error_before", "error_after", "error_change", "error_change_se")


@measured(most_prompts=200, most_neutral=100)
def run(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    out: str | Path | None,
    seed: int = 0,
    sites: str | Sequence[str] | None = "hook_resid_post",
    only: tuple[str, ...] = (),
    strengths: tuple[float, ...] = (0.25, 0.5, 1.0, 1.5, 2.0),
    budget: float = 1.25,
    fit_texts: int = 32,
    steps: int = 200,
    share: float = 0.02,
    random_edits: int = 0,
    given: Mapping[str, str] | None = None,
    second_scorer: ls.Scorer | None = None,
    looks: int | None = None,
    **measurement: Any,
) -> ls.Study:
    """Fit every method on the same texts and measure each at its best strength.

    Frames: `methods` (each method at the strength that was chosen; `kl`: KL(unedited || edited) of the next token on
    the neutral texts, nats), `strengths` (every strength that was tried), `texts`, `measurements` (what every edit did,
    prompt by prompt and text by text, see `Measurements`; `over_seeds` reads those of several runs); with
    `random_edits` also `against_random` (before: their mean, after: the method). Of prompts and neutral texts the even
    ones choose (strengths, and which method a sentence names), the odd ones are reported on. One fit of every method:
    intervals are over prompts and texts.

    Parameters
    ----------
    model, contrast:
        Methods are fitted on one half of the contrast (split by `seed`); prompts and neutral texts come from the other.
        DSAS needs control texts and is left out without them.
    out:
        The new run folder; None writes nothing.
    seed:
        Of the split, the fits, the shuffle and the generations.
    sites:
        The sites at which all methods are compared; None compares them at their papers' own sites alone.
    only:
        Names of methods, or beginnings that several share: "LinEAS" is one method, "Lin" are three. All when left out.
    strengths, budget:
        The strength of a method is the one of these with the least of the concept on the validation prompts, among
        those at which the perplexity of the validation texts is at most `budget` times the unedited model's; where
        there is none, the one with the lowest perplexity.
    fit_texts:
        Texts a side, the same for every method.
    steps:
        Of LoReFT.
    share:
        Of all units, for LinEAS with few units and the methods that choose k; ITI takes a quarter of the heads.
    random_edits:
        How many random edits that write as far (`norm_matched_edits`) each method is held against; 20 carry that.
    given:
        On a microworld model, the target's attributes: adds the steering error, in nats per token, before, after, and
        its change with the standard error over documents, paired; nan for an edit of prompts alone, because the
        microworld's documents have none.
    looks:
        How many methods' intervals hold at once, where a comparison is split over several runs; those of this run when
        left out.
    second_scorer:
        Of another kind, read beside `scorer` and not looked at in any choice: adds its columns, named second_....
    **measurement:
        See `Measurement`.

    Raises
    ------
    LensSteerError
        A name of `only` is no method's, there is no strength, `random_edits` is negative, or there are fewer than four
        prompts or neutral texts.

    """
    experiment = Experiment.begin("method_comparison", run, locals())
    if not strengths:
        raise ls.LensSteerError("strengths=(): give one strength or more, such as (0.5, 1.0)")
    if random_edits < 0:
        raise ls.LensSteerError(f"random_edits={random_edits}: give how many, 0 for none")
    tuning, test = (experiment.heldout(half=half, continued=True) for half in (0, 1))
    test.scorers = tuning.scorers
    if second_scorer is not None:
        test.scorers = {**tuning.scorers, SECOND: second_scorer}
    small = experiment.fit_texts(fit_texts)[0]
    texts = {"": small, NULL: experiment.train.shuffled(seed).subsample(len(small.source), seed=seed)}
    methods = named_methods(compared_methods(model, small, sites, steps, share, seed), only)
    about, tried, parts, kept = [], [], [], {}
    for method, where, place in progress_bar(list(placed(methods, sites)), desc="methods", unit="method", show=True):
        chosen: dict[str, Any] = {}
        for control, fitted_on in texts.items():
            begun = perf_counter()
            edit = method.make(place).fit(model, fitted_on)
            seconds = perf_counter() - begun
            row = {"method": method.name, "sites": where, "control": control}
            if not control:
                curve = [row | _tried(tuning, edit, strength, label(row)) for strength in strengths]
                tried += curve
                chosen = _best(curve, budget)
            parts.append(test.measure(edit, label(row), strength=chosen["strength"]))
            kl = test.divergence(edit, strength=chosen["strength"])
            row |= chosen | _size(model, edit) | {"fit_seconds": seconds, "kl": kl}
            if random_edits and not control:
                parts += _random(
                    test, edit.scaled(chosen["strength"]), small, label(row | {"control": RANDOM}), random_edits
                )
            about.append(row | _steering_error(model, edit, chosen["strength"], given, seed))
            if not control and where == COMMON:
                kept[method.name.replace(" ", "_")] = edit
    measurements = Measurements.of(parts, seed=seed)
    table = methods_table(about, measurements, looks)
    frames = {"methods": table, "strengths": pd.DataFrame(tried), "texts": test.texts}
    frames["measurements"] = measurements.frame
    if random_edits:
        frames["against_random"] = against_random(about, measurements)
    return experiment.keep(
        ls.Study(
            frames=frames,
            figures={"strengths": _figure(experiment.concept, pd.DataFrame(tried))},
            summary=[
                *summary(experiment.concept, table, budget, test.neutral_name),
                *_beside_random(experiment.concept, frames.get("against_random")),
            ],
            interventions=kept,
            captions=_captions(test, budget, len(small.source), random_edits),
        )
    )


def label(row: Mapping[str, Any]) -> str:
    """Return the name of an edit among the measurements and texts."""
    return ", ".join(filter(None, (row["method"], f"sites: {row['sites']}", row["control"])))


def methods_table(
    about: Sequence[Mapping[str, Any]], measurements: Measurements, looks: int | None = None
) -> pd.DataFrame:
    """Return one row per edit; the intervals of all methods hold at once, and those of the nulls are no narrower."""
    looks = looks or sum(not row["control"] for row in about)
    rows = []
    for row in about:
        changes = {
            change["measure"]: change for change in measurements.changes(label(row), confidence=1 - 0.05 / looks)
        }
        effect, cost = changes[CONCEPT], changes[PERPLEXITY]
        measures = {name: effect[name] for name in ("before", "after", "change", "low", "high", "confidence")}
        measures |= {f"{PERPLEXITY}_{name}": cost[name] for name in ("before", "after", "low", "high")}
        if SECOND in changes:
            measures |= {f"{SECOND}_{name}": changes[SECOND][name] for name in ("before", "after", "low", "high")}
        measures |= {f"{name}_change": changes[name]["change"] for name in _SHARES if name in changes}
        rows.append({**row, **measures})
    return pd.DataFrame(rows)


def over_seeds(studies: Sequence[ls.Study], *, looks: int | None = None, seed: int = 0) -> pd.DataFrame:
    """Return the rows of `methods`, each over several runs that had the same prompts and neutral texts.

    The runs differ in their seeds, and so in texts, fits, strengths and samples. Intervals know how prompts (texts) and
    seeds vary, and hold for all methods at once (`looks`). Texts that two seeds drew both are in both fits, so what
    they know of how fits vary is a lower bound. `within_budget` counts the seeds in which a strength was within
    it; strength, units, parameters, seconds and KL are means.

    Raises
    ------
    LensSteerError
        The runs did not measure the same methods on as many prompts and texts.

    """
    parts = [study.frames["measurements"] for study in studies]
    by_edit = pd.concat([study.frames["methods"] for study in studies]).groupby(_EDIT, sort=False)
    if len(studies) < 2 or set(by_edit.size()) != {len(studies)} or len({len(part) for part in parts}) != 1:
        raise ls.LensSteerError("runs over seeds are two or more, of the same methods, prompts and neutral texts")
    measured_alike = Measurements.of([part.assign(draw=draw) for draw, part in enumerate(parts)], seed=seed)
    about = []
    for edit, runs in by_edit:
        row: dict[str, Any] = dict(zip(_EDIT, edit, strict=True))
        row["bakeable"] = runs["bakeable"].iloc[0]
        # Of a method that chooses its sites, such as ITI, these vary too.
        means = ("strength", "units", "of_units", "parameters", "fit_seconds", "kl")
        row |= {name: runs[name].mean() for name in means}
        about.append(row | {"within_budget": int(runs["within_budget"].sum()), "seeds": len(runs)})
    return methods_table(about, measured_alike, looks)


def _random(
    test: HeldOut, edit: ls.Intervention, texts: ls.ContrastSet, name: str, draws: int
) -> Iterator[pd.DataFrame]:
    """Yield what random edits do that write as far as an edit."""
    for draw, random in enumerate(ls.norm_matched_edits(test.model, edit, texts, draws=draws, seed=test.seed)):
        yield test.measure(random, name, draw=draw)


def against_random(about: Sequence[Mapping[str, Any]], measurements: Measurements) -> pd.DataFrame:
    """Return one row per method and measure: the method beside one more random edit."""
    return pd.DataFrame(
        [
            {name: row[name] for name in ("method", "sites", "strength", "units")} | beside
            for row in about
            if not row["control"]
            for beside in measurements.against(label(row), label({**row, "control": RANDOM}))
        ]
    )


def _tried(tuning: HeldOut, edit: ls.Intervention, strength: float, name: str) -> dict[str, Any]:
    """Return what one strength does on the validation prompts and texts."""
    measurements = Measurements.of([tuning.measure(edit, name, strength=strength, keep=False)], seed=0)
    values = {
        f"{measure}_{when}": measurements.value(name, measure, when)
        for measure in measurements.measures
        for when in ("before", "after")
    }
    row = {"strength": strength, "before": values[f"{CONCEPT}_before"], "after": values[f"{CONCEPT}_after"]}
    row["change"] = row["after"] - row["before"]
    return row | {name: value for name, value in values.items() if not name.startswith(CONCEPT)}


def _best(curve: Sequence[Mapping[str, Any]], budget: float) -> dict[str, Any]:
    """Return the strength to take, whether it is within the budget, and what it did; nothing to score is not within."""
    fine = [
        row
        for row in curve
        if row["perplexity_after"] <= budget * row["perplexity_before"] and row["after"] == row["after"]
    ]
    best = min(fine or curve, key=lambda row: float(row["after" if fine else "perplexity_after"]))
    return {"strength": best["strength"], "within_budget": bool(fine), "validation_after": best["after"]}


def _steering_error(
    model: Any, edit: ls.Intervention, strength: float, given: Mapping[str, str] | None, seed: int
) -> dict[str, Any]:
    if given is None:
        return {}
    if any(one.gate is not None or one.scope.name == "prompt" for one in edit.edits):
        before = ls.steering_error(model, given=given, n=64, seed=seed + 1).before  # its documents have no prompt
        return {"error_before": before.nats.mean, **dict.fromkeys(_ERRORS[1:], float("nan"))}
    errors = ls.steering_error(model, given=given, intervention=edit, strength=strength, n=64, seed=seed + 1)
    row = errors.frame.set_index("measure").loc["nats"]
    return dict(zip(_ERRORS, map(float, row[["before", "after", "change", "change_se"]]), strict=True))


def _size(model: Any, edit: ls.Intervention) -> dict[str, Any]:
    support = edit.support()
    parameters = sum(tensor.numel() for site_edit in edit.edits for tensor in site_edit.map.state_dict().values())
    try:
        ls.bake(model, edit)
        bakeable = True
    except ls.LensSteerError:
        bakeable = False
    units = {"units": int(support["kept"].sum()), "of_units": int(support["units"].sum())}
    return {**units, "parameters": parameters, "bakeable": bakeable}


def summary(concept: str, table: pd.DataFrame, budget: float, neutral: str) -> list[str]:
    """Return what was found, from the table alone; a method is named by what it did on the validation prompts."""
    real, null = table[table["control"] == ""], table[table["control"] == NULL]
    sentences = []
    for where in (COMMON, OWN):
        rows = real[(real["sites"] == where) & real["within_budget"]].dropna(subset=["validation_after"])
        place = "at the same sites" if where == COMMON else "at the papers' own sites"
        if rows.empty:
            sentences.append(sentence(f"{place}, no strength of a method kept within the budget of perplexity"))
            continue
        sentences += _best_method(rows.sort_values("validation_after", kind="stable").iloc[0], place, concept, neutral)
    within = real[real["within_budget"]]
    verdicts = {f"{row['method']} ({row['sites']})": change_of(row).verdict for row in within.to_dict("records")}
    if verdicts:
        sentences.append(f"Score of {concept} within the budget, against no edit: {by_verdict(verdicts)}.")
    over = real[~real["within_budget"]]
    if len(over):
        sentences.append(f"No strength within the budget: {listed(_names(over))}.")
    beyond = within[within["perplexity_after"] > budget * within["perplexity_before"]]
    if len(beyond):
        sentences.append(
            f"Within {budget:g} times the perplexity on the validation texts and beyond it on the reported ones: "
            f"{listed(_names(beyond))}."
        )
    counts = Counter(change_of(row).verdict for row in null.to_dict("records"))
    tally = "; ".join(f"{verdict}: {counts[verdict]}" for verdict in ls.Verdict if counts[verdict])
    sentences.append(f"Of {len(null)} fits on shuffled labels, at the same strengths: {tally}.")
    return sentences


def _beside_random(concept: str, table: pd.DataFrame | None) -> list[str]:
    if table is None:
        return []
    rows = table[table["measure"] == CONCEPT].to_dict("records")
    verdicts = {f"{row['method']} ({row['sites']})": change_of(row).verdict for row in rows}
    return [
        f"Score of {concept}, against one more random edit that writes as far ({rows[0]['draws']} draws, each method "
        f"alone at 95 %): {by_verdict(verdicts)}."
    ]


def _best_method(row: Any, place: str, concept: str, neutral: str) -> list[str]:
    subject = f"{place}, {row['method']} (best on the validation prompts, strength {row['strength']:g})"
    cost = {name: row[f"{PERPLEXITY}_{name}"] for name in ("before", "after", "low", "high")}
    units = f"{row['units']:,} of {row['of_units']:,} units"
    return [
        sentence(change_of(row).sentence(subject, f"the mean score of {concept} in continuations")),
        sentence(
            change_of({**cost, "confidence": row["confidence"]}).sentence(
                f"it edits {units} and", f"the perplexity of {neutral}"
            )
        ),
    ]


def _names(rows: pd.DataFrame) -> list[str]:
    return [f"{row['method']} ({row['sites']})" for row in rows.to_dict("records")]


def _figure(concept: str, tried: pd.DataFrame) -> Any:
    places = tried["sites"].unique()
    part = tried[(tried["control"] == "") & (tried["sites"] == (COMMON if COMMON in places else OWN))]
    return ls.figures.dose_response(
        part,
        x="strength",
        y="change",
        by="method",
        title=f"Share of {concept} in continuations, by strength",
        note="Change against the unedited model, validation prompts, the same sites for all methods.",
        x_title="strength",
        y_title="change of share",
    )


def _captions(test: HeldOut, budget: float, texts: int, random_edits: int) -> dict[str, str]:
    captions = {
        "methods": (
            f"Each method fitted once, on {texts} + {texts} texts, at the strength chosen on other prompts and texts: "
            f"{test.about} (behind their first words). low, high: interval of the change over prompts, which "
            "holds at 95 % for all methods together (Bonferroni). within_budget: perplexity at most "
            f"{budget:g} times the unedited model's on the validation texts; validation_after: the score there. "
            "kl: mean KL(unedited || edited) of the next token on the same neutral texts, nats. "
            "units: moved, of those at the sites. error: steering error in nats per token; error_change_se: standard "
            "error of its change, over the same documents before and after."
        ),
        "strengths": "Every strength that was tried, on the validation prompts and texts.",
        "texts": "Continuations of the first prompts, before and after every edit at its strength.",
        "measurements": (
            "What every edit did, by prompt (concept) or neutral text (perplexity, in nats): counted, of how many. "
            "before: the unedited model."
        ),
    }
    if random_edits:
        captions["against_random"] = (
            f"Each method (after) beside {random_edits} random edits that write as far at its sites (before: their "
            "mean). low, high: 95 % interval, each method alone, of the difference from one more of them, over prompts "
            "and draws. rank_p: exact two-sided p-value of the method's rank among the draws."
        )
    return captions


if __name__ == "__main__":
    ls.study_command(run)()
