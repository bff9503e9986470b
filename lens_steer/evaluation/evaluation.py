"""Evaluation: what an intervention does to generated texts, and what it costs on neutral ones, before and after."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from einops import reduce
from jaxtyping import Float
from torch import nn

from lens_steer.display.shown_result import shown_result
from lens_steer.errors import SettingError
from lens_steer.evaluation.generation import generate
from lens_steer.evaluation.perplexity import text_losses
from lens_steer.evaluation.reading import Reading, Share, as_scorer, read_continuations
from lens_steer.evaluation.scorers import Scorer
from lens_steer.host.adapter import host_of
from lens_steer.host.fingerprint import ModelFingerprint, model_fingerprint
from lens_steer.host.next_tokens import TextLosses
from lens_steer.host.prompts import Prompt, prompt_text
from lens_steer.interventions.fingerprint import content_hash
from lens_steer.interventions.intervention import Intervention, require_interventions
from lens_steer.resumption import Part, digest_of, remembered
from lens_steer.settings import require_settings
from lens_steer.statistics.intervals import (
    change_interval,
    perplexity_change,
    require_confidence,
    share,
    share_change_interval,
)
from lens_steer.statistics.verdict import Change
from lens_steer.texts.contrast import ChatFormat, Row
from lens_steer.texts.messages import Conversation, messages_of
from lens_steer.texts.seen import require_unseen, seen_in

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Effect and cost of one intervention.

    Attributes
    ----------
    frame:
        One row per measure: measure ("effect": mean score of the generated texts; "cost": perplexity of the neutral
        texts, pooled over tokens; then the shares that the scorer tells beside its scores), before, after, change
        (after - before; a lower effect means less of the concept, a higher cost worse language), low, high (bounds of
        the change), verdict (what they say: lower, higher, not shown, cannot be judged), fell, rose (shares of the
        prompts or texts whose own value fell or rose: an edit may lower a mean and make some worse), unit, n (prompts
        or texts drawn again). A text that its scorer cannot judge is no part of the effect; a `ContinuationScorer` says
        how many those are.
    texts:
        One row per generated text: prompt, sample, before, after, before_score, after_score (nan: not judged).
    neutral:
        One row per neutral text: tokens, before_loss, after_loss (nats, summed over its tokens).
    settings:
        What the numbers of the unedited model depend on; `evaluate(before=)` compares it.

    """

    frame: pd.DataFrame
    texts: pd.DataFrame
    neutral: pd.DataFrame
    settings: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"Evaluation of {self._size}\n{self.frame.to_string(index=False)}"

    def _repr_html_(self) -> str:
        return shown_result(f"Evaluation of {self._size}", table=self.frame)

    @property
    def _size(self) -> str:
        prompts = self.texts["prompt"].size // max(1, int(self.settings.get("samples", 1)))
        return f"{prompts} prompts ({len(self.texts)} continuations) and {len(self.neutral)} neutral texts"

    def plot(self) -> Any:
        """Draw both measures before and after, with their intervals."""
        from lens_steer.report.plots import plot

        return plot(self)


