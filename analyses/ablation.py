"""Ablation: are the units that tell a concept also the units that make the model write it?

AUROC experts, units that LinEAS selects, random units and random units matched in activation are each held at a
constant, ever more of them; what that does to the concept in generated texts stands beside what it costs in perplexity.
The same ranking on shuffled labels is the null control.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

import lens_steer as ls
from analyses.heldout import (
    PERPLEXITY,
    HeldOut,
    Measured,
    beginnings,
    change_text,
    concept_name,
    default_scorer,
    excludes_zero,
    neutral_texts,
    plain,
)

EXPERTS, LINEAS, MATCHED = "AUROC experts", "LinEAS-selected", "matched random"
RANDOM, SHUFFLED = "random", "shuffled-label experts"
CONTROLS = (MATCHED, RANDOM, SHUFFLED)
_NEAREST = 3  # a matched unit is drawn from so many nearest ones, so that draws differ


def run(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    out: str | Path | None,
    seed: int = 0,
    sites: str | Sequence[str] = "mlp.hook_post",
    mode: Literal["zero", "mean", "target_mean", "resample"] = "target_mean",
    ks: tuple[int, ...] = (4, 16, 64, 256),
    draws: int = 2,
    fit_texts: int = 32,
    gamma_shares: tuple[float, ...] = (0.8, 0.6, 0.4),
    steps: int = 60,
    lr: float = 0.02,
    optimizer: Literal["sgd", "adam"] = "adam",
    scorer: ls.Scorer | None = None,
    prompts: Sequence[str] | None = None,
    prompt_words: int = 4,
    most_prompts: int = 60,
    most_neutral: int = 100,
    samples: int = 2,
    max_new_tokens: int = 24,
) -> ls.Study:
    """Ablate ever more units of each choice and measure effect and cost on texts that no choice has seen.

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
        Of random units, matched units and shuffled labels; their readings are averaged.
    fit_texts, gamma_shares, steps, lr, optimizer:
        LinEAS's texts a side, gammas (shares of gamma_max), steps and rate. Its units come in the order in which they
        enter the path, and within a step by how far they are moved. A dose above its support is left out.
    scorer:
        How much of the concept a text shows; by default a `ConceptClassifier` fitted on the training half, or the
        oracle of a microworld contrast.
    prompts, prompt_words, most_prompts:
        What is continued: given, or the first words of held-out source texts.
    most_neutral:
        Texts of perplexity: the contrast's control texts, or without any its held-out target texts.
    samples, max_new_tokens:
        Continuations per prompt, and their length in tokens.

    Raises
    ------
    LensSteerError
        A dose is below 1, or larger than half of the sites' units.

    """
    settings, name = plain(locals()), concept_name(contrast)
    train, held = contrast.split(test=0.5, seed=seed)
    activations = ls.collect(model, train, sites)
    heldout = ls.collect(model, held, sites)
    _check(ks, activations)
    ranking = ls.rank_experts(activations, holdout=heldout, seed=seed)
    test = HeldOut(
        model,
        prompts=beginnings(held.source, words=prompt_words, most=most_prompts) if prompts is None else tuple(prompts),
        scorers={"concept": scorer or default_scorer(train, seed)},
        neutral=neutral_texts(held, most_neutral),
        samples=samples,
        max_new_tokens=max_new_tokens,
        chat=contrast.chat,
        seed=seed,
    )
    lineas = ls.LinEAS(sites=sites, steps=steps, lr=lr, optimizer=optimizer, seed=seed)
    small = train.subsample(min(fit_texts, len(train.source), len(train.target)), seed=seed)
    ceiling = lineas.gamma_max(model, small)
    path = lineas.path(model, small, gammas=[share * ceiling for share in gamma_shares])
    choices = _choices(model, train, ranking, path.interventions, max(ks), draws, seed)

    def ablated(units: tuple[ls.Unit, ...]) -> ls.Intervention:
        return ls.ablate(units, mode=mode, activations=activations)

    readings = {
        (choice, k): Measured.mean([test.measure(ablated(units[:k])) for units in orders])
        for choice, orders in choices.items()
        for k in ks
        if min(map(len, orders)) >= k
    }
    doses = pd.DataFrame(
        [
            {"choice": choice, "k": k, "draws": len(choices[choice]), **row}
            for (choice, k), reading in readings.items()
            for row in reading.rows()
        ]
    )
    against = _against_controls(readings, ks)
    units = _units_table(choices, ranking, activations)
    study = ls.Study(
        frames={"dose_response": doses, "against_controls": against, "chosen_units": units},
        figures=_figures(name, doses),
        summary=_summary(name, doses, against, units, ks),
        interventions={"experts": ablated(choices[EXPERTS][0]), "lineas": path.interventions[-1]},
        captions=_captions(mode, test, draws),
    )
    if out is not None:
        study.save(out, name="ablation", model=model, contrast=contrast, seed=seed, settings=settings)
    return study


def _check(ks: Sequence[int], activations: ls.Activations) -> None:
    total = sum(site.width for site in activations.sites)
    if not ks or min(ks) < 1 or max(ks) > total // 2:
        raise ls.LensSteerError(f"ks={tuple(ks)}: doses lie between 1 and half of the sites' {total} units")


def _choices(
    model: Any,
    train: ls.ContrastSet,
    ranking: ls.ExpertRanking,
    path: Sequence[ls.Intervention],
    most: int,
    draws: int,
    seed: int,
) -> dict[str, list[tuple[ls.Unit, ...]]]:
    """Return choice -> one order of units per draw, best first; a dose takes the first k."""
    activations, experts = ranking.activations, ranking.units(most)
    kinds = [site.name for site in activations.sites]
    seeds = [seed + draw for draw in range(draws)]
    shuffled = [ls.rank_experts(ls.collect(model, train.shuffled(each), kinds), holdout=None) for each in seeds]
    return {
        EXPERTS: [experts],
        LINEAS: [_entrance_order(path, activations)[:most]],
        MATCHED: [_matched(experts, ranking, each) for each in seeds],
        RANDOM: [_shuffled(ls.random_units(activations.sites, most, seed=each), each) for each in seeds],
        SHUFFLED: [null.units(most) for null in shuffled],
    }


def _entrance_order(path: Sequence[ls.Intervention], activations: ls.Activations) -> tuple[ls.Unit, ...]:
    """Return the units of a path, those that enter at the largest gamma first; of a step, the furthest moved first."""
    order: dict[ls.Unit, None] = {}
    for intervention in path:
        sizes = {}
        for edit in intervention.edits:
            mean, std = (read(edit.site, "source") for read in (activations.token_mean, activations.token_std))
            assert isinstance(edit.map, ls.DiagonalAffine)  # LinEAS makes no other
            slope = edit.map.scale - 1
            # Root mean square of map(z) - z over the source's tokens.
            sizes[edit.site] = ((slope * mean + edit.map.shift).square() + (slope * std).square()).sqrt()
        entered = sorted(intervention.units(), key=lambda unit: -float(sizes[unit.site][unit.index]))
        order |= dict.fromkeys(unit for unit in entered if unit not in order)
    return tuple(order)


def _matched(experts: tuple[ls.Unit, ...], ranking: ls.ExpertRanking, seed: int) -> tuple[ls.Unit, ...]:
    """Return for each expert a unit of its site with the nearest mean and spread over tokens that is no expert.

    No expert: outside the chosen ones, and of the half of those whose AUROC is nearest to 1/2 as long as that half has
    enough units.
    """
    random = np.random.default_rng([seed, len(experts)])
    found: dict[ls.Unit, ls.Unit] = {}
    for site in ranking.activations.sites:
        here = [unit for unit in experts if unit.site == site]
        free = _non_experts(site, here, ranking.frame)
        place = _standardised(site, ranking.activations)
        for unit in here:
            distance = (place[free] - place[unit.index]).norm(dim=1)
            near = distance.argsort()[:_NEAREST]
            chosen = int(near[random.integers(len(near))])
            found[unit] = ls.Unit(site, free.pop(chosen))
    return tuple(found[unit] for unit in experts)


def _non_experts(site: ls.Site, chosen: list[ls.Unit], frame: pd.DataFrame) -> list[int]:
    rows = frame[(frame["site"] == site.name) & ~frame["unit"].isin([unit.index for unit in chosen])]
    if len(rows) < len(chosen):
        raise ls.LensSteerError(
            f"{len(chosen)} of {site}'s {site.width} units are chosen: too few are left to match them; lower ks"
        )
    by_chance = (rows["auroc"] - 0.5).abs().sort_values(kind="stable").index
    return [int(unit) for unit in rows.loc[by_chance[: max(len(chosen), len(rows) // 2)], "unit"]]


def _standardised(site: ls.Site, activations: ls.Activations) -> torch.Tensor:
    """Return every unit's mean and deviation over the target's tokens, each in deviations between units: [unit, 2]."""
    columns = [activations.token_mean(site, "target"), activations.token_std(site, "target")]
    return torch.stack([(column - column.mean()) / column.std().clamp_min(1e-12) for column in columns], dim=1)


def _shuffled(units: tuple[ls.Unit, ...], seed: int) -> tuple[ls.Unit, ...]:
    return tuple(units[place] for place in np.random.default_rng(seed).permutation(len(units)))


def _against_controls(readings: dict[tuple[str, int], Measured], ks: Sequence[int]) -> pd.DataFrame:
    """Compare experts and LinEAS's units with each control at the same dose; intervals hold for all doses at once."""
    rows = []
    for k in ks:
        for choice in (EXPERTS, LINEAS):
            for control in CONTROLS:
                if (choice, k) not in readings:
                    continue
                pairs = readings[choice, k].against(readings[control, k], confidence=1 - 0.05 / len(ks))
                rows += [{"choice": choice, "control": control, "k": k, **_difference(row)} for row in pairs]
    return pd.DataFrame(rows)


