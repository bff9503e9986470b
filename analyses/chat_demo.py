"""The whole job on a chat model: find a concept's experts, bring the concept into replies with few of them, and pay.

The edit adds the difference of the sides' means (CAA, arXiv 2312.06681) at one layer of the residual stream, and only
at the units that tell the sides apart best there. Beside it stand as many units of shuffled labels, and random ones of
the same site and scale, both moved as far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import lens_steer as ls
from analyses.experiment import Experiment, measured
from analyses.measurements import PERPLEXITY, HeldOut, Measurements, change_of
from analyses.sad_stories import SAD_WORDS, requests, sad_stories
from analyses.sentences import PLURAL, listed, sentence
from analyses.steering_table import neutral_pairs
from lens_steer.progress import progress_bar

EXPERTS, SHUFFLED, RANDOM = "experts", "shuffled labels", "random units"
CONCEPT, CLASSIFIER = "concept", "classifier"
RANKED = ("hook_resid_post", "mlp.hook_post")

DEMOS: Mapping[str, Mapping[str, Any]] = {"smollm2": {"layer": 15, "units": 150}}
"""What differs from the defaults of `run` in the demo of a known model."""


@dataclass(frozen=True)
class Job:
    """An edit, and the draw of its control."""

    kind: str
    draw: int
    edit: ls.Intervention


def smollm2(model: Any, *, out: str | Path | None, seed: int = 0, **settings: Any) -> ls.Study:
    """Run the demo of SmolLM2-135M-Instruct: sadness, brought into two sentences about anything."""
    given: dict[str, Any] = {
        "scorer": ls.WordList(SAD_WORDS, name="sad words"),
        "prompts": requests(),
        **DEMOS["smollm2"],
        **settings,
    }
    if "neutral" not in given:
        given["neutral"] = neutral_pairs(model, most=24, seed=seed)
    return run(model, sad_stories(), out=out, seed=seed, **given)


@measured(most_prompts=64, most_neutral=24, max_new_tokens=30, temperature=0.7, top_p=0.9)
def run(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    out: str | Path | None,
    seed: int = 0,
    layer: int | None = None,
    units: int = 150,
    strengths: tuple[float, ...] = (1.0, 2.0, 3.0),
    budget: float = 1.6,
    choosing: int = 16,
    fit_texts: int = 32,
    draws: int = 5,
    **measurement: Any,
) -> ls.Study:
    """Rank the experts of a concept, move a few of them towards it, and read what the model then replies.

    Frames: `effect` (per edit and measure, against the unedited model), `texts`, `against_controls` (the experts beside
    either control), `divergence`, `strengths`, `experts`.

    Parameters
    ----------
    model:
        Any model; one with a chat template for a contrast whose `chat` is set.
    contrast:
        Source texts show the concept that is brought in. One half is for the ranking and the fit, the other trains the
        second scorer.
    out:
        The new run folder; None writes nothing.
    seed:
        Of the halves, the controls and the samples.
    layer:
        Where units are moved; None takes the layer that `CAA` chooses.
    units:
        How many: those of the layer's residual stream whose AUROC is furthest from 1/2, on either side.
    strengths, budget:
        The strength is the one of these with the most of the concept, on prompts that only choose, among those at which
        the perplexity of neutral texts is at most `budget` times the unedited model's.
    choosing:
        How many of the prompts choose the strength; the others are reported on. Of neutral texts it is every second.
    fit_texts:
        Texts a side of ranking and fit.
    draws:
        Of each control.
    **measurement:
        See `Measurement`.

    Raises
    ------
    LensSteerError
        There are not two prompts or more to choose with and to report on, or the layer has fewer units.

    """
    experiment = Experiment.begin("chat_demo", run, locals())
    chosen_on, reported_on = _heldout(experiment, choosing)
    texts = experiment.fit_texts(fit_texts)[0]
    ranking = ls.rank_experts(ls.collect(model, texts, RANKED, pool="mean", progress=False), seed=seed)
    layers = None if layer is None else (layer,)
    whole = ls.CAA(layers=layers, pool="mean", seed=seed).fit(model, texts.swap())
    site = whole.sites[0]
    edit = whole.restrict(best_at(ranking.frame, site, units))
    tried = [_tried(chosen_on, edit, strength) for strength in strengths]
    strength = best_strength(tried, budget)
    here = ls.collect(model, texts, site.name, pool="mean", progress=False)
    jobs = [
        Job(job.kind, job.draw, job.edit.scaled(strength))
        for job in (Job(EXPERTS, 0, edit), *controls(model, edit, here, texts, draws=draws, seed=seed))
    ]
    parts = [
        reported_on.measure(job.edit, job.kind, draw=job.draw)
        for job in progress_bar(jobs, desc="evaluate", unit="edit", show=True)
    ]
    measurements = Measurements.of(parts, seed=seed)
    frames = {
        "effect": effect_table(measurements, jobs),
        "texts": reported_on.texts,
        "against_controls": against_table(measurements),
        "divergence": pd.DataFrame(
            [{"edit": job.kind, "kl": reported_on.divergence(job.edit)} for job in jobs if job.draw == 0]
        ),
        "strengths": pd.DataFrame(tried).assign(chosen=lambda frame: frame["strength"] == strength),
        "experts": ranking.top(100),
    }
    about = {"strength": strength, "site": site.name, "stream": sum(s.width for s in ls.find_sites(model, RANKED[0]))}
    return experiment.keep(
        ls.Study(
            frames=frames,
            figures={"effect": _figure(frames["effect"], reported_on), "experts": ranking.plot()},
            summary=summary(experiment.concept, frames, about, reported_on),
            tokens={"best_units": ls.show_units(model, experiment.held, ranking.top(3))},
            interventions={"edit": jobs[0].edit},
            captions=_captions(experiment, reported_on, budget, choosing, len(texts.source), draws),
        )
    )


def _heldout(experiment: Experiment, choosing: int) -> tuple[HeldOut, HeldOut]:
    """Return what the strength is chosen on and what is reported on; both read by two scorers."""
    classifier = ls.ConceptClassifier.fit(experiment.held, seed=experiment.seed)
    whole = experiment.heldout(scorers={CONCEPT: experiment.scorer, CLASSIFIER: classifier})
    parts = whole.prompts[:choosing], whole.prompts[choosing : experiment.measurement.most_prompts]
    if min(map(len, parts)) < 2 or len(whole.neutral) < 4:
        raise ls.LensSteerError(
            f"{sum(map(len, parts))} prompts, {choosing} of which choose the strength, and {len(whole.neutral)} "
            "neutral texts: give two prompts or more to choose with and to report on, and four neutral texts"
        )
    return tuple(  # type: ignore[return-value]
        replace(whole, prompts=prompts, neutral=whole.neutral[half::2]) for half, prompts in enumerate(parts)
    )


def best_at(frame: pd.DataFrame, site: ls.Site, k: int) -> tuple[ls.Unit, ...]:
    """Return the k units of a site whose AUROC is furthest from 1/2: a stream's units have no preferred sign."""
    units_of_site = frame[frame["site"] == site.name]
    if not 0 < k <= len(units_of_site):
        raise ls.LensSteerError(f"units={k}: {site.name} has {len(units_of_site)} units")
    best = (units_of_site["auroc"] - 0.5).abs().sort_values(ascending=False, kind="stable").index[:k]
    return tuple(ls.Unit(site, int(unit)) for unit in units_of_site.loc[best, "unit"])


