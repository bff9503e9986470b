"""The whole job on the microworld: find a concept's expert units, steer away from it with few units, see what happens.

LinEAS (arXiv 2503.10679) learns from 32 + 32 texts, with its sparse group lasso. The oracle of the microworld reads
what the model then writes: how much of it shows the concept, how much is grammatical, how much cannot be read. Beside
it stand the same fit on shuffled labels and as many random units, set to their means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

import lens_steer as ls
from analyses.heldout import plain
from lens_steer import microworld

LINEAS, SHUFFLED, RANDOM = "LinEAS", "LinEAS, shuffled labels", "random units at their means"
OPEN, SHOWN = "open prompts", "prompts that show it"
_CONCEPT, _GRAMMATICAL, _UNREADABLE, _PERPLEXITY = "effect", "grammatical", "unreadable", "cost"


@dataclass(frozen=True)
class Job:
    """An edit and the number of the draw that its texts, prompts and samples come from."""

    kind: str
    draw: int
    edit: ls.Intervention


def run(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    out: str | Path | None,
    seed: int = 0,
    concept: str = "rude",
    sites: str | Sequence[str] = "mlp.hook_post",
    steps: int = 30,
    lr: float = 0.2,
    optimizer: Literal["sgd", "adam"] = "adam",
    gamma_shares: tuple[float, ...] = (0.4, 0.07),
    share: float = 0.3,
    fit_texts: int = 32,
    draws: int = 5,
    prompts: int = 60,
    neutral: int = 50,
    max_new_tokens: int = 70,
) -> ls.Study:
    """Rank the experts of a concept, steer away from it with a sparse LinEAS edit, and let the oracle read the texts.

    Frames: `effect` (per edit and kind of prompt, means over the draws), `draws` (one row per edit, draw and kind of
    prompt), `texts`, `path`, `experts`.

    Parameters
    ----------
    model:
        A model of the microworld.
    contrast:
        Its texts with the concept and without, such as `read_contrast("microworld:rude")`.
    out:
        The new run folder; None writes nothing.
    seed:
        Of the halves, the draws of texts, the prompts and the samples.
    concept:
        What the oracle reads, by the name of a microworld contrast.
    sites:
        Where LinEAS edits and compares.
    steps, lr, optimizer:
        Of every fit. The paper's are 1000, 0.1 and SGD; a few steps of Adam make the demo short.
    gamma_shares, share:
        The path, in shares of gamma_max; the gamma that keeps the nearest share of units is the one that is studied.
    fit_texts:
        Texts a side of every fit.
    draws:
        Fits, each from other texts and measured with other prompts and samples; intervals run over them.
    prompts:
        Open prompts per draw, and half as many that already show the concept.
    neutral:
        Held-out texts without the concept, whose perplexity is measured.
    max_new_tokens:
        Length of a continuation.

    """
    settings = plain(locals())
    train, held = contrast.split(test=0.5, seed=seed)
    activations = ls.collect(model, train, "mlp.hook_post")
    ranking = ls.rank_experts(activations, seed=seed)
    lineas = ls.LinEAS(sites=sites, steps=steps, lr=lr, optimizer=optimizer, seed=seed)
    texts = [train.subsample(fit_texts, seed=seed + draw) for draw in range(draws)]
    ceiling = lineas.gamma_max(model, texts[0])
    path = lineas.path(model, texts[0], gammas=[share * ceiling for share in gamma_shares])
    chosen = nearest(path.frame, share)
    jobs = list(edits(model, replace(lineas, gamma=path.frame["gamma"][chosen]), texts, train, seed))
    readings = measure(
        model, jobs, concept, held.target[:neutral], prompts=prompts, max_new_tokens=max_new_tokens, seed=seed
    )
    by_draw = pd.DataFrame([row for _, row in readings])
    effect = over_draws(by_draw)
    agreement = overlap(jobs[0].edit, ranking)
    shift = ls.downstream_shift(model, jobs[0].edit, held, neutral=held.target[:neutral], by_layer=False)
    study = ls.Study(
        frames={
            "effect": effect,
            "texts": readings[0][0].texts,
            "overlap": agreement,
            "path": path.frame,
            "downstream": shift.matrix().T.reset_index(),
            "experts": ranking.top(200),
            "draws": by_draw,
        },
        figures={
            "effect": effect_figure(effect, concept),
            "path": path.plot(),
            "downstream": shift.plot(),
            "experts": ranking.plot(),
        },
        summary=[
            *sentences(effect, by_draw, ranking, concept=concept, steps=steps, fit_texts=fit_texts),
            overlap_sentence(agreement),
        ],
        tokens={"best_units": ls.show_units(model, held, ranking.top(3))},
        interventions={"lineas": jobs[0].edit},
        captions=captions(concept, draws=draws, steps=steps),
    )
    if out is not None:
        study.save(out, name="demo", model=model, contrast=contrast, seed=seed, settings=settings)
    return study


def nearest(path: pd.DataFrame, share: float) -> int:
    """Return the row of the path that keeps the nearest share of units; LensSteerError where none keeps any."""
    distance = (path["share"] - share).abs().where(path["support"] > 0)
    if distance.isna().all():
        raise ls.LensSteerError("no edit of the path moves a unit: more steps, or smaller gamma_shares, are needed")
    return int(np.nanargmin(distance))


def edits(
    model: Any, lineas: ls.LinEAS, texts: Sequence[ls.ContrastSet], train: ls.ContrastSet, seed: int
) -> Iterator[Job]:
    """Yield a LinEAS edit per draw of texts, and for the first its two controls."""
    first = lineas.fit(model, texts[0])
    yield Job(LINEAS, 0, first)
    yield from (Job(LINEAS, draw, lineas.fit(model, texts[draw])) for draw in range(1, len(texts)))
    yield Job(SHUFFLED, 0, lineas.fit(model, texts[0].shuffled(seed)))
    units = ls.random_units(first.sites, len(first.units()), seed=seed)
    activations = ls.collect(model, train, [site.name for site in first.sites])
    yield Job(RANDOM, 0, ls.ablate(units, mode="mean", activations=activations))


def measure(
    model: Any,
    jobs: Sequence[Job],
    concept: str,
    neutral: Sequence[Any],
    *,
    prompts: int,
    max_new_tokens: int,
    seed: int,
) -> list[tuple[ls.Evaluation, dict[str, Any]]]:
    """Evaluate every edit at strength 1 on both kinds of prompts; what the unedited model writes is reused."""
    scorer = ls.OracleScorer(concept)
    found: list[tuple[ls.Evaluation, dict[str, Any]]] = []
    unedited: dict[tuple[str, int], ls.Evaluation] = {}
    for job in tqdm(jobs, desc="evaluate", unit="edit"):
        beginnings = {
            OPEN: microworld.open_prompts(prompts, seed=seed + job.draw),
            SHOWN: microworld.shown_prompts(concept, max(1, prompts // 2), seed=seed + job.draw),
        }
        for kind, rows in beginnings.items():
            result = ls.evaluate(
                model,
                job.edit,
                prompts=rows,
                scorer=scorer,
                neutral=neutral,
                seed=seed + job.draw,
                max_new_tokens=max_new_tokens,
                progress=False,
                before=unedited.get((kind, job.draw)),
            )
            unedited.setdefault((kind, job.draw), result)
            found.append((result, _row(job, kind, result)))
    return found


def _row(job: Job, prompts: str, result: ls.Evaluation) -> dict[str, Any]:
    support = job.edit.support()
    row = {"edit": job.kind, "prompts": prompts, "draw": job.draw, "units": int(support["kept"].sum())}
    row["of_units"] = int(support["units"].sum())
    measures: Any = result.frame.set_index("measure")
    for measure, name in (
        (_CONCEPT, "concept"), (_GRAMMATICAL, "grammatical"), (_UNREADABLE, "unreadable"), (_PERPLEXITY, "perplexity"),
    ):  # fmt: skip
        row |= {f"{name}_{when}": float(measures.loc[measure, when]) for when in ("before", "after")}
    return row


def over_draws(by_draw: pd.DataFrame) -> pd.DataFrame:
    """Average over draws, with the 95 % t-intervals of the concept's share after and of its change (one draw: nan)."""
    rows = []
    for (edit, prompts), group in by_draw.groupby(["edit", "prompts"], sort=False):
        row: dict[str, Any] = {"edit": edit, "prompts": prompts, "draws": len(group)}
        means = group.drop(columns=["edit", "prompts", "draw", "of_units"]).mean()
        row |= {str(name): float(value) for name, value in means.items()}
        row["of_units"] = int(group["of_units"].iloc[0])
        row["after_low"], row["after_high"] = _interval(group["concept_after"])
        change = group["concept_after"] - group["concept_before"]
        row["change"] = change.mean()
        row["change_low"], row["change_high"] = _interval(change)
        rows.append(row)
    return pd.DataFrame(rows)


