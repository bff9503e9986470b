"""Which single units tell a concept from other texts, how well on texts that did not choose them, and what else.

One concept, or many in one pass over the texts: the units of every site are ranked by AUROC (arXiv 2407.12824) on one
half of the texts and measured on the other. Beside every claim stand a linear probe on the same layer, the same search
on shuffled labels, and the length of the texts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch

import lens_steer as ls
from analyses.experiment import MICROWORLD, Experiment, as_study
from analyses.sentences import by_verdict, listed, sentence

FALSE_DISCOVERIES = 0.05
_LENGTH_SITE = "blocks.0.mlp.hook_post"  # a place for the texts' lengths among the values that are ranked
WIDE = 0.05  # a difference of AUROC that is worth a sentence
EXPERT = 0.9  # held-out AUROC from which the sentences speak of an expert


@as_study
def run(
    model: Any,
    contrast: ls.ContrastSet | ls.LabelledTexts,
    *,
    out: str | Path | None,
    seed: int = 0,
    sites: str | Sequence[str] = "mlp.hook_post",
    pool: Literal["max", "mean", "last", "first"] = "max",
    holdout: float = 0.5,
    shuffles: int = 5,
    keep: int = 1000,
    top: int = 20,
    shown: int = 3,
    batch_size: int | None = None,
) -> ls.Study:
    """Rank the units of one concept or of many by how well each tells its texts from others.

    Frames: `by_concept` (one row a concept: the best unit, its probe and its controls), `by_layer` (the best unit of
    every site), `experts`, `shuffled_labels`, `confounds`.

    Parameters
    ----------
    model:
        A TransformerLens model.
    contrast:
        One concept, or texts labelled for many.
    out:
        The new run folder; None writes nothing.
    seed:
        Of the split in halves and of the shuffles.
    sites:
        Where to look.
    pool:
        How a text's tokens become one value: max, mean, last or first.
    holdout:
        Share of each side's texts that do not choose the unit; on them it is measured.
    shuffles:
        How many times labels are shuffled for the control.
    keep:
        Units of each concept in the table `experts`, best first.
    top:
        Units of each concept that are asked what else they tell.
    shown:
        Units (with many concepts: concepts, the best unit of each) whose texts are shown token by token.
    batch_size:
        Texts per batch; chosen by length when left out.

    Raises
    ------
    LensSteerError
        A count is below 1, or `shuffles` below 0.

    """
    experiment = Experiment.begin("expert_ranking", run, locals())
    _check(shuffles=shuffles, keep=keep, top=top, shown=shown)
    texts = contrast.labelled if isinstance(contrast, ls.ContrastSet) else contrast
    activations = ls.collect(model, contrast, sites, pool=pool, batch_size=batch_size)
    ranking = ls.rank_experts(activations, holdout=holdout, seed=seed)
    control = shuffled_labels(activations, holdout=holdout, draws=shuffles, seed=seed)
    by_layer = best_by_layer(ranking, holdout=holdout, seed=seed)
    by_concept = best_by_concept(by_layer, ranking, control)
    frames = {
        "by_concept": by_concept,
        "by_layer": by_layer,
        "experts": ranking.top(keep),
        "shuffled_labels": control,
        "confounds": confounds(ranking, top),
    }
    many = len(by_concept) > 1
    figures = {"experts": ranking.concept(by_concept["concept"].iloc[0]).plot()}
    if many:
        figures = {"by_concept": ls.figures.auroc_by_concept(ranking.frame), **figures}
    views: dict[str, Any] = {}
    for concept in by_concept["concept"].head(shown if many else 1):
        units = ranking.concept(concept).top(1 if many else shown)
        name = _file_name(concept)
        name = f"{name}_{len(views)}" if name.casefold() in map(str.casefold, views) else name
        views[name] = ls.show_units(model, texts.contrast(concept), units, batch_size=batch_size)
    return experiment.keep(
        ls.Study(
            frames=frames,
            figures=figures,
            summary=summary(frames, units=sum(site.width for site in activations.sites)),
            captions=_captions(views, holdout=holdout, shuffles=shuffles),
            tokens=views,
        )
    )


def _check(*, shuffles: int, **counts: int) -> None:
    if shuffles < 0:
        raise ls.LensSteerError(f"shuffles={shuffles}: shuffle labels 0 times or more")
    for name, count in counts.items():
        if count < 1:
            raise ls.LensSteerError(f"{name}={count}: give 1 or more")


def shuffled_labels(activations: ls.Activations, *, holdout: float, draws: int, seed: int) -> pd.DataFrame:
    """Search again with shuffled labels, each concept's among the texts that take part in it, block by block.

    Columns: concept, draw, site, unit (the best by the selection half), heldout_auroc, best_auroc (the highest AUROC of
    any unit on all texts: what a search without held-out texts would have reported).
    """
    rows = []
    for draw in range(draws):
        ranking = ls.rank_experts(activations.shuffled(seed + draw), holdout=holdout, seed=seed)
        best = ranking.top(1)[["concept", "site", "unit", "heldout_auroc"]]
        largest = ranking.frame.groupby("concept")["auroc"].max().rename("best_auroc")
        rows.append(best.join(largest, on="concept").assign(draw=draw))
    columns = ["concept", "draw", "site", "unit", "heldout_auroc", "best_auroc"]
    return pd.concat(rows, ignore_index=True)[columns] if rows else pd.DataFrame(columns=columns)


def best_by_layer(ranking: ls.ExpertRanking, *, holdout: float, seed: int) -> pd.DataFrame:
    """Return the best unit of every concept and site, its probe and how many units differ.

    `probe_auroc` is that of a linear probe on all units of the site, trained and measured on the same halves; with many
    concepts it is fitted at each concept's best site alone. `different` counts units with q <= .05, either way.
    """
    best = ranking.frame.groupby(["concept", "site"], sort=False).head(1)
    different = (ranking.frame["q_value"] <= FALSE_DISCOVERIES).groupby(
        [ranking.frame["concept"], ranking.frame["site"]]
    )
    probes = []
    for concept in ranking.activations.concepts:
        one = ranking.activations.concept(concept)
        if len(ranking.activations.concepts) > 1:
            name = best.loc[best["concept"] == concept, "site"].iloc[0]
            one = one.at(tuple(site for site in one.sites if site.name == name))
        probes.append(ls.probe_sites(one, holdout=holdout, seed=seed))
    wanted = [
        "concept", "site", "layer", "unit", "heldout_auroc", "heldout_low", "heldout_high", "selection_auroc", "auroc",
        "auroc_low", "auroc_high", "q_value", "source_mean", "target_mean",
    ]  # fmt: skip
    keys = ["concept", "site"]
    table = best[wanted].merge(pd.concat(probes)[[*keys, "probe_auroc"]], how="left", on=keys)
    table = table.merge(different.sum().rename("different").reset_index(), how="left", on=keys)
    order = {concept: place for place, concept in enumerate(ranking.activations.concepts)}
    return table.sort_values(["concept", "layer"], key=lambda part: part.replace(order), ignore_index=True)


def best_by_concept(by_layer: pd.DataFrame, ranking: ls.ExpertRanking, control: pd.DataFrame) -> pd.DataFrame:
    """Return one row per concept, the best-told first: its best unit beside the probe, shuffled labels and length.

    `shuffled_auroc` and `shuffled_best` are means over the shuffles of heldout_auroc and best_auroc; `length_auroc` is
    that of a text's number of tokens, with an interval that holds at 95 % for all concepts together; `different` counts
    units of all sites.
    """
    activations = ranking.activations
    chosen = by_layer.loc[by_layer.groupby("concept", sort=False)["selection_auroc"].idxmax()].drop(columns="different")
    sizes, lengths = {}, {}
    confidence = 1 - 0.05 / len(activations.concepts)
    for concept in activations.concepts:
        one = activations.concept(concept)
        label = one.labels[:, 0].tolist()
        sizes[concept] = (sum(label), len(label) - sum(label))
        lengths[concept] = length_auroc(label, one.lengths or (), confidence=confidence)
    means = control.groupby("concept")[["heldout_auroc", "best_auroc"]].mean()
    chosen["shuffled_auroc"] = chosen["concept"].map(means["heldout_auroc"])
    chosen["shuffled_best"] = chosen["concept"].map(means["best_auroc"])
    for place, column in enumerate(("length_auroc", "length_low", "length_high")):
        chosen[column] = [lengths[concept][place] for concept in chosen["concept"]]
    chosen["different"] = chosen["concept"].map(by_layer.groupby("concept")["different"].sum())
    chosen["source_texts"] = [sizes[concept][0] for concept in chosen["concept"]]
    chosen["target_texts"] = [sizes[concept][1] for concept in chosen["concept"]]
    return chosen.sort_values("heldout_auroc", ascending=False, ignore_index=True, kind="stable")


def length_auroc(labels: Sequence[int], lengths: Sequence[int], *, confidence: float) -> tuple[float, float, float]:
    """Return how well texts' numbers of tokens tell the sides, and the interval; nan where all are of one length."""
    if len(set(lengths)) < 2:
        return (math.nan,) * 3
    values = [
        torch.tensor([[float(n)] for n, label in zip(lengths, labels, strict=True) if label == side]) for side in (1, 0)
    ]
    alone = ls.Activations.from_arrays(source={_LENGTH_SITE: values[0]}, target={_LENGTH_SITE: values[1]})
    row = ls.rank_experts(alone, holdout=None, confidence=confidence).frame.iloc[0]
    return float(row["auroc"]), float(row["auroc_low"]), float(row["auroc_high"])