def _difference(row: dict[str, Any]) -> dict[str, Any]:
    names = {"before": "with_control", "after": "with_choice", "change": "difference"}
    return {names.get(name, name): value for name, value in row.items()}


def _units_table(
    choices: dict[str, list[tuple[ls.Unit, ...]]], ranking: ls.ExpertRanking, activations: ls.Activations
) -> pd.DataFrame:
    scores: dict[Any, float] = ranking.frame.set_index(["site", "unit"])["heldout_auroc"].to_dict()
    moments = {
        site.name: (activations.token_mean(site, "target"), activations.token_std(site, "target"))
        for site in activations.sites
    }
    rows = []
    for name, orders in choices.items():
        for draw, units in enumerate(orders):
            for rank, unit in enumerate(units, start=1):
                mean, std = (float(values[unit.index]) for values in moments[unit.site.name])
                score = scores[unit.site.name, unit.index]
                about = {"site": unit.site.name, "layer": unit.site.layer, "unit": unit.index, "width": unit.site.width}
                about |= {"heldout_auroc": score, "token_mean": mean, "token_std": std}
                rows.append({"choice": name, "draw": draw, "rank": rank, **about})
    return pd.DataFrame(rows)


def _summary(
    concept: str, doses: pd.DataFrame, against: pd.DataFrame, units: pd.DataFrame, ks: Sequence[int]
) -> list[str]:
    effects = against[against["measure"] == "concept"]
    sentences = [_verdict(concept, choice, effects, doses) for choice in (EXPERTS, LINEAS)]
    sentences += [text for choice in (EXPERTS, LINEAS) if (text := _cost(choice, doses))]
    null = doses[(doses["choice"] == SHUFFLED) & (doses["measure"] == "concept")]
    moved = [f"k = {row['k']} by {change_text(row)}" for _, row in null.iterrows() if excludes_zero(row)]
    what = f"changes the concept at {', '.join(moved)}" if moved else "changes the concept at no dose"
    sentences.append(f"The same ranking on shuffled labels {what}.")
    top = units[units["rank"] <= min(ks)].groupby("choice")["heldout_auroc"].mean()
    each = "; ".join(f"{name} {value:.2f}" for name, value in top.items())
    sentences.append(f"Mean held-out AUROC of the first {min(ks)} units of each choice: {each}.")
    reach = max(doses.loc[doses["choice"] == LINEAS, "k"], default=0)
    if reach < max(ks):
        sentences.append(f"LinEAS's path keeps fewer than {max(ks)} units, so its doses end at {reach}.")
    return sentences


