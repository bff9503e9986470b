"""Do concepts share units and directions as far as they depend on each other in the language?

Texts that are labelled for many concepts at once say how the concepts depend on each other: the correlation of two
columns of labels. Beside it stand, for every pair of concepts, what a model makes of them: how alike the units' AUROCs
are, how many experts the two share, and the cosine of the edits learned for them. In the embedded language the
dependence is known exactly: attributes are drawn independently of each other, the values of one attribute exclude each
other. Beside every measure stands the same with labels that mean nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

import lens_steer as ls
from analyses.experiment import Experiment, as_study
from analyses.sentences import by_verdict, interval

MEASURES = {
    "rank_correlation": "the correlation of the units' AUROC",
    "jaccard": "the share of experts in common",
    "cosine": "the cosine of the learned shifts",
}
DEPENDENCE = 0.02  # labels of independent attributes correlate by chance: below, a pair counts as independent


@as_study
def run(
    model: Any,
    contrast: ls.LabelledTexts,
    *,
    out: str | Path | None,
    seed: int = 0,
    sites: str | Sequence[str] = "mlp.hook_post",
    k: int = 100,
    permutations: int = 200,
    shifts: Literal["MeanAcT", "LinEAS"] = "MeanAcT",
    shift_sites: str | Sequence[str] = "hook_resid_post",
    fit_texts: int = 32,
    steps: int = 100,
    shuffles: int = 1,
    batch_size: int | None = None,
) -> ls.Study:
    """Hold what concepts share inside a model against how they depend on each other in its texts.

    Frames: `pairs` (one row a pair of concepts), `agreement` (each measure's rank correlation with the dependence of
    the labels over pairs, its interval over concepts, and the same with shuffled labels), `layers`, `specificity`,
    `concepts` (texts and the cosine of two edits of one concept, the ceiling of `cosine`).

    Parameters
    ----------
    model:
        A TransformerLens model.
    contrast:
        Texts labelled for three concepts or more (`ls.read_labels`; "microworld" for the embedded language).
    out:
        The new run folder; None writes nothing.
    seed:
        Of the split in halves, the permutations, the fits and the shuffles.
    sites:
        Where units are ranked.
    k:
        Experts of a concept.
    permutations:
        Shuffles of labels beside every pair's overlap.
    shifts:
        What learns the shift of every concept, from its texts to others: MeanAcT (the difference of means, site by
        site) or LinEAS (by gradients, all sites together; a minute a fit on the embedded model).
    shift_sites:
        Where it is learned.
    fit_texts:
        Texts a side of each of two fits, which share none.
    steps:
        Gradients of every fit of LinEAS.
    shuffles:
        How often all of it is done with the labels of every concept shuffled.
    batch_size:
        Texts per batch; chosen by length when left out.

    Raises
    ------
    LensSteerError
        Fewer than three concepts, no units to choose k of, or a count below 1.

    """
    experiment = Experiment.begin("concept_map", run, locals())
    _check(contrast, k=k, permutations=permutations, fit_texts=fit_texts, steps=steps)
    activations = ls.collect(model, contrast, sites, batch_size=batch_size, progress=False)
    ranking = ls.rank_experts(activations, seed=seed)
    method: ls.MeanAcT | ls.LinEAS = ls.MeanAcT(sites=shift_sites, causal=False)
    if shifts == "LinEAS":
        method = ls.LinEAS(sites=shift_sites, steps=steps, gamma_share=0.0, seed=seed, progress=False)
    learned = learned_shifts(model, contrast, method, fit_texts, seed)
    pairs = pairs_of(contrast, ranking, learned, k=k, permutations=permutations, seed=seed)
    agreement = [agreement_of(pairs, contrast.concepts, "labels")]
    for draw in range(shuffles):
        mixed = shuffled_labels(contrast, seed + draw)
        control = pairs_of(
            contrast,
            ls.rank_experts(ls.collect(model, mixed, sites, batch_size=batch_size, progress=False), seed=seed),
            learned_shifts(model, mixed, method, fit_texts, seed),
            k=k,
        )
        agreement.append(agreement_of(control, contrast.concepts, f"shuffled labels {draw}"))
    frames = {
        "pairs": pairs,
        "agreement": pd.concat(agreement, ignore_index=True),
        "concepts": _concepts(contrast, learned),
        "layers": ranking.layers(k),
        "specificity": ranking.specificity(),
    }
    figures = {name: _matrix(pairs, contrast.concepts, name) for name in ("dependence", *MEASURES)}
    return experiment.keep(
        ls.Study(frames=frames, figures=figures, summary=summary(frames), captions=_captions(k, permutations, shifts))
    )


def _check(contrast: Any, **counts: int) -> None:
    if not isinstance(contrast, ls.LabelledTexts) or len(contrast.concepts) < 3:
        raise ls.LensSteerError(
            "a concept map is of texts labelled for three concepts or more: ls.read_labels(path, labels=[...]) "
            '(--labels), or ls.read_labels("microworld") or --contrast microworld for the embedded language'
        )
    for name, count in counts.items():
        if count < 1:
            raise ls.LensSteerError(f"{name}={count}: give 1 or more")


def dependence(contrast: ls.LabelledTexts, one: str, other: str) -> tuple[float, float, int]:
    """Return correlation and mutual information (nats) of two concepts' labels, and the texts that have both.

    nan where one of the two is the same for all of these texts.
    """
    columns = contrast.labels[:, [contrast.concepts.index(name) for name in (one, other)]]
    both = columns[(columns >= 0).all(1)].astype(int)
    table = np.zeros((2, 2))
    np.add.at(table, (both[:, 0], both[:, 1]), 1 / max(len(both), 1))
    rows, down = table.sum(1), table.sum(0)
    if not (rows.all() and down.all()):
        return math.nan, math.nan, len(both)
    expected = np.outer(rows, down)
    information = float((table * np.log(np.where(table > 0, table, 1) / expected)).sum())
    correlation = (table[1, 1] - expected[1, 1]) / math.sqrt(rows.prod() * down.prod())
    return float(correlation), max(0.0, information), len(both)


def shuffled_labels(contrast: ls.LabelledTexts, seed: int) -> ls.LabelledTexts:
    """Permute the labels of every concept among the texts that take part in it."""
    labels = contrast.labels.copy()
    for place, column in enumerate(labels.T):
        part = np.flatnonzero(column >= 0)
        column[part] = column[np.random.default_rng([seed, place]).permutation(part)]
    return ls.LabelledTexts(
        contrast.texts, labels, contrast.concepts, groups=contrast.groups, chat=contrast.chat, name=contrast.name
    )


def learned_shifts(
    model: Any, contrast: ls.LabelledTexts, method: ls.MeanAcT | ls.LinEAS, most: int, seed: int
) -> dict[str, list[np.ndarray]]:
    """Return, per concept, what two edits that share no text add to every unit in the mean, from texts of the concept.

    An edit of a diagonal map moves the mean activation m of the source by (scale - 1) m + shift.
    """
    shifts = {}
    for concept in contrast.concepts:
        halves = contrast.contrast(concept).split(test=0.5, seed=seed)
        moved = []
        for half in halves:
            size = min(most, len(half.source), len(half.target))
            few = half.subsample(size, seed=seed)
            activations = ls.collect(model, few, method.sites, pool=method.pool, progress=False)
            edit = method.fit(model, few, activations=activations)
            parts = []
            for site_edit in edit.edits:
                mean = activations.token_mean(site_edit.site, "source").double().numpy()
                scale, shift = (np.asarray(part, dtype=float) for part in (site_edit.map.scale, site_edit.map.shift))
                parts.append((scale - 1) * mean + shift)
            moved.append(np.concatenate(parts))
        shifts[concept] = moved
    return shifts


def pairs_of(
    contrast: ls.LabelledTexts,
    ranking: ls.ExpertRanking,
    shifts: Mapping[str, Sequence[np.ndarray]],
    *,
    k: int,
    permutations: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Return one row per pair of concepts: dependence and information of the labels, and the three measures.

    `cosine` is the mean over the two ways of taking an edit of one half of the texts for the one concept and of the
    other half for the other: texts that both were fitted on make no likeness.
    """
    table = ranking.overlap(k, permutations=permutations, seed=seed)
    known = [dependence(contrast, one, other) for one, other in zip(table["concept"], table["other"], strict=True)]
    for place, column in enumerate(("dependence", "information", "texts")):
        table[column] = [row[place] for row in known]
    table["cosine"] = [
        float(np.mean([_cosine(shifts[one][half], shifts[other][1 - half]) for half in (0, 1)]))
        for one, other in zip(table["concept"], table["other"], strict=True)
    ]
    return table


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size else math.nan


