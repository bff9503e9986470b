"""`lens-steer generate`, `ablate` and `evaluate`: what an edit does to generated texts, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from lens_steer.cli.option_values import chat_of, lines_of
from lens_steer.cli.options import (
    DIRECTORY,
    FILE,
    FINITE,
    BatchSize,
    CountOrNone,
    FittedEdit,
    HalfOptions,
    ModelOptions,
    Out,
    PlanOnly,
    SamplingOptions,
    ScoringOptions,
    Seed,
    TextOptions,
    settings_of,
)
from lens_steer.cli.planning import generation_note, show_plan
from lens_steer.cli.reporting import tell
from lens_steer.cli.runs import (
    evaluate_edit,
    require_free_place,
    require_unseen_prompts,
    say,
    seen_by_table,
    show,
    show_evaluation,
    unseen_half,
    warn_of_nothing,
    warn_of_strength,
    write_run,
)
from lens_steer.errors import SettingError, UnitError

if TYPE_CHECKING:
    import pandas as pd

    from lens_steer.interventions.intervention import Intervention
    from lens_steer.texts.contrast import ContrastSet

_SHOWN_TEXTS = 10


def generate(
    *,
    model: ModelOptions,
    prompts: Annotated[Path, Parameter(validator=FILE)],
    out: Out,
    intervention: Annotated[Path | None, Parameter(validator=DIRECTORY)] = None,
    strength: Annotated[float | None, Parameter(validator=FINITE)] = None,
    sampling: SamplingOptions = SamplingOptions(),
    chat: str | None = None,
    batch_size: BatchSize = None,
    seed: Seed = 0,
) -> None:
    """Continue prompts with and without an intervention; writes texts.csv.

    Example: lens-steer generate --model gpt2 --prompts prompts.txt --intervention runs/edit --out runs/texts

    Parameters
    ----------
    prompts:
        Prompts, one a line.
    intervention:
        A directory that `fit` wrote.
    strength:
        Of the intervention: 0 changes nothing; 1, the edit as fitted, when left out.
    chat:
        "template", or a format such as "User: {text}\\nBot:".

    """
    import pandas as pd

    from lens_steer.cli.findings import texts_study
    from lens_steer.evaluation.generation import generate as generate_texts
    from lens_steer.interventions.intervention import Intervention

    settings = settings_of(
        model, sampling, prompts=prompts, out=out, intervention=intervention, strength=strength, chat=chat,
        batch_size=batch_size, seed=seed,
    )  # fmt: skip
    if intervention is None and strength is not None:
        raise SettingError(f"--strength {strength}: there is no --intervention for it to act on")
    require_free_place(out)
    rows, chat_format = lines_of(prompts), chat_of(chat)
    edits: dict[str, Intervention | None] = {"plain": None}
    if intervention is not None:
        edits["edited"] = edit = Intervention.load(intervention)
        warn_of_strength(edit, 1.0 if strength is None else strength)
    hosted = model.load()
    columns = {
        name: generate_texts(
            hosted,
            rows,
            intervention=edit,
            strength=1.0 if strength is None else strength,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            chat=chat_format,
            seed=seed,
            batch_size=batch_size,
        )
        for name, edit in edits.items()
    }
    table = pd.DataFrame({"prompt": rows, **columns})
    show(table.head(_SHOWN_TEXTS))
    tell(tables={"texts": table})
    write_run(out, "generate", settings, texts_study(table, edits.get("edited")), hosted)


def ablate(
    *,
    model: ModelOptions,
    texts: TextOptions = TextOptions(),
    units: Annotated[Path, Parameter(validator=FILE)],
    out: Out,
    halves: HalfOptions = HalfOptions(),
    top: CountOrNone = None,
    mode: Literal["zero", "mean", "target_mean"] = "zero",
    scoring: ScoringOptions = ScoringOptions(),
    batch_size: BatchSize = None,
    seed: Seed = 0,
) -> None:
    """Hold listed units at a constant; write the scores of generated texts before and after, and the perplexity cost.

    The constant is of the half that `rank` and `fit` see, everything is measured on the other half.

    Example: lens-steer ablate --model gpt2 --texts toxic.txt --texts fine.txt --units runs/rank/experts.csv --top 100
    --out runs/ablation

    Parameters
    ----------
    units:
        csv with columns site, unit and width, as `rank` writes it.
    top:
        Ablate the first rows of the csv only.
    mode:
        What the units are held at: zero, their mean over all tokens, or over those of the target texts.

    """
    from lens_steer.activations.collect import collect
    from lens_steer.cli.findings import evaluation_study
    from lens_steer.host.units import as_units
    from lens_steer.interventions.ablation import ablate as ablate_units

    settings = settings_of(
        model, texts, halves, scoring, units=units, out=out, top=top, mode=mode, batch_size=batch_size, seed=seed
    )
    require_free_place(out)
    listed = read_units(units)
    chosen = as_units(listed if top is None else listed.head(top))
    train, held = halves.split(texts.read(n=None, seed=seed), seed)
    seen = seen_by_table(units)
    held = unseen_half(held, seen, "the ranking")
    require_unseen_prompts(scoring.prompts, seen, "the ranking")
    scoring.check(held)
    scorer = scoring.scorer(train, seed)
    hosted = model.load()
    wanted = sorted({unit.site.name for unit in chosen})
    activations = None if mode == "zero" else collect(hosted, train, wanted, batch_size=batch_size)
    edit = ablate_units(chosen, mode=mode, activations=activations, model=hosted)
    result = evaluate_edit(hosted, edit, held, scorer, scoring, seed=seed, batch_size=batch_size)
    study = evaluation_study(result, edit)
    show_evaluation(result, scorer, edit, study)
    write_run(out, "ablate", settings, study, hosted, held)


def read_units(path: Path) -> pd.DataFrame:
    """Read a table of units; UnitError where it is no csv with the columns that `rank` writes."""
    import pandas as pd

    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        raise UnitError(f"{path} cannot be read as a table of units: {error}") from error
    if missing := {"site", "unit", "width"} - set(table.columns):
        raise UnitError(f"{path} has no column {', '.join(sorted(missing))}: give the experts.csv of `lens-steer rank`")
    for column in ("unit", "width"):
        numbers = pd.to_numeric(table[column], errors="coerce")
        if not (numbers.notna() & (numbers >= 0) & (numbers % 1 == 0)).all():
            raise UnitError(f"{path}: the column {column} must hold whole numbers, 0 or more")
    if not table["site"].map(lambda site: isinstance(site, str)).all():
        raise UnitError(f"{path}: the column site must name a site in every row")
    return table


def evaluate(
    *,
    model: ModelOptions,
    texts: TextOptions = TextOptions(),
    intervention: FittedEdit,
    out: Out,
    halves: HalfOptions = HalfOptions(),
    scoring: ScoringOptions = ScoringOptions(),
    batch_size: BatchSize = None,
    seed: Seed = 0,
    plan: PlanOnly = False,
) -> None:
    """Score generated texts before and after an intervention, and the perplexity of held-out target texts.

    Example: lens-steer evaluate --model gpt2 --texts toxic.txt --texts fine.txt --intervention runs/edit
    --out runs/effect
    """
    from lens_steer.cli.findings import evaluation_study
    from lens_steer.interventions.intervention import Intervention
    from lens_steer.texts.seen import seen_in

    settings = settings_of(
        model, texts, halves, scoring, intervention=intervention, out=out, batch_size=batch_size, seed=seed
    )
    if not plan:
        require_free_place(out)
    edit = Intervention.load(intervention)
    warn_of_nothing(edit, "fit another one")
    train, held = halves.split(texts.read(n=None, seed=seed), seed)
    seen = seen_in(edit.provenance)
    held = without_those_that_chose(held, edit)
    held = unseen_half(held, seen, "the intervention")
    require_unseen_prompts(scoring.prompts, seen, "the intervention")
    scoring.check(held)
    if plan:
        hosted = model.load()
        note = generation_note(
            hosted,
            scoring.read_prompts(held)[0],
            edits=2,
            samples=scoring.samples,
            max_new_tokens=scoring.max_new_tokens,
            chat=held.chat,
        )
        show_plan(hosted, held, note, sites=[site.name for site in edit.sites], passes=2, batch_size=batch_size)
        return
    scorer = scoring.scorer(train, seed)
    hosted = model.load()
    result = evaluate_edit(hosted, edit, held, scorer, scoring, seed=seed, batch_size=batch_size)
    study = evaluation_study(result, edit)
    show_evaluation(result, scorer, edit, study)
    write_run(out, "evaluate", settings, study, hosted, held)


def without_those_that_chose(held: ContrastSet, edit: Intervention) -> ContrastSet:
    """Return the held-out texts without those that chose the strength of the edit, and say so."""
    from lens_steer.texts.seen import leave_out_seen, seen_in

    choice = edit.provenance.get("strength_choice")
    if not choice:
        return held
    left = leave_out_seen(held, seen_in(choice))
    if choice["chosen"] is not None:
        say(f"strength 1 of this edit was chosen as {choice['chosen']:g} of the fit, within {choice['budget']}")
    say(f"scored on {len(left.source)} of {len(held.source)} held-out source texts: the others chose the strength")
    return left