def evaluate(
    model: nn.Module,
    intervention: Intervention,
    *,
    prompts: Sequence[Prompt],
    scorer: Scorer | Callable[[Sequence[str]], Any],
    neutral: Sequence[Row | Conversation],
    strength: float = 1.0,
    seed: int = 0,
    samples: int = 1,
    max_new_tokens: int = 50,
    temperature: float = 1.0,
    top_p: float = 1.0,
    chat: ChatFormat = None,
    confidence: float = 0.95,
    batch_size: int | None = None,
    progress: bool = True,
    before: Evaluation | None = None,
) -> Evaluation:
    """Generate from every prompt and measure neutral texts, without and with an intervention.

    Parameters
    ----------
    model, intervention, strength:
        What is compared: the model as it is, and the model under this much of the intervention.
    prompts:
        Texts or conversations, as for `generate`. Continued before and after with the same random streams; only the
        continuations are scored.
    scorer:
        Score of a text in [0, 1]: a `WordList`, a `ConceptClassifier`, an `OracleScorer`, or any function of a list of
        texts that returns one score per text.
    neutral:
        Texts, or (prompt, completion) pairs, that have nothing to do with the concept: the cost is measured on them,
        as they are (`chat` is for prompts and for the prompts of pairs). An edit of generated tokens acts on the
        completions, and on plain texts behind BOS; one for prompts alone, or with a gate, needs pairs.
    seed:
        Of the generations and of the intervals.
    samples:
        Continuations per prompt; the first is what `generate` returns for the same seed.
    max_new_tokens, temperature, top_p, chat, batch_size, progress:
        As in `generate`.
    confidence:
        Of the intervals, which are paired: over prompts, each with all its samples (effect and shares:
        `share_change_interval`, exact where few prompts change), and over neutral texts (cost: `change_interval`).
    before:
        An evaluation of the same model (by its fingerprint: weights, and what is attached to it) with the same prompts,
        neutral texts and settings, whose unedited texts and losses are taken over; the scorer may be another.

    Raises
    ------
    SettingError
        Settings out of range, prompts or neutral texts that are none, a scorer that cannot be called, returns another
        number of scores or scores outside [0, 1], or a `before` that differs (what does is named).
    ContrastError
        The intervention has seen prompts or neutral texts: they cannot judge it.

    """
    require_settings(evaluate, locals())
    prompts, neutral = listed("prompts", prompts), listed("neutral", neutral)
    if samples < 1:
        raise SettingError(f"samples must be 1 or more, not {samples}")
    require_confidence(confidence)
    scorer = as_scorer(scorer)
    require_interventions(intervention)
    seen = seen_in(intervention.provenance)
    for texts in (prompts, neutral):
        rows = [row for row in texts if isinstance(row, str | tuple) or messages_of(row) is not None]
        require_unseen(rows, seen, "the intervention")
    sampling: dict[str, Any] = {
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "chat": chat,
    }
    settings = {
        "model": host_of(model).provenance,
        "fingerprint": model_fingerprint(model, users_hooks=True).content(),
        "prompts": tuple(prompts),
        "neutral": tuple(neutral),
        "samples": samples,
        **sampling,
    }
    rows = [prompt for _ in range(samples) for prompt in prompts]
    laid_out = [prompt if isinstance(prompt, str) else prompt_text(model, prompt, 0) for prompt in prompts]
    pairs_chat = None if all(isinstance(row, str) for row in neutral) else chat

    def measure(edit: Intervention | None) -> tuple[list[str], TextLosses]:
        run: dict[str, Any] = {"intervention": edit, "strength": strength, "batch_size": batch_size}

        def compute() -> Part:
            texts = generate(model, rows, **run, **sampling, progress=progress)
            losses = text_losses(model, neutral, **run, chat=pairs_chat, progress=progress)
            return Part({"texts": texts}, {name: torch.from_numpy(array) for name, array in vars(losses).items()})

        of_edit = "" if edit is None else content_hash(edit.edits, strength)
        part = remembered({"evaluation": of_edit, "of": digest_of(rows, neutral, sampling)}, compute)
        return part.values["texts"], TextLosses(**{name: tensor.numpy() for name, tensor in part.tensors.items()})

    texts_before, losses_before = measure(None) if before is None else _taken_over(before, settings)
    texts_after, losses_after = measure(intervention)
    readings = [read_continuations(scorer, laid_out * samples, texts) for texts in (texts_before, texts_after)]
    return Evaluation(
        frame=_frame(readings, scorer.name, len(prompts), losses_before, losses_after, confidence, seed),
        texts=_texts_frame(laid_out, samples, texts_before, texts_after, readings),
        neutral=_neutral_frame(losses_before, losses_after),
        settings=settings,
    )


def listed(name: str, rows: Any) -> list[Any]:
    """Return prompts or neutral texts as a list, and refuse what is none before anything is generated."""
    if isinstance(rows, str | bytes | Mapping) or hasattr(rows, "columns") or not isinstance(rows, Iterable):
        raise SettingError(
            f"{name} must be a list of texts, not one {type(rows).__name__}: write a single one as [text]"
        )
    listed = list(rows)
    if not listed:
        raise SettingError(f"{name} must hold a text or more: there is no {_ONE_OF[name]}")
    for place, row in enumerate(listed):
        if not isinstance(row, str | tuple | list | Mapping):
            raise SettingError(f"{name}[{place}] is a {type(row).__name__}, not a text")
    return listed


