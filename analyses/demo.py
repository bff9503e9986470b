"""The whole job on the microworld: find a concept's expert units, steer away from it with few units, see what happens.

LinEAS (arXiv 2503.10679) learns with its sparse group lasso. The oracle of the microworld reads what the model then
writes: how much of it shows the concept, how much is grammatical, how much cannot be read. Beside every fit stand the
same fit on shuffled labels and one on as many random units, at the same share of their largest penalty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

import lens_steer as ls
from analyses.experiment import MICROWORLD, Experiment, as_study
from analyses.measurements import PERPLEXITY, HeldOut, Measurements, change_of
from analyses.sentences import PLURAL, sentence
from lens_steer import microworld
from lens_steer.progress import progress_bar

LINEAS, SHUFFLED, RANDOM = "LinEAS", "LinEAS, shuffled labels", "LinEAS on random units"
OPEN, SHOWN = "open prompts", "prompts that show it"
CONCEPT = "concept"
CARD_TOKENS = 25
"""Length of a continuation on the card, which tries many edits."""
_UNITS = {
    CONCEPT: "share of readable texts",
    "grammatical": "share of sentences",
    "unreadable": "share of texts",
    PERPLEXITY: "per token",
}
_MEASURES = tuple(_UNITS)


@dataclass(frozen=True)
class Job:
    """An edit and the number of the draw that its texts, prompts and samples come from."""

    kind: str
    draw: int
    edit: ls.Intervention


@as_study
def run(
    model: Any,
    contrast: ls.ContrastSet,
    *,
    out: str | Path | None,
    seed: int = 0,
    sites: str | Sequence[str] = "mlp.hook_post",
    gamma_share: float = 0.3,
    steps: int = 30,
    gamma_shares: tuple[float, ...] = (0.5, 0.25, 0.12, 0.06),
    fit_texts: int = 32,
    draws: int = 5,
    prompts: int = 60,
    neutral: int = 50,
    max_new_tokens: int = 70,
    random_edits: int = 20,
) -> ls.Study:
    """Rank the experts of a concept, steer away from it with a sparse LinEAS edit, and let the oracle read the texts.

    Frames: `effect` (per edit, kind of prompt and measure, over the draws), `draws` (one row per draw of these),
    `texts`, `overlap`, `path`, `downstream`, `paths` and `next_token_law` (`trace_shift` of the first edit), `experts`.

    Parameters
    ----------
    model:
        A model of the microworld.
    contrast:
        A contrast of the microworld, such as `read_contrast("microworld:rude")`; the oracle reads its concept.
    out:
        The new run folder; None writes nothing.
    seed:
        Of the halves, the draws of texts, the prompts and the samples.
    sites:
        Where units are ranked, and where LinEAS edits and compares.
    gamma_share, steps:
        Penalty of every fit, in shares of gamma_max, and its gradients, at most.
    gamma_shares:
        The path that is shown, in shares of gamma_max.
    fit_texts:
        Texts a side of every fit, fewer where the training half does not suffice: no two draws share a text.
    draws:
        Fits, each from other texts and measured with other prompts and samples; intervals run over them.
    prompts:
        Open prompts per draw, and half as many that already show the concept.
    neutral:
        Held-out target texts (without the concept), whose perplexity is measured.
    max_new_tokens:
        Length of a continuation.
    random_edits:
        Random edits beside the first draw's, on its card.

    Raises
    ------
    LensSteerError
        The contrast is none of the microworld's, or has too few texts for the draws.

    """
    experiment = Experiment.begin("demo", run, locals())
    if not contrast.name.startswith(MICROWORLD):
        raise ls.LensSteerError(
            f"{contrast.name!r} is no contrast of the microworld, which the demo's oracle reads: give "
            'read_contrast("microworld:rude") or another of microworld.contrast_names()'
        )
    concept = experiment.concept
    texts = experiment.fit_texts(fit_texts, draws)
    ranking = ls.rank_experts(ls.collect(model, experiment.train, sites), seed=seed)
    lineas = ls.LinEAS(sites=sites, gamma_share=gamma_share, relax=True, steps=steps, seed=seed)
    path = lineas.path(model, texts[0], shares=gamma_shares)
    jobs = list(edits(model, lineas, texts, seed))
    held = experiment.held
    measurements, written = measure(
        model, jobs, concept, held.target[:neutral], prompts=prompts, max_new_tokens=max_new_tokens, seed=seed
    )
    effect = effect_table(measurements, jobs)
    agreement = overlap(jobs[0].edit, ranking)
    shift = ls.downstream_shift(model, jobs[0].edit, held, neutral=held.target[:neutral], by_layer=False)
    traced = ls.result_study(ls.trace_shift(model, jobs[0].edit, held, neutral=held.target[:neutral], progress=False))
    best = ranking.top(1)
    generated = ls.show_generated(
        model, jobs[0].edit, microworld.open_prompts(prompts, seed=seed), best, max_new_tokens=CARD_TOKENS, seed=seed
    )
    frames = {
        "effect": effect,
        "texts": written,
        "overlap": agreement,
        "path": path.frame,
        "downstream": shift.matrix().T.reset_index(),
        **traced.frames,
        "experts": ranking.top(200),
        "draws": by_draw(measurements),
    }
    figures = {"effect": effect_figure(effect, concept), "path": path.plot(), "downstream": shift.plot()}
    figures |= traced.figures
    along = zip(path.frame["gamma_share"], path.interventions, strict=True)
    figures["learning"] = ls.figures.learning_curve({f"gamma share {share:g}": edit for share, edit in along})
    return experiment.keep(
        ls.Study(
            frames=frames,
            figures={**figures, "experts": ranking.plot()},
            summary=[
                *summary(concept, frames, fit_texts=len(texts[0].source), units=len(ranking.frame)),
                *traced.summary,
            ],
            tokens={"best_units": ls.show_units(model, held, ranking.top(3)), "on_generated_text": generated},
            interventions={"lineas": jobs[0].edit},
            card=ls.edit_card(
                model,
                jobs[0].edit,
                held,
                train=experiment.train,
                draws=random_edits,
                max_new_tokens=min(max_new_tokens, CARD_TOKENS),
                seed=seed,
            ),
            captions={**captions(concept, draws=draws, fit_texts=len(texts[0].source)), **traced.captions},
        )
    )


def edits(model: Any, lineas: ls.LinEAS, texts: Sequence[ls.ContrastSet], seed: int) -> Iterator[Job]:
    """Yield a LinEAS edit per draw of texts, and for each its two controls."""
    for draw, rows in enumerate(texts):
        fitted = lineas.fit(model, rows)
        yield Job(LINEAS, draw, fitted)
        yield Job(SHUFFLED, draw, lineas.fit(model, rows.shuffled(seed + draw)))
        units = ls.random_units(fitted.sites, max(1, len(fitted.units())), seed=seed + draw)
        yield Job(RANDOM, draw, lineas.refit(model, rows, units, gamma_share=fitted.provenance["final_gamma_share"]))


def label(kind: str, prompts: str) -> str:
    """Return the name of an edit on one kind of prompt."""
    return f"{kind}, {prompts}"


def measure(
    model: Any,
    jobs: Sequence[Job],
    concept: str,
    neutral: Sequence[Any],
    *,
    prompts: int,
    max_new_tokens: int,
    seed: int,
) -> tuple[Measurements, pd.DataFrame]:
    """Measure every edit at strength 1: LinEAS's on both kinds of prompts, its controls on open ones.

    Every draw has prompts and samples of its own. Also returns the first draw's continuations of open prompts.
    """
    several: dict[str, Any] = {"neutral_name": "held-out target texts", "samples": 1, "chat": None}
    scorer = ls.OracleScorer(concept)
    tests: dict[tuple[str, int], HeldOut] = {}
    parts = []
    for job in progress_bar(jobs, desc="evaluate", unit="edit", show=True):
        for kind in (OPEN, SHOWN) if job.kind == LINEAS else (OPEN,):
            if (kind, job.draw) not in tests:
                rows = (
                    microworld.open_prompts(prompts, seed=seed + job.draw)
                    if kind == OPEN
                    else microworld.shown_prompts(concept, max(1, prompts // 2), seed=seed + job.draw)
                )
                tests[kind, job.draw] = HeldOut(
                    model,
                    prompts=tuple(rows),
                    scorers={CONCEPT: scorer},
                    neutral=tuple(neutral),
                    max_new_tokens=max_new_tokens,
                    seed=seed + job.draw,
                    **several,
                )
            parts.append(tests[kind, job.draw].measure(job.edit, label(job.kind, kind), draw=job.draw))
    written = [tests[kind, 0].texts for kind in (OPEN, SHOWN)]
    return Measurements.of(parts, seed=seed), pd.concat(written, ignore_index=True)


def effect_table(measurements: Measurements, jobs: Sequence[Job]) -> pd.DataFrame:
    """Return one row per edit, kind of prompts and measure: before, after, change and its interval over draws."""
    present = set(measurements.frame["edit"])
    support = {job.kind: job.edit.support() for job in reversed(jobs)}
    return pd.DataFrame(
        [
            {
                "edit": kind,
                "prompts": prompts,
                "units": int(support[kind]["kept"].sum()),
                "of_units": int(support[kind]["units"].sum()),
                **row,
                "unit": _UNITS[row["measure"]],
            }
            for kind in (LINEAS, SHUFFLED, RANDOM)
            for prompts in (OPEN, SHOWN)
            if label(kind, prompts) in present
            for row in measurements.over_draws(label(kind, prompts))
            if row["measure"] in _MEASURES
        ]
    )


def by_draw(measurements: Measurements) -> pd.DataFrame:
    """Return the value of every measure in every draw: edit, draw, measure, before, after."""
    rows = []
    for edit in measurements.frame["edit"].unique():
        for measure in measurements.measures:
            for draw, (before, after) in enumerate(measurements.by_draw(edit, measure)):
                rows.append({"edit": edit, "draw": draw, "measure": measure, "before": before, "after": after})
    return pd.DataFrame(rows)


def overlap(edit: ls.Intervention, ranking: ls.ExpertRanking) -> pd.DataFrame:
    """Count the units that an edit moves among the best experts, as many as it moves and a tenth of them.

    `low` and `high` hold the share that 95 of 100 random choices of as many units would have.
    """
    kept, total = set(edit.units()), len(ranking.frame)
    rows = []
    for k in sorted({max(1, len(kept) // 10), len(kept)}):
        law = stats.hypergeom(total, len(kept), k)
        chance = {"by_chance": len(kept) / total, "low": law.ppf(0.025) / k, "high": law.ppf(0.975) / k}
        rows.append({"best_experts": k, "share_moved": len(kept & set(ranking.units(k))) / k, **chance})
    return pd.DataFrame(rows).assign(of_units=total)


def effect_figure(effect: pd.DataFrame, concept: str) -> Any:
    """Draw the change of the share of texts with the concept under every edit, on open prompts."""
    shown = effect[(effect["prompts"] == OPEN) & (effect["measure"] == CONCEPT)]
    return ls.figures.overlap_bars(
        shown,
        label="edit",
        value="change",
        low="low",
        high="high",
        title=f"How much an edit changes the share of {concept} texts",
        note=f"Open prompts, strength 1. Whisker: 95 % interval over {shown['draws'].iloc[0]} draws of fit texts.",
        x_title=f"change of the share of {concept} texts, by the oracle",
    )


def summary(concept: str, frames: Mapping[str, pd.DataFrame], *, fit_texts: int, units: int) -> list[str]:
    """Return what was found, from the frames alone, the effect on open prompts first."""
    effect, experts = frames["effect"], frames["experts"]
    rows = {(row["edit"], row["prompts"], row["measure"]): row for row in effect.to_dict("records")}
    steered = rows[LINEAS, OPEN, CONCEPT]
    edited = f"{steered['units']:,} of {steered['of_units']:,} units"
    best = experts.iloc[0]

    def clause(edit: str, prompts: str, measure: str, subject: str) -> str:
        called = {
            CONCEPT: f"the share of {concept} texts",
            "grammatical": "the share of grammatical sentences",
            "unreadable": "the share of unreadable texts",
            PERPLEXITY: "the perplexity of held-out target texts",
        }[measure]
        style: Any = "number" if measure == PERPLEXITY else "share"
        verbs = {} if (edit, prompts) == (LINEAS, OPEN) else PLURAL
        return change_of(rows[edit, prompts, measure]).sentence(subject, called, style=style, **verbs)

    subjects = {
        (LINEAS, OPEN): f"editing {edited}, after open prompts,",
        (LINEAS, SHOWN): "after prompts that already show it, the same edits:",
        (SHUFFLED, OPEN): "the same fits on shuffled labels:",
        (RANDOM, OPEN): "fits on as many random units:",
    }
    title = clause(LINEAS, OPEN, CONCEPT, f"editing {edited}")
    sentences = [title[:1].upper() + title[1:]]
    sentences.append(
        f"The best single expert of “{concept}” among {units:,} units is {best['site']}[{best['unit']}], held-out "
        f"AUROC {best['heldout_auroc']:.3f}."
    )
    sentences.append(
        f"LinEAS learned each edit from {fit_texts} + {fit_texts} texts; "
        f"intervals are over {steered['draws']} draws of texts, prompts and samples."
    )
    for (edit, prompts), subject in subjects.items():
        measures = [measure for measure in _MEASURES if (edit, prompts, measure) in rows]
        first = 1 if (edit, prompts) == (LINEAS, OPEN) else 0
        sentences.append(sentence(*(clause(edit, prompts, measure, subject) for measure in measures[first:])))
    sentences += [_unreadable(frames["draws"]), overlap_sentence(frames["overlap"])]
    return sentences


def _unreadable(draws: pd.DataFrame) -> str:
    """Say for every edit what share of a draw's texts could not be read at most: they are no part of the shares."""
    worst = draws[draws["measure"] == "unreadable"].groupby("edit", sort=False)["after"].max()
    shares = "; ".join(f"{edit} {value:.1%}" for edit, value in worst.items())
    return f"Unreadable texts, which are no part of these shares, at most in a draw: {shares}."