def confounds(ranking: ls.ExpertRanking, top: int) -> pd.DataFrame:
    """Return what else the best units of every concept tell: the length of a text, and each subgroup's concept."""
    parts = []
    for concept in ranking.activations.concepts:
        part = ranking.concept(concept).confounds(top)
        part.insert(0, "concept", concept)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def summary(frames: Mapping[str, pd.DataFrame], *, units: int) -> list[str]:
    """Return what was found, from the frames alone, of one concept or of many."""
    return (_many if len(frames["by_concept"]) > 1 else _one)(frames, units=units)


def _one(frames: Mapping[str, pd.DataFrame], *, units: int) -> list[str]:
    best = frames["by_concept"].iloc[0]
    counts = f"{best['source_texts']:,} texts of the concept and {best['target_texts']:,} others"
    sentences = [
        _best_unit(best),
        f"It is {best['site']}[{best['unit']}], the best of {units:,} units by one half of {counts}, measured on the "
        f"other half; {best['different']:,} units differ between the sides at a false discovery rate of "
        f"{FALSE_DISCOVERIES:.0%}.",
        f"A linear probe on all units of that site has AUROC {best['probe_auroc']:.2f} on the same texts.",
    ]
    if not pd.isna(best["shuffled_best"]):
        sentences.append(
            f"With nothing held out the same search reports AUROC {best['shuffled_best']:.2f} for shuffled labels too."
        )
    return [*sentences, _length_sentence(frames["by_concept"]), *_confound_sentences(frames["confounds"])]