_ONE_OF = {"prompts": "prompt to continue", "neutral": "text to measure the cost of the edit on"}


def _taken_over(before: Evaluation, settings: Mapping[str, Any]) -> tuple[list[str], TextLosses]:
    different = [name for name, value in settings.items() if before.settings.get(name) != value]
    if "fingerprint" in different:
        fingerprint = before.settings.get("fingerprint")
        here = ModelFingerprint.rebuilt(settings["fingerprint"])
        unlike = ModelFingerprint.rebuilt(fingerprint).difference(here) if fingerprint else "it has no fingerprint"
        different.remove("fingerprint")
        different += [f"weights or attached edits of the model ({unlike})"] if unlike else []
    if different:
        raise SettingError(
            f"before= is an evaluation with other {', '.join(different)}: its unedited texts cannot be taken over"
        )
    losses = TextLosses(before.neutral["before_loss"].to_numpy(), before.neutral["tokens"].to_numpy())
    return before.texts["before"].tolist(), losses


def _texts_frame(
    prompts: Sequence[str], samples: int, before: list[str], after: list[str], readings: Sequence[Reading]
) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(
        {
            "prompt": list(prompts) * samples,
            "sample": np.repeat(np.arange(samples), len(prompts)),
            "before": before,
            "after": after,
            "before_score": readings[0].scores,
            "after_score": readings[1].scores,
        }
    )


def _neutral_frame(before: TextLosses, after: TextLosses) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame({"tokens": before.counts, "before_loss": before.sums, "after_loss": after.sums})


def _frame(
    readings: Sequence[Reading],
    scorer: str,
    prompts: int,
    before: TextLosses,
    after: TextLosses,
    confidence: float,
    seed: int,
) -> pd.DataFrame:
    import pandas as pd

    drawn: dict[str, Any] = {"confidence": confidence, "seed": seed}
    cost = before.perplexity(), after.perplexity()
    columns = (before.sums, after.sums, before.counts.astype(float))
    bounds = change_interval(perplexity_change, *columns, **drawn)
    texts = len(before.sums)
    rows = [
        (
            "effect",
            *_share_row([reading.effect for reading in readings], prompts, drawn),
            f"mean score of {scorer}",
            prompts,
        ),
        ("cost", *cost, *bounds, *_moves(before.sums, after.sums), "perplexity", texts),
    ]
    for name, first in readings[0].shares.items():
        shares = [reading.shares[name] for reading in readings]
        rows.append((name, *_share_row(shares, prompts, drawn), first.unit, prompts))
    frame = pd.DataFrame(rows, columns=["measure", "before", "after", "low", "high", "fell", "rose", "unit", "n"])
    frame.insert(3, "change", frame["after"] - frame["before"])
    frame.insert(
        6, "verdict", [Change.of(row, confidence=confidence).verdict.value for row in frame.to_dict("records")]
    )
    return frame


def _share_row(shares: Sequence[Share], prompts: int, drawn: dict[str, Any]) -> tuple[float, ...]:
    """Return before, after, bounds of the change, and how many fell and rose: prompts with all their samples."""
    columns = [
        reduce(column, "(sample prompt) -> prompt", "sum", prompt=prompts)
        for counted in shares
        for column in (counted.counted, counted.of)
    ]
    before, after = (float(share(columns[place], columns[place + 1], 0)) for place in (0, 2))
    with np.errstate(invalid="ignore"):
        moves = _moves(columns[0] / columns[1], columns[2] / columns[3])
    return before, after, *share_change_interval(*columns, **drawn), *moves


def _moves(before: Float[np.ndarray, " row"], after: Float[np.ndarray, " row"]) -> tuple[float, float]:
    """The shares of rows, of those that have a value before and after, that fell and that rose."""
    change = (after - before)[np.isfinite(before) & np.isfinite(after)]
    if not len(change):
        return math.nan, math.nan
    small = np.isclose(change, 0, atol=1e-9)
    return float((change[~small] < 0).sum() / len(change)), float((change[~small] > 0).sum() / len(change))
