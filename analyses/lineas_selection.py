"""Which units LinEAS selects, whether it selects them again from other texts, and whether another choice does as well.

Along the gamma path the sparse group lasso of LinEAS (arXiv 2503.10679) keeps fewer and fewer units. For one gamma the
fit is repeated on other draws of texts and on shuffled labels, and its units are held against as many units chosen by
AUROC, by the difference of means, by the gradient of the loss and at random, each learned once more by LinEAS on those
alone, at the same share of their largest penalty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

import lens_steer as ls
from analyses.experiment import Experiment, measured
from analyses.levels import change_over_fits, removed_in_all, value_over_fits
from analyses.measurements import PERPLEXITY, HeldOut, Measurements, change_of
from analyses.selection import (
    ALL,
    AUROC,
    LINEAS,
    RANDOM,
    REAL,
    SHUFFLED,
    choices_like,
    kept_by_layer,
    kept_units,
    losses,
    overlap,
    stability,
    unit_scores,
)
from analyses.sentences import by_verdict, interval, sentence

CONCEPT = "concept"


@measured()
def run(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    out: str | Path | None,
    seed: int = 0,
    sites: str | Sequence[str] = "hook_resid_post",
    pool: Literal["max", "mean", "last", "first"] = "mean",
    fit_texts: int = 32,
    draws: int = 4,
    share: float = 0.1,
    relaxed: float = 0.3,
    gamma_shares: tuple[float, ...] = (0.8, 0.6, 0.4, 0.2, 0.1, 0.05),
    steps: int | None = None,
    **measurement: Any,
) -> ls.Study:
    """Follow the gamma path, repeat the selection on other texts, and compare it with other choices of as many units.

    Frames: `path`, `selections` (losses of every choice on every draw), `removed` and `against_lineas` (what a choice
    removes of the held-out distance, alone and against LinEAS's), `stability`, `overlap`, `kept_by_layer`,
    `kept_units`, `effects` and `effects_against_lineas` (of what the model writes), `texts`. Intervals are over draws
    of fit texts and over held-out texts or prompts.

    Parameters
    ----------
    model:
        A TransformerLens model.
    contrast:
        One half of the texts is for the fits, the other one for held-out losses and generation.
    out:
        The new run folder; None writes nothing.
    seed:
        Of the halves, the draws and the random choices.
    sites, pool:
        Where LinEAS edits and measures, and how a text's tokens become one value.
    fit_texts:
        Texts a side of every fit, fewer where the half does not suffice: no two draws share a text.
    draws:
        Draws of texts, each with its own selection and refits; two or more show stability.
    share:
        The path's gamma that keeps the nearest share of units is the one that is studied.
    relaxed:
        Of the studied share of gamma_max: where every choice is learned once more. 0 is without a penalty, and learns a
        few dozen texts by heart.
    gamma_shares:
        The path, in shares of gamma_max.
    steps:
        Gradients of every LinEAS fit, at most; None: its own.
    **measurement:
        See `Measurement`.

    Raises
    ------
    LensSteerError
        No gamma of the path keeps a unit, fewer than two draws, or `relaxed` is out of range.

    """
    experiment = Experiment.begin("lineas_selection", run, locals())
    if not 0 <= relaxed <= 1:
        raise ls.LensSteerError(f"relaxed={relaxed} lies between 0 and 1: it is a part of the studied penalty")
    if draws < 2:
        raise ls.LensSteerError(f"draws={draws}: stability is seen over two or more draws of texts")
    held = experiment.held
    lineas = ls.LinEAS(sites=sites, pool=pool, steps=steps, seed=seed, progress=False)
    fits = experiment.fit_texts(fit_texts, draws)
    followed = lineas.path(model, fits[0], shares=gamma_shares)
    path = followed.frame.assign(
        heldout_loss=[lineas.loss_of(model, held, edit) for edit in followed.interventions],
        heldout_identity_loss=lineas.loss_of(model, held),
    )
    gamma = _studied_gamma(path, share)
    sparse = replace(lineas, gamma=gamma)
    supports = [sparse.fit(model, texts) for texts in fits]
    if not all(edit.units() for edit in supports):
        raise ls.LensSteerError(f"gamma={gamma:.3g} keeps no unit on some draw of texts: raise share")
    nulls = [sparse.fit(model, texts.shuffled(seed)) for texts in fits]
    places = ls.find_sites(model, sites)
    scores = [unit_scores(lineas, model, texts, places) for texts in fits]
    choices = [
        choices_like(supports[draw].units(), scores[draw], places, seed=seed + draw * len(places))
        for draw in range(draws)
    ]
    penalties = [relaxed * edit.provenance["final_gamma_share"] for edit in supports]
    refits = {
        (name, draw): lineas.refit(model, fits[draw], units, gamma_share=penalties[draw])
        for draw, named in enumerate(choices)
        for name, units in named.items()
    }
    refits |= {
        (ALL, draw): replace(lineas, gamma_share=penalty).fit(model, texts)
        for draw, (penalty, texts) in enumerate(zip(penalties, fits, strict=True))
    }
    removed = _removed(model, refits, held, sites, pool)
    heldout = experiment.heldout()
    measurements = Measurements.of(
        (heldout.measure(edit, name, draw=draw) for (name, draw), edit in refits.items()), seed=seed
    )
    frames = {
        "path": path,
        "selections": losses(lineas, model, fits, held, refits),
        "removed": pd.DataFrame([{"choice": name, **value_over_fits(cases)} for name, cases in removed.items()]),
        "against_lineas": _against_lineas(removed),
        "stability": stability(supports, nulls, places, seed),
        "overlap": overlap(choices, places, seed),
        "kept_by_layer": kept_by_layer(path, followed.interventions),
        "kept_units": kept_units(supports, nulls, scores[0]),
        **_effects(measurements, list(removed)),
        "texts": heldout.texts,
    }
    return experiment.keep(
        ls.Study(
            frames=frames,
            figures=_figures(frames, gamma),
            summary=summary(experiment.concept, frames, gamma, heldout.neutral_name),
            interventions={"sparse": supports[0], "refitted": refits[LINEAS, 0]},
            captions=_captions(frames, draws, len(fits[0].source), heldout),
        )
    )


def _removed(
    model: Any, refits: Mapping[tuple[str, int], ls.Intervention], held: ls.ContrastSet, sites: Any, pool: Any
) -> dict[str, Any]:
    """Return choice -> what it removes of the held-out distance at its own sites: [fit, case]."""
    shared: dict[str, Any] = {"sites": sites, "pool": pool, "by_layer": False, "progress": False}
    shares = removed_in_all(
        {key: ls.downstream_shift(model, edit, held, **shared).estimates for key, edit in refits.items()}
    )
    return {
        name: np.stack([shares[key] for key in refits if key[0] == name])
        for name in dict.fromkeys(name for name, _ in refits)
    }


def _against_lineas(removed: Mapping[str, Any]) -> pd.DataFrame:
    """Hold every choice (after) against LinEAS's (before); the intervals hold at once."""
    others = [name for name in removed if name != LINEAS]
    confidence = 1 - 0.05 / len(others)
    return pd.DataFrame(
        [{"choice": name, **change_over_fits(removed[LINEAS], removed[name], confidence=confidence)} for name in others]
    )


def _effects(measurements: Measurements, choices: Sequence[str]) -> dict[str, pd.DataFrame]:
    others = [name for name in choices if name != LINEAS]
    confidence = 1 - 0.05 / len(others)
    alone = [{"choice": name, **row} for name in choices for row in measurements.changes(name)]
    against = [
        {"choice": name, **row} for name in others for row in measurements.between(LINEAS, name, confidence=confidence)
    ]
    return {"effects": pd.DataFrame(alone), "effects_against_lineas": pd.DataFrame(against)}


def _studied_gamma(path: pd.DataFrame, share: float) -> float:
    """Return the gamma of the path whose share of kept units is nearest to `share`."""
    kept = path[path["support"] > 0]
    if kept.empty:
        raise ls.LensSteerError("no gamma of the path keeps a unit: add smaller gamma_shares")
    nearest = int((kept["share"] - share).abs().to_numpy().argmin())
    return float(kept["gamma"].to_numpy()[nearest])


def summary(concept: str, frames: Mapping[str, pd.DataFrame], gamma: float, neutral: str) -> list[str]:
    """Return what was found, from the frames alone: what is removed, by which choice of units, first."""
    removed = frames["removed"].set_index("choice")
    units = frames["selections"].loc[frames["selections"]["choice"] == LINEAS, "units"].mean()
    total = frames["kept_by_layer"].groupby("gamma")["units"].sum().iloc[0]
    named = "; ".join(f"{name} {interval(removed.loc[name])}" for name in (LINEAS, ALL, AUROC, RANDOM))
    sentences = [
        f"Share of the held-out distance between {concept} and other texts that {units:.0f} of {total:,} units remove "
        f"when LinEAS refits them, by who chose them: {named}.",
        *_unfinished(frames["selections"]),
        _against(frames["against_lineas"]),
        *_stability_sentences(frames),
        _overlap_sentence(frames["overlap"]),
        _layers_sentence(frames["kept_by_layer"], gamma),
    ]
    return sentences + _effect_sentences(frames, concept, neutral)


def _unfinished(table: pd.DataFrame) -> list[str]:
    """Warn where some units reach a lower loss on the fit's own texts than all units do: those could have as well."""
    reached = table.pivot(index="draw", columns="choice", values="fit_loss")
    better = [str(name) for name in reached.columns if (reached[name] < 0.99 * reached[ALL]).any()]
    if not better:
        return []
    return [
        f"The fits are not finished: {', '.join(better)} reach a lower loss on the fit's own texts than all units, "
        "which hold them, so differences between choices are partly those of the descent."
    ]


def _against(table: pd.DataFrame) -> str:
    """Say which choices of as many units remove less or more than LinEAS's, and show the differences."""
    rows = {row["choice"]: change_of(row) for row in table.to_dict("records")}
    clauses = [
        change.sentence(f"refitting {name} instead of LinEAS's choice", "the share removed", style="share")
        for name, change in rows.items()
        if change.verdict in (ls.Verdict.LOWER, ls.Verdict.HIGHER)
    ]
    others = {name: change.verdict for name, change in rows.items()}
    return sentence(*clauses, f"share removed, against LinEAS's choice: {by_verdict(others)}")


def _stability_sentences(frames: Mapping[str, pd.DataFrame]) -> list[str]:
    pairs = frames["stability"].groupby("against").mean(numeric_only=True)
    real, null = pairs.loc[REAL], pairs.loc[SHUFFLED]
    sentences = [
        f"From another draw of texts LinEAS selects units with Jaccard overlap {real['jaccard']:.2f}; as many random "
        f"units would have {real['jaccard_chance']:.2f}, random units of the same layers "
        f"{real['jaccard_chance_in_sites']:.2f}. Layers overlap by {real['layers_jaccard']:.2f}."
    ]
    if null["other_units"] == 0:
        return [*sentences, "With shuffled labels the same gamma keeps no unit."]
    count = f"With shuffled labels the same gamma keeps {null['other_units']:.0f} units on average"
    among = null["common"] / null["other_units"]
    return [*sentences, f"{count}; {among:.0%} of them are units that the true labels keep too."]


def _overlap_sentence(table: pd.DataFrame) -> str:
    means = table.groupby("choice", sort=False).mean(numeric_only=True)
    overlaps = "; ".join(
        f"{name} {row['share']:.0%} ({row['share_chance_in_sites']:.0%})" for name, row in means.iterrows()
    )
    return (
        "Share of LinEAS's units that other criteria choose too, and beside it what random units of the same layers "
        f"would share: {overlaps}."
    )


def _layers_sentence(table: pd.DataFrame, gamma: float) -> str:
    kept = table[table["gamma"] == gamma].groupby("layer")["kept"].sum().sort_values(ascending=False)
    first, most = int(kept.index.to_numpy()[0]), float(kept.iloc[0])
    count = int((kept > 0).sum())
    where = f"; layer {first} holds {most / kept.sum():.0%} of them" if count > 1 else ""
    return f"On the path the units of this gamma lie in {count} of {len(kept)} layers{where}."


def _effect_sentences(frames: Mapping[str, pd.DataFrame], concept: str, neutral: str) -> list[str]:
    """Say what LinEAS's choice does to generated texts, and what others do instead of it."""
    alone, against = frames["effects"], frames["effects_against_lineas"]
    called = {
        CONCEPT: f"the mean score of {concept} in generated texts",
        PERPLEXITY: f"the perplexity of {neutral}",
    }
    sentences = []
    for measure, name in called.items():
        own = alone[(alone["choice"] == LINEAS) & (alone["measure"] == measure)].iloc[0]
        sentences.append(sentence(change_of(own).sentence("refitting LinEAS's choice", name)))
        others = against[against["choice"].isin([ALL, AUROC, RANDOM]) & (against["measure"] == measure)]
        sentences.append(
            sentence(
                *(
                    change_of(row).sentence(f"refitting {row['choice']} instead", name)
                    for row in others.to_dict("records")
                )
            )
        )
    return sentences


def _figures(frames: Mapping[str, pd.DataFrame], gamma: float) -> dict[str, Any]:
    path = frames["path"]
    long = pd.concat(
        [path[["support", which]].rename(columns={which: "value"}).assign(texts=name)
         for which, name in (("heldout_loss", "held-out texts"), ("loss", "texts of the fit"))]
    )  # fmt: skip
    ratio = float(path.loc[path["gamma"] == gamma, "gamma_share"].iloc[0])
    layers = frames["kept_by_layer"].pivot_table(index="gamma_share", columns="layer", values="share", sort=False)
    layers.index = [f"{value:.2g}" for value in layers.index]
    figures = {
        "path": ls.figures.dose_response(
            long, x="support", y="value", by="texts", title="Loss along the gamma path",
            note="The transport loss of LinEAS, by how many units a gamma keeps.", x_title="units kept (log scale)",
            y_title="loss", log_x=True, baseline=float(path["heldout_identity_loss"].iloc[0]),
            baseline_name="held-out, no edit",
        ),
        "kept_by_layer": ls.figures.matrix(
            layers, title="Where the kept units lie", y_title="gamma / gamma_max", x_title="layer", percent=True,
            note=f"Share of a layer's units that are kept; gamma / gamma_max = {ratio:.2g} is studied further.",
            value_title="kept",
        ),
        "selections": ls.figures.overlap_bars(
            frames["removed"], label="choice", value="value", low="low", high="high",
            title="How much of the distance a choice of units can remove",
            note="Each choice is refitted by LinEAS on its units alone. Lines: 95 % intervals over fits and texts.",
            x_title="share of the held-out distance removed",
        ),
    }  # fmt: skip
    if frames["stability"]["jaccard"].notna().any():
        pairs = frames["stability"].groupby("against", sort=False).mean(numeric_only=True).reset_index()
        figures["stability"] = ls.figures.overlap_bars(
            pairs, label="against", value="jaccard", chance="jaccard_chance_in_sites",
            title="Does LinEAS select the same units again?",
            note="Jaccard overlap of two selections, mean over pairs. Chance: random units of the same layers.",
            x_title="Jaccard overlap",
        )  # fmt: skip
    return figures


def _captions(frames: Mapping[str, pd.DataFrame], draws: int, texts: int, heldout: HeldOut) -> dict[str, str]:
    over = f"over {draws} fits, each from {texts} + {texts} texts of its own, and over held-out texts"
    captions = {
        "path": "One row per gamma: units kept, layers used, loss on the texts of the fit and on held-out ones.",
        "selections": "Every choice of as many units, learned once more at the same share of its largest penalty, on "
        "each draw of texts; the transport loss of LinEAS, which between finite samples of one law is not 0.",
        "removed": "Share of the energy distance between source and target that a choice removes, added up over the "
        f"layers of the sites (unbiased: 1 is all of it); 95 % intervals {over}.",
        "against_lineas": f"A choice (after) against LinEAS's (before); intervals {over}, at 95 % for all choices "
        "together (Bonferroni).",
        "stability": "Units kept on one draw of texts against another draw (they share no text) and against shuffled "
        "labels, beside what random units would share, anywhere or in the same layers.",
        "overlap": "LinEAS's units against as many chosen by AUROC (its distance from 1/2), by |difference of means|, "
        "by the gradient of the loss at the identity, and layer by layer by that gradient.",
        "kept_by_layer": "Units kept in every layer along the path.",
        "kept_units": "Units that any draw keeps: by how many draws, by how many with shuffled labels; their scores.",
        "effects": f"{heldout.about}, before and after; 95 % intervals over fits and over prompts or texts.",
        "effects_against_lineas": "A choice (after) against LinEAS's (before), in the same measures; the intervals "
        "hold at 95 % for all choices together (Bonferroni).",
        "texts": "Continuations of the first prompts, before and after the edits of the first draw.",
    }
    return {name: text for name, text in captions.items() if name in frames}


if __name__ == "__main__":
    ls.study_command(run)()
