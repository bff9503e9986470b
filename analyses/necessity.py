"""Are the units of a choice necessary for a concept, and do they suffice?

Necessary: the concept goes where they alone are held at a constant. Sufficient: it stays where all other units of the
same sites are held, and they alone are free; beside it stands the model in which no unit is free. Each is asked with
the constant at zero, at the mean of target texts, and at what a drawn target text has there (resampled). Units are
chosen on one half of the texts, by scores that tell, move or cause the concept (`analyses.unit_orders`), and measured
on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import lens_steer as ls
from analyses.causal_scores import AUROC, EXACT
from analyses.controls import Choice, matched, random_choices, require_matched_to, require_sizes
from analyses.experiment import Experiment, measured
from analyses.measurements import Measurements
from analyses.necessity_findings import ABLATED, KEPT, NOTHING, RANDOM, UNEDITED, captions, figures, summary
from analyses.unit_orders import ORDERS, UnitOrders
from lens_steer.progress import progress_bar

MODES = ("target_mean", "zero", "resample")


@measured()
def run(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    out: str | Path | None,
    seed: int = 0,
    sites: str | Sequence[str] = "mlp.hook_post",
    modes: tuple[str, ...] = MODES,
    ks: tuple[int, ...] = (16, 64),
    draws: int = 20,
    matched_to: tuple[str, ...] = (AUROC, EXACT),
    metric_words: Sequence[str] | None = None,
    context_words: int = 12,
    pairs: int = 100,
    patched: int = 64,
    fit_texts: int = 32,
    gamma_share: float = 0.1,
    steps: int | None = None,
    **measurement: Any,
) -> ls.Study:
    """Hold the units of every choice, and then all but them, and measure the concept and its cost.

    Frames: `necessity` (every choice and control held, against the unedited model), `sufficiency` (every choice kept
    alone, against nothing kept and against the unedited model), `against_controls` (a choice against draws of random
    and of matched units, held and kept alone, in the first of the modes), `chosen_units`, `words`, `texts`.

    Parameters
    ----------
    model, contrast:
        Units are chosen on one half of the contrast (split by `seed`), everything is measured on the other.
    out:
        The new run folder; None writes nothing.
    seed:
        Of the split, the pairs, the draws, and the generations.
    sites:
        Where units are chosen, held and kept: what other sites do goes on.
    modes:
        What units are held at, each in turn: zero, mean, target_mean or resample, as in `ls.ablate`.
    ks:
        How many units of every choice; one that has fewer is left out there.
    draws:
        Of random and of matched units. With fewer than 20, whether a choice differs from a control cannot be judged.
    matched_to:
        The choices beside which matched units are drawn.
    metric_words, context_words, pairs:
        Of the attributions that choose: see `analyses.experts_vs_causes`.
    patched:
        Units of the top of every order that are patched exactly, of which the exact effect chooses.
    fit_texts, gamma_share, steps:
        LinEAS's texts a side, its penalty as a share of gamma_max, and its gradients, at most.
    **measurement:
        See `Measurement`.

    Raises
    ------
    LensSteerError
        No such mode or choice; a k below 1 or above half of the units; fewer than one draw; no words or pairs.

    """
    experiment = Experiment.begin("necessity", run, locals())
    _check(modes, ks, draws, matched_to, sum(site.width for site in ls.find_sites(model, sites)))
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
    choices = _choices(chosen, ks, draws, matched_to, seed)
    heldout = experiment.heldout()
    edits = _edits(chosen, choices, modes, seed)
    measurements = Measurements.of(
        (
            heldout.measure(make(), name, draw=draw)
            for name, draw, make in progress_bar(edits, desc="evaluate", unit="edit", show=True)
        ),
        seed=seed,
    )
    frames = {
        "necessity": necessity(measurements, choices, modes),
        "sufficiency": sufficiency(measurements, choices, modes),
        "against_controls": against_controls(measurements, choices, modes[0]),
        "chosen_units": chosen_units(choices),
        "words": pd.DataFrame({"word": chosen.words}),
        "texts": heldout.texts,
    }
    return experiment.keep(
        ls.Study(
            frames=frames,
            figures=figures(experiment.concept, frames, modes[0]),
            summary=summary(experiment.concept, frames, heldout.neutral_name),
            captions=captions(heldout, draws, modes[0]),
        )
    )


def _check(modes: Sequence[str], ks: Sequence[int], draws: int, matched_to: Sequence[str], total: int) -> None:
    known = ("zero", "mean", "target_mean", "resample")
    if not modes or set(modes) - set(known):
        raise ls.LensSteerError(f"modes={tuple(modes)}: give one or more of {', '.join(known)}")
    require_sizes(ks, total)
    if draws < 1:
        raise ls.LensSteerError(f"draws={draws}: a choice stands beside one draw of a control or more; 20 carry it")
    require_matched_to(matched_to, ORDERS)


Choices = Mapping[tuple[str, int], Sequence[Choice]]
"""(choice or control, k) -> its draws of k units."""


def _choices(chosen: UnitOrders, ks: Sequence[int], draws: int, matched_to: Sequence[str], seed: int) -> Choices:
    choices: dict[tuple[str, int], Sequence[Choice]] = {}
    for k in ks:
        for name, order in chosen.orders.items():
            if len(order) < k:
                continue
            choices[name, k] = (order[:k],)
            if name in matched_to:
                choices[matched(name), k] = ls.matched_units(order[:k], chosen.activations, draws=draws, seed=seed)
        choices[RANDOM, k] = random_choices(chosen.sites, k, draws=draws, seed=seed)
    return choices


def _edits(
    chosen: UnitOrders, choices: Choices, modes: Sequence[str], seed: int
) -> list[tuple[str, int, Callable[[], ls.Intervention]]]:
    """Return name, draw and maker of every edit; controls in the first mode alone."""

    def held(units: Choice, mode: Any) -> Callable[[], ls.Intervention]:
        return lambda: ls.ablate(units, mode=mode, activations=chosen.activations, seed=seed)

    def kept(units: Choice, mode: Any) -> Callable[[], ls.Intervention]:
        return lambda: held(chosen.others(units), mode)()

    edits = []
    for mode in modes:
        edits.append((called(KEPT, NOTHING, 0, mode), 0, kept((), mode)))
        for (choice, k), drawn in choices.items():
            if mode != modes[0] and choice not in ORDERS:
                continue
            for draw, units in enumerate(drawn):
                edits.append((called(ABLATED, choice, k, mode), draw, held(units, mode)))
                edits.append((called(KEPT, choice, k, mode), draw, kept(units, mode)))
    return edits


def called(side: str, choice: str, k: int, mode: str) -> str:
    """Return the name of an edit."""
    return f"{side}, {k} {choice}, {mode}"


def _confidence(choices: Choices) -> float:
    """Return the confidence at which the intervals of all choices and numbers of units hold at once."""
    return ls.confidence_of_each(0.95, sum(choice in ORDERS for choice, _ in choices))


def necessity(measurements: Measurements, choices: Choices, modes: Sequence[str]) -> pd.DataFrame:
    """Return every choice and control held at every mode, against the unedited model."""
    return pd.DataFrame(
        [
            {"mode": mode, "choice": choice, "k": k, "draws": len(drawn), **row}
            for mode in modes
            for (choice, k), drawn in choices.items()
            if mode == modes[0] or choice in ORDERS
            for row in measurements.changes(called(ABLATED, choice, k, mode), confidence=_confidence(choices))
        ]
    )


def sufficiency(measurements: Measurements, choices: Choices, modes: Sequence[str]) -> pd.DataFrame:
    """Return every choice kept alone (after), against nothing kept and against the unedited model (before)."""
    rows = []
    for mode in modes:
        nothing = called(KEPT, NOTHING, 0, mode)
        for choice, k in choices:
            if choice not in ORDERS:
                continue
            kept = called(KEPT, choice, k, mode)
            both = {
                NOTHING: measurements.between(nothing, kept, confidence=_confidence(choices)),
                UNEDITED: measurements.changes(kept, confidence=_confidence(choices)),
            }
            rows += [
                {"mode": mode, "choice": choice, "k": k, "against": against, **row}
                for against, changes in both.items()
                for row in changes
            ]
    return pd.DataFrame(rows)


def against_controls(measurements: Measurements, choices: Choices, mode: str) -> pd.DataFrame:
    """Hold every choice (after) against draws of its controls (before); the intervals of one control hold at once."""
    chosen = [(choice, k) for choice, k in choices if choice in ORDERS]
    return pd.DataFrame(
        [
            {"side": side, "choice": choice, "control": control, "k": k, **row}
            for side in (ABLATED, KEPT)
            for choice, k in chosen
            for control in (RANDOM, matched(choice))
            if (control, k) in choices
            for row in measurements.against(
                called(side, choice, k, mode),
                called(side, control, k, mode),
                confidence=_confidence(choices),
            )
        ]
    )


def chosen_units(choices: Choices) -> pd.DataFrame:
    """Return the units of every choice, with their rank in it."""
    rows = [
        {"choice": choice, "k": k, "rank": rank, "site": unit.site.name, "layer": unit.site.layer, "unit": unit.index}
        for (choice, k), drawn in choices.items()
        if choice in ORDERS
        for rank, unit in enumerate(drawn[0], start=1)
    ]
    return pd.DataFrame(rows)


if __name__ == "__main__":
    ls.study_command(run)()
