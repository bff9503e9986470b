"""What a unit causes: its own top texts' next tokens with the unit held at its mean, beside units like it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from lens_steer.activations.activations import Activations
from lens_steer.host.adapter import host_of
from lens_steer.host.tokens import Tokens
from lens_steer.host.trunk import text_logits
from lens_steer.host.turns import taking_turns
from lens_steer.host.units import Unit
from lens_steer.interventions.ablation import ablate
from lens_steer.interventions.intervention import Intervention
from lens_steer.statistics.intervals import against_draws
from lens_steer.statistics.jackknife import case_means, jackknife_interval, leave_groups_out
from lens_steer.statistics.verdict import verdict_of
from lens_steer.texts.blocks import blocks_of
from lens_steer.texts.contrast import Row

if TYPE_CHECKING:
    import pandas as pd

NEXT, WORDS = "next tokens", "words"
_BUDGET = 1024  # tokens in a batch: the logits of all of them are held


@dataclass(frozen=True, eq=False)
class TopTexts:
    """The texts in which a unit is largest, tokenised, and the token of each where it is."""

    rows: Sequence[Row]
    tokens: Tokens
    peaks: Sequence[int]


@dataclass(frozen=True, eq=False)
class UnitCauses:
    """What holding a unit at its mean changes, and what holding each of the units like it does.

    `frame` and `next_tokens` are those of a `UnitPage`; `controls` are measure -> the mean change of every control.
    """

    frame: pd.DataFrame
    next_tokens: pd.DataFrame
    controls: dict[str, Float[np.ndarray, " draw"]]


def unit_causes(
    model: nn.Module,
    unit: Unit,
    controls: Sequence[Unit],
    texts: TopTexts,
    activations: Activations,
    *,
    words: Sequence[int],
    predictions: int,
    confidence: float,
    seed: int,
) -> UnitCauses:
    """Hold a unit, and each control in its place, at its token mean over `activations`, and read the next tokens.

    `words` are token ids whose probability is read at the same tokens; `predictions` is how many of the tokens whose
    probability falls and rises most after the largest activation are told.
    """
    before = _read(model, texts, words, None)
    after, *of_controls = (
        _read(model, texts, words, _held(one, activations), peaks=one is unit) for one in (unit, *controls)
    )
    kept = leave_groups_out(blocks_of(texts.rows))[0]
    rows, changes = [], {}
    for measure in (NEXT, *([WORDS] if words else [])):
        start, end = before.means[measure], after.means[measure]
        change = end - start
        cases = case_means(kept, change)
        interval = jackknife_interval(float(cases[0]), cases[1:], confidence=confidence)
        of_draws = np.stack([one.means[measure] - start for one in of_controls])
        changes[measure] = of_draws.mean(1)
        beside = against_draws(_mean, (change,), (of_draws,), confidence=confidence, seed=seed)
        low, high = beside.interval.low, beside.interval.high
        rows.append(
            {
                "measure": measure,
                "texts": len(change),
                "before": float(start.mean()),
                "after": float(end.mean()),
                "change": interval.estimate,
                "low": interval.low,
                "high": interval.high,
                "verdict": verdict_of(interval.low, interval.high).value,
                "control": float(changes[measure].mean()),
                "beyond": beside.interval.estimate,
                "beyond_low": low,
                "beyond_high": high,
                "beyond_verdict": verdict_of(low, high).value,
                "rank_p": beside.rank_p,
                "draws": beside.draws,
            }
        )
    import pandas as pd

    return UnitCauses(pd.DataFrame(rows), _predictions(model, texts, before, after, predictions), changes)


@dataclass(frozen=True, eq=False)
class _Reading:
    """Measure -> mean log-probability of every text (nats), and the law of the next token behind the peak of each."""

    means: dict[str, Float[np.ndarray, " text"]]
    peaks: list[Float[Tensor, " token"]]


def _held(unit: Unit, activations: Activations) -> Intervention:
    """The unit at the mean of its activations over all tokens."""
    value = float(activations.token_mean(unit.site, "all")[unit.index])
    return ablate([unit], mode="value", value=value)


@torch.no_grad()
def _read(
    model: nn.Module, texts: TopTexts, words: Sequence[int], edit: Intervention | None, *, peaks: bool = True
) -> _Reading:
    device = host_of(model).device
    means = {name: np.zeros(len(texts.tokens)) for name in (NEXT, WORDS)}
    laws: list[Tensor] = [torch.empty(0)] * len(texts.tokens)
    with taking_turns(model), nullcontext() if edit is None else edit.on(model):
        for rows, batch in texts.tokens.batches(budget=_BUDGET):
            logits = text_logits(model, batch.to(device))
            for place, row in enumerate(rows):
                logs = logits[place].float().log_softmax(1)
                counted = (batch.mask & batch.pooled)[place, 1:]
                followed = logs[:-1][counted.to(device)]
                following = batch.ids[place, 1:][counted].to(device)
                means[NEXT][row] = float(followed.gather(1, following[:, None]).double().mean())
                if words:
                    means[WORDS][row] = float(followed[:, list(words)].logsumexp(1).double().mean())
                if peaks:
                    laws[row] = logs[texts.peaks[row]].cpu()
    return _Reading(means, laws)


def _predictions(model: nn.Module, texts: TopTexts, before: _Reading, after: _Reading, most: int) -> pd.DataFrame:
    """Return the tokens whose probability the ablation changes most, behind the largest activation of every text."""
    import pandas as pd

    tokenizer = host_of(model).tokenizer
    rows: list[dict[str, Any]] = []
    for rank, (old, new) in enumerate(zip(before.peaks, after.peaks, strict=True)):
        ids, peak = texts.tokens.ids[rank], texts.peaks[rank]
        change = new.exp() - old.exp()
        about = {
            "rank": rank,
            "position": peak,
            "at": tokenizer.decode([ids[peak]]),
            "next": tokenizer.decode([ids[peak + 1]]) if peak + 1 < len(ids) else "",
            "kl": float((old.exp() * (old - new)).sum()),
        }
        for direction, sign in (("falls", -1), ("rises", 1)):
            for token in (sign * change).topk(min(most, len(change))).indices.tolist():
                values = {"before": float(old[token].exp()), "after": float(new[token].exp())}
                rows.append({**about, "direction": direction, "token": tokenizer.decode([token]), **values})
    return pd.DataFrame(rows)


def _mean(values: Any, axis: Any) -> Any:
    return values.mean(axis=axis)