def _verdict(concept: str, choice: str, effects: pd.DataFrame, doses: pd.DataFrame) -> str:
    """Say at which doses a choice does more than the matched units, and show the largest such difference."""
    pairs = effects[(effects["choice"] == choice) & (effects["control"] == MATCHED)]
    if pairs.empty:
        return f"LinEAS's path keeps fewer units than the smallest dose for {concept}: no dose could be measured."
    beyond = pairs[pairs["high"] < 0]
    if beyond.empty:
        row = pairs.iloc[-1]
        wrong = " (at some dose they raise it more)" if (pairs["low"] > 0).any() else ""
        return (
            f"Ablating {choice} lowers the share of {concept} no more than ablating matched random units, at any "
            f"dose{wrong}: at k = {row['k']} the difference is {change_text(row, 'difference')}."
        )
    row = beyond.sort_values("difference").iloc[0]
    own = doses[(doses["choice"] == choice) & (doses["k"] == row["k"]) & (doses["measure"] == "concept")].iloc[0]
    others = f"; so it does at k = {', '.join(map(str, beyond['k']))}" if len(beyond) > 1 else ""
    return (
        f"Ablating {row['k']} {choice} takes the share of {concept} in generated texts from {own['before']:.3f} to "
        f"{own['after']:.3f}, {change_text(row, 'difference')} against matched random units{others}."
    )


