"""`lens-steer demo`: the whole job on the embedded model, without a network, or on a real one, and a report."""

from __future__ import annotations

from importlib.metadata import entry_points
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from lens_steer.cli.options import Seed
from lens_steer.cli.reporting import tell
from lens_steer.cli.runs import require_free_place, say, show_pairs, tell_study
from lens_steer.cli.study import find_studies, load_study
from lens_steer.errors import SettingError
from lens_steer.progress import heard

if TYPE_CHECKING:
    from lens_steer.report.study import Study

GROUP = "lens_steer.demos"
"""Entry points of demos of real models, by the model's name: functions of (model, *, out, seed) that return a study."""
_EMBEDDED = "microworld"
_PLACE = Path("runs/demo")


def demo(
    *,
    model: Annotated[
        str, Parameter(help="microworld, the embedded model, or smollm2, a real one that `lens-steer get` fetches.")
    ] = _EMBEDDED,
    out: Annotated[
        Path | None, Parameter(help="New directory for run and report; runs/demo, or the next free one.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Find the experts of a concept, steer with few units, and write a report; minutes.

    On the embedded model the concept is "rude", and it is steered away from; on smollm2 sadness is brought in.

    Example: lens-steer demo --seed 7

    Example: lens-steer demo --model smollm2
    """
    from lens_steer.report.page import write_report

    place = _free_place(_PLACE if model == _EMBEDDED else _PLACE.with_name(f"demo-{model}")) if out is None else out
    require_free_place(place)
    run = _embedded if model == _EMBEDDED else _known
    with heard("demo"):
        study = run(model, place / "run", seed)
    for line in study.summary:
        say(line)
    tell_study(study)
    show_pairs(study.frames["texts"])
    report = write_report(place / "report.html", place / "run")
    tell(written=report)
    say(f"The report is {report}")


def _embedded(model: str, out: Path, seed: int) -> Study:
    from lens_steer.host.load import load_model
    from lens_steer.texts.readers import read_contrast

    if "demo" not in find_studies():
        raise SettingError("the study of the demo is not installed: run `make demo`, or `pip install -e .` again")
    run = load_study("demo")
    study: Study = run(load_model(model), read_contrast("microworld:rude", n=400, seed=seed), out=out, seed=seed)
    return study


def _known(model: str, out: Path, seed: int) -> Study:
    from lens_steer.host.load import load_model

    demos = _find_demos()
    if model not in demos:
        others = ", ".join(demos) or "no other that is installed: run `pip install -e .` again"
        raise SettingError(
            f"there is no demo of {model!r}; there is one of {_EMBEDDED}, and of {others}. On another model, with "
            "texts of your own: lens-steer study chat_demo"
        )
    hosted = load_model(model)  # says what to fetch, before anything else is loaded
    study: Study = demos[model].load()(hosted, out=out, seed=seed)
    return study


def _find_demos() -> dict[str, Any]:
    """Return the entry points of demos of real models, by name."""
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def _free_place(first: Path = _PLACE) -> Path:
    """Return runs/demo, or runs/demo-2 and so on when earlier demos are there."""
    names = (first if number == 1 else first.with_name(f"{first.name}-{number}") for number in count(1))
    return next(place for place in names if not place.exists())
