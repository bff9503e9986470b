"""What edits are measured on: prompts, scorers and neutral texts of the half that no fit has seen.

Every edit of a study is measured with the same prompts and the same random streams, so that two of them are compared
prompt by prompt and text by text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

import lens_steer as ls

PERPLEXITY = "perplexity"
"""The measure beside the concepts' own."""
_MICROWORLD = "microworld:"


Shares = tuple[Float[np.ndarray, " prompt"], Float[np.ndarray, " prompt"]]
"""Per prompt, over its continuations: the sum of what counts, and how many continuations (or sentences) that is of."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What one edit does: scores of generated texts and losses of neutral ones, before and after.

    Attributes
    ----------
    shares:
        Concept -> its score before and after; and what the scorers tell beside it, such as how many texts are
        unreadable.
    losses:
        Summed loss of each neutral text (nats), before and after, [text] each.
    tokens:
        Number of tokens that a loss sums over, [text].
    seed:
        Of the intervals.

    """

    shares: Mapping[str, tuple[Shares, Shares]]
    losses: tuple[Float[np.ndarray, " text"], Float[np.ndarray, " text"]]
    tokens: Float[np.ndarray, " text"]
    seed: int

    @classmethod
    def mean(cls, draws: Sequence[Measured]) -> Measured:
        """Pool the draws of one kind of edit: their texts, and their losses (so perplexities average geometrically)."""
        first = draws[0]

        def pooled(name: str) -> Shares:
            counted, of = (np.sum([each.shares[name][1][part] for each in draws], axis=0) for part in (0, 1))
            return counted, of

        shares = {name: (before, pooled(name)) for name, (before, _) in first.shares.items()}
        losses = (first.losses[0], np.mean([each.losses[1] for each in draws], axis=0))
        return cls(shares, losses, first.tokens, first.seed)

    def rows(self, *, confidence: float = 0.95) -> list[dict[str, Any]]:
        """One row per measure: measure, before, after, change, low, high (bootstrap over prompts or texts)."""
        return self._rows({name: before for name, (before, _) in self.shares.items()}, self.losses[0], confidence)

    def against(self, other: Measured, *, confidence: float = 0.95) -> list[dict[str, Any]]:
        """The same rows for another edit (before) and this one (after), prompt by prompt and text by text."""
        return self._rows({name: after for name, (_, after) in other.shares.items()}, other.losses[1], confidence)

    def _rows(self, old_shares: Mapping[str, Shares], old_losses: Any, confidence: float) -> list[dict[str, Any]]:
        drawn: dict[str, Any] = {"confidence": confidence, "seed": self.seed}
        rows = []
        for name, (_, after) in self.shares.items():
            before = old_shares[name]
            bounds = ls.change_interval(ls.share_change, *before, *after, **drawn)
            rows.append(_row(name, _share(*before), _share(*after), bounds))
        bounds = ls.change_interval(ls.perplexity_change, old_losses, self.losses[1], self.tokens, **drawn)
        old, new = (float(np.exp(losses.sum() / self.tokens.sum())) for losses in (old_losses, self.losses[1]))
        return [*rows, _row(PERPLEXITY, old, new, bounds)]


def _share(counted: np.ndarray, of: np.ndarray) -> float:
    return float(counted.sum() / of.sum()) if of.sum() else float("nan")


def _row(measure: str, before: float, after: float, bounds: tuple[float, float]) -> dict[str, Any]:
    values = {"before": before, "after": after, "change": after - before}
    return {"measure": measure, **values, "low": bounds[0], "high": bounds[1]}


