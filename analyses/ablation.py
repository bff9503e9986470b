"""Ablation: are the units that tell a concept also the units that make the model write it?

AUROC experts and units that LinEAS selects are each held at a constant, ever more of them; what that does to the
concept in generated texts stands beside what it costs in perplexity. Beside either choice stand draws of units matched
to it in activation, of random units, and of the experts of shuffled labels. Whether units also suffice, and how few do,
ask `analyses.necessity` and `analyses.minimal_sets`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

import lens_steer as ls
from analyses.controls import Choice, random_choices, shuffled_experts
from analyses.experiment import Experiment, measured
from analyses.measurements import PERPLEXITY, HeldOut, Measurements, change_of
from analyses.selection import moved_by
from analyses.self_repair import halving, halving_sentence, repair_sentence, self_repair
from analyses.sentences import by_verdict, sentence
from lens_steer.progress import progress_bar

EXPERTS, LINEAS = "AUROC experts", "LinEAS-selected units"
CHOICES = (EXPERTS, LINEAS)
MATCHED = {EXPERTS: "units matched to the experts", LINEAS: "units matched to LinEAS's"}
RANDOM, SHUFFLED = "random units", "shuffled-label experts"
CONCEPT = "concept"


@measured()
def run(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    out: str | Path | None,
    seed: int = 0,
    sites: str | Sequence[str] = "mlp.hook_post",
    mode: Literal["zero", "mean", "target_mean", "resample"] = "target_mean",
    ks: tuple[int, ...] = (4, 16, 64, 256),
    draws: int = 20,
    fit_texts: int = 32,
    gamma_shares: tuple[float, ...] = (0.8, 0.6, 0.4),
    **measurement: Any,
) -> ls.Study:
    """Ablate ever more units of each choice and measure effect and cost on texts that no choice has seen.

    Frames: `dose_response` (choices and controls, against the unedited model), `against_controls` (a choice against
    draws of a control), `halving` (the smallest dose of every choice and control that was shown to halve the concept),
    `self_repair` (what later components write against the largest dose of a choice, held-out texts), `chosen_units`,
    `texts`.

    Parameters
    ----------
    model, contrast:
        Units are chosen and scored on one half of the contrast (split by `seed`), everything is measured on the other.
    out:
        The new run folder; None writes nothing.
    seed:
        Of the split in halves, the draws, and the generations.
    sites:
        Where units are chosen.
    mode:
        What they are held at, as in `ls.ablate`: zero, mean, target_mean or resample, of the training half.
    ks:
        Doses: how many units are ablated.
    draws:
        Of every control, as many at every dose. With fewer than 20, whether a choice differs from a control cannot be
        judged.
    fit_texts, gamma_shares:
        LinEAS's texts a side, and its path in shares of gamma_max. Its units come in the order in which they enter
        it, and within a step by how far they are moved. A dose above its support is left out.
    **measurement:
        See `Measurement`.

    Raises
    ------
    LensSteerError
        A dose is below 1, or larger than half of the sites' units; fewer than one draw.

    """
    experiment = Experiment.begin("ablation", run, locals())
    _check(ks, draws, ls.find_sites(model, sites))
    train = experiment.train
    activations = ls.collect(model, train, sites)
    ranking = ls.rank_experts(activations, holdout=ls.collect(model, experiment.held, sites), seed=seed)
    held_at = ls.collect(model, train, sites, pool="mean") if mode == "resample" else activations
    small = experiment.fit_texts(fit_texts)[0]
    path = ls.LinEAS(sites=sites, seed=seed).path(model, small, shares=gamma_shares)
    selected = _entrance_order(path.interventions, activations)
    orders = _orders(train, ranking, selected, ks, draws, seed)

    def ablated(units: Choice) -> ls.Intervention:
        return ls.ablate(units, mode=mode, activations=held_at, seed=seed, model=model)

    heldout = experiment.heldout()
    edits = [
        (label(choice, k), draw, ablated(units[:k]))
        for choice, drawn in orders.items()
        for k in ks
        for draw, units in enumerate(drawn)
        if len(units) >= k
    ]
    measurements = Measurements.of(
        (
            heldout.measure(edit, name, draw=draw)
            for name, draw, edit in progress_bar(edits, desc="evaluate", unit="edit", show=True)
        ),
        seed=seed,
    )
    frames = {
        "dose_response": dose_response(measurements, orders, ks),
        "against_controls": against_controls(measurements, ks),
        "chosen_units": chosen_units(orders, ranking, activations),
        "texts": heldout.texts,
    }
    frames["halving"] = halving(frames["dose_response"], list(orders), CONCEPT)
    largest = {choice: max(k for k in ks if k <= len(orders[choice][0])) for choice in CHOICES if choice in orders}
    frames["self_repair"] = self_repair(
        model, {(choice, k): ablated(orders[choice][0][:k]) for choice, k in largest.items()}, experiment.held
    )
    return experiment.keep(
        ls.Study(
            frames=frames,
            figures=_figures(experiment.concept, frames["dose_response"], heldout),
            summary=[
                *summary(experiment.concept, frames, ks, heldout.neutral_name),
                halving_sentence(frames["halving"], f"the mean score of {experiment.concept} in generated texts"),
                *(repair_sentence(frames["self_repair"], choice) for choice in largest),
            ],
            interventions={"experts": ablated(orders[EXPERTS][0]), "lineas": path.interventions[-1]},
            captions=_captions(mode, heldout, draws, looks(ks)),
        )
    )


def label(choice: str, k: int) -> str:
    """Return the name of an edit."""
    return f"{k} {choice}"


def looks(ks: Sequence[int]) -> int:
    """Return how many comparisons with one control are made in one measure: their intervals hold together."""
    return len(ks) * len(CHOICES)


def _check(ks: Sequence[int], draws: int, sites: Sequence[ls.Site]) -> None:
    total = sum(site.width for site in sites)
    if not ks or min(ks) < 1 or max(ks) > total // 2:
        raise ls.LensSteerError(f"ks={tuple(ks)}: doses lie between 1 and half of the sites' {total} units")
    if draws < 1:
        raise ls.LensSteerError(f"draws={draws}: a choice stands beside one draw of every control or more; 20 carry it")


def _orders(
    train: ls.ContrastSet,
    ranking: ls.ExpertRanking,
    selected: Choice,
    ks: Sequence[int],
    draws: int,
    seed: int,
) -> dict[str, tuple[Choice, ...]]:
    """Return choice or control -> one order of units per draw, best first; a dose takes the first k."""
    activations, experts = ranking.activations, ranking.units(max(ks))
    reached = max((k for k in ks if k <= len(selected)), default=0)
    several: dict[str, Any] = {"draws": draws, "seed": seed}
    orders: dict[str, tuple[Choice, ...]] = {EXPERTS: (experts,)}
    orders[MATCHED[EXPERTS]] = tuple(ls.matched_units(experts, activations, **several))
    if reached:
        orders[LINEAS] = (selected[:reached],)
        orders[MATCHED[LINEAS]] = tuple(ls.matched_units(selected[:reached], activations, **several))
    orders[RANDOM] = random_choices(activations.sites, max(ks), **several)
    orders[SHUFFLED] = shuffled_experts(train, activations, max(ks), **several)
    return orders


def _entrance_order(path: Sequence[ls.Intervention], activations: ls.Activations) -> Choice:
    """Return the units of a path, those that enter at the largest gamma first; of a step, the furthest moved first."""
    order: dict[ls.Unit, None] = {}
    for intervention in path:
        sizes = moved_by(intervention, activations)
        entered = sorted(intervention.units(), key=lambda unit: -float(sizes[unit.site][unit.index]))
        order |= dict.fromkeys(unit for unit in entered if unit not in order)
    return tuple(order)


def dose_response(
    measurements: Measurements, orders: Mapping[str, Sequence[Choice]], ks: Sequence[int]
) -> pd.DataFrame:
    """Return every choice and control at every dose against the unedited model."""
    measured_edits = set(measurements.frame["edit"])
    return pd.DataFrame(
        [
            {"choice": choice, "k": k, "draws": len(drawn), **row}
            for choice, drawn in orders.items()
            for k in ks
            if label(choice, k) in measured_edits
            for row in measurements.changes(label(choice, k))
        ]
    )


def against_controls(measurements: Measurements, ks: Sequence[int]) -> pd.DataFrame:
    """Hold either choice against the draws of each control at the same dose; the intervals of a control hold at once.

    before is the mean of the control's draws, after the choice.
    """
    measured_edits = set(measurements.frame["edit"])
    return pd.DataFrame(
        [
            {"choice": choice, "control": control, "k": k, **row}
            for choice in CHOICES
            for control in (MATCHED[choice], RANDOM, SHUFFLED)
            for k in ks
            if label(choice, k) in measured_edits
            for row in measurements.against(label(choice, k), label(control, k), confidence=1 - 0.05 / looks(ks))
        ]
    )


def chosen_units(
    orders: Mapping[str, Sequence[Choice]], ranking: ls.ExpertRanking, activations: ls.Activations
) -> pd.DataFrame:
    """Return every chosen unit with its rank, its AUROC on held-out texts and its scale."""
    scores: dict[Any, float] = ranking.frame.set_index(["site", "unit"])["heldout_auroc"].to_dict()
    moments = {
        site.name: [read(site, "target").tolist() for read in (activations.token_mean, activations.token_std)]
        for site in activations.sites
    }
    rows = []
    for name, drawn in orders.items():
        for draw, units in enumerate(drawn):
            for rank, unit in enumerate(units, start=1):
                mean, std = (values[unit.index] for values in moments[unit.site.name])
                about = {"site": unit.site.name, "layer": unit.site.layer, "unit": unit.index, "width": unit.site.width}
                about |= {"heldout_auroc": scores[unit.site.name, unit.index], "token_mean": mean, "token_std": std}
                rows.append({"choice": name, "draw": draw, "rank": rank, **about})
    return pd.DataFrame(rows)


def summary(concept: str, frames: Mapping[str, pd.DataFrame], ks: Sequence[int], neutral: str) -> list[str]:
    """Return what was found, from the frames alone: the experts' effect first."""
    doses, against, units = (frames[name] for name in ("dose_response", "against_controls", "chosen_units"))
    measure = f"the mean score of {concept} in generated texts"
    sentences = []
    for choice in CHOICES:
        effects = against[(against["choice"] == choice) & (against["measure"] == CONCEPT)]
        if effects.empty:
            sentences.append(f"LinEAS's path keeps fewer units than the smallest dose, {min(ks)}: none were ablated.")
            continue
        sentences.append(_against_matched(choice, effects, measure))
        sentences.append(_dose_sentence(choice, doses, CONCEPT, measure))
        sentences.append(_dose_sentence(choice, doses, PERPLEXITY, f"the perplexity of {neutral}"))
        costs = against[(against["choice"] == choice) & (against["measure"] == PERPLEXITY)]
        sentences.append(_against_matched(choice, costs, f"the perplexity of {neutral}"))
    sentences.append(_dose_sentence(SHUFFLED, doses, CONCEPT, measure))
    sentences.append(_likeness(units, min(ks)))
    reach = max(doses.loc[doses["choice"] == LINEAS, "k"], default=0)
    if 0 < reach < max(ks):
        sentences.append(f"LinEAS's path keeps fewer than {max(ks)} units, so its doses end at {reach}.")
    return sentences