def _interval(values: pd.Series) -> tuple[float, float]:
    if len(values) < 2:
        return np.nan, np.nan
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.sem())
    return float(values.mean()) - half, float(values.mean()) + half


def overlap(edit: ls.Intervention, ranking: ls.ExpertRanking) -> pd.DataFrame:
    """Count the units that an edit moves among the best experts, as many as it moves and a tenth of them."""
    kept = set(edit.units())
    total = len(ranking.frame)
    rows = []
    for k in (max(1, len(kept) // 10), len(kept)):
        share = len(kept & set(ranking.units(k))) / k
        rows.append({"best_experts": k, "share_moved": share, "by_chance": len(kept) / total, "of_units": total})
    return pd.DataFrame(rows)


def overlap_sentence(agreement: pd.DataFrame) -> str:
    """Say how many of the best experts the edit moves."""
    row = agreement.iloc[0]
    return (
        f"Of the {row['best_experts']:.0f} best experts by AUROC, the first edit moves {row['share_moved']:.0%}; "
        f"{row['by_chance']:.0%} would be by chance."
    )


def effect_figure(effect: pd.DataFrame, concept: str) -> Any:
    """Draw the share of texts with the concept, before and after every edit, on open prompts."""
    shown = effect[effect["prompts"] == OPEN]
    first = shown.iloc[0]
    bars = [{"edit": "no edit", "share": first["concept_before"], "low": np.nan, "high": np.nan}]
    bars += [
        {"edit": row["edit"], "share": row["concept_after"], "low": row["after_low"], "high": row["after_high"]}
        for _, row in shown.iterrows()
    ]
    return ls.figures.overlap_bars(
        pd.DataFrame(bars),
        label="edit",
        value="share",
        low="low",
        high="high",
        title=f"How much of what the model writes is {concept}",
        note=f"Open prompts, strength 1. Whisker: 95 % interval over {first['draws']} draws of texts.",
        x_title=f"{concept} texts, by the oracle",
    )


def sentences(
    effect: pd.DataFrame,
    by_draw: pd.DataFrame,
    ranking: ls.ExpertRanking,
    *,
    concept: str,
    steps: int,
    fit_texts: int,
) -> list[str]:
    """Tell what was found, the finding first."""
    rows = {(row["edit"], row["prompts"]): row for _, row in effect.iterrows()}
    steered, shown = rows[LINEAS, OPEN], rows[LINEAS, SHOWN]
    units = f"{steered['units']:,.0f} of {steered['of_units']:,} units"
    best = ranking.top(1).iloc[0]
    worst = by_draw[by_draw["edit"] == LINEAS]["unreadable_after"].max()
    return [
        f"Editing {units} takes {concept} texts from {steered['concept_before']:.0%} to {steered['concept_after']:.0%}",
        f"The best single expert of “{concept}” among {len(ranking.frame):,} MLP units is "
        f"{best['site']}[{best['unit']}], held-out AUROC {best['heldout_auroc']:.3f}.",
        f"LinEAS learned each edit from {fit_texts} + {fit_texts} texts in {steps} steps (the paper takes 1,000), and "
        f"its sparse group lasso keeps {units}.",
        f"Open prompts: {_told(steered, concept)}",
        f"Prompts that already show it: {_told(shown, concept)}",
        f"At most {worst:.1%} of the texts of a draw cannot be read; they are no part of the shares above.",
        f"The same fit on shuffled labels: {_told(rows[SHUFFLED, OPEN], concept)}",
        f"As many random units, set to their means: {_told(rows[RANDOM, OPEN], concept)}",
    ]


def _told(row: pd.Series, concept: str) -> str:
    over = f"over {row['draws']} draws of texts" if row["draws"] > 1 else "one draw"
    bounds = f" [{row['change_low']:+.1%}, {row['change_high']:+.1%}]" if row["draws"] > 1 else ""
    return (
        f"{concept} {row['concept_before']:.1%} -> {row['concept_after']:.1%} (change {row['change']:+.1%}{bounds}, "
        f"{over}), grammatical sentences {row['grammatical_before']:.1%} -> {row['grammatical_after']:.1%}, perplexity "
        f"of texts without it {row['perplexity_before']:.2f} -> {row['perplexity_after']:.2f}."
    )


def captions(concept: str, *, draws: int, steps: int) -> dict[str, str]:
    """Say what every table and figure shows."""
    return {
        "effect": f"Mean posterior probability of “{concept}” in the continuations that can be read (concept), "
        "share of grammatical sentences, share of unreadable texts, perplexity of held-out texts without the concept; "
        f"means over {draws} draws of fit texts, prompts and samples, with the 95 % t-interval of the change.",
        "draws": "The same, draw by draw; the controls were run on the first.",
        "texts": "Open prompts of the first draw and their continuations, with the oracle's probability of "
        f"“{concept}”; a missing score is an unreadable text.",
        "path": f"The gamma path of the first draw, {steps} steps each: units kept and loss.",
        "experts": f"MLP units, by how well their largest activation tells “{concept}” texts from others.",
        "lineas": "What the edit of the first draw changes.",
        "overlap": f"Units that the edit of the first draw moves among the best experts of “{concept}”.",
        "downstream": "Share of the distance between source and target texts that the edit of the first draw takes "
        "away at every layer of the residual stream; held-out texts. Neutral: held-out texts without the concept, and "
        "how far they move, in standard deviations.",
        "best_units": "The three best experts on the held-out texts that move them most.",
    }
