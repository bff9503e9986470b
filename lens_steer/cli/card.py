"""`lens-steer card`: one page that answers whether one should use an edit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from lens_steer.cli.measuring import without_those_that_chose
from lens_steer.cli.option_values import lines_of, words_of
from lens_steer.cli.options import (
    DIRECTORY,
    EVERY_CONTRAST,
    FILE,
    FINITE,
    MICROWORLD,
    NOT_NEGATIVE,
    BatchSize,
    Count,
    HalfOptions,
    ModelOptions,
    PlanOnly,
    Seed,
    TextOptions,
    read_texts,
    settings_of,
)
from lens_steer.cli.planning import generation_note, show_plan
from lens_steer.cli.reporting import tell
from lens_steer.cli.runs import (
    require_free_place,
    require_unseen_prompts,
    say,
    say_written,
    unseen_half,
    warn_of_nothing,
    write_run,
)
from lens_steer.directories import require_new_file
from lens_steer.errors import SettingError
from lens_steer.evaluation.card.measured import ITEMS, ItemName

if TYPE_CHECKING:
    from lens_steer.evaluation.card.card import EditCard
    from lens_steer.evaluation.scorers import Scorer
    from lens_steer.report.study import Study
    from lens_steer.texts.contrast import ContrastSet


def card(
    edit: Annotated[Path, Parameter(validator=DIRECTORY, help="A directory that `fit` wrote.")],
    /,
    *,
    model: ModelOptions,
    texts: TextOptions = TextOptions(),
    out: Path,
    halves: HalfOptions = HalfOptions(),
    prompts: Annotated[Path | None, Parameter(validator=FILE)] = None,
    words: str | None = None,
    others: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    shuffled: str | None = None,
    items: Annotated[list[ItemName] | None, Parameter(consume_multiple=True)] = None,
    leave_out: Annotated[list[ItemName] | None, Parameter(consume_multiple=True)] = None,
    strength: Annotated[float, Parameter(validator=FINITE)] = 1.0,
    budget: str = "ppl:1.1",
    draws: Count = 20,
    samples: Count = 1,
    max_new_tokens: Count = 25,
    temperature: Annotated[float, Parameter(validator=NOT_NEGATIVE)] = 1.0,
    batch_size: BatchSize = None,
    seed: Seed = 0,
    plan: PlanOnly = False,
) -> None:
    """Answer on one page whether one should use an edit, on texts that it has not seen.

    Dose, whether the contrast is steerable at all, effect by two scorers, cost, percentile among random edits of equal
    size, what else changes, strengths within the budget, and the verdict in words.

    Example: lens-steer card runs/edit --model gpt2 --texts toxic.txt --texts fine.txt --out card.html

    Parameters
    ----------
    out:
        New file NAME.html, or a new run folder with the same page, which `lens-steer report` puts at its head.
    prompts:
        Prompts, one a line; else the first four words of up to 32 held-out source texts.
    words:
        Words (commas) of the concept, as the second scorer.
    others:
        Contrasts of other concepts, each a table, a concept file or microworld:NAME: what does the edit do to them?
    shuffled:
        "refit", to fit the edit's method once more on shuffled labels, or a directory with such an edit.
    items:
        Only these: dose, steerable, effect, cost, random, shuffled, others, strength, downstream.
    leave_out:
        All but these.
    strength:
        1 is the edit as fitted.
    budget:
        What it may cost on neutral texts: ppl:1.1 or kl:0.1.
    draws:
        Random edits beside it; 20 carry a level of 5 %.
    samples:
        Continuations per prompt.
    max_new_tokens:
        Tokens per continuation.
    temperature:
        0 is greedy.

    """
    from lens_steer.evaluation.card.edit_card import edit_card
    from lens_steer.interventions.budget import Budget
    from lens_steer.interventions.intervention import Intervention
    from lens_steer.texts.beginnings import beginnings
    from lens_steer.texts.seen import seen_in

    settings = settings_of(
        model, texts, halves, edit=edit, out=out, prompts=prompts, words=words, others=others, shuffled=shuffled,
        items=items, leave_out=leave_out, strength=strength, budget=budget, draws=draws, samples=samples,
        max_new_tokens=max_new_tokens, temperature=temperature, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    if not plan:
        _require_place(out)
    Budget.of(budget)
    wanted = _wanted(items, leave_out)
    asked = None if prompts is None else lines_of(prompts)
    listed = None if words is None else words_of(words)
    control = _shuffled(shuffled)
    intervention = Intervention.load(edit)
    warn_of_nothing(intervention, "fit another one")
    train, held = halves.split(texts.read(n=None, seed=seed), seed)
    seen = seen_in(intervention.provenance)
    held = unseen_half(without_those_that_chose(held, intervention), seen, "the intervention")
    require_unseen_prompts(prompts, seen, "the intervention")
    besides = _others(others, texts, seed)
    hosted = model.load()
    if plan:
        continued = asked or beginnings(held.source, words=4, most=32)
        edits = 2 + draws * ("random" in wanted)
        note = generation_note(
            hosted, continued, edits=edits, samples=samples, max_new_tokens=max_new_tokens, chat=held.chat
        )
        named = [site.name for site in intervention.sites]
        show_plan(hosted, held, f"{note}, at least", sites=named, passes=edits, batch_size=batch_size)
        return
    made = edit_card(
        hosted,
        intervention,
        held,
        train=train,
        scorers=None if listed is None else _with_words(listed, train, seed),
        prompts=asked,
        others=besides,
        shuffled=control,
        strength=strength,
        budget=budget,
        items=wanted,
        draws=draws,
        samples=samples,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
    )
    for sentence in made.sentences:
        say(sentence)
    tell(verdicts={"card": made.headline})
    if _is_page(out):
        tell(findings=made.sentences, tables={"card": made.frame})
        say_written(made.save(out))
        return
    write_run(out, "card", settings, card_study(made), hosted, held)
    made.save(out / "card.html")


def card_study(made: EditCard) -> Study:
    """Return a card as the study of a run folder."""
    from lens_steer.report.study import Study

    return Study(
        frames={"card": made.frame},
        figures={},
        summary=[made.headline],
        captions={"card": "Every value of the card; null: what is read if there is nothing."},
        card=made,
    )


def _is_page(out: Path) -> bool:
    return out.suffix.lower() in (".html", ".htm")


def _require_place(out: Path) -> None:
    if not _is_page(out):
        require_free_place(out)
    else:
        require_new_file(out)


def _wanted(items: list[ItemName] | None, leave_out: list[ItemName] | None) -> list[str]:
    if items and leave_out:
        raise SettingError("--items and --leave-out say the same in two ways: give one of them")
    wanted: list[str] = [item for item in ITEMS if (not items or item in items) and item not in (leave_out or [])]
    if not wanted:
        raise SettingError("--leave-out leaves nothing to measure")
    return wanted


def _shuffled(given: str | None) -> Any:
    from lens_steer.interventions.intervention import Intervention

    if given is None or given == "refit":
        return given
    if not Path(given).is_dir():
        raise SettingError(f'--shuffled {given}: give "refit", or the directory of an edit fitted on shuffled labels')
    return Intervention.load(given)


def _others(given: list[str] | None, texts: TextOptions, seed: int) -> list[ContrastSet | Scorer] | None:
    """Read the other contrasts; of the microworld's only the names are needed, for the oracle knows them all."""
    from lens_steer.evaluation.oracle_scorer import OracleScorer

    if given is None or given == [EVERY_CONTRAST]:
        return None
    return [
        OracleScorer(name.removeprefix(MICROWORLD))
        if name.startswith(MICROWORLD)
        else read_texts([name], texts.reading, None, n=None, seed=seed, option="--others")
        for name in given
    ]


def _with_words(words: list[str], train: ContrastSet, seed: int) -> list[Scorer]:
    """Return the first scorer that can judge, and the words."""
    from lens_steer.evaluation.card.judges import scorers_for
    from lens_steer.evaluation.scorers import WordList

    own = [scorer for scorer in scorers_for(None, train, seed)[0] if not isinstance(scorer, WordList)]
    return [*own[:1], WordList(words)]