def agreement_of(pairs: pd.DataFrame, concepts: Sequence[str], labels: str) -> pd.DataFrame:
    """Return every measure's rank correlation with the dependence of the labels, over pairs of concepts.

    low and high: 95 %, a jackknife that leaves out one concept, with all its pairs, at a time.
    """
    rows = []
    for measure in MEASURES:
        cases = [_correlation(pairs, measure)]
        for concept in concepts:
            cases.append(_correlation(pairs[(pairs["concept"] != concept) & (pairs["other"] != concept)], measure))
        ends = ls.jackknife_interval(cases[0], np.array(cases[1:]), confidence=0.95)
        low, high = (float(np.clip(end, -1, 1)) for end in (ends.low, ends.high))
        rows.append({"labels": labels, "measure": measure, "value": cases[0], "low": low, "high": high})
    return pd.DataFrame(rows)


def _correlation(pairs: pd.DataFrame, measure: str) -> float:
    known = pairs[["dependence", measure]].dropna()
    if len(known) < 3 or known.nunique().min() < 2:
        return math.nan
    return float(spearmanr(known["dependence"], known[measure]).statistic)


def _concepts(contrast: ls.LabelledTexts, shifts: Mapping[str, Sequence[np.ndarray]]) -> pd.DataFrame:
    labels = contrast.labels
    return pd.DataFrame(
        {
            "concept": contrast.concepts,
            "source_texts": (labels == 1).sum(0),
            "target_texts": (labels == 0).sum(0),
            "cosine_of_halves": [_cosine(*shifts[concept]) for concept in contrast.concepts],
        }
    )