def _against_matched(choice: str, against: pd.DataFrame, measure: str) -> str:
    """Say what the largest dose does beside matched units, and at which doses the verdict is which."""
    rows = against[against["control"] == MATCHED[choice]].sort_values("k")
    last = rows.iloc[-1]
    compared = change_of(last).sentence(f"ablating {last['k']} {choice} instead of {MATCHED[choice]}", measure)
    few = f" with {last['draws']} draws of matched units, 20 are needed" if last["draws"] < 20 else ""
    doses = by_verdict({f"k = {row['k']}": change_of(row).verdict for row in rows.to_dict("records")})
    return sentence(f"{compared}{few}", f"by dose, against {last['draws']} draws: {doses}")


def _dose_sentence(choice: str, doses: pd.DataFrame, measure: str, called: str) -> str:
    rows = doses[(doses["choice"] == choice) & (doses["measure"] == measure)].sort_values("k")
    last = rows.iloc[-1]
    verdicts = by_verdict({f"k = {row['k']}": change_of(row).verdict for row in rows.to_dict("records")})
    return sentence(
        change_of(last).sentence(f"ablating {last['k']} {choice}", called), f"by dose, against no edit: {verdicts}"
    )


def _likeness(units: pd.DataFrame, k: int) -> str:
    """Say how good the first units of each choice are as experts, and how large they are."""
    means = units[units["rank"] <= k].groupby("choice", sort=False)[["heldout_auroc", "token_mean", "token_std"]].mean()
    values = "; ".join(
        f"{name} {row['heldout_auroc']:.2f} ({row['token_mean']:.2f}, {row['token_std']:.2f})"
        for name, row in means.iterrows()
    )
    return (
        f"Mean held-out AUROC of the first {k} units of each choice (and their mean and spread over tokens): {values}."
    )


