"""Which units LinEAS selects, whether it selects them again from other texts, and whether another choice does as well.

Along the gamma path the sparse group lasso of LinEAS (arXiv 2503.10679) keeps fewer and fewer units. For one gamma the
fit is repeated on other draws of texts and on shuffled labels, and its units are held against as many units chosen by
AUROC, by the difference of means, by the gradient of the loss and at random, each refitted by LinEAS on those alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

import lens_steer as ls
from analyses.heldout import (
    PERPLEXITY,
    HeldOut,
    beginnings,
    change_text,
    concept_name,
    default_scorer,
    neutral_texts,
    plain,
)
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


def run(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    out: str | Path | None,
    seed: int = 0,
    sites: str | Sequence[str] = "hook_resid_post",
    pool: Literal["max", "mean", "last", "first"] = "mean",
    fit_texts: int = 32,
    draws: int = 3,
    share: float = 0.1,
    gamma_shares: tuple[float, ...] = (0.8, 0.6, 0.4, 0.2, 0.1, 0.05),
    steps: int = 100,
    lr: float = 0.01,
    optimizer: Literal["sgd", "adam"] = "adam",
    scorer: ls.Scorer | None = None,
    prompts: Sequence[str] | None = None,
    prompt_words: int = 4,
    most_prompts: int = 60,
    most_neutral: int = 100,
    samples: int = 4,
    max_new_tokens: int = 30,
) -> ls.Study:
    """Follow the gamma path, repeat the selection on other texts, and compare it with other choices of as many units.

    Frames: `path`, `selections` (held-out loss of every choice on every draw), `stability`, `overlap`, `kept_by_layer`,
    `kept_units`, and `effects` (of the first draw's edits).

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
        Texts a side of every fit.
    draws:
        Draws of texts, each with its own selection and refits; two or more show stability.
    share:
        The path's gamma that keeps the nearest share of units is the one that is studied.
    gamma_shares:
        The path, in shares of gamma_max.
    steps, lr, optimizer:
        Of every fit. Not the paper's SGD by default: its step is as large for units of any size, so that choices would
        differ by how far it overshoots on their units.
    scorer:
        How much of the concept a text shows; by default a `ConceptClassifier` fitted on the fits' half, or the oracle
        of a microworld contrast.
    prompts, prompt_words, most_prompts:
        What is continued: given, or the first words of held-out source texts.
    most_neutral:
        Texts of perplexity: the contrast's control, or without any its held-out target.
    samples, max_new_tokens:
        Continuations per prompt, and their length in tokens.

    Raises
    ------
    LensSteerError
        No gamma of the path keeps a unit, or fewer than two draws.

    """
    settings = plain(locals())
    if draws < 2:
        raise ls.LensSteerError(f"draws={draws}: stability is seen over two or more draws of texts")
    train, held = contrast.split(test=0.5, seed=seed)
    lineas = ls.LinEAS(sites=sites, pool=pool, steps=steps, lr=lr, optimizer=optimizer, seed=seed, progress=False)
    fits = [train.subsample(min(fit_texts, len(train.source), len(train.target)), seed=seed + d) for d in range(draws)]
    ceiling = lineas.gamma_max(model, fits[0])
    followed = lineas.path(model, fits[0], gammas=[ratio * ceiling for ratio in gamma_shares])
    path = followed.frame.assign(
        heldout_loss=[lineas.loss_of(model, held, edit) for edit in followed.interventions],
        heldout_identity_loss=lineas.loss_of(model, held),
    )
    gamma = _studied_gamma(path, share)
    sparse = replace(lineas, gamma=gamma)
    supports = [sparse.fit(model, texts) for texts in fits]
    if not all(edit.units() for edit in supports):
        raise ls.LensSteerError(f"gamma={gamma:.3g} keeps no unit on some draw of texts: raise share, or steps")
    nulls = [sparse.fit(model, texts.shuffled(seed)) for texts in fits]
    found = ls.find_sites(model, sites)
    scores = [unit_scores(lineas, model, texts, found) for texts in fits]
    choices = [
        choices_like(supports[draw].units(), scores[draw], found, seed=seed + draw * len(found))
        for draw in range(draws)
    ]
    refits = {
        (name, draw): lineas.refit(model, fits[draw], units)
        for draw, named in enumerate(choices)
        for name, units in named.items()
    }
    refits |= {(ALL, draw): lineas.fit(model, texts) for draw, texts in enumerate(fits)}
    frames = {
        "path": path,
        "selections": losses(lineas, model, fits, held, refits),
        "stability": stability(supports, nulls, found, seed),
        "overlap": overlap(choices, found, seed),
        "kept_by_layer": kept_by_layer(path, followed.interventions),
        "kept_units": kept_units(supports, nulls, scores[0]),
    }
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
    frames["effects"] = pd.DataFrame(
        [
            {"choice": name, "units": len(edit.units()), **row}
            for (name, draw), edit in refits.items()
            if draw == 0
            for row in test.measure(edit).rows()
        ]
    )
    study = ls.Study(
        frames=frames,
        figures=_figures(frames, gamma),
        summary=_summary(concept_name(contrast), frames, gamma),
        interventions={"sparse": supports[0], "refitted": refits[LINEAS, 0]},
        captions=_captions(frames, draws),
    )
    if out is not None:
        study.save(out, name="lineas_selection", model=model, contrast=contrast, seed=seed, settings=settings)
    return study


def _studied_gamma(path: pd.DataFrame, share: float) -> float:
    """Return the gamma of the path whose share of kept units is nearest to `share`."""
    kept = path[path["support"] > 0]
    if kept.empty:
        raise ls.LensSteerError("no gamma of the path keeps a unit: add smaller gamma_shares, or more steps")
    nearest = int((kept["share"] - share).abs().to_numpy().argmin())
    return float(kept["gamma"].to_numpy()[nearest])


def _summary(concept: str, frames: Mapping[str, pd.DataFrame], gamma: float) -> list[str]:
    table = frames["selections"]
    removed = table.groupby("choice", sort=False)["removed"].mean()
    units = table.loc[table["choice"] == LINEAS, "units"].mean()
    total = frames["kept_by_layer"].groupby("gamma")["units"].sum().iloc[0]
    said = [
        f"{units:.0f} of {total:,} units, selected and refitted by LinEAS, remove {removed[LINEAS]:.0%} of the "
        f"held-out distance between {concept} and other texts; all units {removed[ALL]:.0%}, as many random units "
        f"{removed[RANDOM]:.0%}."
    ]
    said += _unfinished(table)
    said.append(_against(table))
    said += _stability_sentences(frames)
    said.append(_overlap_sentence(frames["overlap"]))
    said.append(_layers_sentence(frames["kept_by_layer"], gamma))
    return [*said, _effect_sentence(frames["effects"], concept)]


def _unfinished(table: pd.DataFrame) -> list[str]:
    """Warn where some units reach a lower loss on the fit's own texts than all units do: those could have as well."""
    reached = table.pivot(index="draw", columns="choice", values="fit_loss")
    better = [str(name) for name in reached.columns if (reached[name] < 0.99 * reached[ALL]).any()]
    if not better:
        return []
    return [
        f"The fits are not finished: {', '.join(better)} reach a lower loss on the fit's own texts than all units, "
        "which hold them, so differences between choices are partly those of the descent: take more steps, or "
        "another lr."
    ]


def _against(table: pd.DataFrame) -> str:
    """Say which choices remove less, and which as much or more, on every draw."""
    gaps = table[~table["choice"].isin([LINEAS, ALL])].groupby("choice", sort=False)["against_lineas"]
    told = {True: [], False: []}  # type: dict[bool, list[str]]
    for name, gap in gaps:
        told[bool(gap.max() < 0)].append(f"{name} ({gap.mean():+.1%})".replace("%)", " points)"))
    less = (
        f"On every draw of texts these choices of as many units, refitted alike, remove less: {', '.join(told[True])}"
    )
    as_much = f"on some draw these remove as much or more: {', '.join(told[False])}"
    parts = [part for part, names in ((less, told[True]), (as_much, told[False])) if names]
    sentence = "; ".join(parts)
    return (
        sentence[0].upper()
        + sentence[1:]
        + " (difference from LinEAS's choice in the share removed, mean of the draws)."
    )


def _stability_sentences(frames: Mapping[str, pd.DataFrame]) -> list[str]:
    pairs = frames["stability"].groupby("against").mean(numeric_only=True)
    real, null = pairs.loc[REAL], pairs.loc[SHUFFLED]
    said = [
        f"From another draw of texts LinEAS selects units with Jaccard overlap {real['jaccard']:.2f}; as many random "
        f"units would have {real['jaccard_chance']:.2f}, random units of the same layers "
        f"{real['jaccard_chance_in_sites']:.2f}. Layers overlap by {real['layers_jaccard']:.2f}."
    ]
    if null["other_units"] == 0:
        return [*said, "With shuffled labels the same gamma keeps no unit."]
    told = f"With shuffled labels the same gamma keeps {null['other_units']:.0f} units on average"
    among = null["common"] / null["other_units"]
    return [*said, f"{told}; {among:.0%} of them are units that the true labels keep too."]


def _overlap_sentence(table: pd.DataFrame) -> str:
    means = table.groupby("choice", sort=False).mean(numeric_only=True)
    each = "; ".join(
        f"{name} {row['share']:.0%} ({row['share_chance_in_sites']:.0%})" for name, row in means.iterrows()
    )
    return (
        "Share of LinEAS's units that other criteria choose too, and beside it what random units of the same layers "
        f"would share: {each}."
    )


def _layers_sentence(table: pd.DataFrame, gamma: float) -> str:
    kept = table[table["gamma"] == gamma].groupby("layer")["kept"].sum().sort_values(ascending=False)
    first, most = int(kept.index.to_numpy()[0]), float(kept.iloc[0])
    count = int((kept > 0).sum())
    where = f"; layer {first} holds {most / kept.sum():.0%} of them" if count > 1 else ""
    return f"On the path the units of this gamma lie in {count} of {len(kept)} layers{where}."


def _effect_sentence(table: pd.DataFrame, concept: str) -> str:
    effects = table[table["measure"] == "concept"].set_index("choice")
    costs = table[table["measure"] == PERPLEXITY].set_index("choice")["change"].to_dict()
    told = [
        f"{name} {change_text(effects.loc[name])} at {costs[name]:+.1f} perplexity"
        for name in (LINEAS, ALL, AUROC, RANDOM)
    ]
    return (
        f"In generated texts the score of {concept} is {effects['before'].iloc[0]:.3f} without an edit and changes by: "
        f"{'; '.join(told)}."
    )


def _figures(frames: Mapping[str, pd.DataFrame], gamma: float) -> dict[str, Any]:
    path = frames["path"]
    long = pd.concat(
        [path[["support", which]].rename(columns={which: "value"}).assign(texts=name)
         for which, name in (("heldout_loss", "held-out texts"), ("loss", "texts of the fit"))]
    )  # fmt: skip
    ratio = float(path.loc[path["gamma"] == gamma, "gamma_ratio"].iloc[0])
    layers = frames["kept_by_layer"].pivot_table(index="gamma_ratio", columns="layer", values="share", sort=False)
    layers.index = [f"{value:.2g}" for value in layers.index]
    means = frames["selections"].groupby("choice", sort=False)["removed"].agg(["mean", "min", "max"]).reset_index()
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
            means, label="choice", value="mean", low="min", high="max",
            title="How much of the distance a choice of units can remove",
            note="Each choice is refitted by LinEAS on its units alone. Bars: mean of the draws; lines: their range.",
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


def _captions(frames: Mapping[str, pd.DataFrame], draws: int) -> dict[str, str]:
    told = {
        "path": "One row per gamma: units kept, layers used, loss on the texts of the fit and on held-out ones.",
        "selections": f"Every choice of as many units, refitted without penalty on each of {draws} draws of texts; "
        "removed: share of the held-out loss without an edit; against_lineas: removed less that of LinEAS's choice.",
        "stability": "Units kept on one draw of texts against another draw (of one pool: draws may share texts) and "
        "against shuffled labels, beside what random units would share, anywhere or in the same layers.",
        "overlap": "LinEAS's units against as many chosen by AUROC (its distance from 1/2), by |difference of means|, "
        "by the gradient of the loss at the identity, and layer by layer by that gradient.",
        "kept_by_layer": "Units kept in every layer along the path.",
        "kept_units": "Units that any draw keeps: by how many draws, by how many with shuffled labels; their scores.",
        "effects": "Edits of the first draw: mean score of generated texts, and perplexity of neutral texts, before "
        "and after, with 95 % intervals (bootstrap over prompts or texts).",
    }
    return {name: text for name, text in told.items() if name in frames}


if __name__ == "__main__":
    ls.study_command(run)()