def _matrix(pairs: pd.DataFrame, concepts: Sequence[str], column: str) -> Any:
    table = pd.DataFrame(np.nan, index=list(concepts), columns=list(concepts))
    for row in pairs.to_dict("records"):
        table.loc[row["concept"], row["other"]] = table.loc[row["other"], row["concept"]] = row[column]
    title = MEASURES.get(column, "the correlation of the labels")
    return ls.figures.matrix(table, title=title[:1].upper() + title[1:], diverging=column != "jaccard")


def summary(frames: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return what was found, from the frames alone."""
    agreement, pairs = frames["agreement"], frames["pairs"]
    words = {ls.Verdict.HIGHER: "grows with it", ls.Verdict.LOWER: "falls with it"}
    sentences = []
    for labels, part in agreement.groupby("labels", sort=False):
        rows = part.to_dict("records")
        verdicts = {MEASURES[row["measure"]]: ls.verdict_of(row["low"], row["high"]) for row in rows}
        values = ", ".join(interval(row) for row in rows)
        start = "" if labels == "labels" else f"With {labels}: "
        over = f"{start}over {len(pairs)} pairs of concepts, beside the dependence of their labels: "
        verdict = f"{by_verdict(verdicts, words)}; rank correlations {values}."
        sentences.append(f"{over[:1].upper()}{over[1:]}{verdict}")
    independent = pairs[pairs["dependence"].abs() <= DEPENDENCE]
    if len(independent) and "shuffled_p" in pairs:
        sentences.append(_of_independent(independent))
    specific = frames["specificity"].groupby("concept", sort=False)["specific"].sum()
    few = [str(name) for name, count in specific.items() if count]
    sentences.append(
        f"{len(few)} of {len(specific)} concepts have an expert that was shown to be of no other concept here"
        + (f": {', '.join(few)}." if few else ".")
    )
    return sentences


def _captions(k: int, permutations: int, shifts: str) -> dict[str, str]:
    return {
        "pairs": f"dependence: correlation of the labels over texts that have both; information: their mutual "
        f"information, nats; jaccard: of the {k} best units, chance and shuffled_jaccard beside it ({permutations} "
        f"permutations); cosine: of what {shifts} adds in the mean, fitted on texts that share none.",
        "agreement": "Rank correlation of each measure with the dependence, over pairs; intervals over concepts.",
        "concepts": "cosine_of_halves: of two fits of one concept that share no text, the most that a cosine can be.",
        "layers": "Where the experts lie, beside the layer's share of all units.",
        "specificity": "Experts on held-out texts, and the other concept that they tell best.",
    }


if __name__ == "__main__":
    ls.study_command(run)()


def _of_independent(pairs: pd.DataFrame, level: float = 0.05) -> str:
    which = f"{len(pairs)} pairs whose labels hardly correlate (at most {DEPENDENCE})"
    of_one, resolution = level / len(pairs), float(pairs["resolution"].max())
    if resolution > of_one:
        return (
            f"Whether any of {which} share more experts than shuffled labels do cannot be judged at {level:.0%} over "
            f"all: so few permutations give no p below {resolution:.2g}, {math.ceil(1 / of_one) - 1} would do."
        )
    share, alike = (int((pairs[column] <= of_one).sum()) for column in ("shuffled_p", "correlation_p"))
    return (
        f"Of {which}, at {level:.0%} over all, {share} are shown to share more experts than shuffled labels do, and "
        f"{alike} to have AUROCs of units that correlate more."
    )