def controls(
    model: Any, edit: ls.Intervention, here: ls.Activations, texts: ls.ContrastSet, *, draws: int, seed: int
) -> list[Job]:
    """Return draws of both controls: as many units as the edit has at its site, moved as far in all (in norm)."""
    site = edit.sites[0]
    chosen = edit.units()
    indices = torch.tensor([unit.index for unit in chosen])
    shift = torch.tensor(edit.to_frame()["shift"].to_numpy(), dtype=torch.float32)
    jobs = []
    for draw in range(draws):
        jobs.append(Job(SHUFFLED, draw, _shifted(model, site, _of_shuffled(here, texts, site, shift, seed + draw))))
    for draw, units in enumerate(ls.matched_units(chosen, here, draws=draws, seed=seed)):
        signs = 2.0 * torch.randint(2, (len(units),), generator=torch.Generator().manual_seed(seed + draw)) - 1
        moved = torch.zeros(site.width)
        moved[[unit.index for unit in units]] = signs * shift[indices]
        jobs.append(Job(RANDOM, draw, _shifted(model, site, moved)))
    return jobs


def _of_shuffled(
    here: ls.Activations, texts: ls.ContrastSet, site: ls.Site, like: torch.Tensor, seed: int
) -> torch.Tensor:
    """Return what the same fit gives on shuffled labels: its own best units, with the norm of `like`."""
    source = set(texts.shuffled(seed).source)
    labels = torch.tensor([[int(row in source)] for row in (*texts.source, *texts.target)])
    shuffled = replace(here, labels=labels.to(here.labels.dtype), moments=None)
    k = int((like != 0).sum())
    units = best_at(ls.rank_experts(shuffled, holdout=None).frame, site, k)
    keep = torch.zeros(site.width)
    keep[[unit.index for unit in units]] = 1.0
    difference: torch.Tensor = keep * (shuffled.source[site].float().mean(0) - shuffled.target[site].float().mean(0))
    scale = float(like.norm() / difference.norm())
    return difference * scale


