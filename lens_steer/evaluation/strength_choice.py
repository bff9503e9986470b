"""The choice of a strength: the most effect that a budget allows, chosen on some prompts and reported on others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from operator import not_
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from lens_steer.display.shown_result import shown_result
from lens_steer.errors import SettingError
from lens_steer.evaluation.evaluation import Evaluation, evaluate, listed
from lens_steer.evaluation.generation import generate
from lens_steer.evaluation.reading import as_scorer, read_continuations
from lens_steer.evaluation.scorers import Scorer
from lens_steer.host.prompts import Prompt, prompt_text
from lens_steer.interventions.budget import Budget
from lens_steer.interventions.intervention import Intervention, require_interventions
from lens_steer.settings import require_settings
from lens_steer.statistics.verdict import Change
from lens_steer.texts.blocks import alternate_blocks
from lens_steer.texts.contrast import ChatFormat, Row
from lens_steer.texts.seen import require_unseen, seen_in

if TYPE_CHECKING:
    import pandas as pd

STRENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True, eq=False)
class StrengthChoice:
    """Which strength was chosen within a budget, and what it does where nothing was chosen.

    Attributes
    ----------
    chosen:
        The strength; None where none that was tried is within the budget.
    budget:
        What it may cost.
    frame:
        One row per strength that was tried, on the texts that choose, and one at 0 for the unedited model: strength,
        cost (perplexity as a multiple of the unedited one, or nats per token), within (the budget), effect (mean score
        of the continuations; nan where the cost is not within it, for nothing was generated there), chosen.
    evaluation:
        The evaluation of the chosen strength on the other prompts and neutral texts; None where none was chosen.
    cost:
        What the chosen strength costs, in the budget's terms, on those other neutral texts; nan where none was chosen.
    confidence:
        Of the evaluation's intervals.

    """

    chosen: float | None
    budget: Budget
    frame: pd.DataFrame
    evaluation: Evaluation | None
    cost: float = math.nan
    confidence: float = 0.95

    @property
    def sentence(self) -> str:
        """What was found, in words that the intervals allow."""
        if self.evaluation is None or self.chosen is None:
            tried = self.frame[self.frame["strength"] != 0].sort_values("cost").to_dict("records")
            strengths = ", ".join(f"{row['strength']:g}" for row in sorted(tried, key=lambda row: row["strength"]))
            return (
                f"None of the strengths {strengths} is within the "
                f"budget {self.budget}: the cheapest, {tried[0]['strength']:g}, costs "
                f"{self.budget.said(tried[0]['cost'])}"
            )
        rows = {row["measure"]: row for row in self.evaluation.frame.to_dict("records")}
        effect, cost = (Change.of(rows[name], confidence=self.confidence) for name in ("effect", "cost"))
        subject = f"Strength {self.chosen:g}, the one with the least of the concept within {self.budget},"
        change = effect.sentence(subject, f"the {rows['effect']['unit']}")
        price = cost.sentence("it", "the perplexity of neutral texts")
        texts = f"{rows['effect']['n']} prompts and {rows['cost']['n']} texts that chose nothing"
        return f"{change}; {price}: on {texts}{self._against_budget(cost)}"

    def _against_budget(self, perplexity: Change) -> str:
        """Say what the chosen strength costs on the texts that chose nothing, where that may be beyond the budget."""
        if self.budget.kind == "kl":
            return f", at {self.budget.said(self.cost)}"
        ratio, low, high = (
            1 + end / perplexity.before for end in (perplexity.difference, perplexity.low, perplexity.high)
        )
        if high <= self.budget.limit:
            return ""
        verdict = "it is beyond the budget" if low > self.budget.limit else "it was not shown to be within the budget"
        return f"; there {verdict} ({ratio:.2f} times the perplexity [{low:.2f}, {high:.2f}])"

    def about(self) -> dict[str, Any]:
        """Return what the provenance of an edit says of the choice."""
        rows = [
            {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in row.items()
            }
            for row in self.frame.to_dict("records")
        ]
        return {"chosen": self.chosen, "budget": str(self.budget), "tried": rows, "sentence": self.sentence}

    def __repr__(self) -> str:
        return f"StrengthChoice: {self.sentence}\n{self.frame.to_string(index=False)}"

    def _repr_html_(self) -> str:
        return shown_result(f"Strength within {self.budget}", sentences=[f"{self.sentence}."], table=self.frame)


def choose_strength(
    model: nn.Module,
    intervention: Intervention,
    *,
    prompts: Sequence[Prompt],
    scorer: Scorer | Callable[[Sequence[str]], Any],
    neutral: Sequence[Row],
    prompt_groups: Sequence[str | None] | None = None,
    neutral_groups: Sequence[str | None] | None = None,
    strengths: Sequence[float] = STRENGTHS,
    budget: str | Budget = "ppl:1.1",
    seed: int = 0,
    samples: int = 1,
    max_new_tokens: int = 50,
    temperature: float = 1.0,
    top_p: float = 1.0,
    chat: ChatFormat = None,
    confidence: float = 0.95,
    batch_size: int | None = None,
    progress: bool = True,
) -> StrengthChoice:
    """Choose, of some strengths whose cost is within a budget, the one that leaves least of the concept; report it.

    Of the prompts and of the neutral texts the first, third, ... choose and the others report, so that the choice does
    not flatter the report; copies of a text, one prompt and a named group stay on one side. The cost of every strength
    is measured first; texts are generated for those within the budget only. Of equal effects the smaller strength is
    taken. The unedited model is no candidate: that an edit does nothing, or the wrong thing, is for the report to say.
    Nothing is chosen where no strength is within the budget.

    Parameters
    ----------
    model, intervention:
        The model, and the edit whose strength is chosen.
    prompts, scorer, neutral:
        As for `evaluate`; two prompts and two neutral texts, or more.
    prompt_groups, neutral_groups:
        A name per prompt and per neutral text (a topic, a template, a user), None for a row that belongs with no other.
    strengths:
        Those that are tried; 0 is not one.
    budget:
        "ppl:1.1": a perplexity of the neutral texts of at most 1.1 times the unedited model's. "kl:0.1": a mean
        KL(unedited || edited) of their next-token distributions of at most 0.1 nats per token (see `divergence`).
    seed, samples, max_new_tokens, temperature, top_p, chat, confidence, batch_size, progress:
        As for `evaluate`. Continuations that choose and those that report are drawn alike.

    Raises
    ------
    SettingError
        As `evaluate`; a budget that cannot be read; no strength, or one that is 0 or not finite; a single prompt or
        neutral text, or nothing but one block; more or fewer names of groups than rows.
    ContrastError
        The intervention has seen prompts or neutral texts.

    """
    require_settings(choose_strength, locals())
    limit, tried = Budget.of(budget), checked_strengths(strengths)
    require_interventions(intervention)
    prompts, neutral = listed("prompts", prompts), listed("neutral", neutral)
    for rows in (prompts, neutral):
        require_unseen(
            [row for row in rows if isinstance(row, str | tuple)], seen_in(intervention.provenance), "the intervention"
        )
    scorer = as_scorer(scorer)
    choosing, reporting = _halves(prompts, "prompts", prompt_groups)
    choosing_neutral, reporting_neutral = _halves(neutral, "neutral texts", neutral_groups)
    sampling: dict[str, Any] = {
        "seed": seed, "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "chat": chat,
    }  # fmt: skip
    run: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    laid_out = [prompt_text(model, prompt, 0) if not isinstance(prompt, str) else prompt for prompt in choosing]

    def effect(strength: float) -> float:
        edit = None if strength == 0 else intervention
        texts = generate(model, choosing * samples, intervention=edit, strength=strength, **sampling, **run)
        share = read_continuations(scorer, laid_out * samples, texts).effect
        return float(share.counted.sum() / share.of.sum()) if share.of.any() else math.nan

    def costs_of(texts: Sequence[Row]) -> Callable[[float], float]:
        return limit.measure(model, texts, partial(intervention.on, model), chat=chat, **run)

    cost = costs_of(choosing_neutral)
    costs = {0.0: limit.of_no_edit, **{strength: cost(strength) for strength in tried}}
    within = {strength: limit.allows(value) for strength, value in costs.items()}
    effects = {strength: effect(strength) if within[strength] else math.nan for strength in costs}
    chosen = _least(effects)
    frame = _frame(costs, within, effects, chosen)
    if chosen is None:
        return StrengthChoice(None, limit, frame, None)
    evaluation = evaluate(
            model, intervention, prompts=reporting, scorer=scorer, neutral=reporting_neutral, strength=chosen,
            samples=samples, confidence=confidence, **sampling, **run,
        )  # fmt: skip
    return StrengthChoice(chosen, limit, frame, evaluation, costs_of(reporting_neutral)(chosen), confidence)


def _halves(rows: list[Any], what: str, groups: Sequence[str | None] | None) -> tuple[list[Any], list[Any]]:
    """Return the rows that choose and those that report."""
    chooses = alternate_blocks(rows, what, groups).tolist()
    return list(compress(rows, chooses)), list(compress(rows, map(not_, chooses)))


def checked_strengths(strengths: Sequence[float]) -> list[float]:
    """Return strengths without repetitions, the smallest first; SettingError for none, 0, or one that is not finite."""
    tried = sorted({float(strength) for strength in strengths}, key=abs)
    if not tried or not all(math.isfinite(strength) and strength for strength in tried):
        raise SettingError(f"strengths are finite numbers other than 0, one or more, not {list(strengths)}")
    return tried


def _least(effects: Mapping[float, float]) -> float | None:
    """Return the strength of the smallest effect, but 0; None where there is none."""
    candidates = {strength: effect for strength, effect in effects.items() if strength and not math.isnan(effect)}
    return min(candidates, key=lambda strength: (candidates[strength], abs(strength))) if candidates else None


def _frame(
    costs: Mapping[float, float], within: Mapping[float, bool], effects: Mapping[float, float], chosen: float | None
) -> pd.DataFrame:
    import pandas as pd

    rows = [(strength, costs[strength], within[strength], effects[strength], strength == chosen) for strength in costs]
    frame = pd.DataFrame(rows, columns=["strength", "cost", "within", "effect", "chosen"])
    return frame.iloc[np.argsort(frame["strength"].to_numpy(), kind="stable")].reset_index(drop=True)
