"""What edits do on held-out prompts and texts: one frame of measurements, and the intervals that follow from it.

Every edit of a study is measured with the same prompts and the same random streams, so that two of them are compared
prompt by prompt and text by text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

import lens_steer as ls

PERPLEXITY = "perplexity"
"""The measure beside the concepts' own."""
COLUMNS = ("edit", "draw", "measure", "when", "row", "counted", "of")
TEXTS_KEPT = 5  # of each edit, for a reader
When = Literal["before", "after"]
Values = Float[np.ndarray, "draw row"]


@dataclass(frozen=True, eq=False)
class Measurements:
    """Measurements of edits, on rows (prompts, or neutral texts) that are the same for all.

    Attributes
    ----------
    frame:
        One row per edit, draw of it, measure, when (before: the unedited model; after), and row. `counted` is what
        counts there: scores summed over a prompt's continuations, or a text's loss (nats); `of` is how many
        continuations, sentences or tokens that is of. A value is a ratio of sums; perplexity is its exponential.
    seed:
        Of the intervals.

    """

    frame: pd.DataFrame
    seed: int

    @classmethod
    def of(cls, parts: Iterable[pd.DataFrame], *, seed: int) -> Measurements:
        """Put the frames of `HeldOut.measure` one below the other."""
        return cls(pd.concat(list(parts), ignore_index=True), seed)

    @cached_property
    def _places(self) -> Mapping[Any, Any]:
        return self.frame.groupby(["edit", "measure", "when"], sort=False).indices

    @property
    def measures(self) -> list[str]:
        """The measures, in the order in which they were taken."""
        return [str(name) for name in self.frame["measure"].unique()]

    def values(self, edit: str, measure: str, when: When = "after") -> tuple[Values, Values]:
        """Return what counts and of how many: [draw, row] each."""
        if (edit, measure, when) not in self._places:
            raise ls.LensSteerError(f"{measure} of {edit!r} was not measured")
        part = self.frame.iloc[self._places[edit, measure, when]]
        shape = part["draw"].nunique(), -1
        return tuple(part[column].to_numpy(dtype=float).reshape(shape) for column in ("counted", "of"))

    def value(self, edit: str, measure: str, when: When = "after") -> float:
        """Return the value over all draws and rows."""
        counted, of = self.values(edit, measure, when)
        return float(_value_of(measure)(counted, of, (0, 1)))

    def changes(self, edit: str, *, confidence: float = 0.95) -> list[dict[str, Any]]:
        """Return one row per measure: measure, before, after, change, low, high, confidence.

        The interval knows how prompts (texts) vary, and how draws of the edit vary where there are several.
        """
        return [
            self._row(measure, self.values(edit, measure, "before"), self.values(edit, measure), confidence)
            for measure in self.measures
        ]

    def between(
        self, reference: str, edit: str, *, measures: Iterable[str] | None = None, confidence: float = 0.95
    ) -> list[dict[str, Any]]:
        """Return the same rows for a reference edit (before) and another edit (after), prompt by prompt."""
        return [
            self._row(measure, self.values(reference, measure), self.values(edit, measure), confidence)
            for measure in measures or self.measures
        ]

    def _row(
        self, measure: str, before: tuple[Values, Values], after: tuple[Values, Values], confidence: float
    ) -> dict[str, Any]:
        values = [float(_value_of(measure)(*columns, (0, 1))) for columns in (before, after)]
        low, high = self._bounds(measure, before, after, confidence)
        about = {"measure": measure, "before": values[0], "after": values[1], "change": values[1] - values[0]}
        return {**about, "low": low, "high": high, "confidence": confidence}

    def _bounds(
        self, measure: str, before: tuple[Values, Values], after: tuple[Values, Values], confidence: float
    ) -> tuple[float, float]:
        drawn: dict[str, Any] = {"confidence": confidence, "seed": self.seed}
        one = len(after[0]) == 1
        columns = [column[0] if one else column for column in (*before, *after)]
        if measure == PERPLEXITY:
            return ls.change_interval(ls.perplexity_change, columns[0], columns[2], columns[1], **drawn)
        if one:
            return ls.share_change_interval(*columns, **drawn)
        return ls.change_interval(ls.share_change, *columns, **drawn)

    def by_draw(self, edit: str, measure: str) -> list[tuple[float, float]]:
        """Return the value before and after, draw by draw."""
        value = _value_of(measure)
        before, after = (value(*self.values(edit, measure, when), 1).tolist() for when in ("before", "after"))
        return list(zip(before, after, strict=True))

    def over_draws(self, edit: str, *, confidence: float = 0.95) -> list[dict[str, Any]]:
        """Return the rows of `changes` with intervals over draws alone, each measured on prompts of its own."""
        rows = []
        for measure in self.measures:
            values = np.array(self.by_draw(edit, measure))
            change = values[:, 1] - values[:, 0]
            draws = len(change)
            without = np.array([np.delete(change, draw).mean() for draw in range(draws)]) if draws > 1 else change
            interval = ls.jackknife_interval(float(change.mean()), without, confidence=confidence)
            about = {"measure": measure, "before": float(values[:, 0].mean()), "after": float(values[:, 1].mean())}
            about |= {"change": interval.estimate, "low": interval.low, "high": interval.high}
            rows.append({**about, "confidence": confidence, "draws": draws})
        return rows

    def against(self, edit: str, control: str, *, confidence: float = 0.95) -> list[dict[str, Any]]:
        """Compare one edit with draws of its control, on the same rows: is it more than one more draw would be?

        Columns: measure, before (the control's mean), after (the edit), change, low, high, confidence, rank_p, draws.
        """
        rows = []
        for measure in self.measures:
            choice = self.values(edit, measure)
            if len(choice[0]) != 1:
                raise ls.LensSteerError(f"{edit!r} has several draws itself: one is held against those of a control")
            value = _value_of(measure)
            result = ls.against_draws(
                value,
                (choice[0][0], choice[1][0]),
                self.values(control, measure),
                confidence=confidence,
                seed=self.seed,
            )
            own, interval = self.value(edit, measure), result.interval
            about = {"measure": measure, "before": own - interval.estimate, "after": own, "change": interval.estimate}
            about |= {"low": interval.low, "high": interval.high, "confidence": confidence}
            rows.append({**about, "rank_p": result.rank_p, "draws": result.draws})
        return rows


