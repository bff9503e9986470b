"""What commands do with a result: score it, print it, write its run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lens_steer.cli.options import lines_of

if TYPE_CHECKING:
    import pandas as pd

    from lens_steer.evaluation.evaluation import Evaluation
    from lens_steer.evaluation.scorers import Scorer
    from lens_steer.interventions.intervention import Intervention
    from lens_steer.report.study import Study
    from lens_steer.texts.contrast import ContrastSet

_PROMPT_WORDS = 4
_MOST_PROMPTS = 100


def evaluate_edit(
    hosted: Any,
    edit: Intervention,
    halves: tuple[ContrastSet, ContrastSet],
    prompts: Path | None,
    words: str | None,
    seed: int,
    batch_size: int | None,
    decoding: dict[str, Any],
) -> tuple[Evaluation, Scorer]:
    """Score on the second half of the texts, which neither `fit` nor the classifier has seen."""
    from lens_steer.evaluation.evaluation import evaluate as evaluate_edit
    from lens_steer.evaluation.scorers import ConceptClassifier, WordList
    from lens_steer.texts.beginnings import beginnings

    train, held = halves
    scorer: Scorer = WordList(words.split(",")) if words else ConceptClassifier.fit(train, seed=seed)
    rows = lines_of(prompts) if prompts else list(beginnings(held.source, words=_PROMPT_WORDS, most=_MOST_PROMPTS))
    result = evaluate_edit(
        hosted,
        edit,
        prompts=rows,
        scorer=scorer,
        neutral=held.target,
        seed=seed,
        chat=held.chat,
        batch_size=batch_size,
        **decoding,
    )
    return result, scorer


def show_evaluation(result: Evaluation, scorer: Scorer, edit: Intervention) -> None:
    """Print what an edit does and costs, and how far the scorer can be trusted."""
    typer.echo(repr(edit))
    accuracy = getattr(scorer, "heldout_accuracy", None)
    if accuracy is not None:
        typer.echo(f"scored by {scorer.name}, whose accuracy on held-out texts is {accuracy:.3f}")
    show(result.frame)


def write_run(
    out: Path, command: str, settings: dict[str, Any], study: Study, hosted: Any, contrast: ContrastSet | None = None
) -> None:
    """Write a run folder, with each table as csv too."""
    from lens_steer.report.run_folder import save_study

    seed = settings.get("seed")
    save_study(study, out, name=command, model=hosted, contrast=contrast, seed=seed, settings=settings, csv=True)
    typer.echo(f"written to {out}")


def require_free_place(out: Path) -> None:
    """Refuse an occupied place before the work is done, not after it."""
    from lens_steer import directories

    directories.require_free_place(out)


def show(table: pd.DataFrame) -> None:
    """Print a table."""
    typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:.4g}", max_colwidth=60))