def _shifted(model: Any, site: ls.Site, shift: torch.Tensor) -> ls.Intervention:
    return ls.Intervention.fitted(model, [ls.Edit(site, ls.DiagonalAffine(torch.ones(site.width), shift))])


def _tried(chosen_on: HeldOut, edit: ls.Intervention, strength: float) -> dict[str, float]:
    """Return what one strength does on the prompts and texts that choose."""
    name = "tried"
    measurements = Measurements.of([chosen_on.measure(edit.scaled(strength), name, keep=False)], seed=0)
    values = {
        f"{measure}_{when}": measurements.value(name, measure, when)
        for measure in measurements.measures
        for when in ("before", "after")
    }
    cost = values[f"{PERPLEXITY}_after"] / values[f"{PERPLEXITY}_before"]
    return {"strength": strength, **values, "times_perplexity": cost}


def best_strength(tried: Sequence[Mapping[str, float]], budget: float) -> float:
    """Return the strength with the most of the concept within the budget; the cheapest where none is within it."""
    within = [row for row in tried if row["times_perplexity"] <= budget]
    if not within:
        return min(tried, key=lambda row: row["times_perplexity"])["strength"]
    return max(within, key=lambda row: (row[f"{CONCEPT}_after"], -row["strength"]))["strength"]


def effect_table(measurements: Measurements, jobs: Sequence[Job]) -> pd.DataFrame:
    """Return one row per edit and measure: before, after, change and its interval, against the unedited model."""
    first = {job.kind: job.edit for job in reversed(jobs)}
    return pd.DataFrame(
        [
            {"edit": kind, "units": len(edit.units()), "draws": sum(job.kind == kind for job in jobs), **row}
            for kind, edit in sorted(first.items(), key=lambda item: (EXPERTS, SHUFFLED, RANDOM).index(item[0]))
            for row in measurements.changes(kind)
        ]
    )


def against_table(measurements: Measurements) -> pd.DataFrame:
    """Hold the experts against the draws of either control: before is their mean, after the experts."""
    return pd.DataFrame(
        [
            {"control": control, **row}
            for control in (SHUFFLED, RANDOM)
            if control in set(measurements.frame["edit"])
            for row in measurements.against(EXPERTS, control)
        ]
    )