def overlap_sentence(agreement: pd.DataFrame) -> str:
    """Say how many of the best experts the edit moves, beside what random units would share."""
    overlaps = "; ".join(
        f"of the {row['best_experts']:.0f} best {row['share_moved']:.0%}, where 95 of 100 random choices would lie "
        f"between {row['low']:.0%} and {row['high']:.0%}"
        for row in agreement.to_dict("records")
    )
    return f"Of the best experts by AUROC, the first edit moves: {overlaps}."


def captions(concept: str, *, draws: int, fit_texts: int) -> dict[str, str]:
    """Say what every table and figure shows."""
    return {
        "effect": f"Mean posterior probability of “{concept}” in the continuations that can be read (concept), "
        "share of grammatical sentences, share of unreadable texts, perplexity of held-out target texts; means over "
        f"{draws} draws of {fit_texts} + {fit_texts} fit texts (no two share a text), prompts and samples, with the "
        "95 % t-interval of the change over draws.",
        "draws": "The same, draw by draw.",
        "texts": "The first draw's continuations of both kinds of prompts, with the oracle's probability of "
        f"“{concept}”; a missing score is an unreadable text.",
        "path": "The gamma path on the texts of the first draw: units kept and loss.",
        "learning": "The descents of the path: training loss by step.",
        "experts": f"Units, by how well their largest activation tells “{concept}” texts from others.",
        "lineas": "What the edit of the first draw changes.",
        "overlap": f"Units that the edit of the first draw moves among the best experts of “{concept}”; low, high: 95 "
        "% of random choices of as many units.",
        "downstream": "Share of the distance between source and target texts that the edit of the first draw takes "
        "away at every layer of the residual stream; held-out texts. Neutral: held-out target texts, and how far they "
        "move, in standard deviations.",
        "on_generated_text": "The best expert on what the model writes after open prompts, without the edit of the "
        "first draw and with it.",
        "best_units": "The three best experts on the held-out texts that move them most.",
    }


if __name__ == "__main__":
    ls.study_command(run)()
