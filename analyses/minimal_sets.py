"""How few units halve a concept, by each order of units?

Units are held at their target means, ever more of an order: by what tells the concept, what moves it, what causes it
(`analyses.unit_orders`), or greedily (`analyses.greedy`). Orders are made on the training half of the texts. On one
half of the held-out prompts the smallest set of each order is chosen that leaves half of the concept or less; on the
other half it is reported, beside draws of as many random and of matched units.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

import lens_steer as ls
from analyses.causal_scores import AUROC
from analyses.controls import Choice, random_choices, require_sizes
from analyses.experiment import Experiment, measured
from analyses.greedy import greedy_order
from analyses.measurements import PERPLEXITY, Measurements
from analyses.minimal_sets_findings import CONCEPT, captions, figures, summary
from analyses.set_sizes import size_ratios, smallest_sets, tried_doses
from analyses.unit_orders import UnitOrders
from lens_steer.progress import progress_bar

RANDOM, MATCHED, GREEDY = "random units", "matched units", "greedy"


@measured(most_prompts=120, most_neutral=120)
def run(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    out: str | Path | None,
    seed: int = 0,
    sites: str | Sequence[str] = "mlp.hook_post",
    mode: Literal["zero", "mean", "target_mean", "resample"] = "target_mean",
    ks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256),
    greedy_units: int = 64,
    screened: int = 8,
    draws: int = 20,
    metric_words: Sequence[str] | None = None,
    context_words: int = 12,
    pairs: int = 100,
    patched: int = 256,
    fit_texts: int = 32,
    gamma_share: float = 0.1,
    steps: int | None = None,
    **measurement: Any,
) -> ls.Study:
    """Ablate ever more units of every order, choose the smallest set that halves the concept, and report on it.

    Frames: `minimal_sets` (the smallest set of every order, what it leaves on the prompts that chose it, and on
    others its change against the unedited model and whether it leaves half), `doses` (what every number of units
    leaves on the prompts that choose: no intervals, as nothing is concluded), `size_ratios` (whether an order needs
    fewer units than AUROC's, as 2601.22594 says of RelP's), `against_controls` (the smallest set of all beside draws
    of as many units), `greedy` (its steps), `orders` (the first units of every order), `words`, `texts`.

    Parameters
    ----------
    model, contrast:
        Orders are made on one half of the contrast (split by `seed`); prompts are of the other.
    out:
        The new run folder; None writes nothing.
    seed:
        Of the split, the pairs, the draws, and the generations.
    sites, mode:
        Where units are ordered, and what they are held at, as in `ls.ablate`.
    ks:
        Numbers of units that are tried.
    greedy_units, screened:
        The longest greedy order, and how many units of the screen are patched exactly at every step.
    draws:
        Of random and of matched units. With fewer than 20, whether they differ from the smallest set cannot be judged.
    metric_words, context_words, pairs:
        Of the attributions that order: see `analyses.experts_vs_causes`.
    patched:
        Units of the top of every order that are patched exactly, and ordered by the exact effect.
    fit_texts, gamma_share, steps:
        LinEAS's texts a side, its penalty as a share of gamma_max, and its gradients, at most.
    **measurement:
        See `Measurement`.

    Raises
    ------
    LensSteerError
        A k below 1 or above half of the units; fewer than one draw, greedy unit or screened one; no words or pairs.

    """
    experiment = Experiment.begin("minimal_sets", run, locals())
    ks = tuple(sorted(set(ks)))
    _check(ks, draws, greedy_units, screened, sum(site.width for site in ls.find_sites(model, sites)))
    chosen = UnitOrders.of(
        experiment,
        sites,
        metric_words=metric_words,
        context_words=context_words,
        pairs=pairs,
        patched=patched,
        fit_texts=fit_texts,
        gamma_share=gamma_share,
        steps=steps,
    )
    greedily, greedy_steps = greedy_order(model, chosen.pairs, chosen.activations, most=greedy_units, screened=screened)
    orders = {
        GREEDY: greedily,
        **chosen.orders,
        RANDOM: random_choices(chosen.sites, max(ks), draws=1, seed=seed + draws)[0],
    }

    def ablated(units: Sequence[ls.Unit]) -> ls.Intervention:
        return ls.ablate(units, mode=mode, activations=chosen.activations, seed=seed)

    choosing, reporting = (experiment.heldout(half=half) for half in (0, 1))
    doses, read = tried_doses(choosing, orders, ks, ablated)
    smallest = smallest_sets(doses)
    sets = {name: orders[name][: int(k)] for name, k in smallest.items()}
    controls: dict[str, Sequence[Choice]] = {}
    fewest = min(sets, key=lambda name: len(sets[name]), default=None)
    if fewest is not None:
        several: dict[str, Any] = {"draws": draws, "seed": seed}
        controls[RANDOM] = random_choices(chosen.sites, len(sets[fewest]), **several)
        controls[MATCHED] = ls.matched_units(sets[fewest], chosen.activations, **several)
    edits = [(name, 0, units) for name, units in sets.items()]
    edits += [(_control(name), draw, units) for name, drawn in controls.items() for draw, units in enumerate(drawn)]
    parts = [
        reporting.measure(ablated(units), name, draw=draw)
        for name, draw, units in progress_bar(edits, desc="evaluate", unit="edit", show=True)
    ]
    measurements = Measurements.of(parts, seed=seed) if parts else None
    frames = {
        "minimal_sets": minimal_sets(measurements, doses, sets),
        "doses": doses,
        "size_ratios": size_ratios(read, doses, AUROC, seed=seed),
        "against_controls": against_controls(measurements, fewest, controls),
        "greedy": greedy_steps,
        "orders": first_units(orders, max(ks)),
        "words": pd.DataFrame({"word": chosen.words}),
        "texts": reporting.texts if parts else pd.DataFrame(columns=["edit", "prompt", "before", "after"]),
    }
    return experiment.keep(
        ls.Study(
            frames=frames,
            figures=figures(experiment.concept, doses),
            summary=summary(experiment.concept, frames, reporting.neutral_name),
            captions=captions(mode, choosing, reporting),
        )
    )


def _check(ks: Sequence[int], draws: int, greedy_units: int, screened: int, total: int) -> None:
    require_sizes(ks, total)
    if min(draws, greedy_units, screened) < 1:
        raise ls.LensSteerError(
            f"draws={draws}, greedy_units={greedy_units}, screened={screened}: give one or more of each"
        )


def _control(name: str) -> str:
    return f"control: {name}"


def half_left(before: Any, before_of: Any, after: Any, after_of: Any, axis: Any) -> Any:
    """Return what is left less half of what was: below 0, the concept is halved."""
    return ls.share(after, after_of, axis) - ls.share(before, before_of, axis) / 2


def minimal_sets(measurements: Measurements | None, doses: pd.DataFrame, sets: Mapping[str, Choice]) -> pd.DataFrame:
    """Return order, k (nan where no number halved it), tried (the largest), left_choosing (the share left there); then,
    on other prompts, before, after and their change, the same of the perplexity, and half_low and half_high: the
    interval of `half_left`. Intervals of all orders hold at once.
    """
    confidence = ls.confidence_of_each(0.95, max(1, len(sets)))
    concept: Any = doses[doses["measure"] == CONCEPT].set_index(["order", "k"])
    rows = []
    for name, part in doses[doses["measure"] == CONCEPT].groupby("order", sort=False):
        row: dict[str, Any] = {"order": name, "k": float("nan"), "tried": int(part["k"].max())}
        if name in sets and measurements is not None:
            k = len(sets[str(name)])
            chosen = concept.loc[(name, k)]
            row |= {"k": float(k), "left_choosing": chosen["after"] / chosen["before"]}
            changes = {change["measure"]: change for change in measurements.changes(str(name), confidence=confidence)}
            row |= {key: value for key, value in changes[CONCEPT].items() if key != "measure"}
            values = [
                values[0] for when in ("before", "after") for values in measurements.values(str(name), CONCEPT, when)
            ]
            low, high = ls.change_interval(half_left, *values, confidence=confidence, seed=measurements.seed)
            row |= {"half_low": low, "half_high": high}
            row |= {f"perplexity_{key}": changes[PERPLEXITY][key] for key in ("before", "after", "low", "high")}
        rows.append(row)
    columns = ["order", "k", "tried", "left_choosing", "before", "after", "change", "low", "high", "confidence"]
    columns += ["half_low", "half_high", *(f"perplexity_{key}" for key in ("before", "after", "low", "high"))]
    return pd.DataFrame(rows, columns=columns).sort_values("k", kind="stable", ignore_index=True)


def against_controls(
    measurements: Measurements | None, fewest: str | None, controls: Mapping[str, Sequence[Choice]]
) -> pd.DataFrame:
    """Hold the smallest set of all (after) against draws of as many units (before)."""
    columns = ["order", "control", "k", "measure", "before", "after", "change", "low", "high", "confidence", "rank_p"]
    if measurements is None or fewest is None:
        return pd.DataFrame(columns=[*columns, "draws"])
    rows = [
        {"order": fewest, "control": name, "k": len(drawn[0]), **row}
        for name, drawn in controls.items()
        for row in measurements.against(fewest, _control(name), confidence=ls.confidence_of_each(0.95, len(controls)))
    ]
    return pd.DataFrame(rows, columns=[*columns, "draws"])


def first_units(orders: Mapping[str, Choice], most: int) -> pd.DataFrame:
    """Return the first units of every order."""
    rows = [
        (name, rank, unit.site.name, unit.site.layer, unit.index)
        for name, order in orders.items()
        for rank, unit in enumerate(order[:most], start=1)
    ]
    return pd.DataFrame(rows, columns=["order", "rank", "site", "layer", "unit"])


if __name__ == "__main__":
    ls.study_command(run)()
