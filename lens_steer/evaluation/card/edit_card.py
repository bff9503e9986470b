"""Making an edit card: every item tried on the same held-out prompts and texts, with the same random streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from torch import nn

from lens_steer.activations.collect import collect
from lens_steer.errors import SettingError
from lens_steer.evaluation.card.card import EditCard
from lens_steer.evaluation.card.controls import random_item, shuffled_item, try_controls
from lens_steer.evaluation.card.cost import cost_item
from lens_steer.evaluation.card.dose import DoseReader, dose_item
from lens_steer.evaluation.card.downstream import downstream_item
from lens_steer.evaluation.card.effect import effect_item
from lens_steer.evaluation.card.identity import facts_of
from lens_steer.evaluation.card.judges import Judged, Judges, readability_for, scorers_for
from lens_steer.evaluation.card.measured import ITEMS, Item, ItemName
from lens_steer.evaluation.card.norm_matched import matched_in_norm
from lens_steer.evaluation.card.other_contrasts import other_scorers, others_item
from lens_steer.evaluation.card.refitted import refitted_on_shuffled
from lens_steer.evaluation.card.steerable import steerable_item
from lens_steer.evaluation.card.strengths import strength_item
from lens_steer.evaluation.card.trial import Trial, Tried
from lens_steer.evaluation.card.verdict import headline
from lens_steer.evaluation.evaluation import listed
from lens_steer.evaluation.scorers import Scorer
from lens_steer.evaluation.strength_choice import STRENGTHS, checked_strengths
from lens_steer.host.prompts import Prompt
from lens_steer.interventions.budget import Budget
from lens_steer.interventions.intervention import Intervention, require_interventions
from lens_steer.progress import progress_bar
from lens_steer.settings import require_settings
from lens_steer.statistics.intervals import FEWEST_DRAWS, require_confidence
from lens_steer.texts.beginnings import neutral_in_groups, prompts_in_groups
from lens_steer.texts.contrast import ContrastSet, Row, require_contrast
from lens_steer.texts.messages import Conversation
from lens_steer.texts.seen import require_unseen, seen_in

_FEWEST = 4  # texts a side, prompts, neutral texts
_PROMPT_WORDS = 4
_MOST_PROMPTS, _MOST_NEUTRAL, _MOST_DOSED, _MOST_TEXTS = 32, 24, 16, 60
_PAIRS = 3
_LONGEST = 400  # characters of a text that is shown


def edit_card(
    model: nn.Module,
    edit: Intervention,
    contrast: ContrastSet,
    *,
    train: ContrastSet | None = None,
    scorers: Sequence[Scorer | Callable[[Sequence[str]], Any]] | None = None,
    prompts: Sequence[Prompt] | None = None,
    neutral: Sequence[Row | Conversation] | None = None,
    others: Sequence[ContrastSet | Scorer] | None = None,
    shuffled: Intervention | Literal["refit"] | None = None,
    strength: float = 1.0,
    strengths: Sequence[float] = STRENGTHS,
    budget: str | Budget = "ppl:1.1",
    items: Sequence[str] = ITEMS,
    draws: int = FEWEST_DRAWS,
    samples: int = 1,
    max_new_tokens: int = 25,
    temperature: float = 1.0,
    confidence: float = 0.95,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = True,
) -> EditCard:
    """Answer on one page whether one should use an edit.

    A text *misses* where the concept is still there, or where it cannot be read: an edit that breaks the model is no
    success. Everything is measured on texts that the edit has not seen.

    Parameters
    ----------
    model, edit:
        The model, and the edit in question.
    contrast:
        Held-out texts of the concept, four or more a side: the part of `contrast.split()` that the fit has not had.
    train:
        The part that it has had: it trains the classifier and gives the words that score. None: a half of `contrast`
        does, and the other half measures.
    scorers:
        What judges, the first for the verdict; better of different kinds, and never the model that is edited. None: the
        oracle of a contrast of the microworld, and a `ConceptClassifier`; elsewhere the classifier and a `WordList` of
        words that hardly any target text has. A scorer that cannot tell the sides apart is left out, which is said.
    prompts:
        To continue; the first four words of up to 32 held-out source texts, when None.
    neutral:
        What the cost is measured on; the control texts of the contrast, or without any its target texts, 24 at most.
    others:
        Contrasts of other concepts (or scorers of them), on which the same continuations are judged; for a contrast of
        the microworld all its other values, when None.
    shuffled:
        The same fit on shuffled labels, or "refit" to make it from the texts in `train` that the edit has seen.
    strength, strengths, budget:
        The strength that is judged; those of the curve, in multiples of it, and what they may cost (see
        `choose_strength`).
    items:
        What to measure: dose (norm of the writes over norm of the stream), steerable (cosine of differences, d',
        probe), effect, cost, random (percentile among random edits of equal sites, units and write norm), shuffled,
        others, strength, downstream.
    draws:
        Random edits; 20 carry a level of 5 %.
    samples, max_new_tokens, temperature, confidence, seed, batch_size, progress:
        As for `evaluate`.

    Raises
    ------
    ContrastError
        Fewer than four texts a side, or the edit has seen texts, prompts or neutral texts.
    SettingError
        An unknown item, a setting out of range, fewer than four prompts or neutral texts, a scorer that is none;
        a fit that cannot be made again.
    ArtifactError
        The edit was fitted on another model.
    SiteError, ModelError, TokenError
        As `Intervention.on` and `generate` say.

    """
    require_settings(edit_card, locals())
    wanted, limit = _checked_items(items), Budget.of(budget)
    tried = checked_strengths(strengths)
    require_confidence(confidence)
    if draws < 1 or samples < 1:
        raise SettingError(f"draws and samples are 1 or more, not {draws} and {samples}")
    require_interventions(edit)
    for given in (contrast,) if train is None else (contrast, train):
        require_contrast(given)
    contrast.require(_FEWEST if train is not None else 2 * _FEWEST, "edit_card")
    train, held = contrast.split(0.5, seed) if train is None else (train, contrast)
    asked: Sequence[Prompt]
    plain: Sequence[Row | Conversation]
    asked, prompt_groups = (
        prompts_in_groups(held, words=_PROMPT_WORDS, most=_MOST_PROMPTS) if prompts is None else (prompts, None)
    )
    plain, neutral_groups = neutral_in_groups(held, most=_MOST_NEUTRAL) if neutral is None else (neutral, None)
    trial = Trial(
        model, _enough("prompts", asked), _enough("neutral", plain), samples, max_new_tokens, temperature, held.chat,
        seed, batch_size, confidence,
        prompt_groups=prompt_groups, neutral_groups=neutral_groups,
    )  # fmt: skip
    _require_unseen(edit, held, trial)
    with edit.on(model):
        pass  # whether it is of this model, before anything is measured
    asked_of = _Questions(
        trial=trial,
        edit=edit if strength == 1.0 else edit.scaled(strength),
        held=held,
        train=train,
        given=scorers,
        others=others,
        shuffled=shuffled,
        strengths=tried,
        budget=limit,
        draws=draws,
    )
    answers: dict[str, Item] = {}
    left_out: dict[str, str] = {name: "not asked for" for name in ITEMS if name not in wanted}
    for name in progress_bar(wanted, desc="edit card", unit="item", show=progress):
        answer = asked_of.answer(name)
        if isinstance(answer, Item):
            answers[name] = answer
        else:
            left_out[name] = answer
    return EditCard(
        headline=headline([row for item in answers.values() for row in item.rows], limit),
        facts=facts_of(model, edit, strength=strength),
        items=answers,
        left_out=left_out,
        texts=asked_of.pairs if {"effect", "random", "others"} & answers.keys() else (),
        settings={
            "contrast": contrast.name,
            "source_texts": len(held.source),
            "target_texts": len(held.target),
            "prompts": len(trial.prompts),
            "samples": samples,
            "neutral": len(trial.neutral),
            "neutral_texts": "given" if neutral is not None else "control" if held.control else "target",
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "strength": strength,
            "budget": str(limit),
            "draws": draws,
            "confidence": confidence,
            "seed": seed,
        },
    )


@dataclass(frozen=True, eq=False)
class _Questions:
    """The items of a card, and what several of them share, measured when it is first needed."""

    trial: Trial
    edit: Intervention
    held: ContrastSet
    train: ContrastSet
    given: Sequence[Any] | None
    others: Sequence[ContrastSet | Scorer] | None
    shuffled: Intervention | Literal["refit"] | None
    strengths: Sequence[float]
    budget: Budget
    draws: int

    def answer(self, name: ItemName) -> Item | str:
        """Return an item, or why it is left out."""
        item: Item | str = getattr(self, f"_{name}")()
        return item

    @cached_property
    def _after(self) -> Tried:
        return self.trial.run(self.edit)

    @cached_property
    def _scorers(self) -> tuple[tuple[Scorer, ...], tuple[str, ...]]:
        return scorers_for(self.given, self.train, self.trial.seed)

    @cached_property
    def _judges(self) -> Judges:
        scorers = self._scorers[0]
        return Judges(scorers, readability_for(scorers, self.trial), self.trial)

    @cached_property
    def _judged(self) -> tuple[Judged, Judged]:
        return self._judges.judge(self.trial.unedited), self._judges.judge(self._after)

    @cached_property
    def _doses(self) -> DoseReader:
        return DoseReader(
            self.trial.model, self.held.source[:_MOST_DOSED], chat=self.held.chat, batch_size=self.trial.batch_size
        )

    @property
    def pairs(self) -> tuple[tuple[str, str, str], ...]:
        """The first prompts with both continuations."""
        rows = zip(self.trial.laid_out, self.trial.unedited.texts, self._after.texts, strict=True)
        return tuple((_cut(prompt), _cut(old), _cut(new)) for prompt, old, new in list(rows)[:_PAIRS])

    def _dose(self) -> Item:
        return dose_item(self._doses.read(self.edit))

    def _steerable(self) -> Item:
        return steerable_item(
            self.trial.model, self.edit, _some(self.held), confidence=self.trial.confidence, seed=self.trial.seed,
            batch_size=self.trial.batch_size,
        )  # fmt: skip

    def _effect(self) -> Item:
        scorers, refused = self._scorers
        item = effect_item(self.trial, self._judges, *self._judged)
        alone = () if len(scorers) > 1 else ("a second scorer of another kind",)
        return replace(item, left_out=(*refused, *alone))

    def _cost(self) -> Item:
        return cost_item(self.trial, self.edit, self._after)

    def _random(self) -> Item:
        names = [site.name for site in self.edit.sites]
        activations = collect(
            self.trial.model, _some(self.held), names, batch_size=self.trial.batch_size, progress=False
        )
        edits = matched_in_norm(self.edit, activations, self._doses, draws=self.draws, seed=self.trial.seed)
        controls = try_controls(self.trial, self._judges, edits)
        before, after = self._judged
        return random_item(self.trial, self._judges, before, self._after, after, controls)

    def _shuffled(self) -> Item | str:
        if self.shuffled is None:
            return 'no fit on shuffled labels was given: shuffled=, an edit or "refit"'
        control = self.shuffled
        if control == "refit":
            control = refitted_on_shuffled(self.trial.model, self.edit, self.train, seed=self.trial.seed)
        return shuffled_item(self.trial, self._judges, self._judged[1], self._judges.judge(self.trial.run(control)))

    def _others(self) -> Item | str:
        scorers, refused = other_scorers(self.others, self.held, self.trial.seed)
        if not scorers:
            return "; ".join(refused) or "no other contrast was given: others="
        return replace(others_item(self.trial, scorers, self._after, *self._judged), left_out=refused)

    def _strength(self) -> Item | str:
        if not self._judges.scorers:
            return "no scorer can judge what a strength does"
        return strength_item(
            self.trial, self.edit, self._judges.scorers[0], strengths=self.strengths, budget=self.budget
        )

    def _downstream(self) -> Item:
        return downstream_item(
            self.trial.model, self.edit, _some(self.held), self.trial.neutral, confidence=self.trial.confidence,
            batch_size=self.trial.batch_size,
        )  # fmt: skip


def _checked_items(items: Sequence[str]) -> tuple[ItemName, ...]:
    given = [items] if isinstance(items, str) else list(items)
    unknown = [item for item in given if item not in ITEMS]
    if unknown or not given:
        what = f"has no item {unknown[0]!r}" if unknown else "needs an item or more"
        raise SettingError(f"a card {what}; there are {', '.join(ITEMS)}")
    return tuple(item for item in ITEMS if item in given)


def _enough(name: str, rows: Sequence[Any]) -> tuple[Any, ...]:
    given = listed(name, rows)
    if len(given) < _FEWEST:
        raise SettingError(f"{name}: a card needs {_FEWEST} or more, not {len(given)}; with so few nothing can be told")
    return tuple(given)


def _require_unseen(edit: Intervention, held: ContrastSet, trial: Trial) -> None:
    seen = seen_in(edit.provenance)
    for rows in (held.source + held.target, trial.prompts, trial.neutral):
        require_unseen(rows, seen, "the edit")


def _some(contrast: ContrastSet) -> ContrastSet:
    """The first texts a side: enough for a summary."""
    most = min(_MOST_TEXTS, len(contrast.source), len(contrast.target))
    few = max(len(contrast.source), len(contrast.target)) <= _MOST_TEXTS
    return contrast if few else contrast.subsample(most)


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[:_LONGEST] + " …"