def _value_of(measure: str) -> Any:
    return ls.perplexity_of if measure == PERPLEXITY else ls.share


def change_of(row: Any) -> ls.Change:
    """Return the change that a row of a table holds, at the row's own confidence."""
    return ls.Change.of(row, confidence=float(row["confidence"]))


@dataclass(eq=False)
class HeldOut:
    """Prompts, scorers and neutral texts, and how texts are sampled; `measure` reads an edit on them.

    Attributes
    ----------
    prompts:
        Continued `samples` times each, `max_new_tokens` long, at `temperature` and `top_p`; only continuations are
        scored.
    scorers:
        Measure -> scorer of a text, in [0, 1].
    neutral, neutral_name:
        Texts whose perplexity is the cost of an edit, and what sentences call them.
    texts:
        A few continuations of every edit that was measured, before and after, for a reader.

    """

    model: Any
    prompts: tuple[Any, ...]
    scorers: Mapping[str, ls.Scorer]
    neutral: tuple[Any, ...]
    neutral_name: str
    samples: int
    max_new_tokens: int
    chat: Any
    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    _unedited: ls.Evaluation | None = field(default=None, repr=False)
    _kept: list[pd.DataFrame] = field(default_factory=list, repr=False)

    @property
    def texts(self) -> pd.DataFrame:
        """Columns: edit, prompt, before, after, before_score, after_score (of the first scorer)."""
        return pd.concat(self._kept, ignore_index=True)

    def measure(
        self, edit: ls.Intervention, name: str, *, draw: int = 0, strength: float = 1.0, keep: bool = True
    ) -> pd.DataFrame:
        """Generate and read under an edit and return rows of `Measurements`; the unedited model is run once."""
        result = ls.evaluate(
            self.model,
            edit,
            prompts=self.prompts,
            scorer=next(iter(self.scorers.values())),
            neutral=self.neutral,
            strength=strength,
            seed=self.seed,
            samples=self.samples,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            chat=self.chat,
            before=self._unedited,
            progress=False,
        )
        self._unedited = self._unedited or result
        if keep and draw == 0:
            first = result.texts.head(TEXTS_KEPT).drop(columns="sample")
            self._kept.append(first.assign(edit=name)[["edit", *first.columns]])
        return self.read(result, name, draw)

    def divergence(self, edit: ls.Intervention, *, strength: float = 1.0) -> float:
        """Return the mean KL(unedited || edited) of the next token on the neutral texts, in nats per token."""
        chat = None if all(isinstance(row, str) for row in self.neutral) else self.chat
        return ls.divergence(self.model, self.neutral, intervention=edit, strength=strength, chat=chat, progress=False)

    def read(self, result: ls.Evaluation, name: str, draw: int) -> pd.DataFrame:
        """Return an evaluation as rows of `Measurements`."""
        parts = [
            _rows(measure, when, *columns)
            for when in ("before", "after")
            for measure, columns in self._scored(result, when).items()
        ]
        tokens = result.neutral["tokens"].to_numpy(dtype=float)
        parts += [
            _rows(PERPLEXITY, when, result.neutral[f"{when}_loss"].to_numpy(), tokens) for when in ("before", "after")
        ]
        frame = pd.concat(parts, ignore_index=True).assign(edit=name, draw=draw)
        return frame[list(COLUMNS)]

    def _scored(self, result: ls.Evaluation, when: str) -> dict[str, tuple[Any, Any]]:
        """Return every scorer's score per prompt, and what it says beside, such as how many texts are unreadable."""
        columns: dict[str, tuple[Any, Any]] = {}
        for measure, scorer in self.scorers.items():
            reading = ls.read_continuations(scorer, result.texts["prompt"].tolist(), result.texts[when].tolist())
            columns[measure] = self._per_prompt(reading.effect)
            columns |= {name: self._per_prompt(share) for name, share in reading.shares.items()}
        return columns

    def _per_prompt(self, share: Any) -> tuple[Any, Any]:
        counted, of = (
            np.asarray(column, dtype=float).reshape(self.samples, len(self.prompts)).sum(0)
            for column in (share.counted, share.of)
        )
        return counted, of

    @property
    def about(self) -> str:
        """What was measured on what, for a caption."""
        names = ", ".join(dict.fromkeys(scorer.name for scorer in self.scorers.values()))
        return (
            f"mean score ({names}) of {self.samples} continuation{'s' if self.samples > 1 else ''} of each of "
            f"{len(self.prompts)} prompts, and perplexity of {len(self.neutral)} {self.neutral_name}"
        )


def _rows(measure: str, when: str, counted: Any, of: Any) -> pd.DataFrame:
    return pd.DataFrame({"measure": measure, "when": when, "row": range(len(counted)), "counted": counted, "of": of})