def _best_unit(best: Any) -> str:
    """Say what the interval of the best unit's held-out AUROC says beside 1/2."""
    name = _plain(best["concept"])
    chance = "" if pd.isna(best["shuffled_auroc"]) else f"; with shuffled labels {best['shuffled_auroc']:.2f}"
    score = f"held-out AUROC {_auroc(best, 'heldout')}{chance}"
    return {
        ls.Verdict.HIGHER: f"The best single unit tells {name} from other texts: {score}.",
        ls.Verdict.LOWER: f"The best single unit tells {name} from other texts the other way round: {score}.",
        ls.Verdict.NOT_SHOWN: f"No single unit was shown to tell {name} from other texts: the best has {score}.",
        ls.Verdict.CANNOT_JUDGE: f"Whether a single unit tells {name} from other texts cannot be judged: {score}.",
    }[ls.verdict_of(best["heldout_low"], best["heldout_high"], reference=0.5)]


def _auroc(row: Any, of: str) -> str:
    return f"{row[f'{of}_auroc']:.2f} [{row[f'{of}_low']:.2f}, {row[f'{of}_high']:.2f}]"


def _length_sentence(table: pd.DataFrame) -> str:
    """Say of which concepts a text's length tells the sides, by its interval, and list the others."""
    rows = table.to_dict("records")
    verdicts = {
        _plain(row["concept"]): ls.verdict_of(row["length_low"], row["length_high"], reference=0.5) for row in rows
    }
    words = {
        ls.Verdict.HIGHER: "longer with it",
        ls.Verdict.LOWER: "shorter with it",
        ls.Verdict.CANNOT_JUDGE: "cannot be judged, all of one length",
    }
    shown = [
        f"{_plain(row['concept'])} {_auroc(row, 'length')}"
        for row in rows
        if len(rows) == 1 or verdicts[_plain(row["concept"])] in (ls.Verdict.HIGHER, ls.Verdict.LOWER)
    ]
    values = f"AUROC of a text's number of tokens: {listed(shown)}" if shown else ""
    return sentence(f"length of texts, {by_verdict(verdicts, words)}", values)


