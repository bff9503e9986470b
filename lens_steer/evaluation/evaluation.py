"""Evaluation: what an intervention does to generated texts, and what it costs on neutral ones, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import reduce
from torch import nn

from lens_steer.errors import SettingError
from lens_steer.evaluation.generation import Prompt, generate, prompt_text
from lens_steer.evaluation.perplexity import TextLosses, text_losses
from lens_steer.evaluation.reading import Reading, Share, read_continuations
from lens_steer.evaluation.scorers import Scorer
from lens_steer.host.adapter import host_of
from lens_steer.interventions.intervention import Intervention
from lens_steer.statistics.intervals import change_interval, perplexity_change, share, share_change
from lens_steer.texts.contrast import ChatFormat, Row

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
        the change), unit, n (prompts or texts drawn again). A text that its scorer cannot judge is no part of the
        effect; a `ContinuationScorer` says how many those are.
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

    def plot(self) -> Any:
        """Draw both measures before and after, with their intervals."""
        from lens_steer.report.plots import plot

        return plot(self)


def evaluate(
    model: nn.Module,
    intervention: Intervention,
    *,
    prompts: Sequence[Prompt],
    scorer: Scorer,
    neutral: Sequence[Row],
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
        Score of a text in [0, 1]: a `WordList`, a `ConceptClassifier`, an `OracleScorer`, or anything called with
        texts.
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
        Of the intervals: percentile bootstrap, paired, over prompts (effect and shares: each prompt with all its
        samples) and over neutral texts (cost).
    before:
        An evaluation of the same model with the same prompts, neutral texts and settings, whose unedited texts and
        losses are taken over; the scorer may be another.

    Raises
    ------
    SettingError
        Settings out of range, no prompts or neutral texts, a scorer that returns another number of scores or scores
        outside [0, 1], or a `before` that differs (what does is named).

    """
    _check(prompts, neutral, samples, confidence)
    sampling: dict[str, Any] = {
        "seed": seed,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "chat": chat,
    }
    settings = {
        "model": host_of(model).provenance,
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
        texts = generate(model, rows, **run, **sampling, progress=progress)
        return texts, text_losses(model, neutral, **run, chat=pairs_chat, progress=progress)

    texts_before, losses_before = measure(None) if before is None else _taken_over(before, settings)
    texts_after, losses_after = measure(intervention)
    readings = [read_continuations(scorer, laid_out * samples, texts) for texts in (texts_before, texts_after)]
    return Evaluation(
        frame=_frame(readings, scorer.name, len(prompts), losses_before, losses_after, confidence, seed),
        texts=_texts_frame(laid_out, samples, texts_before, texts_after, readings),
        neutral=_neutral_frame(losses_before, losses_after),
        settings=settings,
    )


def _check(prompts: Sequence[Prompt], neutral: Sequence[Row], samples: int, confidence: float) -> None:
    if isinstance(prompts, str):
        raise SettingError("prompts must be a list: write a single prompt as [prompt]")
    if samples < 1:
        raise SettingError(f"samples must be 1 or more, not {samples}")
    if not 0 < confidence < 1:
        raise SettingError(f"confidence must lie between 0 and 1, not {confidence}")
    if isinstance(neutral, str) or not neutral:
        raise SettingError("neutral must be a list of texts: the cost of the edit is measured on them")


def _taken_over(before: Evaluation, settings: Mapping[str, Any]) -> tuple[list[str], TextLosses]:
    different = [name for name, value in settings.items() if before.settings.get(name) != value]
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
    rows = [
        ("effect", *_share_row([each.effect for each in readings], prompts, drawn), f"mean score of {scorer}", prompts),
        ("cost", *cost, cost[1] - cost[0], *bounds, "perplexity", len(before.sums)),
    ]
    for name, told in readings[0].shares.items():
        rows.append((name, *_share_row([each.shares[name] for each in readings], prompts, drawn), told.unit, prompts))
    return pd.DataFrame(rows, columns=["measure", "before", "after", "change", "low", "high", "unit", "n"])


def _share_row(shares: Sequence[Share], prompts: int, drawn: dict[str, Any]) -> tuple[float, ...]:
    """Return before, after, change and its bounds of a share, its prompts drawn again with all their samples."""
    columns = [
        reduce(column, "(sample prompt) -> prompt", "sum", prompt=prompts)
        for each in shares
        for column in (each.counted, each.of)
    ]
    before, after = (float(share(columns[place], columns[place + 1], 0)) for place in (0, 2))
    return before, after, after - before, *change_interval(share_change, *columns, **drawn)