def _figures(concept: str, doses: pd.DataFrame, heldout: HeldOut) -> dict[str, Any]:
    def lines(measure: str, title: str, note: str, y_title: str) -> Any:
        part = doses[doses["measure"] == measure]
        columns: dict[str, Any] = {"x": "k", "y": "change", "by": "choice", "low": "low", "high": "high"}
        axes: dict[str, Any] = {"x_title": "units ablated (log scale)", "y_title": y_title, "log_x": True}
        return ls.figures.dose_response(part, **columns, **axes, title=title, note=note, baseline=0.0)

    effect = f"Change of the mean score of {concept} in generated texts; below 0: less of it. Bands: 95 %."
    cost = f"Change of the perplexity of {heldout.neutral_name}; above 0: worse language. Bands: 95 %."
    return {
        "dose_response": lines(CONCEPT, f"Effect of ablation on {concept}", effect, "change of the mean score"),
        "perplexity_cost": lines(PERPLEXITY, "Cost of ablation", cost, "change of perplexity"),
    }


def _captions(mode: str, heldout: HeldOut, draws: int, looks: int) -> dict[str, str]:
    return {
        "dose_response": f"Units held at {mode}: {heldout.about}, against the unedited model. 95 % intervals over "
        f"prompts or texts, and for a control over its {draws} draws too.",
        "against_controls": f"The choice (after) against {draws} draws of a control at the same dose (before: their "
        "mean): the interval is that of the difference to one more draw, over prompts or texts and over draws, and "
        f"holds at 95 % for the {looks} comparisons of either choice at all doses together (Bonferroni). rank_p: exact "
        "p of the choice's rank among the draws, which cannot fall below 2 / (draws + 1).",
        "halving": "The smallest dose whose interval lies below half of the unedited value; nan where none does.",
        "self_repair": "The projection of what a later component adds on what the ablation writes before it, at the "
        "largest dose: -1 takes all of it back. The intervals of one choice's components hold together (Bonferroni).",
        "chosen_units": "Every chosen unit, its rank in the choice, its AUROC on held-out texts (1/2 is chance), and "
        "its mean and standard deviation over the tokens of training target texts.",
        "texts": "Continuations of the first prompts, before and after every edit (of controls, the first draw).",
    }


if __name__ == "__main__":
    ls.study_command(run)()