def _confound_sentences(table: pd.DataFrame) -> list[str]:
    of_length = table["auroc for length"]
    if of_length.isna().all():
        sentences = [
            "Whether the best units tell long texts from short ones cannot be judged: the texts without the concept "
            "are of one length."
        ]
    else:
        most = table.iloc[int((of_length - 0.5).abs().fillna(-1).to_numpy().argmax())]
        sentences = [
            f"Among texts without the concept the best unit tells long from short ones with AUROC "
            f"{of_length.iloc[0]:.2f}; of the best {len(table)}, {most['site']}[{most['unit']}] is furthest from 1/2, "
            f"with {most['auroc for length']:.2f}."
        ]
    groups = [column for column in table.columns if column.startswith("auroc in ")]
    inside = table[groups].iloc[0].dropna().astype(float)
    if len(inside):
        low, high = (str(name).removeprefix("auroc in ") for name in (inside.idxmin(), inside.idxmax()))
        sentences.append(
            f"Inside the subgroups the best unit's AUROC runs from {inside.min():.2f} ({low}) to {inside.max():.2f} "
            f"({high})."
        )
    return sentences


def _many(frames: Mapping[str, pd.DataFrame], *, units: int) -> list[str]:
    table = frames["by_concept"]
    experts = table[table["heldout_auroc"] >= EXPERT]
    chance = table["shuffled_auroc"].median()
    beside = "" if pd.isna(chance) else f"; with shuffled labels the median is {chance:.2f}"
    sentences = [
        f"For {len(experts)} of {len(table)} concepts a single unit reaches held-out AUROC {EXPERT} or more "
        f"(median over all concepts {table['heldout_auroc'].median():.2f}{beside})."
    ]
    known = table.dropna(subset=["heldout_auroc"])
    if len(known):
        first, last = known.iloc[0], known.iloc[-1]
        sentences.append(
            f"The best of {units:,} units has from {_auroc(last, 'heldout')} ({_plain(last['concept'])}) to "
            f"{_auroc(first, 'heldout')} ({_plain(first['concept'])})."
        )
    verdicts = {
        _plain(row["concept"]): ls.verdict_of(row["heldout_low"], row["heldout_high"], reference=0.5)
        for row in table.to_dict("records")
    }
    words = {ls.Verdict.HIGHER: "tells it", ls.Verdict.LOWER: "tells it the other way round"}
    sentences.append(f"The best unit, beside chance (AUROC 1/2): {by_verdict(verdicts, words)}.")
    spread = table["probe_auroc"] - table["heldout_auroc"]
    if (spread > WIDE).any():
        widest = table.iloc[int(spread.fillna(-1).to_numpy().argmax())]
        sentences.append(
            f"A linear probe on the best unit's layer has a held-out AUROC more than {WIDE} above the unit's for "
            f"{int((spread > WIDE).sum())} concepts, most for {_plain(widest['concept'])} "
            f"({widest['probe_auroc']:.2f} beside {widest['heldout_auroc']:.2f}); no interval stands beside these "
            "differences."
        )
    layers = table["layer"].value_counts()
    sentences.append(
        f"Best units lie in {len(layers)} layers, most often in layer {layers.index[0]} "
        f"({layers.iloc[0]} of {len(table)})."
    )
    return [*sentences, _length_sentence(table)]


def _captions(views: dict[str, Any], *, holdout: float, shuffles: int) -> dict[str, str]:
    return {
        "by_concept": f"The unit that tells each concept best, chosen on {1 - holdout:.0%} of its texts and measured "
        "on the rest (heldout_auroc, 95 % interval); probe_auroc: a linear probe on all units of that site, on the "
        f"same texts; shuffled_auroc: the same search with shuffled labels, mean of {shuffles}; length_auroc: a text's "
        "number of tokens in place of a unit.",
        "by_layer": "The best unit of every layer, chosen and measured likewise; different: units of the layer with "
        f"q <= {FALSE_DISCOVERIES}.",
        "experts": "Units by AUROC on the selecting texts, best first. Above 1/2: larger in the concept's texts.",
        "shuffled_labels": "The best unit for shuffled labels, draw by draw: heldout_auroc should be near 1/2; "
        "best_auroc is what the same search reports where nothing is held out.",
        "confounds": "What else the best units tell: long texts from short ones among texts without the concept (1/2 "
        "is no dependence), and the concept inside every subgroup where texts name one.",
        **dict.fromkeys(views, "The texts in which the unit is largest, coloured by its activation."),
    }


def _plain(concept: str) -> str:
    return concept.removeprefix(MICROWORLD)


def _file_name(concept: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_=" else "_" for letter in _plain(concept))


if __name__ == "__main__":
    ls.study_command(run)()
