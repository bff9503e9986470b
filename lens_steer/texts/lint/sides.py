"""What tells the sides apart that need not be the concept: how long texts are, single words, marks and scripts.

A difference between the sides is judged against relabelled texts (`Design.relabelled`: blocks and pairs are exchanged
as wholes), and of all words and marks together against the largest of each relabelling, so that the level holds for all
of them at once (Westfall and Young, Resampling-Based Multiple Testing, 1993). A few texts never alarm: where even a
perfect difference would not be rare among relabellings, the sides cannot be judged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.stats import rankdata
from sklearn.feature_extraction.text import CountVectorizer

from lens_steer.statistics.design import Design
from lens_steer.statistics.intervals import confidence_of_each
from lens_steer.statistics.significance import auroc_interval
from lens_steer.statistics.verdict import Verdict, verdict_of
from lens_steer.texts.lint.alphabets import script_of
from lens_steer.texts.lint.finding import Finding
from lens_steer.texts.lint.material import Material
from lens_steer.texts.scripts import word_features

_CONFIDENCE = confidence_of_each(0.95, 2)  # length, and all words and marks
_RELABELLINGS = 399
LENGTH_AREA = 0.6
"""An AUROC of length nearer to .5 than this is no finding, however many texts show it."""
GIVEAWAY = 0.5
"""A word alone tells three quarters of the texts apart where its shares of the two sides differ by this much."""
_SHOWN = 5


@dataclass(frozen=True)
class SideChecks:
    """The findings about the sides, and whether there were enough texts for any."""

    findings: tuple[Finding, ...]
    judged: bool


def check_sides(material: Material, seed: int) -> SideChecks:
    """Look for a difference in length, and for words and marks that give the side away."""
    design = Design.of(material.is_source, material.blocks, material.hashes)
    labels = design.relabelled(_RELABELLINGS, seed)
    labels = labels[labels.any(1) & ~labels.all(1)]
    same = (labels == material.is_source).all(1) | (labels != material.is_source).all(1)
    # The smallest p-value that any difference could have here.
    if (1 + same.sum()) / (1 + len(labels)) > 1 - _CONFIDENCE:
        return SideChecks((), judged=False)
    findings = [*_length(material, labels), *_giveaways(material, labels)]
    return SideChecks(tuple(findings), judged=True)


def _length(material: Material, labels: Bool[np.ndarray, "draw text"]) -> Iterator[Finding]:
    lengths = np.array([len(text) for text in material.pooled], dtype=np.float64)
    ranks = rankdata(lengths)

    def area(of: Bool[np.ndarray, "draw text"]) -> Float[np.ndarray, " draw"]:
        count = of.sum(1)
        above: Float[np.ndarray, " draw"] = (of @ ranks - count * (count + 1) / 2) / (count * (of.shape[1] - count))
        return above

    observed = float(area(material.is_source[None])[0])
    distance = abs(observed - 0.5)
    # Rounding must not part a relabelling from the labels that it equals.
    rare = (1 + (np.abs(area(labels) - 0.5) >= distance - 1e-9).sum()) / (1 + len(labels)) <= 1 - _CONFIDENCE
    if not rare or distance < LENGTH_AREA - 0.5:
        return
    sides = [lengths[side] for side in (material.is_source, ~material.is_source)]
    columns = [torch.from_numpy(side)[:, None] for side in sides]
    blocks = material.blocks[: material.size], material.blocks[material.size :]
    alone = len(np.unique(material.blocks)) == len(material.blocks)
    interval = auroc_interval(
        columns[0],
        columns[1],
        torch.tensor([observed], dtype=torch.float64),
        confidence=_CONFIDENCE,
        clusters=None if alone else blocks,
    )
    low, high = float(interval.low[0]), float(interval.high[0])
    verdict = verdict_of(low, high, reference=0.5)
    if verdict not in (Verdict.LOWER, Verdict.HIGHER):
        return
    medians = [int(np.median(side)) for side in sides]
    longer = "source" if verdict is Verdict.HIGHER else "target"
    order = np.argsort(-lengths if verdict is Verdict.HIGHER else lengths, kind="stable")
    yield Finding(
        "length",
        "warning",
        len(material.rows),
        f"{longer} texts are longer, of {medians[0]} (source) and {medians[1]} (target) characters by the median: "
        f"length alone tells source from target with AUROC {observed:.2f} [{low:.2f}, {high:.2f}]",
        "choose texts of like length: a maximum over tokens grows with it; ExpertRanking.confounds shows the units "
        "that follow it",
        material.places(order[material.is_source[order]], 2)
        + material.places(order[~material.is_source[order]][::-1], 2),
    )


def _giveaways(material: Material, labels: Bool[np.ndarray, "draw text"]) -> Iterator[Finding]:
    fewest = max(2, int(np.ceil(GIVEAWAY * min(material.sizes))))
    vectorizer = CountVectorizer(analyzer=_marks, binary=True, min_df=fewest, dtype=np.float32)
    try:
        held = vectorizer.fit_transform(material.pooled)
    except ValueError:  # no mark is so frequent
        return
    marks = vectorizer.get_feature_names_out()

    def difference(of: Bool[np.ndarray, "draw text"]) -> Float[np.ndarray, "mark draw"]:
        source = of.T.astype(np.float32)
        shares: Float[np.ndarray, "mark draw"] = held.T @ (source / source.sum(0) - (1 - source) / (1 - source).sum(0))
        return shares

    observed = difference(material.is_source[None])[:, 0]
    largest = np.abs(difference(labels)).max(0)
    p_values = (1 + (largest >= np.abs(observed)[:, None] - 1e-6).sum(1)) / (1 + len(labels))
    given = np.flatnonzero((np.abs(observed) >= GIVEAWAY - 1e-6) & (p_values <= 1 - _CONFIDENCE))
    if not len(given):
        return
    given = given[np.lexsort((marks[given], -np.abs(observed[given])))]
    giveaways = []
    for mark in given[:_SHOWN]:
        rows = held[:, [mark]].toarray()[:, 0] > 0
        counts = int(rows[: material.size].sum()), int(rows[material.size :].sum())
        giveaways.append(f"{marks[mark]} in {counts[0]} source and {counts[1]} target texts")
    more = f", and {len(given) - _SHOWN} more" if len(given) > _SHOWN else ""
    best = held[:, [given[0]]].toarray()[:, 0] > 0
    side = material.is_source if observed[given[0]] > 0 else ~material.is_source
    yield Finding(
        "giveaways",
        "warning",
        len(given),
        f"of {material.sizes[0]} and {material.sizes[1]}: {'; '.join(giveaways)}{more}",
        "where this is not the concept itself, give texts of both sides that have it, or that lack it",
        material.places(np.flatnonzero(best & side)),
    )


def _marks(text: str) -> set[str]:
    """What may give a text away: its words, how it begins and ends, and its script."""
    words = {f"the word {word!r}" for word in word_features(text) if " " not in word}
    words |= {f"the word {word!r}" for word in re.findall(r"\b[^\W\d_]\b", text.lower())}
    inside = text.strip()
    checks = {
        "white space at the beginning": text[:1].isspace(),
        "white space at the end": text[-1:].isspace(),
        "a line break": "\n" in inside,
        "a digit": any(character.isdigit() for character in text),
        "quotation marks": any(character in text for character in '"“”„«»'),
        "a capital at the beginning": inside[:1].isupper(),
        "only capitals": inside.isupper(),
    }
    if inside and not inside[-1].isalnum():
        checks[f"{inside[-1]!r} at the end"] = True
    if (script := script_of(text)) is not None:
        checks[f"{script} script"] = True
    return words | {name for name, holds in checks.items() if holds}
