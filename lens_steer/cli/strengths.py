"""`lens-steer fit --strengths --budget`: the strength of a fitted edit, chosen on held-out texts within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import CoercionError, Parameter, Token

from lens_steer.cli.option_values import several
from lens_steer.cli.options import NOT_NEGATIVE, Count, ScoringOptions
from lens_steer.cli.reporting import tell
from lens_steer.cli.runs import say, show, show_pairs
from lens_steer.errors import SettingError

if TYPE_CHECKING:
    from lens_steer.evaluation.scorers import Scorer
    from lens_steer.interventions.intervention import Intervention
    from lens_steer.texts.contrast import ContrastSet


def _numbers(_: Any, tokens: Sequence[Token]) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in several(tokens))
    except ValueError:
        raise CoercionError(msg="strengths are numbers with commas, such as 0.5,1,2", token=tokens[0]) from None


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class StrengthOptions:
    """How the strength is chosen, where --budget or --strengths is given; else the edit is saved as fitted.

    Attributes
    ----------
    budget:
        What the edit may cost on neutral texts: ppl:1.1 (perplexity at most 1.1 times the unedited one) or kl:0.1
        (nats per token). ppl:1.1 when --strengths alone is given.
    strengths:
        Strengths to try, with commas; 0.25,0.5,1,1.5,2 when --budget alone is given.
    words:
        Score by these words (commas) instead of a classifier trained on the half that is fitted on.
    unproven:
        Score by the classifier even where it was not shown to tell source from target.
    samples:
        Continuations per prompt.
    max_new_tokens:
        Tokens per continuation.
    temperature:
        0 is greedy.

    """

    budget: str | None = None
    strengths: Annotated[tuple[float, ...] | None, Parameter(converter=_numbers, n_tokens=1)] = None
    words: str | None = None
    unproven: bool = False
    samples: Count = 1
    max_new_tokens: Count = 30
    temperature: Annotated[float, Parameter(validator=NOT_NEGATIVE)] = 1.0

    @property
    def wanted(self) -> bool:
        """Whether a strength is to be chosen."""
        return self.budget is not None or self.strengths is not None

    def check(self, held: ContrastSet) -> None:
        """Read what can be wrong before the model is loaded."""
        from lens_steer.evaluation.strength_choice import checked_strengths
        from lens_steer.interventions.budget import Budget

        for name, given in (("--words", self.words is not None), ("--unproven", self.unproven)):
            if given and not self.wanted:
                raise SettingError(f"{name}: it is of the scorer that chooses a strength, give --budget")
        self._scoring.check(held)
        if self.budget is not None:
            Budget.of(self.budget)
        if self.strengths is not None:
            checked_strengths(self.strengths)

    def scorer(self, train: ContrastSet, seed: int) -> Scorer:
        """Return what scores, before the model is loaded; ContrastError where it cannot judge."""
        return self._scoring.scorer(train, seed)

    def chosen(
        self,
        hosted: Any,
        edit: Intervention,
        held: ContrastSet,
        scorer: Scorer,
        *,
        seed: int,
        batch_size: int | None,
    ) -> Intervention:
        """Return the edit whose strength 1 is the chosen one, and print how it was chosen and what it does.

        The provenance says under `strength_choice` what was tried, and has seen the texts that chose. Where nothing
        was chosen, the edit is as it was fitted.
        """
        from lens_steer.evaluation.strength_choice import STRENGTHS, choose_strength
        from lens_steer.texts.beginnings import neutral_in_groups
        from lens_steer.texts.blocks import alternate_blocks
        from lens_steer.texts.seen import known_forms, pack, seen_forms

        prompts, groups = self._scoring.read_prompts(held)
        neutral, neutral_groups = neutral_in_groups(held)
        choice = choose_strength(
            hosted,
            edit,
            prompts=prompts,
            scorer=scorer,
            neutral=neutral,
            prompt_groups=groups,
            neutral_groups=neutral_groups,
            strengths=self.strengths or STRENGTHS,
            budget=self.budget or "ppl:1.1",
            seed=seed,
            samples=self.samples,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            chat=held.chat,
            batch_size=batch_size,
        )
        show(choice.frame)
        if choice.evaluation is not None:
            show_pairs(choice.evaluation.texts)
        say(f"{choice.sentence}.")
        tell(findings=[f"{choice.sentence}."], tables={"strengths": choice.frame}, values={"strength": choice.chosen})
        chose = [
            row
            for rows, halved, named in ((held.source, prompts, groups), (neutral, neutral, neutral_groups))
            for row, chooses in zip(rows, alternate_blocks(halved, "texts", named))  # prompts are as many or fewer
            if chooses
        ]
        about = {**choice.about(), "seen": pack(seen_forms(known_forms(chose)))}
        if choice.chosen is None:
            say("the edit is saved as it was fitted")
        else:
            edit = edit.scaled(choice.chosen)
            say(f"strength 1 of what is saved is strength {choice.chosen:g} of the fit")
        return replace(edit, provenance={**edit.provenance, "strength_choice": about})

    @property
    def _scoring(self) -> ScoringOptions:
        return ScoringOptions(words=self.words, unproven=self.unproven)