@dataclass(eq=False)
class HeldOut:
    """Prompts, scorers and neutral texts, and how texts are sampled; `measure` reads an edit on them.

    Attributes
    ----------
    prompts:
        Continued `samples` times each, `max_new_tokens` long; only continuations are scored.
    scorers:
        Concept -> scorer of a text, in [0, 1].
    neutral:
        Texts whose perplexity is the cost of an edit.

    """

    model: Any
    prompts: tuple[str, ...]
    scorers: Mapping[str, ls.Scorer]
    neutral: tuple[Any, ...]
    samples: int
    max_new_tokens: int
    chat: Any
    seed: int
    _unedited: ls.Evaluation | None = field(default=None, repr=False)

    def measure(self, edit: ls.Intervention, strength: float = 1.0) -> Measured:
        """Generate and read under an edit; the unedited model is run once."""
        first = next(iter(self.scorers.values()))
        result = ls.evaluate(
            self.model,
            edit,
            prompts=self.prompts,
            scorer=first,
            neutral=self.neutral,
            strength=strength,
            seed=self.seed,
            samples=self.samples,
            max_new_tokens=self.max_new_tokens,
            chat=self.chat,
            before=self._unedited,
        )
        self._unedited = self._unedited or result
        before, after = (self._read(result, when) for when in ("before", "after"))
        losses = [result.neutral[column].to_numpy() for column in ("before_loss", "after_loss")]
        return Measured(
            {name: (before[name], after[name]) for name in before},
            (losses[0], losses[1]),
            result.neutral["tokens"].to_numpy().astype(float),
            self.seed,
        )

    def _read(self, result: ls.Evaluation, when: str) -> dict[str, Shares]:
        """Return every scorer's score, and what it tells beside, per prompt."""
        found = {}
        for concept, scorer in self.scorers.items():
            reading = ls.read_continuations(scorer, result.texts["prompt"].tolist(), result.texts[when].tolist())
            found[concept] = self._per_prompt(reading.effect)
            found |= {name: self._per_prompt(share) for name, share in reading.shares.items()}
        return found

    def _per_prompt(self, share: Any) -> Shares:
        counted, of = (
            np.asarray(column, dtype=float).reshape(self.samples, len(self.prompts)).sum(0)
            for column in (share.counted, share.of)
        )
        return counted, of


def beginnings(rows: Sequence[Any], *, words: int, most: int) -> tuple[str, ...]:
    """Return the first words of texts, or the prompts of pairs."""
    return tuple(" ".join(row.split()[:words]) if isinstance(row, str) else row[0] for row in rows)[:most]


def default_scorer(train: ls.ContrastSet, seed: int) -> ls.Scorer:
    """Return the exact scorer of a microworld contrast; else a classifier fitted on the training half."""
    if train.name.startswith(_MICROWORLD):
        return ls.OracleScorer(concept_name(train))
    return ls.ConceptClassifier.fit(train, seed=seed)


def concept_name(contrast: ls.ContrastSet) -> str:
    """Return what sentences and figures call the concept."""
    return contrast.name.removeprefix(_MICROWORLD)


def neutral_texts(held: ls.ContrastSet, most: int) -> tuple[Any, ...]:
    """Return the texts on which an edit costs: the contrast's control, or without one its held-out target."""
    return (held.control or held.target)[:most]


def continued(texts: Iterable[Any], *, words: int) -> Iterator[tuple[str, str]]:
    """Yield texts as (their first words, the rest); pairs as they are, and shorter texts not at all."""
    for text in texts:
        if not isinstance(text, str):
            yield text
            continue
        start = next((found.end() for place, found in enumerate(re.finditer(r"\S+", text), 1) if place == words), None)
        if start is not None and text[start:].strip():
            yield text[:start], text[start:]


def unseen(held: ls.ContrastSet, trained: Iterable[ls.ContrastSet]) -> ls.ContrastSet:
    """Return held-out texts without those that stand in some training half: contrasts may share texts."""
    seen = {row for train in trained for row in (*train.source, *train.target, *train.control)}
    source, target, control = (
        [row for row in side if row not in seen] for side in (held.source, held.target, held.control)
    )
    return ls.ContrastSet(source, target, control=control, name=held.name, chat=held.chat)


def excludes_zero(row: Any) -> bool:
    """Return whether the interval of a change lies on one side of 0; an interval that is nan does not."""
    return bool(row["low"] > 0 or row["high"] < 0)


def change_text(row: Any, column: str = "change") -> str:
    """Write a change and its interval."""
    return f"{row[column]:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study's settings as `run.json` keeps them: scorers and contrasts by their names."""
    given = ("model", "contrast", "out", "seed")
    return {name: getattr(value, "name", value) for name, value in settings.items() if name not in given}