def _cost(choice: str, doses: pd.DataFrame) -> str:
    costs = doses[(doses["choice"] == choice) & (doses["measure"] == PERPLEXITY)]
    if costs.empty:
        return ""
    row = costs.iloc[-1]
    matched = doses[(doses["choice"] == MATCHED) & (doses["k"] == row["k"]) & (doses["measure"] == PERPLEXITY)].iloc[0]
    return (
        f"{row['k']} ablated {choice} take perplexity on neutral texts from {row['before']:.1f} to {row['after']:.1f} "
        f"({change_text(row)}); as many matched units to {matched['after']:.1f}."
    )


def _figures(concept: str, doses: pd.DataFrame) -> dict[str, Any]:
    def lines(measure: str, title: str, note: str, y_title: str) -> Any:
        part = doses[doses["measure"] == measure]
        columns: dict[str, Any] = {"x": "k", "y": "change", "by": "choice", "low": "low", "high": "high"}
        axes: dict[str, Any] = {
            "x_title": "units ablated (log scale)",
            "y_title": y_title,
            "log_x": True,
            "baseline": 0.0,
        }
        return ls.figures.dose_response(part, **columns, **axes, title=title, note=note)

    effect = f"Change of the mean score of {concept} in generated texts; below 0: less of it. Bands: 95 %."
    cost = "Change of the perplexity of neutral texts; above 0: worse language. Bands: 95 %."
    return {
        "dose_response": lines("concept", f"Effect of ablation on {concept}", effect, "change of the mean score"),
        "perplexity_cost": lines(PERPLEXITY, "Cost of ablation", cost, "change of perplexity"),
    }


def _captions(mode: str, test: HeldOut, draws: int) -> dict[str, str]:
    scorer = next(iter(test.scorers.values())).name
    what = (
        f"Units held at {mode}; concept: mean score of {scorer} on {test.samples} continuations of each of "
        f"{len(test.prompts)} held-out prompts; perplexity of {len(test.neutral)} neutral texts"
    )
    return {
        "dose_response": f"{what}. Intervals: 95 %, bootstrap over prompts or texts; controls average {draws} draws.",
        "against_controls": "The choice's value less the control's at the same dose, in the measure's own unit; the "
        "intervals hold at 95 % for all doses together (Bonferroni).",
        "chosen_units": "Every chosen unit, its rank in the choice, its AUROC on held-out texts (1/2 is chance), and "
        "its mean and standard deviation over the tokens of training target texts.",
    }


if __name__ == "__main__":
    ls.study_command(run)()
