"""What commands do with a result: score an edit, print tables and texts, write the run folder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lens_steer.cli.option_values import lines_of
from lens_steer.cli.options import ScoringOptions
from lens_steer.cli.reporting import tell
from lens_steer.errors import LensSteerWarning
from lens_steer.statistics.verdict import Change

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from jaxtyping import Int

    from lens_steer.evaluation.evaluation import Evaluation
    from lens_steer.evaluation.scorers import Scorer
    from lens_steer.interventions.intervention import Intervention
    from lens_steer.report.study import Study
    from lens_steer.texts.contrast import ContrastSet

_SHOWN_PAIRS = 3  # texts before and after
_LONGEST_TEXT = 300  # characters of a text on the screen


def evaluate_edit(
    hosted: Any,
    edit: Intervention,
    held: ContrastSet,
    scorer: Scorer,
    scoring: ScoringOptions,
    *,
    seed: int,
    batch_size: int | None,
) -> Evaluation:
    """Score an edit on the held-out half, with a scorer that has seen the other half only."""
    from lens_steer.evaluation.evaluation import evaluate

    warn_of_strength(edit, scoring.strength)
    return evaluate(
        hosted,
        edit,
        prompts=scoring.read_prompts(held)[0],
        scorer=scorer,
        neutral=held.control or held.target,
        seed=seed,
        chat=held.chat,
        samples=scoring.samples,
        batch_size=batch_size,
        strength=scoring.strength,
        max_new_tokens=scoring.max_new_tokens,
        temperature=scoring.temperature,
    )


def show_evaluation(result: Evaluation, scorer: Scorer, edit: Intervention, study: Study) -> None:
    """Print what an edit does and costs, some texts before and after, and how far the scorer can be trusted."""
    say(repr(edit))
    accuracy = getattr(scorer, "heldout_accuracy", None)
    if accuracy is not None:
        say(f"scored by {scorer.name}, whose accuracy on held-out texts is {accuracy:.3f}")
    show(result.frame)
    tell(verdicts={row["measure"]: Change.of(row).verdict for row in result.frame.to_dict("records")})
    show_pairs(result.texts)
    for sentence in study.summary:
        say(sentence)


def show_pairs(texts: pd.DataFrame) -> None:
    """Print the first prompts with their continuations before and after."""
    for row in texts.head(_SHOWN_PAIRS).to_dict("records"):
        say(f"\n{_cut(row['prompt'])} ...\n  before: {_cut(row['before'])}\n  after:  {_cut(row['after'])}")
    say("")


def _cut(text: str) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= _LONGEST_TEXT else line[:_LONGEST_TEXT] + " ..."


def warn_of_strength(edit: Intervention, strength: float) -> None:
    """Warn of a strength that goes away from the target, or beyond what was measured to be of use."""
    if strength < 0:
        what = f"--strength {strength:g} is below 0: it goes away from the target, as positive ones go towards it"
    elif edit.strengths is not None and strength > max(edit.strengths):
        what = (
            f"--strength {strength:g} lies above the range that was measured to be of use, {min(edit.strengths):g} to "
            f"{max(edit.strengths):g}"
        )
    else:
        return
    warnings.warn(what, LensSteerWarning, stacklevel=2)


def warn_of_nothing(edit: Intervention, remedy: str) -> None:
    """Warn where an edit moves no unit."""
    if not int(edit.support()["kept"].sum()):
        warnings.warn(f"this edit moves no unit and changes nothing: {remedy}", LensSteerWarning, stacklevel=2)


def unseen_half(held: ContrastSet, seen: Int[np.ndarray, " hash"], what: str) -> ContrastSet:
    """Return the held-out texts without those that `what` was made from, and warn where there are some."""
    from lens_steer.texts.seen import leave_out_seen

    left = leave_out_seen(held, seen)
    if left is not held:
        sides = ", ".join(
            f"{len(getattr(held, side)) - len(getattr(left, side))} of {len(getattr(held, side))} {side} texts"
            for side in ("source", "target")
        )
        warnings.warn(
            f"{what} was made from texts of the half that is to measure it: {sides} are left out; give the --seed and "
            "--holdout with which it was made",
            LensSteerWarning,
            stacklevel=2,
        )
    return left


def require_unseen_prompts(prompts: Path | None, seen: Int[np.ndarray, " hash"], what: str) -> None:
    """Refuse prompts of a file that `what` was made from."""
    from lens_steer.texts.seen import require_unseen

    if prompts is not None:
        require_unseen(lines_of(prompts), seen, what)


def seen_by_table(table: Path) -> Int[np.ndarray, " hash"]:
    """Return the hashes of the texts that chose the units of a table, by the run.json of `rank` beside it."""
    import numpy as np

    from lens_steer.directories import read_json
    from lens_steer.texts.seen import seen_in

    run = table.parent / "run.json"
    if not run.is_file():
        warnings.warn(
            f"there is no run.json beside {table}: whether the texts that measure chose these units is not known",
            LensSteerWarning,
            stacklevel=2,
        )
        return np.empty(0, dtype=np.int64)
    about = read_json(run)
    return seen_in(about if isinstance(about, dict) else {})


def write_run(
    out: Path,
    command: str,
    settings: dict[str, Any],
    study: Study,
    hosted: Any,
    contrast: ContrastSet | None = None,
    *,
    seen: Int[np.ndarray, " hash"] | None = None,
    most_rows: int | None = None,
) -> None:
    """Write a run folder, with each table as csv too.

    `seen`: hashes of the texts that chose what is in it. `most_rows`: of each table that `--json` writes.
    """
    from lens_steer.report.run_writing import save_study
    from lens_steer.texts.seen import pack

    save_study(
        study,
        out,
        name=command,
        model=hosted,
        contrast=contrast,
        seed=settings.get("seed"),
        settings=settings,
        csv=True,
        seen=None if seen is None else pack(seen),
    )
    tell_study(study, most_rows)
    say_written(out)


def tell_study(study: Study, most_rows: int | None = None) -> None:
    """Tell `--json` what a study found; texts stay in its files."""
    shown = {name: table.head(most_rows) if most_rows else table for name, table in study.frames.items()}
    tell(findings=study.summary, tables={name: table for name, table in shown.items() if name != "texts"})


def say_written(place: Path) -> None:
    """Say where a result lies."""
    tell(written=place)
    say(f"written to {place}")


def require_free_place(out: Path) -> None:
    """Refuse a place that is occupied or cannot be written, before the work is done."""
    from lens_steer import directories

    directories.require_free_place(out)


def show(table: pd.DataFrame) -> None:
    """Print a table."""
    say(table.to_string(index=False, float_format=lambda value: f"{value:.4g}", max_colwidth=60))


def say(line: str) -> None:
    """Write a line to standard output."""
    import sys

    sys.stdout.write(line + "\n")