def summary(
    concept: str, frames: Mapping[str, pd.DataFrame], about: Mapping[str, Any], reported_on: HeldOut
) -> list[str]:
    """Return what was found, from the frames alone, the effect on replies first."""
    effect, against, experts = (frames[name] for name in ("effect", "against_controls", "experts"))
    rows = {(row["edit"], row["measure"]): row for row in effect.to_dict("records")}
    called = {
        CONCEPT: _called(reported_on),
        CLASSIFIER: "the mean score of a classifier",
        PERPLEXITY: f"the perplexity of {reported_on.neutral_name}",
    }

    def clause(edit: str, measure: str, subject: str, **words: Any) -> str:
        style: Any = "number" if measure == PERPLEXITY else "share"
        return change_of(rows[edit, measure]).sentence(subject, called[measure], style=style, **words)

    moved = f"moving {rows[EXPERTS, CONCEPT]['units']} of {about['stream']:,} units of the residual stream"
    kl = {row["edit"]: row["kl"] for row in frames["divergence"].to_dict("records")}
    best = experts.iloc[0]
    sentences = [
        sentence(clause(EXPERTS, CONCEPT, moved)).removesuffix("."),
        f"They are the units of {about['site']} that tell “{concept}” best, moved by {about['strength']:g} times the "
        f"difference of means; strength chosen on other prompts, reported on {len(reported_on.prompts)}.",
        sentence(clause(EXPERTS, CLASSIFIER, "the edit")),
        sentence(clause(EXPERTS, PERPLEXITY, "the edit"))[:-1]
        + f"; its next-token distributions lie {kl[EXPERTS]:.2f} nats per token from the unedited model's.",
    ]
    for control, subject in ((SHUFFLED, "edits from shuffled labels"), (RANDOM, "random units, moved as far,")):
        if (control, CONCEPT) in rows:
            drawn = f"{rows[control, CONCEPT]['draws']} draws of {subject}"
            subjects = {CONCEPT: drawn, PERPLEXITY: "they"}
            clauses = [clause(control, measure, named, **PLURAL) for measure, named in subjects.items()]
            sentences.append(sentence(*clauses))
    unjudged = []
    for row in against[against["measure"] == CONCEPT].to_dict("records"):
        if change_of(row).verdict is ls.Verdict.CANNOT_JUDGE:
            unjudged.append(row["control"])
            continue
        comparison = change_of(row).comparison("moving the experts", row["control"], called[CONCEPT], style="share")
        sentences.append(sentence(f"{comparison}, where {row['control']} may be any further draw"))
    if unjudged:
        drawn = rows[unjudged[0], CONCEPT]["draws"]
        sentences.append(
            f"How the experts stand beside one more draw of {listed(unjudged)} cannot be judged from {drawn} draws; "
            "20 carry that."
        )
    sentences.append(
        f"The best single expert of “{concept}” is {best['site']}[{best['unit']}], held-out AUROC "
        f"{best['heldout_auroc']:.3f} [{best['heldout_low']:.3f}, {best['heldout_high']:.3f}]."
    )
    return sentences


def _called(reported_on: HeldOut) -> str:
    scorer = reported_on.scorers[CONCEPT]
    what = "share of replies with" if isinstance(scorer, ls.WordList) else "mean score of replies by"
    return f"the {what} {scorer.name}"


def _figure(effect: pd.DataFrame, reported_on: HeldOut) -> Any:
    shown = effect[effect["measure"] == CONCEPT]
    return ls.figures.overlap_bars(
        shown,
        label="edit",
        value="change",
        low="low",
        high="high",
        title="What the edit brings into replies, beside its controls",
        note=f"Change against the unedited model, {len(reported_on.prompts)} prompts. Whisker: 95 %.",
        x_title=f"change of {_called(reported_on)}",
    )


def _captions(
    experiment: Experiment, reported_on: HeldOut, budget: float, choosing: int, fit_texts: int, draws: int
) -> dict[str, str]:
    judge = reported_on.scorers[CLASSIFIER]
    auroc = getattr(judge, "heldout_auroc", float("nan"))
    return {
        "effect": f"{reported_on.about[:1].upper()}{reported_on.about[1:]}, against the unedited model; the classifier "
        f"was trained on texts that took no part in the fit (held-out AUROC {auroc:.2f}). 95 % intervals over prompts "
        f"or texts, and for a control over its {draws} draws too.",
        "against_controls": f"The experts (after) against {draws} draws of a control (before: their mean): the "
        "interval is that of the difference to one more draw. rank_p: exact p of their rank among the draws.",
        "divergence": "Mean KL(unedited || edited) of the next token, nats per token, on the same neutral texts; of "
        "controls, the first draw.",
        "strengths": f"Every strength that was tried, on {choosing} prompts and as many neutral texts as are reported "
        f"on; at most {budget:g} times the perplexity was allowed.",
        "texts": "Replies to the first prompts, before and after every edit (of controls, the first draw).",
        "experts": f"Units by how well their mean over a reply tells “{experiment.concept}” from the other side; "
        f"{fit_texts} + {fit_texts} texts, one half of which chooses and the other measures (heldout_auroc).",
        "edit": "What the edit changes, at the chosen strength.",
        "best_units": "The three best experts on texts that took no part in their choice.",
    }


if __name__ == "__main__":
    ls.study_command(run)()
